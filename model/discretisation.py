"""Exact discretisation of linear stochastic differential equations."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thermokron.model.checks import check_real

__all__ = ["Step", "covariance_factor", "linear_step", "relaxation", "van_loan"]

Floats = NDArray[np.float64]
#: Terms of the series of a short step, the last of them below 10^-17 of the first.
TERMS = 14
#: A term below this part of the first does not count.
NEGLIGIBLE = 1e-18

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


class Step(NamedTuple):
    """What a time does to ds = (F s + B u) dt + dv, E dv dvᵀ = D dt, with u constant.

    s(t) ~ N(transition · s(0) + response · u, covariance).

    Attributes
    ----------
    transition : (m, m) float64
        Φ = exp(F t).
    response : (m, k) float64
        ∫₀^t exp(F s) ds B.
    covariance : (m, m) float64
        ∫₀^t exp(F s) D exp(Fᵀ s) ds.
    """

    transition: Floats
    response: Floats
    covariance: Floats


def linear_step(
    drift: Floats, diffusion: Floats, drive: Floats, dt: float, *, most: float = math.inf
) -> Step:
    """The exact step of a linear system, any drift, symmetric or not.

    Of a time h so short that ‖F‖h ≤ 1/8, the power series of all three, which the equations for
    their derivatives Φ' = F Φ, C' = F C + C Fᵀ + D give term by term; then doubled back to dt, as
    Van Loan (1978) does: C ← C + Φ C Φᵀ, R ← R + Φ R, Φ ← Φ². In NumPy alone, whose BLAS is the one
    that is held at a thread: what engines sample depends on every bit of it.

    Parameters
    ----------
    drift, diffusion : (m, m) float64
        F in 1/time, D in variance/time.
    drive : (m, k) float64
        B.
    dt : float
        The step, in time.
    most : float
        Doubling ends where an entry of Φ has grown beyond this, and the step is a shorter one.
    """
    norm = float(np.abs(drift).sum(axis=0).max()) * dt
    doublings = max(0, math.ceil(math.log2(norm)) + 3) if norm > 0.0 else 0
    h = math.ldexp(dt, -doublings)
    terms, size = TERMS, norm
    if not doublings:  # very short steps, as between two channels of a converter, take few
        terms = 1
        while terms < TERMS and size > NEGLIGIBLE:
            terms += 1
            size *= norm / terms
    of_transition, of_response, of_covariance = np.eye(len(drift)), drive * h, diffusion * h
    transition, response, covariance = (
        np.zeros_like(each) for each in (of_transition, of_response, of_covariance)
    )
    for term in range(1, terms + 1):
        transition += of_transition
        response += of_response
        covariance += of_covariance
        of_transition = drift @ of_transition * (h / term)
        of_response = drift @ of_response * (h / (term + 1))
        half = drift @ of_covariance
        of_covariance = (half + half.T) * (h / (term + 1))
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(doublings):
            if not np.abs(transition).max() <= most:
                break
            covariance = covariance + transition @ covariance @ transition.T
            response = response + transition @ response
            transition = transition @ transition
    return Step(transition, response, (covariance + covariance.T) / 2)


def covariance_factor(covariance: Floats) -> Floats:
    """F with F Fᵀ a covariance, (m, m), which may be singular."""
    scale = np.sqrt(np.diag(covariance))
    # to unit diagonal first: states may differ by many orders of magnitude
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0.0)
    values, vectors = np.linalg.eigh(covariance * inverse * inverse[:, None])
    factor: Floats = scale[:, None] * vectors * np.sqrt(np.maximum(values, 0.0))
    return factor


def van_loan(
    drift: ArrayLike, diffusion: ArrayLike, dt: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Transition and covariance of one step of dx = F x dt + dv, E dv dvᵀ = D dt, exactly.

    Φ = exp(F dt), and the integral ∫₀^dt exp(F s) D exp(Fᵀ s) ds of Van Loan (IEEE Trans. Automatic
    Control 23, 395, 1978), by doubling from a short step (`linear_step`), which does not overflow
    where his block exponential, with its exp(-F dt), does. Any drift will do, symmetric or not;
    where it is symmetric, `NoiseArray` evaluates it in closed form in the eigenbasis.

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

    transition, _, covariance = linear_step(f, d, np.zeros((n, 0)), dt)
    if not np.isfinite(covariance).all():
        raise ValueError(f"an unstable drift outgrows float64 within dt = {dt}")
    return transition, covariance
