"""Cells that clip softly: against Boltzmann's distribution and other people's integrators."""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg

from thermokron.model import ArrayPhysics, NoiseArray, UnitSpec, sample_blocks, sampling, saturation
from thermokron.model.linear import linear_system
from thermokron.model.saturation import STEP, clamped

# 1,000 clock cycles per time constant
SPEC = UnitSpec(
    cells=2,
    lanes=2,
    coupling_bits=14,
    adc_bits=16,
    clock_hz=1e9,
    tau_s=1e-6,
    temperature_full_scale=0.05,
)
EVERYTHING = ArrayPhysics(
    cell_saturation=0.2,
    coupling_asymmetry=0.1,
    noise_bandwidth_hz=1e6,
    coupling_bandwidth_hz=2e6,
    adc_bandwidth_hz=2e6,
    cell_flicker=3e-3,
    noise_mismatch=0.4,
    tau_mismatch=0.3,
    cell_offset=0.05,
    adc_noise=1e-3,
)
pytestmark = pytest.mark.filterwarnings("ignore:cells of tau_s")


def potential(x, y, matrix, bias, x_sat):
    """U of a pair."""
    form = (matrix[0, 0] * x**2 + 2 * matrix[0, 1] * x * y + matrix[1, 1] * y**2) / 2
    clamps = (x**2 * (x / x_sat) ** 8 + y**2 * (y / x_sat) ** 8) / 10
    return form + clamps - bias[0] * x - bias[1] * y


def boltzmann(array: NoiseArray, bias, *powers: tuple[int, int]) -> list[float]:
    """Moments E x^p y^q of exp(-U/T), on a grid."""
    x_sat = array.physics.cell_saturation
    grid = np.linspace(-2.5 * x_sat, 2.5 * x_sat, 801)
    x, y = grid[:, None], grid[None]
    energy = potential(x, y, array.matrix, bias, x_sat) / array.temperatures[0]
    density = np.exp(-(energy - energy.min()))
    return [float(np.sum(density * x**p * y**q) / density.sum()) for p, q in powers]


def settled(array: NoiseArray, bias, *, discharges=4000, taus=12, seed=1) -> np.ndarray:
    """One sample each of independent discharges."""
    blocks = sample_blocks(
        array,
        np.tile(bias, (discharges, 1)),
        settle_cycles=taus * 1000,
        interval_cycles=1000,
        seed=seed,
        stream=0,
    )
    return next(blocks)[0][:, 0]


# ---- the scheme -----------------------------------------------------------------------------


def test_the_clamps_flow_is_the_solution_of_its_equation():
    x = np.array([-3.0, -0.5, 0.0, 1e-3, 0.29, 0.4, 2.0])
    for time in (1e-3, 0.05, 2.0):
        solved = scipy.integrate.solve_ivp(
            lambda t, x: -x * (x / 0.3) ** 8, (0, time), x, method="Radau", rtol=1e-10, atol=1e-12
        )
        found = clamped(x, np.full(7, time), 0.3)
        np.testing.assert_allclose(found, solved.y[:, -1], rtol=1e-6, atol=1e-12)
        twice = clamped(clamped(x, np.full(7, time / 2), 0.3), np.full(7, time / 2), 0.3)
        np.testing.assert_allclose(twice, found, rtol=1e-13)
    # a millionfold beyond, nothing overflows
    far = clamped(np.array([1e3, -1e6]), np.full(2, 0.1), 1e-3)
    np.testing.assert_allclose(far, [1e-3 / 0.8**0.125, -1e-3 / 0.8**0.125], rtol=1e-12)


def stationary_of_the_scheme(rate: float, temperature: float, x_sat: float, bias: float, h: float):
    """Mean and variance of one cell under the scheme's own step, by quadrature, without chance."""
    u = np.linspace(-2.5 * x_sat, 2.5 * x_sat, 601)
    decay = np.exp(-rate * h)
    mean, variance = (1 - decay) / rate * bias, temperature * (1 - decay**2) / rate

    def flow(time: float) -> np.ndarray:
        return clamped(u[:, None], np.array([time]), x_sat)[:, 0]

    # from what linear step to what linear step: a whole clamp lies between them
    kernel = np.exp(-((u - (decay * flow(h) + mean)[:, None]) ** 2) / 2 / variance)
    kernel /= kernel.sum(axis=1, keepdims=True)
    density = np.full(len(u), 1 / len(u))
    for _ in range(round(12 / h)):
        density = density @ kernel
    x = flow(h / 2)
    return density @ x, density @ x**2 - (density @ x) ** 2


@pytest.mark.parametrize(
    ("rate", "temperature", "bias", "of_mean", "of_variance"),
    [
        (1.0, 0.1, 0.0, 1e-6, 0.003),  # noise takes the cell to its clamp
        (1.0, 0.03, 0.2, 0.0015, 0.003),
        (1.0, 0.01, 0.6, 0.02, 0.07),  # driven to twice its clamp
        (-0.5, 0.05, 0.0, 1e-6, 0.004),  # two wells
    ],
)
def test_the_step_is_fine_enough(rate, temperature, bias, of_mean, of_variance):
    """Beside Boltzmann's; half of it errs by less than half as much."""
    x = np.linspace(-1, 1, 20001)
    density = np.exp(-(rate * x**2 / 2 - bias * x + x**2 * (x / 0.3) ** 8 / 10) / temperature)
    density /= density.sum()
    mean, variance = density @ x, density @ x**2 - (density @ x) ** 2
    errors = []
    for h in (STEP, STEP / 2):
        m, v = stationary_of_the_scheme(rate, temperature, 0.3, bias, h)
        errors.append((abs(m - mean) / np.sqrt(variance), abs(v / variance - 1)))
    assert errors[0][0] < of_mean
    assert errors[0][1] < of_variance
    assert errors[1][1] < 0.5 * errors[0][1]
    if bias:
        assert errors[1][0] < 0.5 * errors[0][0]


# ---- samples --------------------------------------------------------------------------------

PAIRS = {
    "definite": ([[0.9, 0.5], [0.5, 0.7]], [300, -100]),
    "indefinite": ([[0.3, 0.6], [0.6, 0.3]], [0, 20]),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_coupled_pair_is_boltzmanns(chance, monkeypatch, name):
    """Means, (co)variances and fourth moments of 8,000 discharges, with the step and half of it."""
    matrix, bias = PAIRS[name]
    codes = SPEC.coupling_codes(np.array(matrix))
    powers = [(1, 0), (0, 1), (2, 0), (1, 1), (0, 2), (4, 0), (2, 2), (0, 4)]
    moments = []
    for step, seed in ((STEP, 1), (STEP / 2, 2)):
        monkeypatch.setattr(saturation, "STEP", step)
        array = NoiseArray(SPEC, ArrayPhysics(cell_saturation=0.25), codes, 900)
        expected = boltzmann(array, array.bias(bias), *powers)
        x = settled(array, bias, seed=seed, taus=25 if name == "indefinite" else 12)
        products = np.array([x[:, 0] ** p * x[:, 1] ** q for p, q in powers])
        error = products.std(axis=1) / np.sqrt(len(x))
        moments.append((products.mean(axis=1), error))
        # the step's own error beside that of chance
        assert np.abs((moments[-1][0] - expected) / error).max() < chance.sigmas + 0.5
    (first, error), (second, other) = moments
    assert np.abs((first - second) / np.hypot(error, other)).max() < chance.sigmas
    # it is another distribution than without clamps
    if name == "definite":
        free = np.linalg.inv(matrix) * SPEC.temperature_value(900)
        assert first[2] - first[0] ** 2 < 0.6 * free[0, 0]


def test_without_noise_cells_follow_the_differential_equation():
    """All linear states and clamps, from discharge, beside SciPy's Radau."""
    physics = replace(EVERYTHING, cell_flicker=None, adc_noise=None)
    codes = SPEC.coupling_codes(np.array([[0.9, -0.4], [-0.4, 0.8]]))
    array = NoiseArray(SPEC, physics, codes, 0)
    system, bias = linear_system(array), array.bias([800, -300])
    speeds = 1 / array.device.time_factors

    def drift(t, s):
        moved = system.drift @ s + system.drive @ bias
        moved[:2] -= speeds * s[:2] * (s[:2] / 0.2) ** 8
        return moved

    at = 0.4 + 0.7 * np.arange(16)
    solved = scipy.integrate.solve_ivp(
        drift, (0, at[-1]), np.zeros(8), t_eval=at, method="Radau", rtol=1e-9, atol=1e-11
    )
    blocks = sample_blocks(
        array, [[800, -300]], settle_cycles=400, interval_cycles=700, seed=0, stream=0
    )
    found = np.concatenate([voltages[0] for voltages, _ in islice(blocks, 2)])
    np.testing.assert_allclose(found, solved.y[system.seen].T, atol=3e-3 * 0.2)
    assert found[-1, 0] < 0.26  # it would be 0.6


def test_far_below_its_clamp_an_array_is_linear(spd_codes):
    """Trajectories of no noise to twelve digits, and noise of the exact covariance."""
    spec = replace(SPEC, cells=3, lanes=3)
    codes = spd_codes(spec, 20)
    array = NoiseArray(spec, ArrayPhysics(cell_saturation=1e3), codes, 0)
    target = np.linalg.solve(array.matrix, array.bias([90, 0, -40]))
    (x,) = next(
        sample_blocks(array, [[90, 0, -40]], settle_cycles=800, interval_cycles=9, seed=0, stream=0)
    )[0][:, 0]
    expected = target - scipy.linalg.expm(-array.matrix * 0.8) @ target
    np.testing.assert_allclose(x, expected, rtol=1e-10)
    law = saturation.SaturatedLaw(array.at(900), 800, 9)
    phi, factor = law.transitions[0], law.factors[0]
    covariance = np.zeros((3, 3))
    for _ in range(law.steps[0]):
        covariance = phi.T @ covariance @ phi + factor.T @ factor
    ideal = NoiseArray(spec, ArrayPhysics.ideal(), codes, 900)
    modes = ideal.eigenvectors @ ideal.mode_covariance(0.8) @ ideal.eigenvectors.T
    np.testing.assert_allclose(covariance, modes, rtol=1e-9)


# ---- the same for all -----------------------------------------------------------------------


def test_samples_do_not_depend_on_their_company(spd_codes):
    """Bit for bit the same alone, at any place among others, and however many others there are."""
    spec = replace(SPEC, cells=5, lanes=5)
    array = NoiseArray(spec, EVERYTHING, spd_codes(spec, 20), 900)
    biases = np.random.default_rng(0).integers(-900, 900, (40, 5))
    grid = {"settle_cycles": 4000, "interval_cycles": 90, "seed": 3}
    together = list(islice(sample_blocks(array, biases, stream=17, **grid), 2))
    for part in (slice(0, 1), slice(14, 15), slice(15, 16), slice(39, 40), slice(10, 30)):
        blocks = sample_blocks(array, biases[part], stream=17 + part.start, **grid)
        for some, among in zip(blocks, together, strict=False):
            for found, expected in zip(some, among, strict=True):  # voltages, codes
                np.testing.assert_array_equal(found, expected[part])


def test_samples_do_not_depend_on_how_blocks_are_walked(spd_codes, monkeypatch):
    """One by one, or shown in stretches of any length, by any number of threads."""
    array = NoiseArray(SPEC, EVERYTHING, spd_codes(SPEC, 20), 900)
    program = {"settle_cycles": 400, "interval_cycles": 60, "seed": 3, "stream": 31}
    biases = np.array([[100, -50], [-30, 900]])
    blocks = islice(sample_blocks(array, biases, **program), 5)
    one_by_one = np.concatenate([codes for _, codes in blocks], axis=1)
    for threads, at_once, samples in itertools.product((1, 3), (1, 2**16), (1, 17, 1025, 1100)):
        monkeypatch.setattr(sampling, "AT_ONCE", at_once)
        monkeypatch.setattr(sampling, "WORTH_THREADS", 0.0)
        monkeypatch.setattr(sampling, "threads_at_hand", lambda threads=threads: threads)
        sums, lock = np.zeros((2, 2)), threading.Lock()
        cubes = np.zeros((2, 2))

        def see(vectors, codes, clipped, sums=sums, cubes=cubes, lock=lock):
            with lock:
                sums[vectors] += codes.sum(axis=1)
                cubes[vectors] += (codes**3).sum(axis=1)

        sample_blocks(array, biases, **program).show(samples, see)
        expected = one_by_one[:, :samples].astype(np.float64)
        np.testing.assert_array_equal(sums, expected.sum(axis=1))
        np.testing.assert_allclose(cubes, (expected**3).sum(axis=1), rtol=1e-12)


def test_every_sample_has_its_own_noise():
    """None is drawn twice: free cells' increments from sample to sample, and from step to step."""
    array = NoiseArray(SPEC, ArrayPhysics(cell_saturation=10.0), np.zeros((2, 2), int), 900)
    blocks = sample_blocks(
        array, np.zeros((3, 2), int), settle_cycles=50, interval_cycles=50, seed=3, stream=0
    )
    x = np.concatenate([voltages for voltages, _ in islice(blocks, 4)], axis=1)
    increments = np.concatenate([x[:, :1], np.diff(x, axis=1)], axis=1)
    assert len(np.unique(np.round(increments, 12))) == increments.size
    z = increments / np.sqrt(2 * SPEC.temperature_value(900) * 0.05)
    assert abs(z.var() - 1) < 4.42 * np.sqrt(2 / z.size)
