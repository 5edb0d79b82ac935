"""How fast the engines that run RTL are: clock rates, milliseconds a job, starts, a training.

    python benchmarks/engines.py [--before REV] [--cells 16 32] [--rounds 5]

Jobs of 1,000 samples with second moments at the shortest interval, and jobs as K-FAC solves them,
64 bias vectors with one reading each. All take turns in one process; of each figure the median of
the rounds stands there, with the least and the largest. Clock rates count every cycle of a job:
programming, sampling, accumulation and read-out, with the drawing of the samples.

"free" is the compiled library by itself, sampling one constant ADC word: what is lost to the bus,
the converters' pins, the array's model and Python is the rest. With `--before` the co-simulation
of an earlier commit of this repository is measured in the same rounds, out of a worktree of its
own.

Starts are measured three times. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jobs import moments, solves
from measured import in_turn, spread, table

from thermokron.host import CompiledUnit, open_unit
from thermokron.host.train import TrainConfig, train
from thermokron.model import Job, UnitSpec

ROOT = Path(__file__).resolve().parents[1]
#: Jobs of a round.
JOBS = 10
FREE_CYCLES = 500_000

#: What measures co-simulation in a worktree of an earlier commit: jobs a line, seconds and cycles.
EARLIER = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from thermokron.host import CosimUnit
from thermokron.model import UnitSpec
from jobs import moments, solves
with CosimUnit(UnitSpec(cells=int(sys.argv[1])), simulator="verilator") as unit:
    for line in sys.stdin:
        make = moments if line.strip() == "moments" else solves
        jobs = [make(unit.spec, seed) for seed in range({JOBS})]
        cycles, begin = unit.info()["cycles"], time.perf_counter()
        for job in jobs:
            unit.run(job)
        seconds = time.perf_counter() - begin
        print(seconds, unit.info()["cycles"] - cycles, flush=True)
"""


class Earlier:
    """Co-simulation of an earlier commit, in a process that answers a line with a line."""

    def __init__(self, worktree: Path, cells: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", EARLIER, str(cells)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(worktree / ".types")},
        )

    def measure(self, kind: str) -> float:
        """Clock cycles a second, in millions."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(kind, file=self._process.stdin, flush=True)
        seconds, cycles = map(float, self._process.stdout.readline().split())
        return cycles / seconds / 1e6

    def close(self) -> None:
        """End it."""
        self._process.communicate()


def rate(unit: Any, jobs: list[Job]) -> float:
    """Clock cycles a second, in millions."""
    cycles, begin = unit.info()["cycles"], time.perf_counter()
    for job in jobs:
        unit.run(job)
    seconds = time.perf_counter() - begin
    return float(unit.info()["cycles"] - cycles) / seconds / 1e6


def free_rate(unit: CompiledUnit) -> float:
    """The same of the library by itself, in the midst of a run that samples."""
    unit.streams = False  # which nobody plays here
    unit._start(replace(moments(unit.spec, 0), samples=2**20), 0)
    library, address = unit.link._library, unit.link._unit
    library.unit_run(address, 5000)
    run_free = library.unit_run_free
    run_free.argtypes, run_free.restype = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p], None
    word = np.full(unit.spec.cells, 0x12345678, np.uint32)
    begin = time.perf_counter()
    run_free(address, FREE_CYCLES, word.ctypes.data)
    seconds = time.perf_counter() - begin
    unit.link.reset()
    unit.streams = unit.spec.stream_bits is not None
    return FREE_CYCLES / seconds / 1e6


def clock_rates(cells: int, rounds: int, worktree: Path | None) -> list[list[str]]:
    """Rows of the first table."""
    spec = UnitSpec(cells=cells)
    rows = []
    with ExitStack() as stack:
        compiled = stack.enter_context(CompiledUnit(spec))
        cosim = stack.enter_context(open_unit("cosim", spec))
        earlier = Earlier(worktree, cells) if worktree else None
        for kind, make in (("moments", moments), ("solves", solves)):
            jobs = [make(spec, seed) for seed in range(JOBS)]
            what: dict[str, Callable[[], float]] = {
                "compiled": lambda jobs=jobs: rate(compiled, jobs),
                "cosim": lambda jobs=jobs: rate(cosim, jobs),
                "free": lambda: free_rate(compiled),
            }
            if earlier:
                what["before"] = lambda kind=kind: earlier.measure(kind)
            in_turn(what, 1)  # what is made once is made
            found = in_turn(what, rounds)
            ratios = {
                "free": [a / b for a, b in zip(found["compiled"], found["free"], strict=True)]
            }
            if earlier:
                for name in ("compiled", "cosim"):
                    pairs = zip(found[name], found["before"], strict=True)
                    ratios[name] = [a / b for a, b in pairs]
            rows.append(
                [
                    f"{cells} cells, {kind}",
                    *(
                        spread(found[n]) if n in found else ""
                        for n in ("before", "cosim", "compiled", "free")
                    ),
                    *(
                        spread(ratios[n]) if n in ratios else ""
                        for n in ("cosim", "compiled", "free")
                    ),
                ]
            )
        if earlier:
            earlier.close()
    return rows


def start(engine: str, cells: int, cache: str) -> float:
    """Seconds from the start of a process to its first read-out."""
    script = (
        "import sys, time; begin = time.perf_counter()\n"
        "from thermokron.host import open_unit\nfrom thermokron.model import UnitSpec\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom jobs import moments\n"
        f"spec = UnitSpec(cells={cells})\n"
        f"with open_unit({engine!r}, spec) as unit: unit.run(moments(spec, 0, 10))\n"
        "print(time.perf_counter() - begin)"
    )
    environment = os.environ | {"THERMOKRON_CACHE": cache}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
    )
    return float(done.stdout)


def starts(cells: int, rounds: int) -> list[list[str]]:
    """Rows of the second table: with an empty cache, and with what that has left."""
    rows = []
    for engine in ("compiled", "cosim"):
        first, second = [], []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as cache:
                first.append(start(engine, cells, cache))
                second.append(start(engine, cells, cache))
        rows.append([f"{engine}, {cells} cells", spread(first), spread(second)])
    return rows


def training(rounds: int, epochs: int) -> list[list[str]]:
    """Rows of the third table: the demo's training, wall seconds beside the numeric engine's."""

    def seconds(engine: str) -> float:
        begin = time.perf_counter()
        train(TrainConfig(engine=engine, epochs=epochs))
        return time.perf_counter() - begin

    engines = ("numeric", "compiled", "cosim")
    what: dict[str, Callable[[], float]] = {e: lambda e=e: seconds(e) for e in engines}
    in_turn(what, 1)
    found = in_turn(what, rounds)
    return [
        [
            engine,
            spread(found[engine]),
            spread([a / b for a, b in zip(found[engine], found["numeric"], strict=True)]),
        ]
        for engine in engines
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", metavar="REV", help="an earlier commit, to compare with")
    parser.add_argument("--cells", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10, help="of the training")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        worktree = Path(scratch) / "before" if args.before else None
        git = ["git", "-C", str(ROOT), "worktree"]
        if worktree:
            subprocess.run([*git, "add", "-q", "--detach", str(worktree), args.before], check=True)
        try:
            rows = [row for n in args.cells for row in clock_rates(n, args.rounds, worktree)]
        finally:
            if worktree:
                subprocess.run([*git, "remove", "--force", str(worktree)], check=True)
    head = ["M cycles/s", f"cosim at {args.before or '(not asked)'}", "cosim", "compiled", "free"]
    print(table([*head, "cosim / before", "compiled / before", "compiled / free"], rows))
    print()
    print(table(["start, s", "first", "later"], starts(args.cells[-1], min(args.rounds, 3))))
    print()
    rows = training(args.rounds, args.epochs)
    print(table([f"K-FAC, {args.epochs} epochs", "wall, s", "/ numeric"], rows))


if __name__ == "__main__":
    main()
