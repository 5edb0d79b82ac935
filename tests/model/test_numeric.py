"""The numeric engine: exact integers, errors of its estimates, thermox beside it."""

from __future__ import annotations

import importlib.util
import os
import pickle
import threading
import time
import tracemalloc
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from thermokron.model import (
    ArrayPhysics,
    Job,
    NoiseArray,
    NumericUnit,
    UnitSpec,
    covariance_error,
    discharges,
    kept,
    mean_error,
    sample_blocks,
    sampling,
)
from thermokron.model.normals import Normals


def make_job(spec: UnitSpec, couplings, **changes) -> Job:
    values = {
        "couplings": couplings,
        "biases": np.zeros((1, spec.cells), int),
        "temperature": spec.temperature_max,
        "settle_cycles": 100,
        "interval_cycles": spec.shortest_interval(),
        "samples": 600,
    }
    return Job(**(values | changes))


@pytest.mark.parametrize("samples", [1, 255, 256, 257, 700])
@pytest.mark.parametrize("physics", [None, ArrayPhysics(noise_mismatch=0.1, adc_noise=0.01)])
def test_moments_are_the_exact_sums_of_the_codes(spd_codes, samples, physics):
    spec = UnitSpec(cells=7, adc_bits=16)
    job = make_job(spec, spd_codes(spec, 10), samples=samples, biases=[[900] * 7])
    array = NoiseArray(spec, physics or ArrayPhysics.ideal(), job.couplings, job.temperature)
    blocks = sample_blocks(
        array,
        job.biases,
        settle_cycles=100,
        interval_cycles=job.interval_cycles,
        seed=5,
        stream=9,
    )
    codes = np.concatenate([c[0] for _, c in islice(blocks, 8)])[:samples]
    readout = NumericUnit(spec, physics, seed=5).run(job, stream=9)
    rows = codes.tolist()  # Python's integers, which do not overflow
    sums = [sum(row[i] for row in rows) for i in range(7)]
    products = [[sum(r[i] * r[j] for r in rows) for j in range(7)] for i in range(7)]
    assert readout.sums.tolist() == [sums]
    assert readout.products.tolist() == products
    rails = [sum(row[i] in (-(2**15), 2**15 - 1) for row in rows) for i in range(7)]
    assert readout.clipped.tolist() == [rails]
    assert readout.cycles == spec.phase_cycles(job)


def test_the_largest_sums_are_exact():
    """All codes at negative full scale, 2^20 samples, 16 bits: 2^50 and -2^35."""
    spec = UnitSpec(cells=2, adc_bits=16, clock_hz=1e6, tau_s=1e-6)
    couplings = -spec.coupling_max * np.eye(2, dtype=int)
    down = [[-spec.bias_max] * 2]
    job = make_job(spec, couplings, temperature=0, biases=down, settle_cycles=1000, samples=2**20)
    readout = NumericUnit(spec).run(job)
    assert readout.sums.tolist() == [[-(2**35)] * 2]
    assert readout.products.tolist() == [[2**50] * 2] * 2
    assert readout.clipped.tolist() == [[2**20] * 2]


def test_each_bias_vector_is_a_discharge_of_its_own(spd_codes):
    """K vectors in one job are K jobs on consecutive streams."""
    spec = UnitSpec(cells=5)
    biases = np.arange(20).reshape(4, 5) * 20
    couplings = spd_codes(spec, 10)
    unit = NumericUnit(spec, seed=2)
    together = unit.run(make_job(spec, couplings, biases=biases, second_moments=False))
    assert together.products is None
    assert unit.stream == 4
    for k in range(4):
        alone = make_job(spec, couplings, biases=biases[k : k + 1])
        single = NumericUnit(spec, seed=2).run(alone, stream=k)
        np.testing.assert_array_equal(single.sums[0], together.sums[k])
        np.testing.assert_array_equal(single.clipped[0], together.clipped[k])


def test_the_stream_advances_and_can_be_replayed(spd_codes):
    spec = UnitSpec(cells=4)
    job = make_job(spec, spd_codes(spec, 10))
    with NumericUnit(spec, seed=1) as unit:
        first, second = unit.run(job), unit.run(job)
        assert first != second
        assert unit.run(job, stream=0) == first
        assert unit.run(job, stream=1) == second
        assert list(NumericUnit(spec, seed=1).run_many([job, job])) == [first, second]
    assert NumericUnit(spec, seed=2).run(job) != first


def test_the_border_refuses_what_the_unit_cannot_do(spd_codes):
    spec = UnitSpec(cells=4)
    unit = NumericUnit(spec)
    with pytest.raises(ValueError, match="samples = 0 "):
        unit.run(make_job(spec, spd_codes(spec, 10), samples=0))
    with pytest.raises(ValueError, match="seed = -1 "):
        NumericUnit(spec, seed=-1)
    assert unit.stream == 0


# ---- statistics -------------------------------------------------------------------------------


def statistics_spec(cells: int, condition: float) -> UnitSpec:
    """1,000 cycles per τ, and a temperature that puts the slowest mode's 6 σ at the rails."""
    return UnitSpec(
        cells=cells,
        coupling_bits=16,
        bias_bits=16,
        adc_bits=16,
        clock_hz=1e9,
        tau_s=1e-6,
        temperature_full_scale=0.6 / condition / 40,
    )


@pytest.mark.parametrize("taus", [0.2, 0.5, 2.0])
@pytest.mark.parametrize(
    ("cells", "condition", "runs"), [(8, 10, 3000), (8, 100, 3000), (32, 30, 1500)]
)
def test_errors_of_mean_and_covariance_are_as_theory_says(
    spd_codes, chance, cells, condition, runs, taus
):
    """Average squared errors over many runs; Δ is `taus`·τ/λ_min; 18 scores in all cases.

    The spread of a squared error follows from the same Gaussians, so the scores are normal for
    many runs. The formulas are asymptotic: at N = 1,024 and the shortest interval they are 0.5 %
    high, a quarter of a score.
    """
    spec, samples = statistics_spec(cells, condition), 1024
    couplings = spd_codes(spec, condition)
    array = NoiseArray(spec, ArrayPhysics.ideal(), couplings, spec.temperature_max)
    rates, temperature = array.eigenvalues, spec.temperature_full_scale
    interval_cycles = round(1000 * taus / rates[0])
    rng = np.random.default_rng(0)
    target = rng.uniform(-0.1, 0.1, cells)
    job = make_job(
        spec,
        couplings,
        biases=spec.bias_codes(array.matrix @ target)[None],
        settle_cycles=round(15_000 / rates[0]),
        interval_cycles=interval_cycles,
        samples=samples,
    )
    mean = np.linalg.solve(array.matrix, spec.bias_values(job.biases[0]))
    covariance = temperature * np.linalg.inv(array.matrix)
    mean_errors, covariance_errors = np.empty(runs), np.empty(runs)
    for k, readout in enumerate(NumericUnit(spec, seed=6).run_many([job] * runs)):
        assert not readout.clipped.any()
        sample_mean = readout.sums[0] * spec.adc_step / samples
        second = readout.products * spec.adc_step**2 / samples
        known = second - np.outer(sample_mean, mean) - np.outer(mean, sample_mean - mean)
        mean_errors[k] = np.sum((sample_mean - mean) ** 2)
        covariance_errors[k] = np.sum((known - covariance) ** 2)

    step = interval_cycles / 1000
    s = temperature / rates
    v = s / np.tanh(rates * step / 2) / samples  # variance of the mean of each mode
    pairs = np.outer(s, s) / np.tanh(np.add.outer(rates, rates) * step / 2) / samples
    # Σ g²: a diagonal entry once with variance 2p, a pair of off-diagonals as one number twice
    spread = np.sqrt(np.sum(2 * (2 * np.diag(pairs)) ** 2) + np.sum(8 * np.triu(pairs, 1) ** 2))

    expected = mean_error(rates, temperature, interval=step, samples=samples)
    score = (mean_errors.mean() - expected) / np.sqrt(2 * np.sum(v**2) / runs)
    assert abs(score) < chance.sigmas
    expected = covariance_error(rates, temperature, interval=step, samples=samples)
    score = (covariance_errors.mean() - expected) / (spread / np.sqrt(runs))
    assert abs(score) < chance.sigmas


def test_thermox_draws_the_same_law(spd_codes, chance):
    """Mean and covariance of thermox's Ornstein-Uhlenbeck process and ours, on the same grid.

    Both are estimates, so their squared distance is at most twice one's error, as a weighted sum
    of squares. thermox writes dx = -A (x - μ) dt + √D dW: time in units of τ, μ = A⁻¹b, D = 2T.
    """
    for package in ("jax", "thermox"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed; pip install 'thermokron[thermox]'")
    import jax
    import thermox

    jax.config.update("jax_enable_x64", True)
    spec, samples = statistics_spec(8, 10), 40_000
    couplings = spd_codes(spec, 10)
    array = NoiseArray(spec, ArrayPhysics.ideal(), couplings, spec.temperature_max)
    rates, temperature = array.eigenvalues, spec.temperature_full_scale
    interval = round(1000 * 0.5 / rates[0])
    settle = round(15_000 / rates[0])
    biases = spec.bias_codes(array.matrix @ np.linspace(-0.1, 0.1, 8))[None]
    job = make_job(
        spec,
        couplings,
        biases=biases,
        settle_cycles=settle,
        interval_cycles=interval,
        samples=samples,
    )
    readout = NumericUnit(spec, seed=8).run(job)
    mean = np.linalg.solve(array.matrix, spec.bias_values(biases[0]))
    ours_mean = readout.sums[0] * spec.adc_step / samples
    ours = readout.products * spec.adc_step**2 / samples - np.outer(ours_mean, ours_mean)

    times = np.concatenate([[0.0], (settle + interval * np.arange(samples)) / 1000])
    theirs = np.asarray(
        thermox.sample(
            jax.random.PRNGKey(0),
            jax.numpy.asarray(times),
            jax.numpy.zeros(8),
            jax.numpy.asarray(array.matrix),
            jax.numpy.asarray(mean),
            jax.numpy.asarray(2 * temperature * np.eye(8)),
            associative_scan=False,  # compiles in a tenth of the time
        )
    )[1:]
    s, step = temperature / rates, interval / 1000
    v = s / np.tanh(rates * step / 2) / samples
    assert np.sum((ours_mean - theirs.mean(axis=0)) ** 2) < chance.upper(2 * v)

    pairs = np.outer(s, s) / np.tanh(np.add.outer(rates, rates) * step / 2) / samples
    weights = np.concatenate([2 * np.diag(pairs), 2 * pairs[np.triu_indices(8, 1)]])
    distance = np.sum((ours - np.cov(theirs.T, bias=True)) ** 2)
    assert distance < chance.upper(2 * weights)
    # the bound is tight enough to tell a covariance that is a few percent off
    assert np.sum((0.1 * temperature * np.linalg.inv(array.matrix)) ** 2) > chance.upper(
        2 * weights
    )


# ---- what is not done twice ------------------------------------------------------------------


def test_jobs_with_the_same_couplings_decompose_them_once(spd_codes, monkeypatch):
    spec = UnitSpec(cells=6)
    made = []
    original = kept.NoiseArray

    class Counted(original):
        def __init__(self, *arguments):
            made.append(arguments[2])
            super().__init__(*arguments)

    monkeypatch.setattr(kept, "NoiseArray", Counted)
    job = make_job(spec, spd_codes(spec, 10), samples=20)
    unit, fresh = NumericUnit(spec, seed=1), NumericUnit(spec, seed=1)
    jobs = [job, job.with_biases([[5] * 6]), job.with_biases([[9] * 6], temperature=3)]
    found = [unit.run(each) for each in jobs]
    assert len(made) == 1
    for stream, (each, readout) in enumerate(zip(jobs, found, strict=True)):
        alike = replace(each, couplings=each.couplings.copy())
        assert fresh.run(alike, stream=stream) == readout
    assert len(made) == 4


def test_decomposed_arrays_do_not_pile_up(spd_codes, monkeypatch):
    monkeypatch.setattr(kept, "KEPT", 3 * kept._numbers(6, ArrayPhysics()))
    spec = UnitSpec(cells=6)
    unit = NumericUnit(spec, seed=1)
    jobs = [make_job(spec, spd_codes(spec, 10, seed=seed), samples=3) for seed in range(5)]
    first = [unit.run(job, stream=0) for job in jobs]
    assert len(unit._arrays._arrays) == 3
    assert [unit.run(job, stream=0) for job in jobs] == first


def test_arrays_go_with_the_jobs_that_could_ask_for_them(spd_codes):
    """A training makes new couplings every step; those of steps before are of no use."""
    spec = UnitSpec(cells=6)
    unit = NumericUnit(spec, seed=1)
    alive = make_job(spec, spd_codes(spec, 10), samples=3)
    for seed in range(5):
        unit.run(alive)
        unit.run(make_job(spec, spd_codes(spec, 10, seed=seed), samples=3))
    assert len(unit._arrays._arrays) <= 2


def test_an_id_that_is_anothers_by_now_is_not_believed(spd_codes):
    spec = UnitSpec(cells=6)
    one, other = (make_job(spec, spd_codes(spec, 10, seed=seed), samples=3) for seed in (1, 2))
    unit = NumericUnit(spec, seed=1)
    expected = unit.run(other, stream=0)
    unit.run(one)
    arrays = unit._arrays._arrays
    arrays[id(other.couplings)] = arrays.pop(id(one.couplings))
    assert unit.run(other, stream=0) == expected


def test_a_copy_of_a_unit_goes_on_where_it_was(spd_codes):
    spec = UnitSpec(cells=6)
    job = make_job(spec, spd_codes(spec, 10), samples=3)
    unit = NumericUnit(spec, ArrayPhysics(adc_noise=0.01), seed=1)
    unit.run(job)
    copy = pickle.loads(pickle.dumps(unit))
    assert not copy._arrays._arrays
    assert copy.run(job) == unit.run(job)


def test_threads_may_share_a_unit(spd_codes):
    """With streams of their own: the count is for one thread."""
    spec = UnitSpec(cells=6)
    physics = ArrayPhysics(noise_mismatch=0.1)
    jobs = [make_job(spec, spd_codes(spec, 10, seed=seed), samples=70) for seed in range(3)]
    jobs = [job.with_biases(job.biases, temperature=t) for job in jobs for t in (3, 900)] * 5
    expected = [NumericUnit(spec, physics).run(job, stream=i) for i, job in enumerate(jobs)]
    unit, found = NumericUnit(spec, physics), {}

    def work(first):
        for i in range(first, len(jobs), 3):
            found[i] = unit.run(jobs[i], stream=i)

    threads = [threading.Thread(target=work, args=[first]) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[i] for i in range(len(jobs))] == expected


def test_couplings_of_any_type_and_order_are_the_same(spd_codes):
    spec = UnitSpec(cells=33)
    codes = spd_codes(spec, 10)
    fortran = np.asfortranarray(codes)
    fortran.setflags(write=False)  # taken over as it is
    expected = NumericUnit(spec, seed=1).run(make_job(spec, codes))
    for each in (codes.astype(np.int8), codes.astype(np.int16), codes.tolist(), fortran):
        assert NumericUnit(spec, seed=1).run(make_job(spec, each)) == expected


@pytest.mark.parametrize("samples", [1, 2, 16, 17, 128, 129, 1024, 1025, 2048, 5000])
def test_no_more_blocks_are_drawn_than_the_samples_take(spd_codes, monkeypatch, samples):
    drawn = []
    original = Normals.draw

    def counted(self, seed, purpose, streams, first, out):
        drawn.append(out.size)
        original(self, seed, purpose, streams, first, out)

    spec = UnitSpec(cells=8)
    blocks = sample_blocks(
        NoiseArray(spec, ArrayPhysics.ideal(), spd_codes(spec, 10), 3),
        np.zeros((1, 8), int), settle_cycles=1, interval_cycles=9, seed=0, stream=0,
    )  # fmt: skip
    lengths = []
    while sum(lengths) < samples:
        lengths.append(next(blocks)[0].shape[1])
    monkeypatch.setattr(Normals, "draw", counted)
    NumericUnit(spec).run(make_job(spec, spd_codes(spec, 10), samples=samples))
    assert sum(drawn) == 8 * sum(lengths)


def test_the_memory_of_a_run_does_not_grow_with_samples(spd_codes):
    """All of 2^20 samples of 64 cells would be 537 MB; measured: 4 a thread, if rooms are new."""
    spec = UnitSpec(cells=64)
    job = make_job(spec, spd_codes(spec, 10), samples=2**20)
    discharges._rooms.clear()
    tracemalloc.start()
    try:
        NumericUnit(spec).run(job)
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 8
        assert tracemalloc.get_traced_memory()[1] < 5e6 + 8e6 * threads
    finally:
        tracemalloc.stop()


def test_the_memory_of_a_run_does_not_grow_with_vectors_and_samples(spd_codes):
    """All voltages at once would be 131 MB; measured: 4."""
    spec = UnitSpec(cells=64, rhs_depth=256)
    job = make_job(
        spec, spd_codes(spec, 10), biases=np.zeros((256, 64), int), samples=1000,
        second_moments=False, interval_cycles=50,
    )  # fmt: skip
    tracemalloc.start()
    try:
        NumericUnit(spec).run(job)
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()


def test_unequal_noise_is_decomposed_once_for_all_vectors(spd_codes, monkeypatch):
    calls = []
    eigh = np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda matrix: calls.append(1) or eigh(matrix))
    monkeypatch.setattr(sampling, "AT_ONCE", 1)  # a vector at a time
    spec = UnitSpec(cells=6)
    job = make_job(
        spec, spd_codes(spec, 10), biases=np.zeros((9, 6), int), samples=70, second_moments=False
    )
    unit = NumericUnit(spec, ArrayPhysics(noise_mismatch=0.1))
    for _ in range(2):
        unit.run(job)
        assert len(calls) == 3  # of the matrix, for the settling, for the interval


def test_many_vectors_are_worked_on_a_few_at_a_time(spd_codes, monkeypatch):
    """The integers do not depend on how many share the memory that there is."""
    spec = UnitSpec(cells=6, rhs_depth=64)
    biases = np.arange(50 * 6).reshape(50, 6) - 150
    job = make_job(
        spec, spd_codes(spec, 10), biases=biases, samples=70, second_moments=False,
        interval_cycles=20,
    )  # fmt: skip
    whole = NumericUnit(spec, seed=1).run(job, stream=5)
    monkeypatch.setattr(sampling, "AT_ONCE", 7 * 128 * 6)
    assert NumericUnit(spec, seed=1).run(job, stream=5) == whole


def test_a_run_costs_what_is_asked_for(spd_codes):
    """64 vectors with one reading each against one with 1,000 samples, both 64 cells wide.

    Measured: a fifth of the time. Drawing blocks of 256 samples a vector would take 16 times as
    long as the other.
    """
    spec = UnitSpec(cells=64, rhs_depth=64)
    inverse = make_job(spec, spd_codes(spec, 10), samples=1000)
    solve = inverse.with_biases(
        np.ones((64, 64), int), samples=1, second_moments=False, interval_cycles=50
    )
    unit = NumericUnit(spec)
    times = {}
    for name, job in (("inverse", inverse), ("solve", solve)):
        seconds = []
        for _ in range(7):
            begin = time.process_time()
            unit.run(job)
            seconds.append(time.process_time() - begin)
        times[name] = min(seconds[1:])
    assert times["solve"] < times["inverse"]


def test_a_thousand_cells_solve():
    spec = UnitSpec(cells=1024, rhs_depth=4, tau_s=1e-6, adc_bits=16, temperature_bits=16)
    job = Job(
        couplings=spec.coupling_codes(0.5 * np.eye(1024) + 0.5 / 1024).astype(np.int16),
        biases=np.full((4, 1024), 200),
        temperature=1,
        settle_cycles=1000,
        interval_cycles=50,
        samples=1,
        second_moments=False,
    )
    readout = NumericUnit(spec).run(job)
    matrix = spec.coupling_values(job.couplings)
    expected = np.linalg.solve(matrix, spec.bias_values(job.biases[0]))
    found = readout.sums.mean(axis=0) * spec.adc_step
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)
