"""The ADC: rounding, rails, the order of its flaws."""

from __future__ import annotations

import numpy as np
import pytest

from thermokron.model import ArrayPhysics, UnitSpec
from thermokron.model.converters import AnalogToDigital
from thermokron.model.device import Device


def make(bits: int, **effects) -> AnalogToDigital:
    spec, physics = UnitSpec(cells=3, adc_bits=bits), ArrayPhysics(**effects)
    return AnalogToDigital(spec, physics, Device.draw(physics, 3))


def codes_of(adc: AnalogToDigital, bits: int, voltages, noise=None):
    """Codes of voltages in full scales."""
    steps = np.array(voltages) * 2 ** (bits - 1)
    railed = adc.convert(steps, noise)
    assert railed == np.isin(steps, [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1]).any()
    return steps


@pytest.mark.parametrize("bits", [3, 4, 11, 16])
def test_every_code_round_trips_and_halves_go_to_even(bits):
    adc, half = make(bits), 2 ** (bits - 1)
    codes = np.arange(-half, half)
    np.testing.assert_array_equal(codes_of(adc, bits, codes / half), codes)
    between = codes_of(adc, bits, (codes[:-1] + 0.5) / half)
    assert (between % 2 == 0).all()
    assert (np.abs(between - (codes[:-1] + 0.5)) == 0.5).all()


@pytest.mark.parametrize("bits", [3, 4, 16])
@pytest.mark.parametrize("inl", [None, 4.0, -4.0])
def test_voltages_beyond_the_rails_clip(bits, inl):
    adc, half = make(bits, adc_inl_lsb=inl), 2 ** (bits - 1)
    beyond = np.array([1.0, 1.5, 1e30, 1e300, np.inf])
    np.testing.assert_array_equal(codes_of(adc, bits, beyond), half - 1)
    np.testing.assert_array_equal(codes_of(adc, bits, -beyond), -half)
    below = codes_of(adc, bits, np.array([-1 - 0.49 / half, 1 - 1.51 / half]))
    assert below[0] == -half
    if inl is None:
        assert below[1] == half - 2


@pytest.mark.parametrize("bits", [4, 12, 16])
@pytest.mark.parametrize("inl", [4.0, -4.0, 0.3])
def test_the_bow_is_monotone_and_peaks_at_mid_scale(bits, inl):
    adc, plain, half = make(bits, adc_inl_lsb=inl), make(bits), 2 ** (bits - 1)
    x = np.linspace(-1, 1, 20_001)
    codes = codes_of(adc, bits, x)
    assert (np.diff(codes) >= 0).all()
    error = codes - codes_of(plain, bits, x)
    assert np.abs(error).max() <= np.ceil(abs(inl))
    assert codes_of(adc, bits, np.array([0.0]))[0] == np.rint(inl)
    assert abs(codes[0] + half) <= 1


def test_offset_comes_before_gain_and_noise_before_both():
    effects = {"adc_gain_error": 0.2, "adc_offset": 0.1, "adc_noise": 0.05}
    adc = make(16, **effects)
    device = Device.draw(ArrayPhysics(**effects), 3)
    x, noise = np.array([[0.1, -0.2, 0.3]]), np.array([[1.0, -1.0, 0.5]])
    expected = device.adc_gains * (x + 0.05 * noise + device.adc_offsets)
    np.testing.assert_allclose(
        codes_of(adc, 16, x, noise.copy()) / 2**15, expected, atol=0.51 / 2**15
    )
    assert adc.noisy
    assert not make(16).noisy


# ---- successive approximation with mismatched elements ----------------------------------------


def transitions(bits: int, channel: int, **effects) -> np.ndarray:
    """The least voltage of each code above the lowest, in ADC steps, by bisection."""
    adc, half = make(bits, **effects), 2 ** (bits - 1)
    codes = np.arange(-half + 1, half)
    low, high = codes - 40.0, codes + 40.0
    for _ in range(50):
        middle = (low + high) / 2
        steps = np.zeros((len(codes), 3))
        steps[:, channel] = middle
        adc.convert(steps)
        reached = steps[:, channel] >= codes
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    return high


def test_codes_are_sums_of_mismatched_weights():
    """Transition of code c: Σ of its bits' weights - half - 1/2; the end points stay."""
    bits, half = 8, 128
    elements = Device.draw(ArrayPhysics(adc_dnl_lsb=0.4), 3).adc_elements[:, :bits]
    ideal = 2.0 ** np.arange(bits)
    weights = ideal + 0.4 / 16 * np.sqrt(ideal) * elements
    weights *= 255 / weights.sum(axis=1, keepdims=True)
    which = (np.arange(1, 256)[:, None] >> np.arange(bits)) & 1
    for channel in range(3):
        found = transitions(bits, channel, adc_dnl_lsb=0.4)
        expected = which @ weights[channel] - half - 0.5
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
        assert found[-1] == pytest.approx(half - 1.5)
        assert np.abs(np.diff(found) - 1).max() > 0.05
    ideal = transitions(bits, 0)
    np.testing.assert_allclose(ideal, np.arange(-half, half - 1) + 0.5, rtol=0, atol=1e-9)


def test_the_largest_dnl_is_at_mid_scale_and_as_large_as_stated(chance):
    """Over 400 channels of 10 bits; a step that one unit element makes is 32 times as even."""
    spec = UnitSpec(cells=400, adc_bits=10)
    physics = ArrayPhysics(adc_dnl_lsb=0.5)
    device = Device.draw(physics, 400)
    adc = AnalogToDigital(spec, physics, device)
    grid = np.linspace(-6.0, 6.0, 4001)
    steps = np.repeat(grid[:, None], 400, axis=1)
    adc.convert(steps)
    # voltages for which the code is the one below mid-scale
    widths = (steps == -1).sum(axis=0) * (grid[1] - grid[0])
    scores = (widths - 1) / 0.5
    kept = np.abs(scores) < 1.9  # a step is not less than nothing
    assert kept.mean() > 0.9
    assert abs(np.mean(scores[kept])) * np.sqrt(kept.sum()) < chance.sigmas
    # a normal number cut at 1.9 has the variance 0.76
    assert np.mean(scores[kept] ** 2) == pytest.approx(0.76, abs=0.15)
    even = (steps == 0).sum(axis=0) * (grid[1] - grid[0])
    assert np.std(even) == pytest.approx(0.5 / 32, rel=0.2)


def test_voltages_beyond_the_rails_clip_there_too():
    beyond = np.array([1.0, 1.5, 1e30])
    adc = make(12, adc_dnl_lsb=0.5)
    np.testing.assert_array_equal(codes_of(adc, 12, beyond), 2047)
    np.testing.assert_array_equal(codes_of(adc, 12, -1.01 * beyond), -2048)
