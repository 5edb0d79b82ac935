"""The array's law from discharge on, and the promise that its samples depend on nothing else."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import threading
from itertools import islice

import numpy as np
import pytest
import scipy.linalg
from threadpoolctl import threadpool_info, threadpool_limits

from thermokron.model import (
    BLOCK,
    ArrayPhysics,
    Job,
    NoiseArray,
    NumericUnit,
    UnitSpec,
    sample_blocks,
    van_loan,
)
from thermokron.model.array import single_threaded_blas

# 1,000 clock cycles per time constant
SPEC = UnitSpec(
    cells=5,
    coupling_bits=14,
    adc_bits=16,
    clock_hz=1e9,
    tau_s=1e-6,
    temperature_full_scale=1e-3,
)
UNEQUAL = ArrayPhysics(noise_mismatch=0.7, cell_offset=0.01)
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


def codes_of(array, count, *, seed=1, stream=2, interval_cycles=300, settle_cycles=900):
    biases = np.arange(array.spec.cells) * 30
    blocks = sample_blocks(
        array,
        biases,
        settle_cycles=settle_cycles,
        interval_cycles=interval_cycles,
        seed=seed,
        stream=stream,
    )
    return np.concatenate([codes for _, codes in islice(blocks, count)])


@pytest.mark.parametrize("physics", [ArrayPhysics.ideal(), UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.parametrize("taus", [0.05, 1.0, 40.0])
def test_the_first_sample_obeys_the_settle_law(spd_codes, chance, physics, taus):
    """x(t₀) ~ N((1 - e^(-A t₀)) A⁻¹b, Van Loan's covariance); 20 scores a case."""
    array = NoiseArray(SPEC, physics, spd_codes(SPEC, 20), 900)
    biases = np.array([100, -50, 0, 25, 10])
    settle = round(taus * 1000)
    first = np.array(
        [
            next(
                sample_blocks(
                    array, biases, settle_cycles=settle, interval_cycles=50, seed=0, stream=stream
                )
            )[0][0]
            for stream in range(1500)
        ]
    )
    transition, covariance = van_loan(-array.matrix, 2 * np.diag(array.temperatures), taus)
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
    blocks = sample_blocks(
        array, biases, settle_cycles=10, interval_cycles=interval, seed=5, stream=6
    )
    x = np.concatenate([voltages for voltages, _ in islice(blocks, 120)])
    transition, covariance = van_loan(
        -array.matrix, 2 * np.diag(array.temperatures), interval / 1000
    )
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
    seams = white[:, BLOCK - 1 :: BLOCK]  # from the last sample of a block to the first of the next
    assert np.sum(seams**2) < chance.upper(np.ones(seams.size))


def test_blocks_are_full_and_codes_are_the_quantised_voltages(spd_codes):
    array = NoiseArray(SPEC, ArrayPhysics.ideal(), spd_codes(SPEC, 20), 900)
    blocks = sample_blocks(
        array, np.zeros(5, int), settle_cycles=10, interval_cycles=300, seed=0, stream=0
    )
    for voltages, codes in islice(blocks, 3):
        assert voltages.shape == codes.shape == (BLOCK, 5)
        assert (voltages.dtype, codes.dtype) == (np.float64, np.int64)
        np.testing.assert_array_equal(codes, np.rint(voltages * 2**15))


@pytest.mark.parametrize("physics", [ArrayPhysics.ideal(), EVERYTHING], ids=["ideal", "all"])
def test_samples_do_not_depend_on_how_many_are_drawn(spd_codes, physics):
    array = NoiseArray(SPEC, physics, spd_codes(SPEC, 20), 900)
    many = codes_of(array, 5)
    np.testing.assert_array_equal(codes_of(array, 2), many[: 2 * BLOCK])
    np.testing.assert_array_equal(codes_of(array, 5), many)
    again = NoiseArray(SPEC, physics, spd_codes(SPEC, 20), 900)
    np.testing.assert_array_equal(codes_of(again, 5), many)


def test_every_seed_and_stream_has_its_own_samples(spd_codes):
    array = NoiseArray(SPEC, EVERYTHING, spd_codes(SPEC, 20), 900)
    big = 2**32
    keys = [(0, 0), (0, 1), (1, 0), (big, 0), (0, big), (big, 1), (1, big), (0, 1 + 5 * big)]
    keys += [(big, 5), (5, big), (2**63 - 1, 2**63 - 1)]
    draws = [codes_of(array, 1, seed=seed, stream=stream).tobytes() for seed, stream in keys]
    assert len(set(draws)) == len(keys)


def test_conversion_noise_does_not_repeat_thermal_noise(chance):
    """Draw for draw, in the order of each generator: with uncoupled cells a voltage is a draw."""
    couplings = np.diag([1000, 2000, 3000, 4000, 5000])
    arrays = [
        NoiseArray(SPEC, physics, couplings, 900)
        for physics in (ArrayPhysics.ideal(), ArrayPhysics(adc_noise=0.01))
    ]
    quiet, noisy = (codes_of(array, 4, interval_cycles=200_000) for array in arrays)
    noise = (noisy - quiet).reshape(4, BLOCK, 5)
    thermal = quiet.reshape(4, BLOCK, 5) - quiet.mean(axis=0)
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
def test_another_process_with_other_threads_returns_the_same_integers(spd_codes, threads):
    spec = UnitSpec(cells=96, coupling_bits=12, adc_bits=16)
    job = Job(
        couplings=spd_codes(spec, 20),
        biases=[[9] * 96],
        temperature=500,
        settle_cycles=100,
        interval_cycles=spec.shortest_interval(),
        samples=1000,
    )
    here = NumericUnit(spec, EVERYTHING, seed=11).run(job, stream=3).to_json()
    there = subprocess.run(
        [sys.executable, "-c", SCRIPT, spec.to_json(), EVERYTHING.to_json(), job.to_json()],
        env=os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip() == hashlib.sha256(here.encode()).hexdigest()


def blas_threads() -> list[int]:
    return [i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas"]


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
    blocks = sample_blocks(
        array,
        np.array([0, 0, 0, 500, 0]),
        settle_cycles=cycles,
        interval_cycles=cycles,
        seed=1,
        stream=0,
    )
    drawn = list(islice(blocks, 8))
    voltages = np.concatenate([v for v, _ in drawn])
    assert np.isfinite(voltages).all()
    codes = drawn[-1][1]
    assert np.isin(codes[:, :3], [-(2**15), 2**15 - 1]).all()
    np.testing.assert_array_equal(np.sign(codes[:, 1]), -np.sign(codes[:, 2]))
    for cell in (3, 4):
        spread = np.sqrt(array.temperatures[cell] / array.matrix[cell, cell])
        assert np.abs(voltages[:, cell]).max() < 0.5
        assert spread / 2 < voltages[:, cell].std() < spread * 2


def test_slow_growth_is_exact():
    """An unstable mode below the rails follows its law: E x = (e^(t/τ) - 1) b at λ = -1."""
    spec = UnitSpec(cells=2, adc_bits=16, clock_hz=1e9, tau_s=1e-6)
    array = NoiseArray(spec, ArrayPhysics.ideal(), -127 * np.eye(2, dtype=int), 0)
    blocks = sample_blocks(
        array, np.array([1, 0]), settle_cycles=40, interval_cycles=20, seed=0, stream=0
    )
    times = (40 + 20 * np.arange(BLOCK)) / 1000
    voltages, codes = next(blocks)
    np.testing.assert_allclose(voltages[:, 0], np.expm1(times) / 2047, rtol=1e-12)
    np.testing.assert_array_equal(codes[:, 1], 0)


def test_a_mode_without_restoring_force_diffuses(chance):
    """λ = 0: Var x(t) = 2 T t/τ and E x = b t/τ."""
    array = NoiseArray(SPEC, ArrayPhysics.ideal(), np.zeros((5, 5), int), 900)
    biases = np.array([100, 0, 0, 0, 0])
    blocks = sample_blocks(array, biases, settle_cycles=1000, interval_cycles=100, seed=0, stream=0)
    voltages, _ = next(blocks)
    steps = np.diff(voltages, axis=0) - array.bias(biases) * 0.1
    z = steps / np.sqrt(2 * SPEC.temperature_value(900) * 0.1)
    assert abs(z.sum()) / np.sqrt(z.size) < chance.sigmas
    assert abs(np.sum(z**2) - z.size) / np.sqrt(2 * z.size) < chance.sigmas
