"""1/f noise of cells: its density, what it does to an array, and spectra of samples."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import scipy.linalg

from thermokron.model import ArrayPhysics, Job, NoiseArray, NumericUnit, UnitSpec, sample_blocks
from thermokron.model.linear import linear_system
from thermokron.model.physics import FLICKER_RATES

# 1,000 clock cycles per time constant
SPEC = UnitSpec(
    cells=3,
    lanes=3,
    coupling_bits=14,
    adc_bits=16,
    clock_hz=1e9,
    tau_s=1e-6,
    temperature_full_scale=1e-3,
)
AMPLITUDE = 2e-3
FLICKER = ArrayPhysics(cell_flicker=AMPLITUDE)


def test_the_density_is_a_squared_over_f():
    """Of the states: Σ 4 v r/(r² + ω²) within 8 % of a²/f where it is said to be, and at its ends.

    A pole each decade ripples by 2 sech(π²/ln 10) = 5.5 %.
    """
    system = linear_system(NoiseArray(SPEC, FLICKER, np.eye(3, dtype=int) * 8191, 0))
    rates = -np.diag(system.drift)[3::3] / SPEC.tau_s
    variances = np.diag(system.start)[3::3]
    np.testing.assert_allclose(rates * SPEC.tau_s, FLICKER_RATES)
    # stationary: 2 r v = D
    np.testing.assert_allclose(np.diag(system.diffusion)[3::3], 2 * rates * SPEC.tau_s * variances)
    f = np.geomspace(1e-5, 1.0, 1001) / (2 * np.pi * SPEC.tau_s)
    omega = 2 * np.pi * f[:, None]
    density = np.sum(4 * variances * rates / (rates**2 + omega**2), axis=1)
    ratio = density * f / AMPLITUDE**2
    assert 0.92 < ratio.min() < 0.96
    assert 1.04 < ratio.max() < 1.08
    assert np.exp(np.mean(np.log(ratio))) == pytest.approx(1.0, abs=0.01)


def test_a_settled_array_solves_for_slow_noise(spd_codes):
    """Σ_r v (A (A + r))⁻¹: slow flicker is an offset, which A⁻¹ amplifies."""
    array = NoiseArray(SPEC, FLICKER, spd_codes(SPEC, 20), 0)
    system = linear_system(array)
    found = scipy.linalg.solve_continuous_lyapunov(system.drift, -system.diffusion)
    matrix, variance = array.matrix, AMPLITUDE**2 * np.log(10)
    expected = sum(
        variance * np.linalg.inv(matrix @ (matrix + rate * np.eye(3))) for rate in FLICKER_RATES
    )
    np.testing.assert_allclose(found[system.seen, system.seen], expected, rtol=1e-6)


def test_it_is_there_without_temperature_and_at_the_end_of_discharge(spd_codes, chance):
    """Covariance of the first sample over 3,000 discharges, by quadrature; 6 scores."""
    array = NoiseArray(SPEC, FLICKER, spd_codes(SPEC, 20), 0)
    blocks = sample_blocks(
        array, np.zeros((3000, 3), int), settle_cycles=500, interval_cycles=500, seed=1, stream=0
    )
    first = next(blocks)[0][:, 0]
    variance, a, one = AMPLITUDE**2 * np.log(10), array.matrix, np.eye(3)

    def response(rate: float, t: float) -> np.ndarray:
        """Of x to a process that was 1 at 0 and decays: (A - r)⁻¹ (e^(-r t) - e^(-A t))."""
        return np.linalg.solve(a - rate * one, one * np.exp(-rate * t) - scipy.linalg.expm(-a * t))

    expected = np.zeros((3, 3))
    nodes, weights = np.polynomial.legendre.leggauss(30)
    for rate in FLICKER_RATES:
        start = response(rate, 0.5)
        integral = sum(
            weight * response(rate, t) @ response(rate, t)
            for t, weight in zip(0.25 * (nodes + 1), 0.25 * weights, strict=True)
        )
        expected += variance * (start @ start + 2 * rate * integral)
    root = np.linalg.cholesky(expected)
    white = scipy.linalg.solve_triangular(root, first.T, lower=True)
    scores = (white @ white.T / 3000 - one) * np.sqrt(3000 / (1 + one))
    assert np.abs(scores).max() < chance.sigmas


@pytest.mark.parametrize("interval", [100, 10_000])
def test_the_spectrum_of_samples(chance, interval):
    """Uncoupled cells: a²/f/(1 + (2π f τ)²), octave by octave, within 8 % and chance.

    2π f τ from 0.12 to 3.9, and from 0.0012 to 0.039. Averaged periodograms with a Hann window, of
    48 discharges of 3 cells, far below the frequency from which on there is aliasing.
    """
    discharges, samples = 48, 4096
    array = NoiseArray(SPEC, FLICKER, np.eye(3, dtype=int) * 8191, 0)
    blocks = sample_blocks(
        array,
        np.zeros((discharges, 3), int),
        settle_cycles=20_000,
        interval_cycles=interval,
        seed=2,
        stream=0,
    )
    x = np.concatenate([v for v, _ in islice(blocks, 7)], axis=1)
    window = np.hanning(samples)[:, None]
    spectrum = np.abs(np.fft.rfft(window * (x - x.mean(axis=1, keepdims=True)), axis=1)) ** 2
    f = np.arange(spectrum.shape[1]) / (samples * interval * SPEC.clock_s)
    density = 2 * interval * SPEC.clock_s * spectrum.mean(axis=(0, 2)) / np.sum(window**2)
    with np.errstate(divide="ignore"):
        theory = AMPLITUDE**2 / f / (1 + (2 * np.pi * f * SPEC.tau_s) ** 2)
    for first in 2 ** np.arange(3, 8):
        octave = slice(first, 2 * first)
        ratio = np.mean(density[octave] / theory[octave])
        spread = np.sqrt(1.5 / (discharges * 3 * first))  # the window makes neighbours correlate
        assert abs(ratio - 1) < 0.08 + chance.sigmas * spread


def test_runs_do_not_average_it_out():
    """Each reading of one discharge has nearly the same slow part: the mean keeps its variance."""
    job = Job(
        couplings=np.eye(3, dtype=int) * 8191,
        biases=np.zeros((60, 3), int),
        temperature=0,
        settle_cycles=20_000,
        interval_cycles=1000,
        samples=400,
        second_moments=False,
    )
    means = NumericUnit(SPEC, ArrayPhysics(cell_flicker=0.02)).run(job).sums / 400 * SPEC.adc_step
    slow = 0.02**2 * np.log(10) * sum(rate < 1e-3 for rate in FLICKER_RATES)
    assert 0.6 * slow < np.mean(means**2) < 2 * slow
