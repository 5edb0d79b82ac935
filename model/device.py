"""One device: the static deviations that `ArrayPhysics` stands for, drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from thermokron.model.physics import ArrayPhysics

__all__ = ["Device"]

#: The widest code of an ADC.
MAX_ADC_BITS = 16


@dataclass(frozen=True, eq=False)
class Device:
    """The static deviations of one device; `None` where its array is ideal.

    Attributes
    ----------
    coupling_factors : (n, n) float64, symmetric, or None
        Each coupling over its programmed value.
    direction_factors : (n, n) float64, or None
        Each coupling in one direction over what both have in common; 1 on the diagonal.
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
    adc_elements : (n, 16), or None
        Error of the elements of each bit of a channel, bit 0 first, in their standard deviations.
    adc_delays : (n,) float64 in seconds, or None
        How long after CONVST each ADC channel samples; the least is 0.
    """

    coupling_factors: NDArray[np.float64] | None
    direction_factors: NDArray[np.float64] | None
    cell_offsets: NDArray[np.float64] | None
    noise_factors: NDArray[np.float64] | None
    time_factors: NDArray[np.float64] | None
    adc_gains: NDArray[np.float64] | None
    adc_offsets: NDArray[np.float64] | None
    adc_elements: NDArray[np.float64] | None
    adc_delays: NDArray[np.float64] | None

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

        couplings = directions = offsets = noise = times = gains = adc_offsets = elements = None
        delays = None

        def pairs(effect: int) -> NDArray[np.float64]:
            # one element makes a coupling in both directions
            upper, draws = np.triu_indices(cells), np.empty((cells, cells))
            draws[upper] = normal(effect, len(upper[0]))
            draws.T[upper] = draws[upper]
            return draws

        if physics.coupling_mismatch is not None:
            couplings = 1.0 + physics.coupling_mismatch * pairs(0)
        if physics.coupling_drift is not None and physics.coupling_age_s is not None:
            drifted = np.exp(
                -physics.coupling_drift * math.log1p(physics.coupling_age_s) * pairs(7)
            )
            couplings = drifted if couplings is None else couplings * drifted
        if physics.coupling_tempco_per_k is not None and physics.temperature_rise_k is not None:
            warmed = 1.0 + physics.coupling_tempco_per_k * physics.temperature_rise_k * pairs(8)
            couplings = warmed if couplings is None else couplings * warmed
        if couplings is not None:
            couplings = frozen(couplings)
        if physics.coupling_asymmetry is not None:
            factors = normal(6, cells * cells).reshape(cells, cells)
            factors = 1.0 + physics.coupling_asymmetry * factors
            np.fill_diagonal(factors, 1.0)
            directions = frozen(factors)
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
        if physics.adc_dnl_lsb is not None:
            elements = frozen(normal(9, cells * MAX_ADC_BITS).reshape(cells, MAX_ADC_BITS))
        if physics.adc_skew_s is not None:
            instants = normal(10, cells)
            delays = frozen(physics.adc_skew_s * (instants - instants.min()))
        return Device(
            couplings, directions, offsets, noise, times, gains, adc_offsets, elements, delays
        )
