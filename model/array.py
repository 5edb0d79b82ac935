"""The physical noise cell array, and the one function that draws its samples for every engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import ThreadpoolController

from thermokron.model.converters import (
    AnalogToDigital,
    applied_bias,
    applied_couplings,
    applied_temperatures,
)
from thermokron.model.discretisation import MAX_GROWTH, relaxation
from thermokron.model.physics import ArrayPhysics, Device
from thermokron.model.spec import UnitSpec

__all__ = ["BLOCK", "NoiseArray", "sample_blocks", "single_threaded_blas"]

#: Samples per block. Fixed, because BLAS results depend on the shape of a block.
BLOCK = 256
#: Weights of a past noise draw below this part of the present one do not change a sample.
NEGLIGIBLE = 1e-20
#: An unstable mode is held here: far beyond every rail, and finite.
BEYOND_ALL_RAILS = 1e100

# What a generator is for.
_THERMAL, _CONVERSION = 0, 1

_blas_lock = threading.RLock()
_blas_limited = False


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    # NumPy's, which alone takes part in sampling, is loaded by now
    return ThreadpoolController().select(user_api="blas")


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Hold BLAS at one thread, because its results depend on their number.

    Cheap when nested. The setting is the process's, so one thread at a time is let in; and only
    one thread may change it, so a library that holds it in another thread is an error.

    Raises
    ------
    RuntimeError
        If BLAS keeps more than one thread.
    """
    global _blas_limited
    with _blas_lock:
        if _blas_limited:
            yield
            return
        with _blas().limit(limits=1):
            if any(library.num_threads != 1 for library in _blas().lib_controllers):
                raise RuntimeError("another thread holds the thread limit of BLAS; try again later")
            _blas_limited = True
            try:
                yield
            finally:
                _blas_limited = False


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
    matrix : (n, n) float64
        A as the device makes it: dequantised, mismatch included.
    temperatures : (n,) float64
        T of each cell, in full scales squared.
    eigenvalues : (n,) float64
        λ, ascending.
    eigenvectors : (n, n) float64
        Q, one mode per column.
    """

    def __init__(
        self, spec: UnitSpec, physics: ArrayPhysics, couplings: ArrayLike, temperature: int
    ) -> None:
        self.spec = spec
        self.physics = physics
        self._device = Device.draw(physics, spec.cells)
        self.matrix = applied_couplings(spec, self._device, couplings)
        self.temperatures = applied_temperatures(spec, self._device, temperature)
        with single_threaded_blas():
            self.eigenvalues, self.eigenvectors = np.linalg.eigh(self.matrix)

    def bias(self, codes: ArrayLike) -> NDArray[np.float64]:
        """The drift b of bias codes (n,), cell offsets included, in full scales."""
        return applied_bias(self.spec, self._device, codes)

    def elapsed(self, cycles: int) -> float:
        """Clock cycles as a multiple of τ."""
        return cycles * self.spec.clock_s / self.spec.tau_s

    def decay(self, duration: float) -> NDArray[np.float64]:
        """ρ of each mode, (n,), after `duration` in units of τ."""
        decay: NDArray[np.float64] = np.exp(np.minimum(-self.eigenvalues * duration, MAX_GROWTH))
        return decay

    def mode_means(self, bias: NDArray[np.float64], duration: float) -> NDArray[np.float64]:
        """E z, (n,), `duration` after the release of discharge, in units of τ, under drift b."""
        drift: NDArray[np.float64] = bias @ self.eigenvectors
        return drift * relaxation(self.eigenvalues, duration)

    def mode_covariance(self, duration: float) -> NDArray[np.float64]:
        """Cov z, (n, n), `duration` after the release of discharge, in units of τ."""
        q, rates = self.eigenvectors, self.eigenvalues
        diffusion: NDArray[np.float64] = (q.T * self.temperatures) @ q
        return 2.0 * diffusion * relaxation(rates[:, None] + rates, duration)

    def noise_factor(self, duration: float) -> NDArray[np.float64]:
        """F with F Fᵀ = `mode_covariance`: a diagonal (n,) for equal temperatures, else (n, n)."""
        factor: NDArray[np.float64]
        if self._device.noise_factors is None:
            factor = np.sqrt(2.0 * self.temperatures * relaxation(2.0 * self.eigenvalues, duration))
            return factor
        covariance = self.mode_covariance(duration)
        scale = np.sqrt(np.diag(covariance))
        # to unit diagonal first: modes may differ by many orders of magnitude
        inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0.0)
        values, vectors = np.linalg.eigh(covariance * inverse * inverse[:, None])
        factor = scale[:, None] * vectors * np.sqrt(np.maximum(values, 0.0))
        return factor


def _scan(modes: NDArray[np.float64], decay: NDArray[np.float64]) -> None:
    """Turn inputs w into AR(1) chains z_j = ρ z_(j-1) + w_j in place, modes (n, BLOCK).

    By doubling: after pass p, column j holds the inputs j-2^p+1 … j, weighted. A few passes over
    whole rows cost less than a recursion along each; `decay` descends, so the modes that still
    remember are the first rows.
    """
    weight = decay[:, None]
    shift = 1
    while shift < BLOCK:
        active = int(np.count_nonzero(weight > NEGLIGIBLE))
        if active == 0:
            return
        weight, rows = weight[:active], modes[:active]
        rows[:, shift:] += weight * rows[:, :-shift]
        if decay[0] > 1.0:  # unstable: hold what outgrows every rail
            np.clip(rows, -BEYOND_ALL_RAILS, BEYOND_ALL_RAILS, out=rows)
        weight = np.minimum(weight * weight, BEYOND_ALL_RAILS)
        shift *= 2


def sample_blocks(
    array: NoiseArray,
    biases_row: ArrayLike,
    *,
    settle_cycles: int,
    interval_cycles: int,
    seed: int,
    stream: int,
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """Samples of one discharge, without end, in blocks of `BLOCK`; the caller truncates.

    Every engine draws from this function, which is why they return the same integers: sample j,
    taken settle_cycles + j·interval_cycles after the release of discharge, is a function of the
    arguments alone (on one machine with one set of libraries), not of how many are taken, of
    other streams, or of the number of threads.

    Parameters
    ----------
    array : NoiseArray
        The programmed array.
    biases_row : (n,) int
        Bias codes.
    settle_cycles, interval_cycles : int
        Clock cycles to the first sample, and between samples.
    seed, stream : int
        Seed of the generators: the unit's, and the number of the discharge.

    Yields
    ------
    voltages : (BLOCK, n) float64
        x at the sampling instants, in ADC full scales.
    codes : (BLOCK, n) int64
        What the ADC makes of them.
    """
    n = array.spec.cells
    adc = AnalogToDigital(array.spec, array.physics, array._device)
    rng = _generator(seed, _THERMAL, stream)
    adc_rng = _generator(seed, _CONVERSION, stream) if adc.noisy else None
    interval, settle = array.elapsed(interval_cycles), array.elapsed(settle_cycles)
    with single_threaded_blas():
        bias = array.bias(biases_row)
        decay = array.decay(interval)
        step_mean = array.mode_means(bias, interval)[:, None]
        step_factor = array.noise_factor(interval)
        settled_mean = array.mode_means(bias, settle)
        settled_factor = array.noise_factor(settle)
    last: NDArray[np.float64] | None = None
    while True:
        with single_threaded_blas():
            draws = rng.standard_normal((n, BLOCK))
            modes = _apply(step_factor, draws)
            modes += step_mean
            if last is None:
                modes[:, 0] = settled_mean + _apply(settled_factor, draws[:, :1])[:, 0]
            else:
                modes[:, 0] += decay * last
            _scan(modes, decay)
            last = modes[:, -1].copy()
            voltages = modes.T @ array.eigenvectors.T
            noise = None if adc_rng is None else adc_rng.standard_normal((BLOCK, n))
            codes = adc.convert(voltages, noise)
        yield voltages, codes


def _generator(seed: int, purpose: int, stream: int) -> np.random.Generator:
    # a spawn key, its first word the purpose: no two (seed, purpose, stream) share a sequence
    sequence = np.random.SeedSequence(seed, spawn_key=(purpose, stream))
    return np.random.Generator(np.random.PCG64(sequence))


def _apply(factor: NDArray[np.float64], draws: NDArray[np.float64]) -> NDArray[np.float64]:
    return factor[:, None] * draws if factor.ndim == 1 else factor @ draws
