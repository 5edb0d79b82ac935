"""How long a solve takes with its data: over AXI4-Streams, and over AXI4-Lite.

    python benchmarks/ports.py [--engine compiled] [--rounds 3]

A solve of as many columns as the array has cells, one sample each, on the RTL: 128 cells, 8 codes a
cycle to the DACs, streams of 64 bits, 23 cycles of settling, a unit without product accumulators.
Counted are clock cycles of the simulated unit, from the write of the first register or the first
beat of the couplings to the last word of the results; the host's thinking costs none. What the
specification says of the same job stands beside it. Every read-out is compared with the numeric
engine's. On AXI4-Lite nobody waits: a write takes two cycles, a read of a window six.
"""

from __future__ import annotations

import argparse

import numpy as np
from measured import table

from thermokron.host import CompiledUnit, CosimUnit, open_unit
from thermokron.model import Job, NumericUnit, UnitSpec

SPEC = UnitSpec(
    cells=128,
    lanes=8,
    dac_lanes=8,
    stream_bits=64,
    rhs_depth=128,
    second_moments=False,
)
SETTLE_CYCLES = 23
#: How much longer than the longer of array and stream a solve may take.
ASKED = 1.3


def solve(seed: int) -> Job:
    """A matrix that no bank holds yet, and a right-hand side for every cell."""
    rng = np.random.default_rng(seed)
    n = SPEC.cells
    noise = rng.integers(-1, 2, (n, n))
    couplings = np.triu(noise, 1) + np.triu(noise, 1).T + SPEC.coupling_max * np.eye(n, dtype=int)
    return Job(
        couplings=couplings,
        biases=rng.integers(-SPEC.bias_max // 4, SPEC.bias_max // 4, (n, n)),
        temperature=20,
        settle_cycles=SETTLE_CYCLES,
        interval_cycles=SPEC.shortest_interval(False),
        samples=1,
        second_moments=False,
    )


def measure(unit: CompiledUnit | CosimUnit, seeds: range, *, streams: bool) -> list[int]:
    """Clock cycles of each solve, with everything that passes the ports for it."""
    unit.streams = streams
    found = []
    for seed in seeds:
        job = solve(seed)
        before = unit.info()["cycles"]
        readout = unit.run(job, stream=seed << 16)
        found.append(int(unit.info()["cycles"] - before))
        expected = NumericUnit(SPEC, seed=unit.seed).run(job, stream=seed << 16)
        assert np.array_equal(readout.sums, expected.sums)
        cycles = SPEC.phase_cycles(job, stream_biases=streams, stream_results=streams)
        assert dict(readout.cycles) == cycles, (readout.cycles, cycles)
    return found


def bounds(job: Job) -> tuple[int, int]:
    """Cycles of a job on the array, and on the busier direction of the streams."""
    array = sum(SPEC.phase_cycles(job)[p] for p in ("load", "discharge", "settle", "sample"))
    ports = SPEC.port_cycles(job)
    return array, max(ports["couplings"] + ports["biases"], ports["results"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=("compiled", "cosim"), default="compiled")
    parser.add_argument("--rounds", type=int, default=3, help="solves, each of another matrix")
    args = parser.parse_args()
    array, stream = bounds(solve(0))
    with open_unit(args.engine, SPEC) as unit:
        assert isinstance(unit, CompiledUnit | CosimUnit)
        streams = measure(unit, range(args.rounds), streams=True)
        lite = measure(unit, range(args.rounds, 2 * args.rounds), streams=False)
    assert len(set(streams)) == len(set(lite)) == 1, (streams, lite)  # of any matrix the same
    longer = max(array, stream)
    rows = [
        ["on the array: load to the last sample", f"{array:,}", f"{array / longer:.2f}"],
        ["on the streams, the busier direction", f"{stream:,}", f"{stream / longer:.2f}"],
        [
            "the whole, as `UnitSpec.elapsed_cycles` says",
            f"{SPEC.elapsed_cycles(solve(0)):,}",
            f"{SPEC.elapsed_cycles(solve(0)) / longer:.2f}",
        ],
        [
            "the whole, measured, with its registers",
            f"{streams[0]:,}",
            f"{streams[0] / longer:.2f}",
        ],
        ["the same over AXI4-Lite, measured", f"{lite[0]:,}", f"{lite[0] / longer:.1f}"],
    ]
    print(table([f"128 columns, {args.engine}", "clock cycles", "/ the longer of two"], rows))
    if streams[0] > ASKED * longer:
        raise SystemExit(f"{streams[0]} cycles are more than {ASKED} times {longer}")


if __name__ == "__main__":
    main()
