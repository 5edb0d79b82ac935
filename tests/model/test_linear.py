"""Arrays with more states than cells: every law against SciPy, every sample the same for all."""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg

from thermokron.model import (
    BLOCKS,
    ArrayPhysics,
    Job,
    NoiseArray,
    NumericUnit,
    UnitSpec,
    sample_blocks,
    sampling,
)
from thermokron.model.linear import LinearLaw, linear_system

# 1,000 clock cycles per time constant
SPEC = UnitSpec(
    cells=4,
    coupling_bits=14,
    adc_bits=16,
    clock_hz=1e9,
    tau_s=1e-6,
    temperature_full_scale=1e-3,
)
BIASES = np.array([100, -50, 0, 25])


def bandwidth(lag: float, spec: UnitSpec = SPEC) -> float:
    """That of a pole whose time constant is so many τ."""
    return 1.0 / (2.0 * np.pi * lag * spec.tau_s)


NOISE, COUPLING, ADC = 0.3, 0.2, 0.4
ALL = ArrayPhysics(
    coupling_asymmetry=0.1,
    noise_bandwidth_hz=bandwidth(NOISE),
    coupling_bandwidth_hz=bandwidth(COUPLING),
    adc_bandwidth_hz=bandwidth(ADC),
    noise_mismatch=0.4,
    tau_mismatch=0.3,
    cell_offset=0.01,
    device_seed=2,
)
#: With everything else that a linear array may have; and noise of conversions, where it matters.
MORE = replace(ALL, cell_flicker=1e-3, adc_noise=1e-3)
WALKED = pytest.mark.parametrize(
    "physics",
    [
        replace(ALL, adc_noise=1e-3),
        replace(MORE, adc_skew_s=1e-10, adc_jitter_s=1e-10),
    ],
    ids=["all", "more"],
)
pytestmark = pytest.mark.filterwarnings("ignore:cells of tau_s")


def whole(array: NoiseArray):
    """F, D, B and the first covariance of (x, y, ξ, w), all effects on, written down anew."""
    one, none = np.eye(array.spec.cells), np.zeros((array.spec.cells,) * 2)
    speeds, heat = np.diag(1 / array.device.time_factors), np.diag(array.temperatures)
    drift = np.block(
        [
            [none, -speeds @ array.matrix, speeds, none],
            [one / COUPLING, -one / COUPLING, none, none],
            [none, none, -one / NOISE, none],
            [one / ADC, none, none, -one / ADC],
        ]
    )
    diffusion = scipy.linalg.block_diag(none, none, 2 * heat / NOISE**2, none)
    start = scipy.linalg.block_diag(none, none, heat / NOISE, none)
    return drift, diffusion, np.vstack([speeds, none, none, none]), start


def settled(physics: ArrayPhysics, codes, spec: UnitSpec = SPEC) -> np.ndarray:
    """The stationary covariance of what the converters see, at temperature 1, by Lyapunov."""
    array = NoiseArray(spec, physics, codes, 900)
    system = linear_system(array)
    covariance = scipy.linalg.solve_continuous_lyapunov(system.drift, -system.diffusion)
    return covariance[system.seen, system.seen] / spec.temperature_value(900)


# ---- laws -----------------------------------------------------------------------------------


def test_the_states_are_those_of_the_equations(spd_codes):
    array = NoiseArray(SPEC, ALL, spd_codes(SPEC, 20), 900)
    system = linear_system(array)
    for found, expected in zip(system, whole(array), strict=False):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-18)
    assert system.seen == slice(12, 16)
    assert not np.allclose(array.matrix, array.matrix.T)


@pytest.mark.parametrize("taus", [0.05, 1.0, 40.0])
def test_the_first_sample_obeys_the_law_from_discharge(spd_codes, chance, taus):
    """Cells, amplifiers and filters at 0, noise stationary; moments by quadrature; 14 scores."""
    array = NoiseArray(SPEC, ALL, spd_codes(SPEC, 20), 900)
    drift, diffusion, drive, start = whole(array)
    decay = scipy.linalg.expm(drift * taus)
    covariance, _ = scipy.integrate.quad_vec(
        lambda s: scipy.linalg.expm(drift * s) @ diffusion @ scipy.linalg.expm(drift * s).T, 0, taus
    )
    covariance += decay @ start @ decay.T
    mean = np.linalg.solve(drift, (decay - np.eye(16)) @ drive @ array.bias(BIASES))[12:]
    covariance = covariance[12:, 12:]

    biases, cycles = np.tile(BIASES, (1500, 1)), {"settle_cycles": round(taus * 1000)}
    blocks = sample_blocks(array, biases, interval_cycles=50, seed=0, stream=7, **cycles)
    first = next(blocks)[0][:, 0]
    white = scipy.linalg.solve_triangular(
        np.linalg.cholesky(covariance), (first - mean).T, lower=True
    )
    r = white.shape[1]
    assert np.abs(white.mean(axis=1)).max() < chance.sigmas / np.sqrt(r)
    scores = (white @ white.T / r - np.eye(4)) * np.sqrt(r / (1 + np.eye(4)))
    assert np.abs(scores).max() < chance.sigmas


@pytest.mark.parametrize("interval", [100, 2000])
def test_samples_covary_as_lyapunov_and_the_exponential_have_it(spd_codes, chance, interval):
    """At lags of 0 to 3 samples, and their mean; over 300 discharges, which are independent."""
    array = NoiseArray(SPEC, ALL, spd_codes(SPEC, 5), 900)
    drift, diffusion, drive, _ = whole(array)
    stationary = scipy.linalg.solve_continuous_lyapunov(drift, -diffusion)
    mean = -np.linalg.solve(drift, drive @ array.bias(BIASES))[12:]
    blocks = sample_blocks(
        array,
        np.tile(BIASES, (300, 1)),
        settle_cycles=200_000,
        interval_cycles=interval,
        seed=4,
        stream=0,
    )
    x = np.concatenate([voltages for voltages, _ in islice(blocks, 3)], axis=1) - mean
    for lag in range(4):
        expected = scipy.linalg.expm(drift * lag * interval / 1000) @ stationary
        of_each = np.einsum("kji,kjl->kil", x[:, lag:], x[:, : x.shape[1] - lag])
        of_each /= x.shape[1] - lag
        error = of_each.std(axis=0) / np.sqrt(300)
        assert np.abs((of_each.mean(axis=0) - expected[12:, 12:]) / error).max() < chance.sigmas
    of_each = x.mean(axis=1)
    assert np.abs(of_each.mean(axis=0) / of_each.std(axis=0)).max() * np.sqrt(300) < chance.sigmas


ONE = {
    "noise_bandwidth_hz": lambda rate, lag: 1 / rate / (1 + lag * rate),
    "adc_bandwidth_hz": lambda rate, lag: 1 / rate / (1 + lag * rate),
    "coupling_bandwidth_hz": lambda rate, lag: 1 / rate + lag,
}


@pytest.mark.parametrize("name", ONE)
def test_a_mode_has_the_variance_of_its_closed_form(name):
    """Of λ = 1 ± c, and of the effect's own pole."""
    spec = replace(SPEC, cells=2, lanes=2)
    codes = spec.coupling_codes([[0.6, 0.3], [0.3, 0.6]])
    rates = np.linalg.eigvalsh(spec.coupling_values(codes))
    for lag in (1e-4, 0.01, 0.5, 30.0):
        covariance = settled(ArrayPhysics(**{name: bandwidth(lag)}), codes, spec)
        modes = np.array([[1, -1], [1, 1]]) / np.sqrt(2)
        np.testing.assert_allclose(
            np.diag(modes @ covariance @ modes.T), ONE[name](rates, lag), rtol=1e-6
        )


@pytest.mark.parametrize("name", [*ONE, "coupling_asymmetry"])
@pytest.mark.parametrize("taus", [0.03, 2.0, 100.0])
def test_an_effect_that_vanishes_leaves_the_ideal_law(spd_codes, name, taus):
    value = 1e-13 if name == "coupling_asymmetry" else 1e15  # counts as 1e-7 τ
    codes, cycles = spd_codes(SPEC, 20), round(taus * 1000)
    ideal = NoiseArray(SPEC, ArrayPhysics.ideal(), codes, 900)
    array = NoiseArray(SPEC, ArrayPhysics(**{name: value}), codes, 900)
    law = LinearLaw(array, cycles, cycles)
    q = ideal.eigenvectors
    expected = q @ ideal.mode_covariance(taus) @ q.T
    for factor in law.factors:
        found = (factor.T @ factor)[law.seen, law.seen]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    found = law.transition.T[law.seen, :4] if name != "adc_bandwidth_hz" else None
    if found is not None:
        expected = scipy.linalg.expm(-ideal.matrix * taus)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_couplings_of_one_way_keep_the_mean_and_move_the_covariance(spd_codes, chance):
    """Mean A⁻¹b, covariance A Σ + Σ Aᵀ = 2 T, of the A that the device has."""
    codes, physics = spd_codes(SPEC, 5), ArrayPhysics(coupling_asymmetry=0.3)
    array = NoiseArray(SPEC, physics, codes, 900)
    job = Job(
        couplings=codes,
        biases=BIASES[None],
        temperature=900,
        settle_cycles=100_000,
        interval_cycles=20_000,
        samples=8000,
    )
    readout = NumericUnit(SPEC, physics, seed=3).run(job)
    mean = readout.sums[0] * SPEC.adc_step / 8000
    covariance = readout.products * SPEC.adc_step**2 / 8000 - np.outer(mean, mean)
    temperature = SPEC.temperature_value(900)
    expected = scipy.linalg.solve_continuous_lyapunov(array.matrix, 2 * temperature * np.eye(4))
    root = np.linalg.cholesky(expected)
    off = np.linalg.solve(root, mean - np.linalg.solve(array.matrix, SPEC.bias_values(BIASES)))
    assert np.abs(off).max() * np.sqrt(8000 / 1.35) < chance.sigmas
    white = np.linalg.solve(root, np.linalg.solve(root, covariance).T)
    scores = (white - np.eye(4)) * np.sqrt(8000 / (1 + np.eye(4)))
    assert np.abs(scores).max() < 1.02 * chance.sigmas
    ideal = temperature * np.linalg.inv(SPEC.coupling_values(codes))
    assert np.linalg.norm(expected - ideal) > 0.05 * np.linalg.norm(ideal)


def test_what_each_effect_costs_a_stiff_matrix():
    """n = 32, λ to 14: a stiff mode loses 40 % or more than doubles; of directions, by κ."""
    spec = UnitSpec(cells=32, coupling_bits=16, tau_s=1e-6)
    codes = spec.coupling_codes(np.full((32, 32), 13 / 31) + np.eye(32) * (1 - 13 / 31))
    ideal = np.linalg.inv(spec.coupling_values(codes))
    stiff = np.ones(32) / np.sqrt(32)  # the mode of λ = 14

    def left(**effects) -> float:
        covariance = settled(ArrayPhysics(**effects), codes, spec)
        return float(stiff @ covariance @ stiff / (stiff @ ideal @ stiff))

    assert left(noise_bandwidth_hz=bandwidth(0.05)) == pytest.approx(1 / 1.7, rel=1e-3)
    assert left(coupling_bandwidth_hz=bandwidth(0.1)) == pytest.approx(2.4, rel=1e-3)
    assert left(adc_bandwidth_hz=bandwidth(0.05)) == pytest.approx(1 / 1.7, rel=1e-3)

    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((32, 32)))
    for condition, low, high in ((30, 0.01, 0.06), (100, 0.04, 0.15), (300, 0.1, 0.6)):
        matrix = (q * np.geomspace(14 / condition, 14, 32)) @ q.T
        codes = spec.coupling_codes(matrix / np.abs(matrix).max())
        exact = np.linalg.inv(spec.coupling_values(codes))
        errors = [
            np.linalg.norm(
                settled(ArrayPhysics(coupling_asymmetry=0.008, device_seed=seed), codes, spec)
                - exact
            )
            / np.linalg.norm(exact)
            for seed in range(8)
        ]
        assert low < np.median(errors) < high


# ---- the same for all -----------------------------------------------------------------------


@WALKED
@pytest.mark.parametrize("cells", [2, 33])
def test_samples_do_not_depend_on_their_company(spd_codes, cells, physics):
    """Bit for bit the same alone, at any place among others, and however many others there are."""
    cells = min(cells, 99 // physics.states_per_cell)  # of as many states
    spec = UnitSpec(cells=cells, adc_bits=16, tau_s=1e-6)
    array = NoiseArray(spec, physics, spd_codes(spec, 20), 900)
    biases = np.random.default_rng(0).integers(-900, 900, (40, cells))
    grid = {"settle_cycles": 40, "interval_cycles": 9, "seed": 3}
    together = list(islice(sample_blocks(array, biases, stream=17, **grid), 3))
    for part in (slice(0, 1), slice(14, 15), slice(15, 16), slice(39, 40), slice(10, 30)):
        blocks = sample_blocks(array, biases[part], stream=17 + part.start, **grid)
        for some, among in zip(blocks, together, strict=False):
            for found, expected in zip(some, among, strict=True):  # voltages, codes
                np.testing.assert_array_equal(found, expected[part])


@WALKED
def test_samples_do_not_depend_on_how_blocks_are_walked(spd_codes, monkeypatch, physics):
    """One by one, or shown in stretches of any length, by any number of threads."""
    array = NoiseArray(SPEC, physics, spd_codes(SPEC, 20), 900)
    biases = np.array([BIASES, -BIASES])
    program = {"settle_cycles": 40, "interval_cycles": 9, "seed": 3, "stream": 31}
    blocks = islice(sample_blocks(array, biases, **program), 5)
    one_by_one = np.concatenate([codes for _, codes in blocks], axis=1)
    assert one_by_one.shape[1] == 2 * sum(BLOCKS)
    for threads, at_once, samples in itertools.product(
        (1, 3), (1, 2**16), (1, 2, 17, 1000, 1025, 2048)
    ):
        monkeypatch.setattr(sampling, "AT_ONCE", at_once)
        monkeypatch.setattr(sampling, "WORTH_THREADS", 0.0)
        monkeypatch.setattr(sampling, "threads_at_hand", lambda threads=threads: threads)
        sums, lock = np.zeros((2, 4)), threading.Lock()
        cubes = np.zeros((2, 4))

        def see(vectors, codes, clipped, sums=sums, cubes=cubes, lock=lock):
            with lock:
                sums[vectors] += codes.sum(axis=1)
                cubes[vectors] += (codes**3).sum(axis=1)

        sample_blocks(array, biases, **program).show(samples, see)
        expected = one_by_one[:, :samples].astype(np.float64)
        np.testing.assert_array_equal(sums, expected.sum(axis=1))
        np.testing.assert_allclose(cubes, (expected**3).sum(axis=1), rtol=1e-12)


def test_without_temperature_there_is_no_noise(spd_codes):
    array = NoiseArray(SPEC, ALL, spd_codes(SPEC, 20), 0)
    blocks = sample_blocks(
        array, BIASES[None], settle_cycles=10**7, interval_cycles=10, seed=1, stream=1
    )
    voltages = np.concatenate([voltages for voltages, _ in islice(blocks, 3)], axis=1)[0]
    target = np.linalg.solve(array.matrix, array.bias(BIASES))
    np.testing.assert_allclose(voltages, np.tile(target, (len(voltages), 1)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("cycles", [30, 5_000, 10_000_000])
@pytest.mark.filterwarnings("error")
def test_an_indefinite_array_clips_and_stays_finite(cycles):
    """Cell 0 runs away, the others are stable."""
    physics = ArrayPhysics(noise_bandwidth_hz=bandwidth(0.1), coupling_bandwidth_hz=bandwidth(0.1))
    array = NoiseArray(SPEC, physics, np.diag([-8191, 2000, 8191, 4000]), 900)
    blocks = sample_blocks(
        array, np.zeros((1, 4), int), settle_cycles=cycles, interval_cycles=cycles, seed=1, stream=0
    )
    voltages = np.concatenate([voltages for voltages, _ in islice(blocks, 5)], axis=1)[0]
    assert np.isfinite(voltages).all()
    assert (np.abs(voltages[-256:, 0]) > 1).all()
    assert np.abs(voltages[:, 1:]).max() < 0.5


def test_the_statistical_engine_refuses_them_by_name():
    from thermokron.host import open_unit

    with pytest.raises(ValueError, match=r"coupling_asymmetry, adc_bandwidth_hz: the statistical"):
        open_unit("statistical", SPEC, ArrayPhysics(coupling_asymmetry=0.1, adc_bandwidth_hz=1e9))
    with pytest.raises(ValueError, match=r"adc_dnl_lsb: the statistical"):
        open_unit("statistical", SPEC, ArrayPhysics(adc_dnl_lsb=0.1))
