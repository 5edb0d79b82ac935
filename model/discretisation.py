"""Exact discretisation of linear stochastic differential equations."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thermokron.model.checks import check_real

__all__ = ["relaxation", "van_loan"]

#: Largest growth exponent of a step. A mode that has grown by e^100 is beyond every rail, and
#: stopping there keeps every product of two modes finite.
MAX_GROWTH = 100.0


def relaxation(rates: NDArray[np.float64], dt: float) -> NDArray[np.float64]:
    """∫₀^dt exp(-rate·s) ds = (1 - exp(-rate·dt))/rate, elementwise; dt where the rate is 0.

    Growth is held at e^100, so that a negative rate gives a large number and never inf.
    """
    exponents = np.maximum(rates * dt, -MAX_GROWTH)
    still = exponents == 0.0
    safe = np.where(still, 1.0, exponents)
    return dt * np.where(still, 1.0, -np.expm1(-safe) / safe)


def van_loan(
    drift: ArrayLike, diffusion: ArrayLike, dt: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Transition and covariance of one step of dx = F x dt + dv, E dv dvᵀ = D dt, exactly.

    Van Loan's block exponential (IEEE Trans. Automatic Control 23, 395, 1978): with
    M = [[-F, D], [0, Fᵀ]] and exp(M h) = [[·, G], [0, Φᵀ]], the transition is Φ = exp(F h) and the
    covariance ∫₀^h exp(F s) D exp(Fᵀ s) ds = Φ G. The block exp(-F h) of a stable drift
    overflows for long steps, so h is taken short enough for ‖F‖h ≤ 1 and doubled back to dt:
    C ← C + Φ C Φᵀ, Φ ← Φ². Any drift will do, symmetric or not; `NoiseArray`, whose drift is
    symmetric, evaluates the same integral in closed form in the eigenbasis.

    Parameters
    ----------
    drift : (n, n)
        F, in 1/time.
    diffusion : (n, n), symmetric positive semi-definite
        D, in variance/time.
    dt : float
        The step, in time, not negative.

    Returns
    -------
    transition, covariance : (n, n) float64
        x(dt) ~ N(transition · x(0), covariance).

    Raises
    ------
    ValueError
        If a shape or dt is wrong, an entry is not finite, or an unstable drift outgrows float64.
    """
    f = np.asarray(drift, dtype=np.float64)
    d = np.asarray(diffusion, dtype=np.float64)
    n = len(f) if f.ndim else 0
    if f.shape != (n, n) or d.shape != (n, n) or n == 0:
        raise ValueError(
            f"drift of shape {f.shape} and diffusion of shape {d.shape} must be (n, n)"
        )
    if not (np.isfinite(f).all() and np.isfinite(d).all()):
        raise ValueError("drift and diffusion must be finite")
    dt = check_real("dt", dt, 0.0, math.inf)

    from scipy.linalg import expm  # would be two thirds of the time to import this package

    norm = float(np.abs(f).sum(axis=0).max()) * dt
    doublings = max(0, math.ceil(math.log2(norm))) if norm > 0.0 else 0
    h = math.ldexp(dt, -doublings)
    block = np.zeros((2 * n, 2 * n))
    block[:n, :n] = -f * h
    block[:n, n:] = d * h
    block[n:, n:] = f.T * h
    exponential = expm(block)
    transition = exponential[n:, n:].T
    covariance = transition @ exponential[:n, n:]
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(doublings):
            covariance = covariance + transition @ covariance @ transition.T
            transition = transition @ transition
    if not np.isfinite(covariance).all():
        raise ValueError(f"an unstable drift outgrows float64 within dt = {dt}")
    return transition, (covariance + covariance.T) / 2
