"""The physical noise cell array, and the one function that draws its samples for every engine."""

from __future__ import annotations

import copy
import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Self

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

__all__ = ["BLOCKS", "NoiseArray", "sample_blocks", "single_threaded_blas"]

#: Samples by block: as few as may be asked for, and four times as many each time. After the last,
#: all are as long as it and those before it together.
BLOCKS = (1, 3, 12, 48, 192)
#: Rows of a product that short blocks share, at most. BLAS results depend on its shape, so that is
#: fixed, and so is a bias vector's place: its stream modulo how many share, be they there or not.
ROWS = 32
#: Weights of a past noise draw below this part of the present one do not change a sample.
NEGLIGIBLE = 1e-20
#: Noise factors of unequal temperatures that are kept: for the settling, and for an interval.
FACTORS_KEPT = 2
#: An unstable mode is held here: far beyond every rail, and finite.
BEYOND_ALL_RAILS = 1e100

# What a generator is for.
_THERMAL, _CONVERSION = 0, 1

_blas_lock = threading.RLock()
_blas_limited = False
# a child of a process whose other thread is sampling would wait for that thread, which it has not
os.register_at_fork(
    before=_blas_lock.acquire,
    after_in_parent=_blas_lock.release,
    after_in_child=_blas_lock.release,
)


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
        # by duration: a decomposition each, which many runs have in common
        self._factors: dict[float, NDArray[np.float64]] = {}
        with single_threaded_blas():
            self.eigenvalues, self.eigenvectors = np.linalg.eigh(self.matrix)

    def at(self, temperature: int) -> Self:
        """The same array, programmed with the same couplings, at this temperature code."""
        temperatures = applied_temperatures(self.spec, self._device, temperature)
        if np.array_equal(temperatures, self.temperatures):
            return self
        other = copy.copy(self)
        other.temperatures, other._factors = temperatures, {}
        return other

    def bias(self, codes: ArrayLike) -> NDArray[np.float64]:
        """The drift b of bias codes (..., n), cell offsets included, in full scales."""
        return applied_bias(self.spec, self._device, codes)

    def elapsed(self, cycles: int) -> float:
        """Clock cycles as a multiple of τ."""
        return cycles * self.spec.clock_s / self.spec.tau_s

    def decay(self, duration: float) -> NDArray[np.float64]:
        """ρ of each mode, (n,), after `duration` in units of τ."""
        decay: NDArray[np.float64] = np.exp(np.minimum(-self.eigenvalues * duration, MAX_GROWTH))
        return decay

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
        if (kept := self._factors.get(duration)) is not None:
            return kept
        covariance = self.mode_covariance(duration)
        scale = np.sqrt(np.diag(covariance))
        # to unit diagonal first: modes may differ by many orders of magnitude
        inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0.0)
        values, vectors = np.linalg.eigh(covariance * inverse * inverse[:, None])
        factor = scale[:, None] * vectors * np.sqrt(np.maximum(values, 0.0))
        if len(self._factors) == FACTORS_KEPT:
            self._factors.clear()
        self._factors[duration] = factor
        return factor


def _scan(modes: NDArray[np.float64], decay: NDArray[np.float64]) -> None:
    """Turn inputs w into AR(1) chains z_j = ρ z_(j-1) + w_j in place, modes (..., block, n).

    By doubling: after pass p, row j holds the inputs j-2^p+1 … j, weighted. A few passes over the
    whole cost less than a recursion; `decay` descends, so the modes that still remember come first.
    """
    weight, shift = decay, 1
    while shift < modes.shape[-2]:
        active = int(np.count_nonzero(weight > NEGLIGIBLE))
        if active == 0:
            return
        rows = modes[..., :active]
        rows[..., shift:, :] += weight[:active] * rows[..., :-shift, :]
        if decay[0] > 1.0:  # unstable: hold what outgrows every rail
            np.clip(rows, -BEYOND_ALL_RAILS, BEYOND_ALL_RAILS, out=rows)
        weight = np.minimum(weight * weight, BEYOND_ALL_RAILS)
        shift *= 2


def sample_blocks(
    array: NoiseArray,
    biases: ArrayLike,
    *,
    settle_cycles: int,
    interval_cycles: int,
    seed: int,
    stream: int,
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """Samples of K discharges side by side, without end, in blocks; the caller truncates.

    Every engine draws from this function, which is why they return the same integers: sample j,
    taken settle_cycles + j·interval_cycles after the release of discharge, is a function of the
    array, its own bias vector, the two times, the seed and its stream alone (on one machine with
    one set of libraries): not of how many are taken, of other bias vectors, or of the number of
    threads.

    Parameters
    ----------
    array : NoiseArray
        The programmed array.
    biases : (K, n) int
        Bias codes, a vector for each discharge.
    settle_cycles, interval_cycles : int
        Clock cycles to the first sample, and between samples.
    seed, stream : int
        Seed of the generators: the unit's, and the number of the first discharge.

    Yields
    ------
    voltages : (K, block, n) float64
        x at the sampling instants, in ADC full scales; see `BLOCKS` for the block's length.
    codes : (K, block, n) int64
        What the ADC makes of them.
    """
    adc = AnalogToDigital(array.spec, array.physics, array._device)
    draw = _Normals(seed, stream, len(np.asarray(biases)), array.spec.cells)
    interval, settle = array.elapsed(interval_cycles), array.elapsed(settle_cycles)
    turn_back = array.eigenvectors.T
    last: NDArray[np.float64] | None = None
    for number in itertools.count():
        with single_threaded_blas():
            if last is None:
                drift = _product(array.bias(biases)[:, None], array.eigenvectors, stream)[:, 0]
                draws = draw(_THERMAL, number, BLOCKS[0])
                modes = _scaled(array.noise_factor(settle), draws, stream)
                modes[:, 0] += drift * relaxation(array.eigenvalues, settle)
            else:
                if number == 1:
                    decay = array.decay(interval)
                    step_factor = array.noise_factor(interval)
                    step_mean = (drift * relaxation(array.eigenvalues, interval))[:, None]
                length = BLOCKS[number] if number < len(BLOCKS) else sum(BLOCKS)
                modes = _scaled(step_factor, draw(_THERMAL, number, length), stream)
                modes += step_mean
                modes[:, 0] += decay * last
                _scan(modes, decay)
            last = modes[:, -1].copy()
            voltages = _product(modes, turn_back, stream)
            noise = draw(_CONVERSION, number, modes.shape[1]) if adc.noisy else None
            codes = adc.convert(voltages, noise)
        yield voltages, codes


class _Normals:
    """Standard normal numbers that are a function of seed, purpose, stream and block.

    Philox is addressed by key and counter (Salmon et al., SC 2011): no two of these share a
    sequence, and to begin one costs less than the numbers for one sample.
    """

    def __init__(self, seed: int, stream: int, vectors: int, cells: int) -> None:
        self._streams, self._cells = range(stream, stream + vectors), cells
        self._bits = np.random.Philox(key=[seed, 0])
        self._generator = np.random.Generator(self._bits)
        self._state: Any = self._bits.state

    def __call__(self, purpose: int, block: int, length: int) -> NDArray[np.float64]:
        """Those of every stream, (K, length, n)."""
        numbers = np.empty((len(self._streams), length, self._cells))
        self._state["state"]["key"][1] = purpose
        counter = self._state["state"]["counter"]
        for row, stream in zip(numbers, self._streams, strict=True):
            counter[:] = 0, block, stream, 0
            self._bits.state = self._state
            self._generator.standard_normal(out=row)
        return numbers


def _scaled(
    factor: NDArray[np.float64], draws: NDArray[np.float64], stream: int
) -> NDArray[np.float64]:
    """Noise (K, block, n) of a `noise_factor`."""
    return factor * draws if factor.ndim == 1 else _product(draws, factor.T, stream)


def _product(
    rows: NDArray[np.float64], matrix: NDArray[np.float64], stream: int
) -> NDArray[np.float64]:
    """Rows (K, block, n) times a matrix (n, n): products of one shape, every row at its place.

    As many vectors share a product as make `ROWS` of it.
    """
    vectors, length, n = rows.shape
    together = max(ROWS // length, 1)
    first = stream % together
    groups = -(-(first + vectors) // together)
    if groups * together != vectors:
        padded = np.zeros((groups * together, length, n))
        padded[first : first + vectors] = rows
        rows = padded
    product: NDArray[np.float64] = rows.reshape(groups, together * length, n) @ matrix
    return product.reshape(-1, length, n)[first : first + vectors]
