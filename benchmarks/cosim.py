"""Speed of co-simulation: cycles per second, milliseconds per job, and the second start.

    python benchmarks/cosim.py [--sim verilator|icarus] [--cells 16] [--samples 1000]

Prints one line per measurement. The goals, on Verilator: a job of 16 cells, 12 bits and 1,000
samples at the shortest interval in under 40 ms, and a second start in under 3 s.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from thermokron.host import CosimUnit
from thermokron.model import Job, NumericUnit, UnitSpec


def job(spec: UnitSpec, samples: int, seed: int) -> Job:
    """A well-conditioned job with second moments, at the shortest interval."""
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((spec.cells, 2 * spec.cells))
    matrix = factors @ factors.T / (2 * spec.cells)
    scale = 1.01 * np.sqrt(np.diag(matrix))
    return Job(
        couplings=spec.coupling_codes(matrix / scale[:, None] / scale),
        biases=np.zeros((1, spec.cells), np.int64),
        temperature=spec.temperature_max // 4,
        settle_cycles=50,
        interval_cycles=spec.shortest_interval(),
        samples=samples,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sim", choices=("verilator", "icarus"), default="verilator")
    parser.add_argument("--cells", type=int, default=16)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=20)
    args = parser.parse_args()
    spec = UnitSpec(cells=args.cells)
    jobs = [job(spec, args.samples, seed) for seed in range(args.jobs)]

    for which in ("first", "second"):
        begin = time.perf_counter()
        with CosimUnit(spec, simulator=args.sim) as unit:
            unit.run(jobs[0])
            print(f"{which} start, up to the first read-out: {time.perf_counter() - begin:.2f} s")

    with CosimUnit(spec, simulator=args.sim) as unit:
        for name, execute in (
            ("run", lambda: [unit.run(j) for j in jobs]),
            ("run_many", lambda: list(unit.run_many(jobs))),
        ):
            before, begin = unit.info()["cycles"], time.perf_counter()
            execute()
            seconds, cycles = time.perf_counter() - begin, unit.info()["cycles"] - before
            print(
                f"{name}: {1e3 * seconds / len(jobs):.1f} ms per job, {cycles / len(jobs):.0f} "
                f"cycles per job with bus traffic, {cycles / seconds:.0f} cycles/s"
            )

    numeric = NumericUnit(spec)
    begin = time.perf_counter()
    for j in jobs:
        numeric.run(j)
    print(f"numeric engine: {1e3 * (time.perf_counter() - begin) / len(jobs):.1f} ms per job")


if __name__ == "__main__":
    main()
