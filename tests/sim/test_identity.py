"""Same seed, same job: the compiled RTL and the simulated Verilog return the numeric integers.

Randomised jobs, 60 for the compiled engine and for each simulator: odd and even numbers of cells,
full and folded lanes, the narrowest and the widest codes, one and several bias vectors, both modes,
clipping, indefinite matrices, ideal and flawed arrays, the shortest interval and longer ones;
streams of each width and none, each number of DAC lanes. Each job passes the streams, alone and
ahead of its turn; the register windows; and either at random, while DACs and streams stall. And 36
more of the kind that K-FAC's solves are: many bias vectors, one reading each, hardly settled.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from thermokron.host import CompiledUnit, CosimUnit, open_unit
from thermokron.host.linalg import program
from thermokron.model import ArrayPhysics, Job, NumericUnit, Readout, UnitFault, UnitSpec
from thermokron.sim import SIMULATORS, FrontEndFlaws, missing

SPECS = {
    "odd, folded": UnitSpec(
        cells=5, lanes=1, adc_bits=8, bias_bits=8, coupling_bits=5, dac_lanes=2, stream_bits=32
    ),
    "two folds": UnitSpec(
        cells=6, lanes=3, rhs_depth=4, discharge_cycles=3, dac_lanes=4, stream_bits=128
    ),
    "wide": UnitSpec(cells=4, adc_bits=16, bias_bits=16, coupling_bits=16, clock_hz=333e6),
    "narrow": UnitSpec(
        cells=3, adc_bits=3, bias_bits=4, coupling_bits=3, temperature_bits=6, rhs_depth=4,
        dac_lanes=8, stream_bits=None,
    ),
    "means only": UnitSpec(
        cells=9, lanes=3, adc_bits=7, bias_bits=9, coupling_bits=9, dac_lanes=16,
        second_moments=False,
    ),
}  # fmt: skip
PHYSICS = {
    "ideal": ArrayPhysics.ideal(),
    "flawed": ArrayPhysics(
        coupling_mismatch=0.03,
        cell_offset=0.02,
        noise_mismatch=0.2,
        adc_gain_error=0.02,
        adc_offset=0.01,
        adc_noise=0.003,
        adc_inl_lsb=0.7,
        device_seed=5,
    ),
}
JOBS = 6
#: What runs RTL: the compiled engine, and the simulators of the co-simulated one.
RTL = ("compiled", *SIMULATORS)
#: What simulators are asked each time; the rest of theirs takes minutes, most of them compilers'.
QUICK = {("odd, folded", "flawed"), ("means only", "flawed"), ("folded", "flawed")}


def cases(names: Iterable[str]) -> list[Any]:
    """Specification, physics, and what runs the RTL."""
    return [
        pytest.param(
            *case,
            marks=[] if case[2] == "compiled" or case[:2] in QUICK else [pytest.mark.slow],
            id="-".join(case),
        )
        for case in itertools.product(names, PHYSICS, RTL)
    ]


def opened(
    what: str, spec: UnitSpec, physics: ArrayPhysics, *, seed: int
) -> CompiledUnit | CosimUnit:
    """A unit whose RTL is run by one of `RTL`."""
    if what == "compiled":
        unit = open_unit("compiled", spec, physics, seed=seed)
    elif reason := missing(what):
        pytest.skip(reason)
    else:
        unit = open_unit("cosim", spec, physics, seed=seed, simulator=what)
    assert isinstance(unit, CompiledUnit | CosimUnit)
    return unit


def random_job(spec: UnitSpec, rng: np.random.Generator, *, clip: bool) -> Job:
    """A job that the unit can do; with `clip`, one whose codes hit the rails."""
    n = spec.cells
    factors = rng.standard_normal((n, n + 2))
    matrix = factors @ factors.T / (n + 2) + rng.uniform(0.05, 0.5) * np.eye(n)
    matrix /= np.abs(matrix).max()
    if rng.random() < 0.2:
        matrix -= 1.05 * np.linalg.eigvalsh(matrix)[0] * np.eye(n)  # one mode grows
        matrix /= np.abs(matrix).max()
    second_moments = bool(rng.random() < 0.5) and spec.second_moments
    vectors = 1 if second_moments else int(rng.integers(1, 5))
    shortest = spec.shortest_interval(second_moments)
    return Job(
        couplings=spec.coupling_codes(matrix),
        biases=spec.bias_codes(rng.uniform(-1, 1, (vectors, n)) * (1.0 if clip else 0.2)),
        temperature=spec.temperature_max if clip else int(rng.integers(0, 8)),
        settle_cycles=int(rng.integers(1, 200)),
        interval_cycles=shortest + int(rng.choice([0, 1, 7])),
        samples=int(rng.integers(1, 120) if second_moments else rng.choice([1, 1, 2, 17, 39])),
        second_moments=second_moments,
    )


def assert_same_however(
    unit: CompiledUnit | CosimUnit, jobs: list[Job], expected: list[Readout]
) -> None:
    """Nor does it change the integers how data come, or who stalls; `expected` begins at 0."""
    unit.stream, has_streams = 0, unit.streams
    assert has_streams == (unit.spec.stream_bits is not None)
    unit.streams = False
    for job, found, other in zip(jobs, unit.run_many(jobs), expected, strict=True):
        assert found == replace(
            other, cycles=unit.spec.phase_cycles(job, stream_biases=False, stream_results=False)
        )
    unit.stream = 0
    rng = np.random.default_rng(len(jobs))
    unit.link.misbehave(FrontEndFlaws(stall=0.4, stream_stall=0.5, seed=9))
    for job, other in zip(jobs, expected, strict=True):
        unit.streams = has_streams and bool(rng.random() < 0.7)
        assert replace(unit.run(job), cycles=other.cycles) == other
    unit.streams, unit.stream = has_streams, 0
    found_ahead = list(unit.run_many(jobs))
    assert [
        replace(f, cycles=e.cycles) for f, e in zip(found_ahead, expected, strict=True)
    ] == expected
    unit.link.misbehave(FrontEndFlaws())


def jobs_and_readouts(name: str, physics: str) -> tuple[list[Job], list[Readout]]:
    """The jobs of one unit, and what the numeric engine answers to them."""
    spec = SPECS[name]
    rng = np.random.default_rng([list(SPECS).index(name), list(PHYSICS).index(physics)])
    jobs = [random_job(spec, rng, clip=i % 3 == 2) for i in range(JOBS)]
    unit = NumericUnit(spec, PHYSICS[physics], seed=11)
    return jobs, [unit.run(job) for job in jobs]


def test_the_jobs_are_what_they_are_meant_to_be() -> None:
    every = [jobs_and_readouts(name, physics) for name in SPECS for physics in PHYSICS]
    jobs = [job for jobs, _ in every for job in jobs]
    readouts = [readout for _, readouts in every for readout in readouts]
    assert len(jobs) == 60
    assert sum(bool(r.clipped.any()) for r in readouts) >= 10
    assert sum(not r.clipped.any() for r in readouts) >= 10
    assert sum(job.second_moments for job in jobs) >= 10
    assert sum(len(job.biases) > 1 for job in jobs) >= 10
    assert sum(job.samples == 1 for job in jobs) >= 10
    lowest = [np.linalg.eigvalsh(job.couplings.astype(float))[0] for job in jobs]
    assert sum(value < 0 for value in lowest) >= 3


LARGEST = {
    "most cells": UnitSpec(
        cells=256,
        lanes=2,
        coupling_bits=16,
        bias_bits=16,
        adc_bits=16,
        rhs_depth=256,
        dac_lanes=16,
        stream_bits=128,
    ),
    "a prime number of cells": UnitSpec(
        cells=127,
        lanes=1,
        coupling_bits=3,
        bias_bits=4,
        adc_bits=3,
        temperature_bits=6,
        dac_lanes=4,
        stream_bits=32,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("rtl", ["compiled", "verilator"])
@pytest.mark.parametrize("name", LARGEST)
def test_same_integers_at_the_limits_of_the_spec(name: str, rtl: str) -> None:
    spec = LARGEST[name]
    rng = np.random.default_rng(3)
    with opened(rtl, spec, ArrayPhysics.ideal(), seed=5) as unit:
        for second_moments in (True, False):
            vectors = 1 if second_moments else spec.rhs_depth
            job = Job(
                couplings=spec.coupling_codes(0.8 * np.eye(spec.cells) + 0.2),
                biases=spec.bias_codes(rng.uniform(-0.2, 0.2, (vectors, spec.cells))),
                temperature=spec.temperature_max // 3,
                settle_cycles=50,
                interval_cycles=spec.shortest_interval(second_moments),
                samples=3,
                second_moments=second_moments,
            )
            found = unit.run(job, stream=0)
            assert found == NumericUnit(spec, seed=5).run(job, stream=0)
            assert found.cycles == spec.phase_cycles(job)


SOLVERS = {
    "ten cells": UnitSpec(cells=10, adc_bits=8, rhs_depth=40, dac_lanes=8),
    "folded": UnitSpec(
        cells=7, lanes=1, coupling_bits=5, bias_bits=8, rhs_depth=64, dac_lanes=2, stream_bits=32
    ),
}
SOLVES = 9


def solve_jobs(name: str, physics: str) -> list[Job]:
    """Jobs as a K-FAC step makes them: a factor's couplings, with one batch of columns or two."""
    spec = SOLVERS[name]
    rng = np.random.default_rng([list(SOLVERS).index(name), list(PHYSICS).index(physics), 7])
    jobs: list[Job] = []
    n = spec.cells

    def columns() -> np.ndarray:
        vectors = int(rng.choice([1, 3, spec.rhs_depth - 1, spec.rhs_depth]))
        return spec.bias_codes(rng.uniform(-0.15, 0.15, (vectors, n))).astype(np.int16)

    while len(jobs) < SOLVES:
        activations = np.abs(
            rng.standard_normal((4 * n, n // 2)) @ rng.standard_normal((n // 2, n))
        )
        factor = activations.T @ activations / len(activations)
        factor += rng.choice([0.01, 0.1]) * np.trace(factor) / n * np.eye(n)
        scale = np.sqrt(factor.diagonal())
        interval = spec.shortest_interval(False) + int(rng.choice([0, 3]))
        unit_diagonal = np.minimum(factor / np.outer(scale, scale), 1.0)
        job = Job(
            couplings=spec.coupling_codes(unit_diagonal).astype(np.int16),
            biases=columns(),
            temperature=int(rng.integers(1, 4)),
            settle_cycles=int(rng.integers(1, 25)),
            interval_cycles=interval,
            samples=int(rng.choice([1, 1, 1, 2, 4])),
            second_moments=False,
        )
        jobs += [job, job.with_biases(columns())] if rng.random() < 0.6 else [job]
    return jobs[:SOLVES]


@pytest.mark.parametrize(("name", "physics", "rtl"), cases(SOLVERS))
def test_same_integers_of_solves(name: str, physics: str, rtl: str) -> None:
    spec, jobs = SOLVERS[name], solve_jobs(name, physics)
    numeric = NumericUnit(spec, PHYSICS[physics], seed=13)
    expected = [numeric.run(job) for job in jobs]
    assert max(len(job.biases) for job in jobs) == spec.rhs_depth
    assert any(a.couplings is b.couplings for a, b in itertools.pairwise(jobs))
    with opened(rtl, spec, PHYSICS[physics], seed=13) as unit:
        found = [unit.run(job) for job in jobs]
        assert found == expected
        assert [r.cycles for r in found] == [spec.phase_cycles(job) for job in jobs]
        unit.stream = 0
        assert list(unit.run_many(jobs)) == expected
        assert_same_however(unit, jobs, expected)
        unit.stream = sum(len(job.biases) for job in jobs)
        # a matrix that is written halfway, over the last one, is gone with its run
        stream = unit.stream - len(jobs[-1].biases)
        for other in (jobs[0], jobs[0].with_biases(jobs[0].biases[:1], temperature=0)):
            unit._start(other, 0)
            assert not unit.link.wait_interrupt(20)  # most of the couplings
            unit.abort()
            with pytest.raises(UnitFault, match="aborted"):
                unit._finish(other)
            assert unit.run(jobs[-1], stream=stream) == expected[-1]
        unit._start(jobs[0], 0)
        unit.link.reset()
        assert unit.run(jobs[-1], stream=stream) == expected[-1]


def test_a_matrix_on_the_array_solves_alike_in_every_engine() -> None:
    """The whole way: programmed, driven by what readings show, run again where they clip."""
    if reason := missing("verilator"):
        pytest.skip(reason)
    spec = SOLVERS["ten cells"]
    rng = np.random.default_rng(5)
    factors = rng.standard_normal((10, 12))
    M, B = factors @ factors.T / 12 + 0.1 * np.eye(10), rng.standard_normal((10, 45))
    answers = []
    for engine in ("numeric", "compiled", "cosim"):
        with open_unit(engine, spec, PHYSICS["flawed"], seed=2) as unit:
            on_array = program(unit, M)
            solved = [on_array.solve(B[:, :k]) for k in (45, 45, 7)]
            solved += [on_array.inv(samples=30), on_array.sample(50, B[:, 0])]
            answers.append([(s.value.tobytes(), s.seconds, s.runs, s.reruns) for s in solved])
    assert answers[0] == answers[1] == answers[2]
    assert any(reruns for *_, reruns in answers[0])


@pytest.mark.parametrize(("name", "physics", "rtl"), cases(SPECS))
def test_same_integers(name: str, physics: str, rtl: str) -> None:
    spec = SPECS[name]
    jobs, expected = jobs_and_readouts(name, physics)
    with opened(rtl, spec, PHYSICS[physics], seed=11) as unit:
        found = [unit.run(job) for job in jobs]
        # the whole of each read-out: sums, products, clip counts and cycles by phase
        assert found == expected
        assert [r.cycles for r in found] == [spec.phase_cycles(job) for job in jobs]
        assert unit.stream == sum(len(job.biases) for job in jobs)
        # a given stream repeats a run, and loading ahead changes nothing
        assert unit.run(jobs[0], stream=0) == expected[0]
        unit.stream = 0
        assert list(unit.run_many(jobs)) == expected
        assert_same_however(unit, jobs, expected)
