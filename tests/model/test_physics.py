"""Deviations from nominal: validation, JSON, and each effect against its ideal and its theory."""

from __future__ import annotations

import json
import re
from dataclasses import fields

import numpy as np
import pytest
import scipy.linalg

from thermokron.model import ArrayPhysics, Job, NoiseArray, NumericUnit, UnitSpec
from thermokron.model.device import Device

RANGES = {f.name: f.metadata["range"] for f in fields(ArrayPhysics)}
EFFECTS = [name for name in RANGES if name != "device_seed"]
# what a data sheet states, and bandwidths, whose ideal is not zero
STATED = (
    "noise_bandwidth_hz",
    "coupling_bandwidth_hz",
    "cell_saturation",
    "adc_rate_hz",
    "adc_bandwidth_hz",
    "cell_capacitance_f",
    "full_scale_v",
)
# what takes another one to have an effect
IN_PAIRS = ("coupling_drift", "coupling_age_s", "coupling_tempco_per_k", "temperature_rise_k")
# of size zero they are the ideal but for rounding: what makes modes depend on each other is there
UNEQUAL = ("noise_mismatch", "tau_mismatch", "coupling_asymmetry", "cell_flicker")
# times that an interval has to be long beside, and of size zero the ideal but for rounding
TIMES = ("adc_jitter_s", "adc_skew_s")

# 1,000 clock cycles per time constant
SPEC = UnitSpec(
    cells=6,
    coupling_bits=14,
    bias_bits=14,
    adc_bits=16,
    clock_hz=1e9,
    tau_s=1e-6,
    temperature_full_scale=1e-3,
)


# ---- the dataclass --------------------------------------------------------------------------


def test_the_default_is_ideal():
    assert ArrayPhysics() == ArrayPhysics.ideal()
    assert all(getattr(ArrayPhysics.ideal(), name) is None for name in EFFECTS)


@pytest.mark.parametrize("name", EFFECTS)
def test_an_effect_out_of_range_is_refused_by_name(name):
    low, high = RANGES[name]
    for value in (low, high):
        assert getattr(ArrayPhysics(**{name: value}), name) == value
    for value in (low - 1e-9 * max(high - low, 1.0), high * 1.001, float("nan"), float("inf")):
        with pytest.raises(
            ValueError, match=f"{name} = .*legal: {re.escape(f'{low:g} to {high:g}')}"
        ):
            ArrayPhysics(**{name: value})
    for value in ("1", True):
        with pytest.raises(TypeError, match=f"{name} = .* is not a number"):
            ArrayPhysics(**{name: value})


@pytest.mark.parametrize("name", TIMES)
def test_saturation_beside_instants_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"cell_saturation = 0.5 beside {name} = 1e-09 is not"):
        ArrayPhysics(cell_saturation=0.5, **{name: 1e-9})


def test_a_device_seed_out_of_range_is_refused_by_name():
    with pytest.raises(ValueError, match="device_seed = -1 "):
        ArrayPhysics(device_seed=-1)
    for value in (1.0, None):
        with pytest.raises(TypeError, match=r"device_seed = .* is not an integer"):
            ArrayPhysics(device_seed=value)


def test_json_round_trip():
    for physics in (ArrayPhysics.ideal(), ArrayPhysics.discrete_board(device_seed=2**40)):
        assert ArrayPhysics.from_json(physics.to_json()) == physics
    values = json.loads(ArrayPhysics().to_json())
    for bad, message in (
        (values | {"drift": 1}, "unknown drift; legal: coupling_mismatch"),
        ({"adc_noise": 1}, "missing coupling_mismatch, coupling_asymmetry, coupling_drift"),
        ([], "expected an object with the fields coupling_mismatch"),
    ):
        with pytest.raises(ValueError, match=f"not an ArrayPhysics: {message}"):
            ArrayPhysics.from_json(json.dumps(bad))


# ---- one device -----------------------------------------------------------------------------

ALL = ArrayPhysics(
    coupling_mismatch=0.1,
    coupling_asymmetry=0.2,
    cell_offset=0.02,
    noise_mismatch=0.5,
    tau_mismatch=0.3,
    adc_gain_error=0.03,
    adc_offset=0.04,
    adc_dnl_lsb=0.5,
    adc_skew_s=1e-9,
    device_seed=7,
)
STATIC = {
    "coupling_factors": "coupling_mismatch",
    "direction_factors": "coupling_asymmetry",
    "cell_offsets": "cell_offset",
    "noise_factors": "noise_mismatch",
    "time_factors": "tau_mismatch",
    "adc_gains": "adc_gain_error",
    "adc_offsets": "adc_offset",
    "adc_elements": "adc_dnl_lsb",
    "adc_delays": "adc_skew_s",
}


@pytest.mark.parametrize(("drawn", "effect"), STATIC.items())
def test_an_effect_does_not_change_the_draws_of_the_others(drawn, effect):
    alone = ArrayPhysics(**{effect: getattr(ALL, effect)}, device_seed=7)
    np.testing.assert_array_equal(
        getattr(Device.draw(alone, 6), drawn), getattr(Device.draw(ALL, 6), drawn)
    )
    assert [name for name in STATIC if getattr(Device.draw(alone, 6), name) is not None] == [drawn]
    other = Device.draw(ArrayPhysics(**{effect: getattr(ALL, effect)}, device_seed=8), 6)
    same = getattr(other, drawn) == getattr(Device.draw(ALL, 6), drawn)
    # the diagonal; the earliest channel, if it is the same one
    assert np.count_nonzero(same) <= {"direction_factors": 6, "adc_delays": 1}.get(drawn, 0)


def test_devices_spread_as_stated(chance):
    """Mean and variance of each deviation over 300 devices of 6 cells; 18 scores."""
    devices = [
        Device.draw(ArrayPhysics.from_json(ALL.to_json().replace(": 7}", f": {seed}}}")), 6)
        for seed in range(300)
    ]
    upper, beside = np.triu_indices(6), ~np.eye(6, dtype=bool)

    def logarithms(factors, deviation):
        variance = np.log1p(deviation**2)
        return (np.log(factors) + variance / 2) / np.sqrt(variance)

    normal = {
        "couplings": (np.array([d.coupling_factors[upper] for d in devices]) - 1) / 0.1,
        "directions": (np.array([d.direction_factors[beside] for d in devices]) - 1) / 0.2,
        "cells": np.array([d.cell_offsets for d in devices]) / 0.02,
        "noise": logarithms([d.noise_factors for d in devices], 0.5),
        "times": logarithms([d.time_factors for d in devices], 0.3),
        "gains": (np.array([d.adc_gains for d in devices]) - 1) / 0.03,
        "elements": np.array([d.adc_elements for d in devices]),
        "offsets": np.array([d.adc_offsets for d in devices]) / 0.04,
        # that of two channels, which does not depend on which is the earliest
        "delays": np.array([np.diff(d.adc_delays)[::2] for d in devices]) / 1e-9 / np.sqrt(2),
    }
    for name, draws in normal.items():
        assert abs(draws.mean()) * np.sqrt(draws.size) < chance.sigmas, name
        assert abs(np.mean(draws**2) - 1) * np.sqrt(draws.size / 2) < chance.sigmas, name
        assert len(np.unique(draws)) == draws.size, name
    factors = np.array([d.noise_factors for d in devices])
    assert factors.mean() == pytest.approx(1.0, abs=chance.sigmas * 0.5 / np.sqrt(factors.size))


def test_a_coupling_is_one_element_in_both_directions():
    factors = Device.draw(ALL, 6).coupling_factors
    np.testing.assert_array_equal(factors, factors.T)


@pytest.mark.parametrize(
    ("effects", "deviation"),
    [
        # ν log(1 + t), at a day
        ({"coupling_drift": 0.01, "coupling_age_s": 86400.0}, 0.01 * np.log(86401.0)),
        ({"coupling_tempco_per_k": 1e-3, "temperature_rise_k": -40.0}, 0.04),
    ],
    ids=["drift", "temperature"],
)
def test_couplings_age_and_warm_each_by_itself(chance, effects, deviation):
    """Over 300 devices: mean and spread; symmetric; beside mismatch, which stays what it is."""
    upper, logarithm = np.triu_indices(6), "coupling_drift" in effects
    draws = []
    for seed in range(300):
        factors = Device.draw(ArrayPhysics(**effects, device_seed=seed), 6).coupling_factors
        np.testing.assert_array_equal(factors, factors.T)
        draws.append((np.log(factors) if logarithm else factors - 1)[upper] / deviation)
    draws = np.array(draws)
    assert abs(draws.mean()) * np.sqrt(draws.size) < chance.sigmas
    assert abs(np.mean(draws**2) - 1) * np.sqrt(draws.size / 2) < chance.sigmas

    both = Device.draw(ArrayPhysics(**effects, coupling_mismatch=0.1), 6).coupling_factors
    mismatch = Device.draw(ArrayPhysics(coupling_mismatch=0.1), 6).coupling_factors
    alone = Device.draw(ArrayPhysics(**effects), 6).coupling_factors
    np.testing.assert_allclose(both, alone * mismatch, rtol=1e-14)
    for name, value in effects.items():
        assert Device.draw(ArrayPhysics(**{name: value}), 6).coupling_factors is None


def test_couplings_drift_by_the_logarithm_of_their_age():
    def factors(age):
        physics = ArrayPhysics(coupling_drift=0.02, coupling_age_s=age)
        return np.log(Device.draw(physics, 6).coupling_factors)

    np.testing.assert_array_equal(factors(0.0), 0.0)
    np.testing.assert_allclose(factors(999.0), 3 * factors(9.0), rtol=1e-12)


# ---- each effect on the read-out --------------------------------------------------------------


def run(physics, couplings, *, biases=None, temperature=0, samples=4000, spec=SPEC):
    """Mean, covariance about it, and raw second moment of a settled run, in full scales."""
    slowest = np.linalg.eigvalsh(spec.coupling_values(couplings))[0]
    readout = NumericUnit(spec, physics, seed=3).run(
        Job(
            couplings=couplings,
            biases=np.zeros((1, spec.cells), int) if biases is None else biases,
            temperature=temperature,
            settle_cycles=round(20_000 / slowest),
            interval_cycles=max(round(2_000 / slowest), spec.shortest_interval()),
            samples=samples,
        )
    )
    mean = readout.sums[0] * spec.adc_step / samples
    second = readout.products * spec.adc_step**2 / samples
    return mean, second - np.outer(mean, mean), second


def misfit(covariance, expected, samples=4000):
    """Largest score of the whitened covariance: entries of Wishart spread, samples independent."""
    root = np.linalg.cholesky(expected)
    white = scipy.linalg.solve_triangular(root, covariance, lower=True)
    white = scipy.linalg.solve_triangular(root, white.T, lower=True)
    n = len(white)
    return np.abs((white - np.eye(n)) * np.sqrt(samples / (1 + np.eye(n)))).max()


def test_coupling_mismatch_inverts_another_matrix(spd_codes, chance):
    codes, physics = spd_codes(SPEC, 5), ArrayPhysics(coupling_mismatch=0.15)
    nominal = NoiseArray(SPEC, ArrayPhysics.ideal(), codes, 900).matrix
    actual = NoiseArray(SPEC, physics, codes, 900).matrix
    np.testing.assert_array_equal(nominal, SPEC.coupling_values(codes))
    np.testing.assert_allclose(actual, nominal * Device.draw(physics, 6).coupling_factors)
    temperature = SPEC.temperature_value(900)
    _, covariance, _ = run(physics, codes, temperature=900, samples=10_000)
    # samples 2τ/λ apart correlate: 4 % more variance
    assert misfit(covariance, temperature * np.linalg.inv(actual), 10_000) < 1.02 * chance.sigmas
    assert misfit(covariance, temperature * np.linalg.inv(nominal), 10_000) > 2 * chance.sigmas
    _, covariance, _ = run(None, codes, temperature=900, samples=10_000)
    assert misfit(covariance, temperature * np.linalg.inv(nominal), 10_000) < 1.02 * chance.sigmas


def test_cell_offset_adds_to_the_bias(spd_codes):
    codes = spd_codes(SPEC, 5)
    biases = np.array([[800, -400, 0, 200, 100, 0]])
    physics = ArrayPhysics(cell_offset=0.02)
    ideal, _, _ = run(None, codes, biases=biases)
    mean, covariance, _ = run(physics, codes, biases=biases)
    offsets = Device.draw(physics, 6).cell_offsets
    shift = np.linalg.solve(SPEC.coupling_values(codes), offsets)
    np.testing.assert_allclose(mean - ideal, shift, rtol=0, atol=SPEC.adc_step)
    assert np.abs(shift).min() > 4 * SPEC.adc_step
    np.testing.assert_array_equal(covariance, 0.0)  # no noise at temperature 0


def test_discharge_starts_at_zero_whatever_the_offset(spd_codes):
    physics = ArrayPhysics(cell_offset=0.5)
    job = Job(
        couplings=spd_codes(SPEC, 5),
        biases=np.zeros((1, 6), int),
        temperature=0,
        settle_cycles=1,
        interval_cycles=100,
        samples=1,
    )
    first = NumericUnit(SPEC, physics).run(job).sums[0] * SPEC.adc_step
    np.testing.assert_allclose(first, Device.draw(physics, 6).cell_offsets / 1000, atol=5e-5)


def test_noise_mismatch_solves_another_lyapunov_equation(spd_codes, chance):
    """AΣ + ΣA = 2 diag(T f)."""
    codes, physics = spd_codes(SPEC, 5), ArrayPhysics(noise_mismatch=0.5)
    _, covariance, _ = run(physics, codes, temperature=900)
    matrix, temperature = SPEC.coupling_values(codes), SPEC.temperature_value(900)
    factors = Device.draw(physics, 6).noise_factors
    expected = scipy.linalg.solve_continuous_lyapunov(matrix, 2 * temperature * np.diag(factors))
    assert misfit(covariance, expected) < 1.02 * chance.sigmas
    assert misfit(covariance, temperature * np.linalg.inv(matrix)) > 2 * chance.sigmas


def test_time_constants_that_differ_keep_means_and_move_covariances(spd_codes, chance):
    """F Σ + Σ Fᵀ = -2 T D², F = -D A, D = diag(τ/τ_i): one source's current into unequal cells."""
    codes, physics = spd_codes(SPEC, 5), ArrayPhysics(tau_mismatch=0.2)
    biases = np.array([[80, -40, 0, 20, 10, 0]])
    mean, covariance, _ = run(physics, codes, biases=biases, temperature=900)
    matrix, temperature = SPEC.coupling_values(codes), SPEC.temperature_value(900)
    speeds = np.diag(1.0 / Device.draw(physics, 6).time_factors)
    expected = scipy.linalg.solve_continuous_lyapunov(
        -speeds @ matrix, -2 * temperature * speeds**2
    )
    assert misfit(covariance, expected) < 1.02 * chance.sigmas
    assert misfit(covariance, temperature * np.linalg.inv(matrix)) > 2 * chance.sigmas
    off = np.linalg.solve(np.linalg.cholesky(expected), mean - np.linalg.solve(
        matrix, SPEC.bias_values(biases[0])
    ))  # fmt: skip
    # the variance of a mean of samples 2τ/λ apart is at most coth(1) that of independent ones
    assert np.abs(off).max() * np.sqrt(4000 / 1.35) < chance.sigmas


def test_time_constants_that_differ_by_a_fifth_move_a_covariance_by_a_fifth():
    """Of the order of the spread itself, whatever the matrix: here over 40 devices of 32 cells."""
    spec = UnitSpec(cells=32, coupling_bits=14)
    factors = np.random.default_rng(0).standard_normal((32, 64))
    matrix = factors @ factors.T / 64
    codes = spec.coupling_codes(matrix / np.abs(matrix).max())
    exact = np.linalg.inv(spec.coupling_values(codes))
    errors = []
    for seed in range(40):
        physics = ArrayPhysics(tau_mismatch=0.2, device_seed=seed)
        array = NoiseArray(spec, physics, codes, 900)
        settled = array.mode_covariance(1e4) / spec.temperature_value(900)
        settled = array.eigenvectors @ settled @ array.eigenvectors.T
        errors.append(np.linalg.norm(settled - exact) / np.linalg.norm(exact))
    assert 0.1 < np.mean(errors) < 0.3


def test_no_temperature_means_no_noise_even_where_it_is_mismatched(spd_codes):
    _, covariance, _ = run(ArrayPhysics(noise_mismatch=0.5), spd_codes(SPEC, 5))
    np.testing.assert_array_equal(covariance, 0.0)


@pytest.mark.parametrize(
    "physics",
    [
        ArrayPhysics(adc_gain_error=0.05),
        ArrayPhysics(adc_offset=0.05),
        ArrayPhysics(adc_gain_error=0.05, adc_offset=0.05),
    ],
)
def test_adc_gain_and_offset_shape_the_code(spd_codes, physics):
    """code = rint(gain (x + offset) 2^(bits-1)), with a still x at temperature 0."""
    codes = spd_codes(SPEC, 5)
    biases = np.array([[800, -400, 300, 200, 100, 0]])
    x = np.linalg.solve(SPEC.coupling_values(codes), SPEC.bias_values(biases[0]))
    device = Device.draw(physics, 6)
    gains = 1.0 if device.adc_gains is None else device.adc_gains
    offsets = 0.0 if device.adc_offsets is None else device.adc_offsets
    mean, _, _ = run(physics, codes, biases=biases)
    expected = gains * (x + offsets)
    np.testing.assert_allclose(mean, expected, rtol=0, atol=0.51 * SPEC.adc_step)
    ideal, _, _ = run(None, codes, biases=biases)
    np.testing.assert_allclose(ideal, x, rtol=0, atol=0.51 * SPEC.adc_step)
    assert np.abs(expected - x).max() > 50 * SPEC.adc_step


def test_adc_noise_is_white_and_stated_in_full_scales(spd_codes, chance):
    """Variance σ² + q²/12 on the diagonal (Sheppard), none beside it."""
    sigma = 2.5 * SPEC.adc_step
    _, covariance, _ = run(ArrayPhysics(adc_noise=sigma), spd_codes(SPEC, 5))
    expected = np.eye(6) * (sigma**2 + SPEC.adc_step**2 / 12)
    assert misfit(covariance, expected) < chance.sigmas
    assert misfit(covariance, np.eye(6) * (1.2 * sigma) ** 2) > chance.sigmas


def test_adc_noise_leaves_the_array_alone(spd_codes):
    quiet = NumericUnit(SPEC, None, seed=3)
    noisy = NumericUnit(SPEC, ArrayPhysics(adc_noise=SPEC.adc_step), seed=3)
    job = Job(
        couplings=spd_codes(SPEC, 5),
        biases=np.zeros((1, 6), int),
        temperature=900,
        settle_cycles=1000,
        interval_cycles=500,
        samples=1,
    )
    difference = noisy.run(job).sums - quiet.run(job).sums
    assert 0 < np.abs(difference).max() < 8  # the same voltages, a few steps of noise


@pytest.mark.parametrize("bow", [3.0, -2.0])
def test_inl_bows_between_the_rails(bow):
    """The error at bias b is bow·(1 - x²) steps: x = b for couplings of 1."""
    codes = SPEC.coupling_max * np.eye(6, dtype=int)
    biases = SPEC.bias_codes([[-1.0, -0.7, 0.0, 0.3, 0.9, 1.0]])
    x = SPEC.bias_values(biases[0])
    mean, _, _ = run(ArrayPhysics(adc_inl_lsb=bow), codes, biases=biases, samples=10)
    expected = np.rint((x + bow * SPEC.adc_step * (1 - x**2)) / SPEC.adc_step)
    expected = np.minimum(expected, SPEC.adc_max)
    np.testing.assert_allclose(mean / SPEC.adc_step, expected, rtol=0, atol=1e-6)
    ideal, _, _ = run(None, codes, biases=biases, samples=10)
    assert (mean - ideal)[2] == pytest.approx(bow * SPEC.adc_step)
    assert (mean - ideal)[[0, 5]] == pytest.approx([0.0, 0.0])


@pytest.mark.parametrize(
    "name", [name for name in EFFECTS if name not in (*UNEQUAL, *TIMES, *STATED, *IN_PAIRS)]
)
def test_an_effect_of_size_zero_is_the_ideal(spd_codes, name):
    codes = spd_codes(SPEC, 5)
    none = run(None, codes, temperature=900, samples=300)
    zero = run(ArrayPhysics(**{name: 0.0}), codes, temperature=900, samples=300)
    small = run(ArrayPhysics(**{name: 0.9}), codes, temperature=900, samples=300)
    for a, b in zip(none, zero, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(none[0], small[0])


def test_the_preset_states_what_its_sources_do():
    board = ArrayPhysics.discrete_board(device_seed=5)
    assert board.device_seed == 5
    assert board.coupling_mismatch == pytest.approx(0.00816, rel=1e-2)
    assert board.noise_mismatch == pytest.approx(0.0163, rel=1e-2)
    assert board.adc_gain_error == pytest.approx(0.00058, rel=1e-2)
    noise = np.hypot(board.adc_noise, 2.0**-15 / np.sqrt(12))
    assert 20 * np.log10(np.sqrt(0.5) / noise) == pytest.approx(92, abs=0.5)
