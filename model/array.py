"""The physical noise cell array."""

from __future__ import annotations

import copy
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thermokron.model.converters import (
    applied_bias,
    applied_couplings,
    applied_temperatures,
)
from thermokron.model.device import Device
from thermokron.model.discretisation import covariance_factor, relaxation
from thermokron.model.physics import ArrayPhysics
from thermokron.model.spec import UnitSpec
from thermokron.model.threads import single_threaded_blas

__all__ = ["NoiseArray", "modes_of"]

#: Noise factors of unequal temperatures that are kept: for the settling, and for an interval.
FACTORS_KEPT = 2


def modes_of(
    matrix: NDArray[np.float64], device: Device
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """λ (n,) and V (n, n) of a symmetric A on a device; see `NoiseArray`."""
    if device.time_factors is None:
        values, vectors = np.linalg.eigh(matrix)
        return values, vectors
    root = 1.0 / np.sqrt(device.time_factors)
    values, vectors = np.linalg.eigh(matrix * root * root[:, None])
    return values, root[:, None] * vectors


class NoiseArray:
    """n coupled noisy cells, programmed: τ dx = -(A x - b) dt + √(2 T τ) dW.

    x and b are in ADC full scales, A is dimensionless and symmetric, T (per cell, where noise is
    mismatched) in full scales squared. With A = Q Λ Qᵀ the modes z = Qᵀx decouple, and a step of
    duration Δ is exact:

        z_k(t+Δ) = ρ_k z_k(t) + (1 - ρ_k)/λ_k (Qᵀb)_k + noise,   ρ_k = exp(-λ_k Δ/τ),

        Cov(noise)_kl = 2 D_kl (1 - ρ_k ρ_l)/(λ_k + λ_l),   D = Qᵀ diag(T) Q

    (Van Loan's integral, in closed form because A is symmetric; `van_loan` gives the same). Equal
    temperatures make it diagonal, T (1 - ρ_k²)/λ_k: independent AR(1) processes. Settling from
    discharge, x = 0, is one such step of the settling time.

    Unequal time constants, τ_i dx_i = -(A x - b)_i dt + √(2 T_i τ) dW_i, are the same in other
    coordinates: with D = diag(τ/τ_i) and D^½ A D^½ = Q Λ Qᵀ, V = D^½ Q has the eigenvectors of the
    drift D A in its columns, x = V z, and V takes the place of Q in all of the above.

    Where the array is more than its cells (`ArrayPhysics.beyond_modes`), or A is not symmetric, no
    such modes describe it, and `model.linear` has its states and their exact step; of cells that
    saturate, `model.saturation` has the short steps.

    An indefinite A is no error: its modes grow, and the ADC clips.

    Parameters
    ----------
    spec : UnitSpec
        Sizes and nominal values.
    physics : ArrayPhysics
        Deviations from nominal.
    couplings : (n, n) int
        Coupling codes, symmetric, within the spec's range (`UnitSpec.check` has seen them).
    temperature : int
        Temperature code, within the spec's range.

    Attributes
    ----------
    device : Device
        The static deviations of this one.
    matrix : (n, n) float64
        A as the device makes it: dequantised, mismatch included.
    modal : bool
        Whether the modes below describe it; else they are not there.
    temperature : int
        Its code.
    temperatures : (n,) float64
        T of each cell, in full scales squared.
    eigenvalues : (n,) float64
        λ, ascending.
    eigenvectors : (n, n) float64
        V, one mode per column; Q, where time constants are equal.
    """

    def __init__(
        self, spec: UnitSpec, physics: ArrayPhysics, couplings: ArrayLike, temperature: int
    ) -> None:
        self.spec = spec
        self.physics = physics
        self.temperature = temperature
        self.device = Device.draw(physics, spec.cells)
        self.matrix = applied_couplings(spec, self.device, couplings)
        self.temperatures = applied_temperatures(spec, self.device, temperature)
        # by duration: a decomposition each, which many runs have in common
        self._factors: dict[float, NDArray[np.float64]] = {}
        #: What was worked out for the last times at which it was sampled, and these.
        self.last_law: tuple[tuple[int, int], Any] | None = None
        self.modal = not physics.beyond_modes
        if self.modal:
            with single_threaded_blas():
                self.eigenvalues, self.eigenvectors = modes_of(self.matrix, self.device)

    def at(self, temperature: int) -> Self:
        """The same array, programmed with the same couplings, at this temperature code."""
        if temperature == self.temperature:
            return self
        temperatures = applied_temperatures(self.spec, self.device, temperature)
        other = copy.copy(self)
        other.temperature, other.temperatures = temperature, temperatures
        other._factors, other.last_law = {}, None
        return other

    def bias(self, codes: ArrayLike) -> NDArray[np.float64]:
        """The drift b of bias codes (..., n), cell offsets included, in full scales."""
        return applied_bias(self.spec, self.device, codes)

    def elapsed(self, cycles: int) -> float:
        """Clock cycles as a multiple of τ."""
        return cycles * self.spec.clock_s / self.spec.tau_s

    def mode_covariance(self, duration: float) -> NDArray[np.float64]:
        """Cov z, (n, n), `duration` after the release of discharge, in units of τ."""
        q, rates = self.eigenvectors, self.eigenvalues
        diffusion: NDArray[np.float64] = (q.T * self.temperatures) @ q
        return 2.0 * diffusion * relaxation(rates[:, None] + rates, duration)

    def noise_factor(self, duration: float) -> NDArray[np.float64]:
        """F with F Fᵀ = `mode_covariance`: a diagonal (n,) for equal temperatures, else (n, n)."""
        factor: NDArray[np.float64]
        if self.device.noise_factors is self.device.time_factors is None:
            factor = np.sqrt(2.0 * self.temperatures * relaxation(2.0 * self.eigenvalues, duration))
            return factor
        if (kept := self._factors.get(duration)) is not None:
            return kept
        factor = covariance_factor(self.mode_covariance(duration))
        if len(self._factors) == FACTORS_KEPT:
            self._factors.clear()
        self._factors[duration] = factor
        return factor
