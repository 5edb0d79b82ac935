"""Converters that do not sample at once, or not when they should: jitter and skew, exactly."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import scipy.linalg

from thermokron.model import ArrayPhysics, NoiseArray, NumericUnit, UnitSpec, sample_blocks
from thermokron.model.device import Device
from thermokron.model.linear import LinearLaw, instants, linear_system

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
SKEW, JITTER = 60e-9, 20e-9  # hundredths of τ: far more than any converter has
LATE = ArrayPhysics(adc_skew_s=SKEW, adc_jitter_s=JITTER, device_seed=3)
EVERYTHING = replace(
    LATE,
    coupling_asymmetry=0.2,
    noise_bandwidth_hz=1e6,
    adc_bandwidth_hz=2e6,
    noise_mismatch=0.4,
    tau_mismatch=0.3,
    cell_flicker=1e-3,
)
#: Of the instants -√3 σ, 0 and √3 σ.
CHANCES = np.array([1, 4, 1]) / 6
pytestmark = pytest.mark.filterwarnings("ignore:cells of tau_s")


def times(physics: ArrayPhysics) -> np.ndarray:
    """Of each channel and of each instant of jitter, (3 or 1, n), in τ after CONVST."""
    found = np.zeros((1, 4))
    if physics.adc_skew_s is not None:
        found = found + Device.draw(physics, 4).adc_delays / SPEC.tau_s
    if physics.adc_jitter_s is not None:
        step = np.sqrt(3) * physics.adc_jitter_s / SPEC.tau_s
        found = found + np.array([[0], [step], [2 * step]])
    return found


def covariance_between(system, stationary, later: float) -> np.ndarray:
    """Cov(s(t + later), s(t)), of what is seen."""
    if later >= 0:
        whole = scipy.linalg.expm(system.drift * later) @ stationary
    else:
        whole = stationary @ scipy.linalg.expm(-system.drift.T * later)
    return whole[system.seen, system.seen]


@pytest.mark.parametrize("physics", [LATE, EVERYTHING, replace(EVERYTHING, adc_jitter_s=None)])
@pytest.mark.parametrize("interval", [300, 5000])
def test_what_is_seen_covaries_as_at_its_own_instants(spd_codes, physics, interval):
    """Any instant of any channel with any other, in one sample and in two that follow."""
    array = NoiseArray(SPEC, physics, spd_codes(SPEC, 20), 900)
    law, system = LinearLaw(array, 500, interval), linear_system(array)
    stationary = scipy.linalg.solve_continuous_lyapunov(system.drift, -system.diffusion)
    m, transition = law.remembered, law.transition.T
    np.testing.assert_allclose(
        transition[:m], scipy.linalg.expm(system.drift * interval / 1000), atol=1e-12
    )
    own = transition @ stationary @ transition.T + law.factors[1].T @ law.factors[1]
    scale = np.sqrt(np.diag(stationary))
    np.testing.assert_allclose(
        own[:m, :m] / np.outer(scale, scale), stationary / np.outer(scale, scale), atol=1e-9
    )
    following = transition @ own[:m]
    at = times(physics)
    np.testing.assert_allclose(instants(array), at, rtol=1e-12)
    assert at.min() == 0.0
    size = np.abs(stationary[system.seen, system.seen]).max()
    for found, apart in ((own, 0.0), (following, interval / 1000)):
        seen = found[law.seen, law.seen].reshape(len(at), 4, len(at), 4)
        for k, i, q, j in np.ndindex(seen.shape):
            expected = covariance_between(system, stationary, apart + at[k, i] - at[q, j])
            assert seen[k, i, q, j] == pytest.approx(expected[i, j], abs=1e-9 * size)


def test_still_cells_are_seen_at_their_own_instants(spd_codes):
    """No noise: channel i of the j-th sample is x(settle + j interval + delay), one of three."""
    array = NoiseArray(SPEC, LATE, spd_codes(SPEC, 5), 0)
    blocks = sample_blocks(
        array,
        np.tile(BIASES, (2000, 1)),
        settle_cycles=300,
        interval_cycles=250,
        seed=1,
        stream=0,
    )
    x = np.concatenate([voltages for voltages, _ in islice(blocks, 2)], axis=1)
    target = np.linalg.solve(array.matrix, array.bias(BIASES))
    at = times(LATE)
    for j in range(5):
        legal = np.array(
            [
                [
                    (target - scipy.linalg.expm(-array.matrix * (0.3 + 0.25 * j + d)) @ target)[i]
                    for i, d in enumerate(row)
                ]
                for row in at
            ]
        )
        off = np.abs(x[:, j, None] - legal)
        assert off.min(axis=1).max() < 1e-12
        shares = [np.mean(off.argmin(axis=1) == k, axis=0) for k in range(3)]
        # 12 scores
        errors = np.sqrt(CHANCES * (1 - CHANCES) / 2000)
        assert np.abs((np.array(shares).T - CHANCES) / errors).max() < 4.42


def test_jitter_of_a_moving_voltage_is_slope_times_time(chance):
    """Where a slope exists: to first order, error = dx/dt · δt, of variance slope² σ²."""
    physics, codes = ArrayPhysics(adc_jitter_s=1e-9), np.eye(4, dtype=int) * 8191
    array = NoiseArray(SPEC, physics, codes, 0)
    program = {"settle_cycles": 700, "interval_cycles": 250, "seed": 1, "stream": 0}
    x = next(sample_blocks(array, np.tile(BIASES, (20_000, 1)), **program))[0][:, 0]
    still = NoiseArray(SPEC, ArrayPhysics.ideal(), codes, 0)
    (ideal,) = next(sample_blocks(still, BIASES[None], **program))[0][:, 0]
    slopes = array.bias(BIASES) * np.exp(-0.7)
    errors = (x - ideal)[:, slopes != 0] / slopes[slopes != 0] * SPEC.tau_s / 1e-9
    # the mean is that of converters: √3 σ after CONVST; variance σ², kurtosis 3
    z = errors - np.sqrt(3)
    assert np.abs(z.mean(axis=0)).max() < 0.003 + chance.sigmas / np.sqrt(20_000)
    assert np.abs(z.var(axis=0) - 1).max() < 0.003 + chance.sigmas * np.sqrt(2 / 20_000)
    correlations = np.corrcoef(z.T)[np.triu_indices(3, 1)]
    assert np.abs(correlations).max() < chance.sigmas / np.sqrt(20_000)


def test_stationary_noise_hardly_feels_either(spd_codes):
    """A variance is the same at any instant; between cells what is lost is of the second order.

    Of symmetric A, Cov(x_i(t + d), x_j(t)) = [e^(-A d) T A⁻¹]_ij, which is T [A⁻¹ + A d²/2]_ij for
    i ≠ j: the term linear in d is diagonal.
    """
    codes = spd_codes(SPEC, 20)
    array = NoiseArray(SPEC, ArrayPhysics(adc_skew_s=5e-9, device_seed=3), codes, 900)
    law = LinearLaw(array, 1_000_000, 1000)
    found = (law.factors[0].T @ law.factors[0])[law.seen, law.seen]
    temperature, (delays,) = SPEC.temperature_value(900), instants(array)
    exact = temperature * np.linalg.inv(array.matrix)
    np.testing.assert_allclose(np.diag(found), np.diag(exact), rtol=1e-9)
    apart = delays[:, None] - delays
    expected = exact + temperature * array.matrix * apart**2 / 2
    np.testing.assert_allclose(
        (found - expected)[apart != 0], 0, atol=0.02 * np.abs(expected - exact).max()
    )
    assert np.linalg.norm(found - exact) < 1e-4 * np.linalg.norm(exact)


@pytest.mark.parametrize("physics", [LATE, EVERYTHING], ids=["alone", "with all"])
def test_samples_covary_as_the_mean_over_instants(spd_codes, chance, physics):
    """At lags of 0 to 2 samples and over 300 discharges; 3 times 16 scores."""
    array, interval = NoiseArray(SPEC, physics, spd_codes(SPEC, 5), 900), 400
    system, at = linear_system(array), times(physics)
    stationary = scipy.linalg.solve_continuous_lyapunov(system.drift, -system.diffusion)
    mean = -np.linalg.solve(system.drift, system.drive @ array.bias(BIASES))[system.seen]
    blocks = sample_blocks(
        array,
        np.tile(BIASES, (300, 1)),
        settle_cycles=200_000,
        interval_cycles=interval,
        seed=4,
        stream=0,
    )
    x = np.concatenate([voltages for voltages, _ in islice(blocks, 3)], axis=1) - mean
    for lag in range(3):
        expected = np.zeros((4, 4))
        for k, i, q, j in np.ndindex(3, 4, 3, 4):
            later, share = lag * interval / 1000 + at[k, i] - at[q, j], CHANCES[k] * CHANCES[q]
            if lag == 0 and i == j:  # one conversion, at one instant
                later, share = 0.0, CHANCES[k] * (k == q)
            if share:
                between = covariance_between(system, stationary, later)[i, j]
                expected[i, j] += share * between
        of_each = np.einsum("kji,kjl->kil", x[:, lag:], x[:, : x.shape[1] - lag])
        of_each /= x.shape[1] - lag
        error = of_each.std(axis=0) / np.sqrt(300)
        assert np.abs((of_each.mean(axis=0) - expected) / error).max() < chance.sigmas


@pytest.mark.parametrize("name", ["adc_jitter_s", "adc_skew_s"])
def test_instants_that_coincide_leave_the_ideal_law(spd_codes, name):
    codes = spd_codes(SPEC, 20)
    ideal = NoiseArray(SPEC, ArrayPhysics.ideal(), codes, 900)
    law = LinearLaw(NoiseArray(SPEC, ArrayPhysics(**{name: 0.0}), codes, 900), 700, 700)
    q = ideal.eigenvectors
    found = (law.factors[0].T @ law.factors[0])[law.seen, law.seen]
    found = found.reshape(-1, 4, law.states - 4)[0, :, :4]
    np.testing.assert_allclose(found, q @ ideal.mode_covariance(0.7) @ q.T, rtol=1e-9)


def test_instants_beside_a_spec_whose_samples_are_too_close(spd_codes):
    spec = UnitSpec(cells=4)  # 0.32 µs at least between samples
    limit = 0.05 * spec.shortest_interval(False) * spec.clock_s
    for name in ("adc_jitter_s", "adc_skew_s"):
        NumericUnit(spec, ArrayPhysics(**{name: 0.99 * limit}))
        with pytest.raises(ValueError, match=rf"{name} = .* is out of range; legal: 0 to"):
            NumericUnit(spec, ArrayPhysics(**{name: 1.01 * limit}))
    array = NoiseArray(SPEC, ArrayPhysics(adc_jitter_s=10e-9), spd_codes(SPEC, 20), 900)
    with pytest.raises(ValueError, match=r"interval_cycles = 34 is out of range: .* above 34\.64"):
        sample_blocks(array, BIASES[None], settle_cycles=1, interval_cycles=34, seed=0, stream=0)
