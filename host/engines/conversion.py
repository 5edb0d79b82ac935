"""What the codes of a normal voltage are like: an ADC in the mean."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from thermokron.model import ArrayPhysics, UnitSpec
from thermokron.model.device import Device

__all__ = ["Conversion"]

Floats = NDArray[np.float64]
#: Standard deviation in ADC steps from which on rounding errors are uniform to 10^-8, and the same
#: by the rails, which cut a step in two.
SMOOTH, SMOOTH_BY_RAILS = 1.0, 4.0
#: Standard deviations beyond which there is nothing to be counted.
FAR = 8.0
#: Probabilities of a rail below this are none: no run has so many samples.
NEGLIGIBLE = 1e-12


class Conversion:
    """The codes of x ~ N(centre, spread), by `AnalogToDigital`'s equation.

    A code is split in three, code = mean + slope (x - centre) + error, the error uncorrelated with
    x (Bussgang 1952, MIT RLE report 216): slope = Cov(code, x)/Var x, which is the mean of the
    converter's own. So sums of codes have the mean and the variance that they should, but for what
    errors remember from one sample to the next. INL is taken for its tangent.

    Where the input's standard deviation is an ADC step or more, rounding is an independent uniform
    error (Widrow and Kollár, Quantization Noise, 2008, 4), and clamping that of a normal number;
    where it is less, or a rail is near, codes are counted one by one.

    Parameters
    ----------
    spec, physics, static
        As of `AnalogToDigital`.
    centre : (K, n) float64
        Mean input of each cell, in full scales.
    spread : (n,) float64
        Variance of the input, in full scales squared.

    Attributes
    ----------
    mean : (K, n) float64
        Mean code.
    slope : (K, n) float64
        By how many codes it moves with the input, per full scale.
    error : (K, n) float64
        Variance of what is left.
    energy : (K, n) float64
        Variance of (code - mean)², less that of the signal's part, 2 (slope² spread)².
    clipped : (K, n) float64
        Probability of a code at a rail.
    """

    def __init__(
        self, spec: UnitSpec, physics: ArrayPhysics, static: Device, centre: Floats, spread: Floats
    ) -> None:
        scale = float(1 << (spec.adc_bits - 1))
        self._low, self._high = float(spec.adc_min), float(spec.adc_max)
        gain = scale * (1.0 if static.adc_gains is None else static.adc_gains)
        moved = centre if static.adc_offsets is None else centre + static.adc_offsets
        noise = 0.0 if physics.adc_noise is None else physics.adc_noise**2
        middle = gain * moved
        slope = np.broadcast_to(gain, middle.shape)
        variance = slope**2 * (spread + noise)
        if (bow := physics.adc_inl_lsb) is not None:
            slope = slope * (1.0 - 2.0 * bow / scale * np.clip(middle / scale, -1.0, 1.0))
            middle = middle + bow * np.maximum(1.0 - (middle**2 + variance) / scale**2, 0.0)
            variance = slope**2 * (spread + noise)
        deviation = np.maximum(np.sqrt(variance), 1e-9)
        below = (self._low + 0.5 - middle) / deviation
        above = (self._high - 0.5 - middle) / deviation
        clipped = ndtr(below) + ndtr(-above)
        self.clipped: Floats = np.where(clipped > NEGLIGIBLE, np.minimum(clipped, 1.0), 0.0)
        moved, passed, second = self._clamped(middle, deviation)
        reach = FAR * deviation
        railed = (middle + reach > self._high) | (middle - reach < self._low)
        railed &= (deviation >= SMOOTH) & (deviation < SMOOTH_BY_RAILS)
        counted = []
        for few in (deviation < SMOOTH, railed):
            if few.any():
                moved[few], passed[few], second[few], fourth = self._counted(
                    middle[few], deviation[few]
                )
                counted.append((few, fourth))
        self.mean: Floats = middle + moved
        self.slope: Floats = slope * passed
        signal, variance = self.slope**2 * spread, second - moved**2
        self.error: Floats = np.maximum(variance - signal, 0.0)
        # an error that knows nothing of the signal, and is normal
        self.energy: Floats = 4.0 * signal * self.error + 2.0 * self.error**2
        for few, fourth in counted:
            whole = fourth - variance[few] ** 2 - 2.0 * signal[few] ** 2
            self.energy[few] = np.maximum(whole, 0.0)

    def _clamped(self, middle: Floats, deviation: Floats) -> tuple[Floats, Floats, Floats]:
        """Mean and square of the code less `middle`, and the mean slope; rounding is uniform."""
        low, high = self._low - middle, self._high - middle
        a, b = low / deviation, high / deviation
        beneath, beyond = ndtr(a), ndtr(-b)
        inside = 1.0 - beneath - beyond
        at_low, at_high = _density(a), _density(b)
        moved = low * beneath + high * beyond + deviation * (at_low - at_high)
        # what rounds to a rail half a step before it, by Euler and Maclaurin's first term
        moved += (at_high - at_low) / (24.0 * deviation)
        # a density at infinity is nothing, whatever it is multiplied by
        tails = np.where(at_low > 0.0, a, 0.0) * at_low - np.where(at_high > 0.0, b, 0.0) * at_high
        second = low**2 * beneath + high**2 * beyond + deviation**2 * (inside + tails)
        return moved, inside, second + inside / 12.0

    def _counted(self, middle: Floats, deviation: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """The same, and the fourth moment, from the probability of each code that may come."""
        near = math.ceil(FAR * float(deviation.max())) + 1
        first = np.rint(middle) - near
        powers, slope = np.zeros((5, len(middle))), np.zeros_like(middle)
        at = (first - 0.5 - middle) / deviation
        reached, density = ndtr(at), _density(at)
        for place in range(2 * near + 1):
            code = first + place
            at = (code + 0.5 - middle) / deviation
            left, right = reached, density
            reached, density = ndtr(at), _density(at)
            away = np.clip(code, self._low, self._high) - middle
            part = reached - left
            for power in powers:
                power += part
                part = part * away
            slope += away * (right - density)
        _, moved, second, third, fourth = powers
        about = fourth - 4.0 * moved * third + 6.0 * moved**2 * second - 3.0 * moved**4
        return moved, slope / deviation, second, about


def _density(at: Floats) -> Floats:
    density: Floats = np.exp(-0.5 * at**2) / math.sqrt(2.0 * math.pi)
    return density
