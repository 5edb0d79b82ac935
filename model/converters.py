"""Between codes and physical values: coupling, bias and temperature DACs, and the ADC."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thermokron.model.physics import ArrayPhysics, Device
from thermokron.model.spec import UnitSpec

__all__ = ["AnalogToDigital", "applied_bias", "applied_couplings", "applied_temperatures"]


def applied_couplings(spec: UnitSpec, device: Device, codes: ArrayLike) -> NDArray[np.float64]:
    """The matrix A that coupling codes make on a device, (n, n), dimensionless, symmetric."""
    values = spec.coupling_values(codes)
    return values if device.coupling_factors is None else values * device.coupling_factors


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
    and then code = clip(rint(v·2^(bits-1))), rounded half to even.

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
        self._scale = float(1 << (spec.adc_bits - 1))
        self._low, self._high = float(spec.adc_min), float(spec.adc_max)
        self._gains, self._offsets = device.adc_gains, device.adc_offsets
        self._noise = physics.adc_noise
        self._bow = None if physics.adc_inl_lsb is None else physics.adc_inl_lsb * spec.adc_step

    @property
    def noisy(self) -> bool:
        """Whether `convert` wants noise."""
        return self._noise is not None

    def convert(
        self, voltages: NDArray[np.float64], noise: NDArray[np.float64] | None = None
    ) -> NDArray[np.int64]:
        """Codes of voltages.

        Parameters
        ----------
        voltages : (..., n) float64, in ADC full scales, no NaN
            What the channels see.
        noise : (..., n) float64, standard normal, or None
            One draw per conversion, required if `noisy`, not read otherwise.

        Returns
        -------
        (..., n) int64
            Codes within [-2^(bits-1), 2^(bits-1) - 1]; either end means clipped.
        """
        v = voltages
        if self._noise is not None:
            assert noise is not None
            v = v + self._noise * noise
        if self._offsets is not None:
            v = v + self._offsets
        if self._gains is not None:
            v = v * self._gains
        if self._bow is not None:
            v = np.clip(v, -1.0, 1.0)
            v = v + self._bow * (1.0 - v * v)
        codes = v * self._scale
        np.rint(codes, out=codes)
        # clamped as floats: a voltage far beyond the rails does not fit an integer
        np.clip(codes, self._low, self._high, out=codes)
        return codes.astype(np.int64)
