"""The array's law from discharge on, and the promise that its samples depend on nothing else."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import scipy.linalg
from threadpoolctl import threadpool_info, threadpool_limits

from thermokron.model import (
    BLOCKS,
    ArrayPhysics,
    Job,
    NoiseArray,
    NumericUnit,
    UnitSpec,
    sample_blocks,
    sampling,
    van_loan,
)
from thermokron.model.discharges import ROWS, alone
from thermokron.model.threads import single_threaded_blas, threads_at_hand

# 1,000 clock cycles per time constant
SPEC = UnitSpec(
    cells=5,
    coupling_bits=14,
    adc_bits=16,
    clock_hz=1e9,
    tau_s=1e-6,
    temperature_full_scale=1e-3,
)
UNEQUAL = ArrayPhysics(noise_mismatch=0.7, tau_mismatch=0.3, cell_offset=0.01)
EVERYTHING = ArrayPhysics(
    coupling_mismatch=0.01,
    cell_offset=0.01,
    noise_mismatch=0.2,
    adc_gain_error=0.01,
    adc_offset=0.01,
    adc_noise=1e-3,
    adc_inl_lsb=0.5,
    device_seed=3,
)


def drift_and_diffusion(array):
    """τ_i dx_i = -(A x - b)_i dt + √(2 T_i τ) dW_i, in units of τ."""
    times = array.device.time_factors
    speeds = np.ones(len(array.matrix)) if times is None else 1.0 / times
    return -speeds[:, None] * array.matrix, 2 * np.diag(array.temperatures * speeds**2)


def drawn(array, biases, count, *, settle_cycles, interval_cycles, seed=0, stream=0):
    """Voltages and codes, (count, n) each, of one discharge."""
    voltages, codes, known = [], [], 0
    for v, c in sample_blocks(
        array,
        np.asarray(biases)[None],
        settle_cycles=settle_cycles,
        interval_cycles=interval_cycles,
        seed=seed,
        stream=stream,
    ):
        voltages.append(v[0])
        codes.append(c[0])
        known += v.shape[1]
        if known >= count:
            return np.concatenate(voltages)[:count], np.concatenate(codes)[:count]
    raise AssertionError("blocks end")


def codes_of(array, count, *, seed=1, stream=2, interval_cycles=300, settle_cycles=900):
    biases = np.arange(array.spec.cells) * 30
    return drawn(
        array,
        biases,
        count,
        settle_cycles=settle_cycles,
        interval_cycles=interval_cycles,
        seed=seed,
        stream=stream,
    )[1]


@pytest.mark.parametrize("physics", [ArrayPhysics.ideal(), UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.parametrize("taus", [0.05, 1.0, 40.0])
def test_the_first_sample_obeys_the_settle_law(spd_codes, chance, physics, taus):
    """x(t₀) ~ N((1 - e^(-A t₀)) A⁻¹b, Van Loan's covariance); 20 scores a case."""
    array = NoiseArray(SPEC, physics, spd_codes(SPEC, 20), 900)
    biases = np.array([100, -50, 0, 25, 10])
    settle = round(taus * 1000)
    voltages, _ = next(
        sample_blocks(
            array,
            np.tile(biases, (1500, 1)),
            settle_cycles=settle,
            interval_cycles=50,
            seed=0,
            stream=7,
        )
    )
    first = voltages[:, 0]
    transition, covariance = van_loan(*drift_and_diffusion(array), taus)
    target = np.linalg.solve(array.matrix, array.bias(biases))
    mean = (np.eye(5) - transition) @ target
    white = scipy.linalg.solve_triangular(
        np.linalg.cholesky(covariance), (first - mean).T, lower=True
    )
    r = white.shape[1]
    assert np.abs(white.mean(axis=1)).max() < chance.sigmas / np.sqrt(r)
    scores = (white @ white.T / r - np.eye(5)) * np.sqrt(r / (1 + np.eye(5)))
    assert np.abs(scores).max() < chance.sigmas


@pytest.mark.parametrize("physics", [ArrayPhysics.ideal(), UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.parametrize("interval", [20, 1000, 60_000])
def test_every_step_obeys_the_transition_law(spd_codes, chance, physics, interval):
    """x_(j+1) - Φ x_j - (1 - Φ) A⁻¹b is white with Van Loan's covariance, across blocks too."""
    array = NoiseArray(SPEC, physics, spd_codes(SPEC, 20), 900)
    biases = np.array([100, -50, 0, 25, 10])
    x, _ = drawn(
        array, biases, 30_000, settle_cycles=10, interval_cycles=interval, seed=5, stream=6
    )
    transition, covariance = van_loan(*drift_and_diffusion(array), interval / 1000)
    target = np.linalg.solve(array.matrix, array.bias(biases))
    residual = (x[1:] - target) - (x[:-1] - target) @ transition.T
    white = scipy.linalg.solve_triangular(np.linalg.cholesky(covariance), residual.T, lower=True)

    def scores(samples):
        r = samples.shape[1]
        moments = (samples @ samples.T / r - np.eye(5)) * np.sqrt(r / (1 + np.eye(5)))
        following = samples[:, 1:] @ samples[:, :-1].T / np.sqrt(r - 1)
        return np.concatenate(
            [samples.mean(axis=1) * np.sqrt(r), moments.ravel(), following.ravel()]
        )

    assert np.abs(scores(white)).max() < chance.sigmas
    ends = np.cumsum(BLOCKS)
    ends = np.concatenate([ends, np.arange(2 * ends[-1], 30_000, ends[-1])])
    seams = white[:, ends - 1]  # from the last sample of a block to the first of the next
    assert np.sum(seams**2) < chance.upper(np.ones(seams.size))


def test_blocks_grow_to_their_length_and_codes_are_the_quantised_voltages(spd_codes):
    array = NoiseArray(SPEC, ArrayPhysics.ideal(), spd_codes(SPEC, 20), 900)
    blocks = sample_blocks(
        array, np.zeros((2, 5), int), settle_cycles=10, interval_cycles=300, seed=0, stream=0
    )
    lengths = []
    for voltages, codes in islice(blocks, 6):
        lengths.append(voltages.shape[1])
        assert voltages.shape == codes.shape == (2, lengths[-1], 5)
        assert (voltages.dtype, codes.dtype) == (np.float64, np.int16)
        np.testing.assert_array_equal(codes, np.rint(voltages * 2**15))
    assert lengths == [1, 15, 112, 896, 1024, 1024]


@pytest.mark.parametrize("first", [0, 17, 2**63 - 35])  # at every place that a product has
@pytest.mark.parametrize("cells", [2, 5, 65])
@pytest.mark.parametrize(
    "physics", [ArrayPhysics.ideal(), UNEQUAL, EVERYTHING], ids=["equal", "unequal", "all"]
)
def test_samples_do_not_depend_on_their_company(spd_codes, physics, cells, first):
    """Bit for bit the same alone, at any place among others, and however many others there are."""
    spec = UnitSpec(cells=cells, adc_bits=16, tau_s=1e-6)
    array = NoiseArray(spec, physics, spd_codes(spec, 20), 900)
    biases = np.random.default_rng(0).integers(-900, 900, (70, cells))
    grid = {"settle_cycles": 40, "interval_cycles": 9, "seed": 3}
    count = len(BLOCKS) + 1
    together = list(islice(sample_blocks(array, biases, stream=first, **grid), count))
    parts = [slice(k, k + 1) for k in (0, 1, 14, 15, 16, 46, 47, 69)] + [slice(20, 50)]
    for part in parts:
        blocks = sample_blocks(array, biases[part], stream=first + part.start, **grid)
        for some, among in zip(blocks, together, strict=False):
            for found, expected in zip(some, among, strict=True):  # voltages, codes
                np.testing.assert_array_equal(found, expected[part])


def test_a_row_has_its_place_in_a_product():
    """Where rows depend on where they are, as a BLAS may have it; here it does not show."""

    class Placed:
        __array_ufunc__ = None

        def __rmatmul__(self, rows):
            assert rows.shape[1] == ROWS
            return rows + np.arange(rows.shape[1])[:, None]

    rows = np.random.default_rng(0).standard_normal((70, 3))
    whole = alone(rows, Placed(), range(17, 87))
    for first, last in [(0, 1), (1, 2), (14, 70), (20, 50), (69, 70)]:
        part = alone(rows[first:last], Placed(), range(17 + first, 17 + last))
        np.testing.assert_array_equal(part, whole[first:last])


@pytest.mark.parametrize("physics", [ArrayPhysics.ideal(), EVERYTHING], ids=["ideal", "all"])
@pytest.mark.parametrize("interval_cycles", [9, 300_000], ids=["with memory", "without"])
@pytest.mark.parametrize("cells", [3, 65])
def test_samples_do_not_depend_on_how_blocks_are_walked(
    spd_codes, monkeypatch, cells, interval_cycles, physics
):
    """One by one, or shown in stretches of any length, by any number of threads."""
    spec = UnitSpec(cells=cells, adc_bits=16, tau_s=1e-6)
    array = NoiseArray(spec, physics, spd_codes(spec, 20), 900)
    biases = np.random.default_rng(0).integers(-900, 900, (2, cells))
    program = {"settle_cycles": 40, "interval_cycles": interval_cycles, "seed": 3, "stream": 31}
    blocks = islice(sample_blocks(array, biases, **program), 9)
    one_by_one = np.concatenate([codes for _, codes in blocks], axis=1)
    assert one_by_one.shape[1] == 6 * sum(BLOCKS)
    for threads, at_once, samples in itertools.product(
        (1, 2, 3), (1, 2**16, 2**30), (1, 2, 17, 1000, 1024, 1025, 3000, 6144)
    ):
        monkeypatch.setattr(sampling, "AT_ONCE", at_once)
        monkeypatch.setattr(sampling, "WORTH_THREADS", 0.0)
        monkeypatch.setattr(sampling, "threads_at_hand", lambda threads=threads: threads)
        seen, lock = [[], []], threading.Lock()

        def see(vectors, codes, clipped, seen=seen, lock=lock):
            rails = np.isin(codes, [spec.adc_min, spec.adc_max])
            assert clipped or not rails.any()
            with lock:
                for vector, rows in zip(range(2)[vectors], codes, strict=True):
                    seen[vector].append(rows[rows.any(axis=1)].astype(np.int16))

        sample_blocks(array, biases, **program).show(samples, see)
        for rows, expected in zip(seen, one_by_one[:, :samples], strict=True):
            expected = expected[expected.any(axis=1)]
            found = np.concatenate(rows)
            # shown in no particular order
            np.testing.assert_array_equal(
                found[np.lexsort(found.T)], expected[np.lexsort(expected.T)]
            )


class Refused(Exception):
    pass


@pytest.mark.parametrize("threads", [1, 2])
def test_whoever_looks_may_raise(spd_codes, monkeypatch, threads):
    """All threads end, whichever it was, and the next run is as ever."""
    monkeypatch.setattr(sampling, "WORTH_THREADS", 0.0)
    monkeypatch.setattr(sampling, "threads_at_hand", lambda: threads)
    array = NoiseArray(SPEC, ArrayPhysics.ideal(), spd_codes(SPEC, 20), 900)
    blocks = sample_blocks(
        array, np.zeros((1, 5), int), settle_cycles=10, interval_cycles=20, seed=0, stream=0
    )
    calls = itertools.count()

    def see(vectors, codes, clipped):
        if next(calls) == 2:
            raise Refused

    before = threading.active_count()
    for _ in range(5):
        calls = itertools.count()
        with pytest.raises(Refused):
            blocks.show(200_000, see)
    assert threading.active_count() == before
    rows = []
    blocks.show(1000, lambda vectors, codes, clipped: rows.append(len(codes[0])))
    assert sum(rows) >= 1000


def test_one_thread_is_enough_for_little(spd_codes, monkeypatch):
    monkeypatch.setattr(sampling, "threads_at_hand", lambda: pytest.fail("too little for threads"))
    array = NoiseArray(SPEC, ArrayPhysics.ideal(), spd_codes(SPEC, 20), 900)
    blocks = sample_blocks(
        array, np.zeros((1, 5), int), settle_cycles=10, interval_cycles=20, seed=0, stream=0
    )
    names = set()
    blocks.show(10_000, lambda *_: names.add(threading.current_thread()))
    assert names == {threading.current_thread()}


def test_another_temperature_takes_no_other_decomposition(spd_codes):
    couplings = spd_codes(SPEC, 20)
    for physics in (ArrayPhysics.ideal(), EVERYTHING):
        array = NoiseArray(SPEC, physics, couplings, 900)
        other = array.at(7)
        assert other.eigenvectors is array.eigenvectors
        fresh = NoiseArray(SPEC, physics, couplings, 7)
        np.testing.assert_array_equal(codes_of(other, 20), codes_of(fresh, 20))
        assert array.at(900) is array


def test_factors_of_unequal_noise_are_made_once_and_are_of_their_temperature(spd_codes):
    """As many as a run needs are kept."""
    array = NoiseArray(SPEC, UNEQUAL, spd_codes(SPEC, 20), 900)
    cold = array.at(9)
    for _ in range(2):
        for duration in (0.1, 5.0, 0.7):
            for each in (array, cold):
                factor = each.noise_factor(duration)
                assert each.noise_factor(duration) is factor
                np.testing.assert_allclose(
                    factor @ factor.T, each.mode_covariance(duration), rtol=1e-9, atol=1e-18
                )
                assert len(each._factors) <= 2


@pytest.mark.parametrize("physics", [ArrayPhysics.ideal(), UNEQUAL], ids=["equal", "unequal"])
def test_without_temperature_there_is_no_noise(spd_codes, physics):
    array = NoiseArray(SPEC, physics, spd_codes(SPEC, 20), 0)
    biases = np.array([100, -50, 0, 25, 10])
    voltages, _ = drawn(array, biases, 100, settle_cycles=300, interval_cycles=200, stream=4)
    target = np.linalg.solve(array.matrix, array.bias(biases))
    for j in (0, 1, 3, 4, 99):
        transition = scipy.linalg.expm(drift_and_diffusion(array)[0] * (0.3 + 0.2 * j))
        np.testing.assert_allclose(voltages[j], target - transition @ target, rtol=1e-9)


@pytest.mark.parametrize("physics", [ArrayPhysics.ideal(), EVERYTHING], ids=["ideal", "all"])
def test_samples_do_not_depend_on_how_many_are_drawn(spd_codes, physics):
    array = NoiseArray(SPEC, physics, spd_codes(SPEC, 20), 900)
    many = codes_of(array, 1000)
    for count in (1, 2, 4, 10, 300):
        np.testing.assert_array_equal(codes_of(array, count), many[:count])
    again = NoiseArray(SPEC, physics, spd_codes(SPEC, 20), 900)
    np.testing.assert_array_equal(codes_of(again, 1000), many)


def test_every_seed_and_stream_has_its_own_samples(spd_codes):
    array = NoiseArray(SPEC, EVERYTHING, spd_codes(SPEC, 20), 900)
    big = 2**32
    keys = [(0, 0), (0, 1), (1, 0), (big, 0), (0, big), (big, 1), (1, big), (0, 1 + 5 * big)]
    keys += [(big, 5), (5, big), (2**63 - 1, 2**63 - 1)]
    draws = [codes_of(array, 16, seed=seed, stream=stream).tobytes() for seed, stream in keys]
    assert len(set(draws)) == len(keys)


def test_conversion_noise_does_not_repeat_thermal_noise(chance):
    """Draw for draw, in the order of each generator: with uncoupled cells a voltage is a draw."""
    couplings = np.diag([1000, 2000, 3000, 4000, 5000])
    arrays = [
        NoiseArray(SPEC, physics, couplings, 900)
        for physics in (ArrayPhysics.ideal(), ArrayPhysics(adc_noise=0.01))
    ]
    quiet, noisy = (codes_of(array, 1024, interval_cycles=200_000) for array in arrays)
    noise = (noisy - quiet).reshape(4, 256, 5)
    thermal = quiet.reshape(4, 256, 5) - quiet.mean(axis=0)
    for a, b in [(thermal, noise), (thermal.transpose(0, 2, 1), noise)]:
        correlation = np.corrcoef(np.sign(a.ravel()), np.sign(b.ravel()))[0, 1]
        assert abs(correlation) * np.sqrt(noise.size) < chance.sigmas


SCRIPT = """
import hashlib, sys
from thermokron.model import ArrayPhysics, Job, NumericUnit, UnitSpec
spec = UnitSpec.from_json(sys.argv[1]); job = Job.from_json(sys.argv[3])
unit = NumericUnit(spec, ArrayPhysics.from_json(sys.argv[2]), seed=11)
print(hashlib.sha256(unit.run(job, stream=3).to_json().encode()).hexdigest())
"""


@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("more", [{}, {"coupling_asymmetry": 0.01, "noise_bandwidth_hz": 50e6}])
def test_another_process_with_other_threads_returns_the_same_integers(spd_codes, more, threads):
    physics = replace(EVERYTHING, **more)
    spec = UnitSpec(cells=96, coupling_bits=12, adc_bits=16)
    job = Job(
        couplings=spd_codes(spec, 20),
        biases=[[9] * 96],
        temperature=500,
        settle_cycles=100,
        interval_cycles=spec.shortest_interval(),
        samples=4000,  # work for both
    )
    here = NumericUnit(spec, physics, seed=11).run(job, stream=3).to_json()
    there = subprocess.run(
        [sys.executable, "-c", SCRIPT, spec.to_json(), physics.to_json(), job.to_json()],
        env=os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip() == hashlib.sha256(here.encode()).hexdigest()


def blas_threads() -> list[int]:
    return [i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas"]


def test_as_many_threads_as_blas_may_have():
    with single_threaded_blas():
        most = threads_at_hand()
        with single_threaded_blas():
            assert threads_at_hand() == most
    assert 1 <= most <= min(blas_threads())
    with threadpool_limits(limits=1, user_api="blas"), single_threaded_blas():
        assert threads_at_hand() == 1
    if hasattr(os, "sched_setaffinity"):
        processors = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(processors)})
        try:
            with single_threaded_blas():
                assert threads_at_hand() == 1
        finally:
            os.sched_setaffinity(0, processors)


def test_the_thread_limit_nests_and_ends():
    before = blas_threads()
    with single_threaded_blas():
        with single_threaded_blas():
            assert set(blas_threads()) == {1}
        assert set(blas_threads()) == {1}
    assert blas_threads() == before
    with pytest.raises(KeyError), single_threaded_blas():
        raise KeyError
    assert blas_threads() == before


def test_the_thread_limit_holds_in_every_thread():
    """Two threads at once, and each after the other: BLAS has one thread wherever we sample."""
    before, seen = blas_threads(), []

    def work():
        for _ in range(20):
            with single_threaded_blas():
                seen.extend(blas_threads())

    for _ in range(2):
        workers = [threading.Thread(target=work) for _ in range(2)]
        for worker in workers:
            worker.start()
        work()
        for worker in workers:
            worker.join(10)
    assert len(seen) == 6 * 20 * len(before)
    assert set(seen) == {1}
    assert blas_threads() == before


def test_a_limit_held_elsewhere_is_an_error():
    if max(blas_threads()) == 1:
        pytest.skip("BLAS has one thread here, whoever holds the limit")
    held, leave = threading.Event(), threading.Event()

    def other():
        with threadpool_limits(limits=2, user_api="blas"):
            held.set()
            leave.wait(10)

    worker = threading.Thread(target=other)
    worker.start()
    try:
        assert held.wait(10)
        with contextlib.suppress(RuntimeError), single_threaded_blas():
            # older releases of threadpoolctl let any thread set the limit
            assert set(blas_threads()) == {1}
    finally:
        leave.set()
        worker.join(10)
    with single_threaded_blas():
        assert set(blas_threads()) == {1}


@pytest.mark.parametrize("physics", [ArrayPhysics.ideal(), UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.parametrize("cycles", [30, 5_000, 10_000_000])
@pytest.mark.filterwarnings("error")
def test_an_indefinite_array_clips_and_stays_finite(physics, cycles):
    """Cell 0 runs away, cells 1 and 2 do so together, cells 3 and 4 are stable."""
    couplings = np.diag([-8191, 2000, 2000, 8191, 4000])
    couplings[1, 2] = couplings[2, 1] = 6000
    array = NoiseArray(SPEC, physics, couplings, 900)
    voltages, codes = drawn(
        array, [0, 0, 0, 500, 0], 2048, settle_cycles=cycles, interval_cycles=cycles, seed=1
    )
    assert np.isfinite(voltages).all()
    codes = codes[-256:]
    assert np.isin(codes[:, :3], [-(2**15), 2**15 - 1]).all()
    np.testing.assert_array_equal(np.sign(codes[:, 1]), -np.sign(codes[:, 2]))
    assert (codes[:, :3] == codes[-1, :3]).all()  # none comes back
    for cell in (3, 4):
        spread = np.sqrt(array.temperatures[cell] / array.matrix[cell, cell])
        assert np.abs(voltages[:, cell]).max() < 0.5
        assert spread / 2 < voltages[:, cell].std() < spread * 2


def test_slow_growth_is_exact():
    """An unstable mode below the rails follows its law: E x = (e^(t/τ) - 1) b at λ = -1."""
    spec = UnitSpec(cells=2, adc_bits=16, clock_hz=1e9, tau_s=1e-6)
    array = NoiseArray(spec, ArrayPhysics.ideal(), -127 * np.eye(2, dtype=int), 0)
    times = (40 + 20 * np.arange(256)) / 1000
    voltages, codes = drawn(array, [1, 0], 256, settle_cycles=40, interval_cycles=20)
    np.testing.assert_allclose(voltages[:, 0], np.expm1(times) / 2047, rtol=1e-12)
    np.testing.assert_array_equal(codes[:, 1], 0)


def test_a_mode_without_restoring_force_diffuses(chance):
    """λ = 0: Var x(t) = 2 T t/τ and E x = b t/τ."""
    array = NoiseArray(SPEC, ArrayPhysics.ideal(), np.zeros((5, 5), int), 900)
    biases = np.array([100, 0, 0, 0, 0])
    voltages, _ = drawn(array, biases, 256, settle_cycles=1000, interval_cycles=100)
    steps = np.diff(voltages, axis=0) - array.bias(biases) * 0.1
    z = steps / np.sqrt(2 * SPEC.temperature_value(900) * 0.1)
    assert abs(z.sum()) / np.sqrt(z.size) < chance.sigmas
    assert abs(np.sum(z**2) - z.size) / np.sqrt(2 * z.size) < chance.sigmas
