"""Between codes and physical values: coupling, bias and temperature DACs, and the ADC."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thermokron.model.device import Device
from thermokron.model.physics import ArrayPhysics
from thermokron.model.spec import UnitSpec

__all__ = ["AnalogToDigital", "applied_bias", "applied_couplings", "applied_temperatures"]


def applied_couplings(spec: UnitSpec, device: Device, codes: ArrayLike) -> NDArray[np.float64]:
    """The matrix A that coupling codes make on a device, (n, n), dimensionless.

    Symmetric, but for `Device.direction_factors`.
    """
    values = spec.coupling_values(codes)
    for factors in (device.coupling_factors, device.direction_factors):
        if factors is not None:
            values = values * factors
    return values


def applied_bias(spec: UnitSpec, device: Device, codes: ArrayLike) -> NDArray[np.float64]:
    """The drift b that bias codes make on a device, cell offsets included, in full scales."""
    values = spec.bias_values(codes)
    return values if device.cell_offsets is None else values + device.cell_offsets


def applied_temperatures(spec: UnitSpec, device: Device, code: int) -> NDArray[np.float64]:
    """The noise temperature of each cell for a temperature code, (n,), in full scales squared."""
    uniform = np.full(spec.cells, spec.temperature_value(code))
    return uniform if device.noise_factors is None else uniform * device.noise_factors


class AnalogToDigital:
    """The array's ADCs, one channel per cell.

    An input x becomes v = gain·(x + offset + noise), clamped to the rails, bowed by the INL,
    and then code = clip(rint(v·2^(bits-1))), rounded half to even. Where elements are mismatched
    (`ArrayPhysics.adc_dnl_lsb`), it is what successive approximation finds with weights w_k: from
    the highest bit on, each is kept if v is above the least voltage of the code with it,
    Σ w over its bits - 2^(bits-1) - ½ steps.

    Parameters
    ----------
    spec : UnitSpec
        Width of the code.
    physics : ArrayPhysics
        Noise and INL.
    device : Device
        Gain and offset of each channel.
    """

    def __init__(self, spec: UnitSpec, physics: ArrayPhysics, device: Device) -> None:
        self._scale = scale = float(1 << (spec.adc_bits - 1))
        self._low, self._high = float(spec.adc_min), float(spec.adc_max)
        self._gains = device.adc_gains
        self._offsets = None if device.adc_offsets is None else device.adc_offsets * scale
        self._noise = None if physics.adc_noise is None else physics.adc_noise * scale
        self._bow = physics.adc_inl_lsb
        self._weights: NDArray[np.float64] | None = None
        if device.adc_elements is not None:
            assert physics.adc_dnl_lsb is not None
            ideal = 2.0 ** np.arange(spec.adc_bits)
            mismatch = physics.adc_dnl_lsb / 2.0 ** (spec.adc_bits / 2)
            weights = ideal + mismatch * np.sqrt(ideal) * device.adc_elements[:, : spec.adc_bits]
            # all of them together are the largest code, whose place gain and offset say
            self._weights = weights * (ideal.sum() / weights.sum(axis=1, keepdims=True))

    @property
    def noisy(self) -> bool:
        """Whether `convert` wants noise."""
        return self._noise is not None

    def convert(self, steps: NDArray[np.float64], noise: NDArray[np.float64] | None = None) -> bool:
        """Turn voltages into codes, in place, both in units of an ADC step.

        Parameters
        ----------
        steps : (..., n) float64, in ADC steps, no NaN
            What the channels see; on return codes, integers within [-2^(bits-1), 2^(bits-1) - 1],
            either end of which means clipped.
        noise : (..., n) float64, standard normal, or None
            One draw per conversion, required if `noisy`, not read otherwise; overwritten.

        Returns
        -------
        bool
            Whether any code is at a rail.
        """
        if self._noise is not None:
            assert noise is not None
            noise *= self._noise
            steps += noise
        if self._offsets is not None:
            steps += self._offsets
        if self._gains is not None:
            steps *= self._gains
        if self._bow is not None:
            np.clip(steps, -self._scale, self._scale, out=steps)
            steps += self._bow * (1.0 - (steps / self._scale) ** 2)
        if self._weights is None:
            np.rint(steps, out=steps)
        else:
            self._approximate(steps, self._weights)
        # nearly always none is, and to see that takes less time than to clamp
        if steps.max() < self._high and steps.min() > self._low:
            return False
        np.clip(steps, self._low, self._high, out=steps)
        return True

    def _approximate(self, steps: NDArray[np.float64], weights: NDArray[np.float64]) -> None:
        """Successive approximation: voltages become codes between the rails, in place."""
        left = steps + (self._scale + 0.5)
        steps[:] = self._low
        for bit in reversed(range(weights.shape[1])):
            kept = left >= weights[:, bit]
            left -= np.where(kept, weights[:, bit], 0.0)
            steps += kept * 2.0**bit
