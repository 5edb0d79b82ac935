"""`inv` and `solve` as users meet them."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from thermokron.host.linalg.arrays import Floats, check_lambda_min, symmetric_matrix
from thermokron.host.linalg.inverse import Options, Persistent, sample_inverse
from thermokron.host.linalg.program import GUARDS, Guard, Indefinite
from thermokron.host.linalg.result import Account, Result
from thermokron.host.linalg.schur import eliminate
from thermokron.model import Unit
from thermokron.model.checks import check_integer, check_real

__all__ = ["inv"]


def _options(samples: Any, interval: Any, guard: Any, least: int) -> Options:
    if guard not in GUARDS:
        raise ValueError(f"guard = {guard!r} is unknown; legal: {', '.join(GUARDS)}")
    return Options(
        samples=check_integer("samples", samples, least, 2**40),
        interval=check_real("interval", interval, 1e-3, 1e3),
        guard=guard,
    )


def _refusal(error: Indefinite | Persistent, bound: float | None) -> ValueError:
    if isinstance(error, Persistent):
        return ValueError(f"M is not positive definite as far as the unit can tell: {error}")
    if error.curvature < 0.0 or bound is None:
        return ValueError(
            "M is not positive definite: scaled to unit diagonal, it has a direction y with "
            f"yᵀMy/yᵀy = {error.curvature:.3g}"
        )
    return ValueError(
        "lambda_min is not a lower bound on M's smallest eigenvalue: scaled to unit diagonal, "
        f"λ_min should be at least {bound:.3g}, but a direction y has yᵀMy/yᵀy = {error.curvature:.3g}"
    )


def inv(
    unit: Unit,
    M: Any,
    *,
    samples: int = 1000,
    lambda_min: float | None = None,
    interval: float = 2.0,
    guard: Guard = "lanczos",
) -> Result:
    """The inverse of a symmetric positive definite matrix, from the covariance of the array.

    M is scaled to unit diagonal, A = D^-½ M D^-½, and programmed; at temperature T the array
    fluctuates with covariance T A⁻¹, and M⁻¹ = D^-½ (Σ̂/T) D^-½. The mean is subtracted, so offsets
    do no harm, and the ADC's q²/12 is taken off the diagonal. The relative error (Frobenius) is
    about √((n+1)/N) for N samples. Larger matrices than the array are eliminated block by block
    (`thermokron.host.linalg.schur`); there the error grows with the condition number.

    The value is an unbiased estimate for the matrix *as rounded to coupling codes*: the rounding's
    own error, M⁻¹ E M⁻¹ to first order, is not in the standard error.

    Parameters
    ----------
    unit : Unit
        Any engine of any size.
    M : (n, n) array or tensor
        Symmetric positive definite, real.
    samples : int
        Samples per run; from 2. Error falls as 1/√samples, hardware time grows in proportion.
    lambda_min : float, optional
        A lower bound on the smallest eigenvalue of M, such as the damping added to it. Without it
        Lanczos estimates one, in at most 32 steps of 2n² flops.
    interval : float
        Sampling interval in units of τ/λ_min, if the accumulator can follow. At 2 samples are as
        good as independent; below, they tell less each, which the standard error knows.
    guard : {"lanczos", "norm", "cholesky", "none"}
        How to make sure that rounding leaves the programmed matrix positive definite. "norm": a
        rigorous O(n²) bound on the rounding, too timid below 8 bits. "lanczos": where that bound
        does not decide, λ_min of the rounded matrix by Lanczos, at most 32 steps of O(n²).
        "cholesky": by factorisation, n³/3 flops per try. "none": trust it, until samples clip.
        Where a guard is not content, off-diagonal couplings shrink by the least part that helps,
        and `Result.shrinkage` says so.

    Returns
    -------
    Result
        `value` and `standard_error` (n, n), of M's kind and dtype.

    Raises
    ------
    ValueError
        If M is not square, not symmetric, not positive definite as far as can be seen without
        O(n³), holds NaN or inf, or an option is out of range; the message says which.
    UnitFault
        If the unit failed.
    """
    options = _options(samples, interval, guard, 2)
    matrix, restore = symmetric_matrix(M)
    diagonal = matrix.diagonal()
    bound = check_lambda_min(lambda_min, diagonal)
    account = Account(samples=options.samples)
    scale = np.sqrt(diagonal)
    outer = scale[:, None] * scale
    matrix = matrix / outer
    matrix.flat[:: len(matrix) + 1] = 1.0
    if bound is not None:
        # A ≥ λ_min D⁻¹
        bound /= float(diagonal.max())
    account.flops(2 * matrix.size + len(matrix))
    try:
        if len(matrix) <= unit.spec.cells:
            sampled = sample_inverse(unit, matrix, bound, options, account)
            value, error = sampled.value, sampled.standard_error
        else:
            elimination = eliminate(unit, matrix, bound, options, account)
            value = elimination.inverse(account)
            error = partial(elimination.standard_error, value)
    except (Indefinite, Persistent) as refused:
        raise _refusal(refused, bound) from None
    account.flops(value.size)
    return Result.of(value / outer, partial(_divided, error, outer), restore, account)


def _divided(error: Any, outer: Floats) -> Floats:
    result: Floats = error() / outer
    return result
