"""Same seed, same job: the simulated Verilog returns the integers of the numeric engine.

Randomised jobs, 48 for each simulator: odd and even numbers of cells, full and folded lanes,
the narrowest and the widest codes, one and several bias vectors, both modes, clipping, indefinite
matrices, ideal and flawed arrays, the shortest interval and longer ones.
"""

from __future__ import annotations

import numpy as np
import pytest

from thermokron.host import open_unit
from thermokron.model import ArrayPhysics, Job, NumericUnit, Readout, UnitSpec
from thermokron.sim import SIMULATORS, missing

SPECS = {
    "odd, folded": UnitSpec(cells=5, lanes=1, adc_bits=8, bias_bits=8, coupling_bits=5),
    "two folds": UnitSpec(cells=6, lanes=3, adc_bits=12, rhs_depth=4, discharge_cycles=3),
    "wide": UnitSpec(cells=4, adc_bits=16, bias_bits=16, coupling_bits=16, clock_hz=333e6),
    "narrow": UnitSpec(
        cells=3, adc_bits=3, bias_bits=4, coupling_bits=3, temperature_bits=6, rhs_depth=4
    ),
}
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


def random_job(spec: UnitSpec, rng: np.random.Generator, *, clip: bool) -> Job:
    """A job that the unit can do; with `clip`, one whose codes hit the rails."""
    n = spec.cells
    factors = rng.standard_normal((n, n + 2))
    matrix = factors @ factors.T / (n + 2) + rng.uniform(0.05, 0.5) * np.eye(n)
    matrix /= np.abs(matrix).max()
    if rng.random() < 0.2:
        matrix -= 1.05 * np.linalg.eigvalsh(matrix)[0] * np.eye(n)  # one mode grows
        matrix /= np.abs(matrix).max()
    second_moments = bool(rng.random() < 0.5)
    vectors = 1 if second_moments else int(rng.integers(1, 5))
    shortest = spec.shortest_interval(second_moments)
    return Job(
        couplings=spec.coupling_codes(matrix),
        biases=spec.bias_codes(rng.uniform(-1, 1, (vectors, n)) * (1.0 if clip else 0.2)),
        temperature=spec.temperature_max if clip else int(rng.integers(0, 8)),
        settle_cycles=int(rng.integers(1, 200)),
        interval_cycles=shortest + int(rng.choice([0, 1, 7])),
        samples=int(rng.integers(1, 120)) if second_moments else int(rng.integers(1, 40)),
        second_moments=second_moments,
    )


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
    assert len(jobs) == 48
    assert sum(bool(r.clipped.any()) for r in readouts) >= 10
    assert sum(not r.clipped.any() for r in readouts) >= 10
    assert sum(job.second_moments for job in jobs) >= 10
    assert sum(len(job.biases) > 1 for job in jobs) >= 10
    lowest = [np.linalg.eigvalsh(job.couplings.astype(float))[0] for job in jobs]
    assert sum(value < 0 for value in lowest) >= 3


LARGEST = {
    "most cells": UnitSpec(
        cells=128, lanes=2, coupling_bits=16, bias_bits=16, adc_bits=16, rhs_depth=256
    ),
    "a prime number of cells": UnitSpec(
        cells=127, lanes=1, coupling_bits=3, bias_bits=4, adc_bits=3, temperature_bits=6
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGEST)
def test_same_integers_at_the_limits_of_the_spec(name: str) -> None:
    if reason := missing("verilator"):
        pytest.skip(reason)
    spec = LARGEST[name]
    rng = np.random.default_rng(3)
    with open_unit("cosim", spec, seed=5) as unit:
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


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("physics", PHYSICS)
@pytest.mark.parametrize("name", SPECS)
def test_same_integers(name: str, physics: str, simulator: str) -> None:
    if reason := missing(simulator):
        pytest.skip(reason)
    spec = SPECS[name]
    jobs, expected = jobs_and_readouts(name, physics)
    with open_unit("cosim", spec, PHYSICS[physics], seed=11, simulator=simulator) as unit:
        found = [unit.run(job) for job in jobs]
        # the whole of each read-out: sums, products, clip counts and cycles by phase
        assert found == expected
        assert [r.cycles for r in found] == [spec.phase_cycles(job) for job in jobs]
        assert unit.stream == sum(len(job.biases) for job in jobs)
        # a given stream repeats a run, and loading ahead changes nothing
        assert unit.run(jobs[0], stream=0) == expected[0]
        unit.stream = 0
        assert list(unit.run_many(jobs)) == expected
