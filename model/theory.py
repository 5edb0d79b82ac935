"""What sampling theory expects of an ideal array: errors of estimates, and settling times.

s_k = T/λ_k is the stationary variance of mode k, Δ the interval between samples, N their number.
All durations are in units of τ.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thermokron.model.checks import check_integer, check_real

__all__ = ["covariance_error", "covariance_settling", "mean_error", "mean_settling"]

#: 2^20 samples; theory has no longer run to be about.
_MAX_SAMPLES = 2**20


def _modes(
    eigenvalues: ArrayLike, temperature: float, interval: float, samples: int
) -> NDArray[np.float64]:
    rates = np.asarray(eigenvalues, dtype=np.float64)
    if rates.ndim != 1 or rates.size == 0 or not (rates > 0.0).all():
        raise ValueError(f"eigenvalues = {rates} must be one or more positive numbers")
    check_real("temperature", temperature, 0.0, math.inf)
    if not interval > 0.0:
        raise ValueError(f"interval = {interval} is out of range; legal: above 0")
    check_integer("samples", samples, 1, _MAX_SAMPLES)
    return rates


def mean_error(
    eigenvalues: ArrayLike, temperature: float, *, interval: float, samples: int
) -> float:
    """E‖x̄ - A⁻¹b‖² = (1/N) Σ_k s_k coth(λ_k Δ/2), in full scales squared.

    The variance of the mean of N samples of AR(1) processes, as N grows; at finite N it is a
    relative 1/(N λ_min Δ) less.

    Parameters
    ----------
    eigenvalues : (n,) array_like
        λ of the coupling matrix, positive.
    temperature : float
        T, in full scales squared.
    interval : float
        Δ/τ.
    samples : int
        N.

    Raises
    ------
    ValueError
        If an argument is out of range.
    """
    rates = _modes(eigenvalues, temperature, interval, samples)
    return float(np.sum(temperature / rates / np.tanh(rates * interval / 2)) / samples)


def covariance_error(
    eigenvalues: ArrayLike, temperature: float, *, interval: float, samples: int
) -> float:
    """E‖Σ̂ - Σ‖_F² = (1/N) Σ_kl s_k s_l (1+δ_kl) coth((λ_k+λ_l) Δ/2), full scales to the fourth.

    For a known mean, as N grows: products of two modes decay at the sum of their rates, and
    Isserlis' theorem gives their variance. Arguments and errors as in `mean_error`.
    """
    rates = _modes(eigenvalues, temperature, interval, samples)
    variances = temperature / rates
    pairs = np.outer(variances, variances) * (1.0 + np.eye(len(rates)))
    return float(np.sum(pairs / np.tanh(np.add.outer(rates, rates) * interval / 2)) / samples)


def mean_settling(rate: float, bias: float) -> float:
    """Time ln(1/ε)/λ after which the mean of a mode of rate λ lacks a relative ε from x = 0."""
    return _settling(rate, bias)


def covariance_settling(rate: float, bias: float) -> float:
    """Time ln(1/ε)/2λ after which the variance of a mode lacks a relative ε from x = 0."""
    return _settling(rate, bias) / 2


def _settling(rate: float, bias: float) -> float:
    if not (rate > 0.0 and math.isfinite(rate)):
        raise ValueError(f"rate = {rate} is out of range; legal: above 0")
    if not 0.0 < bias < 1.0:
        raise ValueError(f"bias = {bias} is out of range; legal: between 0 and 1")
    return math.log(1.0 / bias) / rate
