"""Runs benches: modules of `@cocotb.test()` functions, on a design in a simulator.

From a pytest test or from the command line:

    from thermokron.sim import missing, run_bench

    if reason := missing("icarus"):
        pytest.skip(reason)
    result = run_bench("thermokron.sim.benches.bench_sampler", verilog, "sampler", "icarus",
                       parameters={"seed": 3})          # JSON-able; read in the bench with
                                                        # `bench_parameters()`
    print(result.output)

`run_bench` builds (or takes from the cache) a simulator for the Verilog text, runs every test
of the module and raises `BenchFailure` with the tail of the log if one fails. All signals of
the design can be read and written.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thermokron.model.files import claimed
from thermokron.sim.builders import tail
from thermokron.sim.scratch import Scratch
from thermokron.sim.simulators import Build, build

__all__ = [
    "PARAMETERS",
    "BenchFailure",
    "BenchOverdue",
    "BenchResult",
    "bench_parameters",
    "run_bench",
]

#: The environment variable that carries a bench's parameters into the simulation.
PARAMETERS = "THERMOKRON_BENCH_PARAMETERS"
#: What cocotb says in its log of a test that has failed, and how often to look.
FAILED = re.compile(r"cocotb\.regression +\S+\.(\w+) failed$", re.MULTILINE)
POLL_S = 0.2


class BenchFailure(AssertionError):
    """A bench failed; the message ends with the tail of its log."""


class BenchOverdue(BenchFailure):
    """A bench was stopped, for its time was up."""


@dataclass(frozen=True)
class BenchResult:
    """A bench that passed.

    Attributes
    ----------
    tests : tuple of str
        Names of the tests that ran.
    output : str
        What the simulation printed.
    log, waveform : Path or None
        Where that and the waveform were left, if anywhere.
    seconds : float
        Wall time of the simulation, without the build.
    """

    tests: tuple[str, ...]
    output: str
    log: Path | None
    waveform: Path | None
    seconds: float


def run_bench(
    module: str,
    verilog: str,
    top: str,
    simulator: str,
    *,
    parameters: Mapping[str, Any] | None = None,
    tests: str | None = None,
    waves: str | None = None,
    folder: Path | None = None,
    internals: bool = True,
    timeout_s: float = 600.0,
    first_failure: bool = False,
) -> BenchResult:
    """Build a design, run the cocotb tests of a module on it, and raise if one fails.

    Parameters
    ----------
    module : str
        Importable name of the bench.
    verilog, top, simulator, waves, internals
        As for `build`.
    parameters : mapping, optional
        JSON-able values that the bench reads with `bench_parameters()`.
    tests : str, optional
        Regular expression; only tests whose names it finds are run.
    folder : Path, optional
        Where log, results and waveform go, needed for waves; a temporary one, which does not stay,
        if not given.
    timeout_s : float
        Wall time after which the simulation is stopped, which is a failure.
    first_failure : bool
        Stop when a test has failed, for whom it is enough to know that one does.

    Raises
    ------
    BenchFailure
        With the tail of the log; also if no test ran, or (`BenchOverdue`) time was up.
    SimulatorMissing, BuildFailure
        As `build` does.
    ValueError
        If there are waves and no folder.
    FolderInUse
        If another bench is writing there.
    """
    if waves is not None and folder is None:
        raise ValueError(f"waves = {waves!r} needs a folder for the waveform")
    design = build(verilog, top, simulator, waves=waves, internals=internals)
    if folder is not None:
        folder = folder.absolute()
        with claimed(folder):
            return _run(
                module, design, folder, parameters, tests, timeout_s, first_failure, keep=True
            )
    with Scratch() as scratch:
        return _run(
            module, design, scratch.folder, parameters, tests, timeout_s, first_failure, keep=False
        )


def _run(
    module: str,
    design: Build,
    folder: Path,
    parameters: Mapping[str, Any] | None,
    tests: str | None,
    timeout_s: float,
    first_failure: bool,
    *,
    keep: bool,
) -> BenchResult:
    log, results = folder / "simulation.log", folder / "results.xml"
    waveform = folder / f"{design.top}.{design.waves}" if design.waves else None
    results.unlink(missing_ok=True)
    environment = design.environment(module, results)
    environment[PARAMETERS] = json.dumps(dict(parameters or {}))
    if tests is not None:
        environment["COCOTB_TEST_FILTER"] = tests
    begin = time.perf_counter()
    with open(log, "wb") as stream:
        try:
            command = design.command(waveform)
            with subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            ) as process:
                try:
                    stopped = _wait(process, log, timeout_s, first_failure)
                finally:
                    process.kill()  # unless it has ended
        except subprocess.TimeoutExpired:
            raise BenchOverdue(
                f"{module} on {design.simulator}: stopped after {timeout_s:g} s; a slow machine "
                f"may need more (on the command line --timeout); its log ends:\n{tail(log)}"
            ) from None
    seconds = time.perf_counter() - begin
    names, failed = ([], [stopped]) if stopped else _read_results(results)
    if failed or not names:
        what = f"failed: {', '.join(failed)}" if failed else "no test ran"
        if not shutil.disk_usage(folder).free:
            what += ", and the disk is full"
        where = f"log: {log}" if keep else "its log ends:"
        raise BenchFailure(f"{module} on {design.simulator}: {what}; {where}\n{tail(log)}")
    output = log.read_text(encoding="utf-8", errors="replace")
    return BenchResult(tuple(names), output, log if keep else None, waveform, seconds)


def _wait(
    process: subprocess.Popen[bytes], log: Path, timeout_s: float, first_failure: bool
) -> str | None:
    """Wait until a simulation ends, or the log says that a test has failed; the name of that one.

    `subprocess.TimeoutExpired` if time is up.
    """
    end = time.monotonic() + timeout_s
    while True:
        left = end - time.monotonic()
        try:
            process.wait(min(POLL_S, left) if first_failure else left)
            return None
        except subprocess.TimeoutExpired:
            if first_failure and (found := FAILED.search(log.read_text("utf-8", "replace"))):
                return found[1]
            if time.monotonic() >= end:
                raise


def _read_results(results: Path) -> tuple[list[str], list[str]]:
    try:
        cases = ElementTree.parse(results).getroot().iter("testcase")
    except (OSError, ElementTree.ParseError):
        return [], []
    names, failed = [], []
    for case in cases:
        if case.find("skipped") is not None:
            continue
        names.append(case.get("name", "?"))
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(names[-1])
    return names, failed


def bench_parameters() -> dict[str, Any]:
    """In a bench: the `parameters` that `run_bench` was given."""
    values: dict[str, Any] = json.loads(os.environ.get(PARAMETERS, "{}"))
    return values
