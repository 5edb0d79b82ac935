"""How a built array departs from its nominal: `ArrayPhysics`, and one device drawn from it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thermokron.model.checks import check_integer, check_real, fields_from_json

__all__ = ["ArrayPhysics", "Device"]

#: Largest |INL| in ADC steps at which the bow is monotone at every legal ADC width (4 bits up).
MAX_INL_LSB = 4.0


def _effect(low: float, high: float, doc: str) -> Any:
    return field(default=None, metadata={"range": (low, high), "doc": doc})


@dataclass(frozen=True, kw_only=True)
class ArrayPhysics:
    """Deviations of the analog array and its converters from `UnitSpec`'s nominal values.

    A field that is `None`, as all are by default, switches its effect off: the ideal value. The
    host never reads this object, as no host could.

    The static deviations of one device are draws from (`device_seed`, cells), each effect from a
    generator of its own, so that switching one on does not change the others.

    Attributes
    ----------
    coupling_mismatch : float or None, relative
        Standard deviation of each coupling element about its programmed value:
        A_ij → A_ij (1 + σ g_ij), one draw per pair (one element makes the coupling in both
        directions), the diagonal included.
    cell_offset : float or None, in ADC full scales
        Standard deviation of the input-referred offset of each integrator. It adds to the
        bias, τ dx = -(A x - b - o) dt + …, so the mean moves by A⁻¹o, and x = 0 holds during
        discharge. (An offset at the output is `adc_offset`.)
    noise_mismatch : float or None, relative
        Standard deviation of each cell's noise power: T → T f_i, with f_i log-normal of mean 1,
        which keeps a power positive.
    tau_mismatch : float or None, relative
        Standard deviation of each cell's time constant: τ → τ_i = τ f_i, with f_i log-normal of
        mean 1, as capacitors of unequal size make it (Pelgrom et al., IEEE J. Solid-State Circuits
        24, 1433, 1989, for their spread). A noise source drives a cell with the current that it
        drives any other with:

            τ_i dx_i = -(A x - b)_i dt + √(2 T τ) dW_i,

        so that means stay where they were, and a cell alone has the variance T τ/(τ_i A_ii), less
        the larger its capacitor, as kT/C has.
    adc_gain_error : float or None, relative
        Standard deviation of the gain of each ADC channel about 1.
    adc_offset : float or None, in ADC full scales
        Standard deviation of the input-referred offset of each ADC channel.
    adc_noise : float or None, in ADC full scales
        Rms input-referred noise of every conversion, independent.
    adc_inl_lsb : float or None, in ADC steps
        Integral nonlinearity of every channel, a parabolic bow v → v + inl (1 - v²) that is
        largest at mid-scale and vanishes at both rails (end-point definition); signed.
    device_seed : int
        Which device: seeds the static deviations, and nothing else.

    Raises
    ------
    ValueError
        If a field is out of range; the message names the field, its value and the legal range.
    TypeError
        If a field is not a number of the right kind.
    """

    coupling_mismatch: float | None = _effect(0.0, 1.0, "relative std of each coupling")
    cell_offset: float | None = _effect(0.0, 1.0, "std of each cell's input offset, full scales")
    noise_mismatch: float | None = _effect(0.0, 10.0, "relative std of each cell's noise power")
    tau_mismatch: float | None = _effect(0.0, 10.0, "relative std of each cell's time constant")
    adc_gain_error: float | None = _effect(0.0, 1.0, "relative std of each channel's gain")
    adc_offset: float | None = _effect(0.0, 1.0, "std of each channel's offset, full scales")
    adc_noise: float | None = _effect(0.0, 1.0, "rms noise of a conversion, full scales")
    adc_inl_lsb: float | None = _effect(-MAX_INL_LSB, MAX_INL_LSB, "peak of the bow, ADC steps")
    device_seed: int = field(default=0, metadata={"range": (0, 2**63 - 1), "doc": "which device"})

    def __post_init__(self) -> None:
        for f in fields(self):
            value, (low, high) = getattr(self, f.name), f.metadata["range"]
            if f.name == "device_seed":
                object.__setattr__(self, f.name, check_integer(f.name, value, low, high))
            elif value is not None:
                object.__setattr__(self, f.name, check_real(f.name, value, low, high))

    @classmethod
    def ideal(cls) -> ArrayPhysics:
        """The array as nominal: every effect off."""
        return cls()

    @classmethod
    def discrete_board(cls, *, device_seed: int = 0) -> ArrayPhysics:
        """A board of 1 % resistors and AD7606C-16 converters.

        Resistors of the E96 series (IEC 60063) have a tolerance of ±1 %, taken as uniform: a
        standard deviation of 0.01/√3. A coupling is a ratio of two, and so is the gain of a noise
        source, whose power is that ratio squared. The converter's data sheet states on its first
        page a total unadjusted error of at most 0.05 % of the range, that is 0.001 full scales,
        taken as a uniform gain error, and an SNR of typically 92 dB on its differential range:
        with a full-scale sine of rms 1/√2 that is 1.8e-5 full scales of noise, 1.6e-5 without
        the part that quantisation to 16 bits has in it.
        """
        ratio = 0.01 * math.sqrt(2.0 / 3.0)
        return cls(
            coupling_mismatch=ratio,
            noise_mismatch=2.0 * ratio,
            adc_gain_error=0.001 / math.sqrt(3.0),
            adc_noise=1.6e-5,
            device_seed=device_seed,
        )

    def to_json(self) -> str:
        """The deviations as one JSON object, keys in field order."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ArrayPhysics:
        """The inverse of `to_json`; unknown or missing fields are a `ValueError`."""
        return cls(**fields_from_json(cls, text))


@dataclass(frozen=True, eq=False)
class Device:
    """The static deviations of one device; `None` where its array is ideal.

    Attributes
    ----------
    coupling_factors : (n, n) float64, symmetric, or None
        Each coupling over its programmed value.
    cell_offsets : (n,) float64 in ADC full scales, or None
        Added to the bias.
    noise_factors : (n,) float64, or None
        Noise power of each cell over its programmed value.
    time_factors : (n,) float64, or None
        Time constant of each cell over its nominal value.
    adc_gains : (n,) float64, or None
        Gain of each ADC channel.
    adc_offsets : (n,) float64 in ADC full scales, or None
        Input-referred offset of each ADC channel.
    """

    coupling_factors: NDArray[np.float64] | None
    cell_offsets: NDArray[np.float64] | None
    noise_factors: NDArray[np.float64] | None
    time_factors: NDArray[np.float64] | None
    adc_gains: NDArray[np.float64] | None
    adc_offsets: NDArray[np.float64] | None

    @staticmethod
    @lru_cache(maxsize=16)
    def draw(physics: ArrayPhysics, cells: int) -> Device:
        """The device that (`physics`, `cells`) stands for, always the same."""

        def normal(effect: int, count: int) -> NDArray[np.float64]:
            # a spawn key per effect: the draws of one do not depend on whether another is on
            seeds = np.random.SeedSequence(physics.device_seed, spawn_key=(effect,))
            return np.random.Generator(np.random.PCG64(seeds)).standard_normal(count)

        def frozen(array: NDArray[np.float64]) -> NDArray[np.float64]:
            array.setflags(write=False)
            return array

        def spread(effect: int, deviation: float) -> NDArray[np.float64]:
            # log-normal of mean 1
            variance = math.log1p(deviation**2)
            return np.exp(math.sqrt(variance) * normal(effect, cells) - variance / 2)

        couplings = offsets = noise = times = gains = adc_offsets = None
        if physics.coupling_mismatch is not None:
            factors = np.empty((cells, cells))
            upper = np.triu_indices(cells)
            factors[upper] = 1.0 + physics.coupling_mismatch * normal(0, len(upper[0]))
            factors.T[upper] = factors[upper]
            couplings = frozen(factors)
        if physics.cell_offset is not None:
            offsets = frozen(physics.cell_offset * normal(1, cells))
        if physics.noise_mismatch is not None:
            noise = frozen(spread(2, physics.noise_mismatch))
        if physics.tau_mismatch is not None:
            times = frozen(spread(5, physics.tau_mismatch))
        if physics.adc_gain_error is not None:
            gains = frozen(1.0 + physics.adc_gain_error * normal(3, cells))
        if physics.adc_offset is not None:
            adc_offsets = frozen(physics.adc_offset * normal(4, cells))
        return Device(couplings, offsets, noise, times, gains, adc_offsets)
