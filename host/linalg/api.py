"""`inv` and `solve` as users meet them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, get_args

import numpy as np

from thermokron.host.linalg.arrays import (
    Floats,
    NotPositiveDefinite,
    Restore,
    check_lambda_min,
    right_hand_sides,
    symmetric_matrix,
)
from thermokron.host.linalg.inverse import Complements, Options, Persistent, sample_inverse
from thermokron.host.linalg.means import MeanSolver, Solved
from thermokron.host.linalg.program import GUARDS, Guard, Indefinite
from thermokron.host.linalg.result import Account, Result
from thermokron.host.linalg.schur import eliminate, refined_solve
from thermokron.model import Unit
from thermokron.model.array import single_threaded_blas
from thermokron.model.checks import check_integer, check_real
from thermokron.model.unit import check_unit

__all__ = ["inv", "solve"]

#: Samples of the runs that only set the scale of a mean solve.
PROBE_SAMPLES = 256


def _options(samples: Any, interval: Any, guard: Any, complements: Any, least: int) -> Options:
    for name, value, legal in (
        ("guard", guard, GUARDS),
        ("complements", complements, get_args(Complements)),
    ):
        if value not in legal:
            raise ValueError(f"{name} = {value!r} is unknown; legal: {', '.join(legal)}")
    return Options(
        samples=check_integer("samples", samples, least, 2**40),
        interval=check_real("interval", interval, 1e-3, 1e3),
        guard=guard,
        complements=complements,
    )


def _scaled(
    M: Any, lambda_min: Any, account: Account, *, equilibrate: bool = True
) -> tuple[Floats, Floats, float | None, Restore]:
    """A = D^-½ M D^-½, √D, a lower bound on λ_min(A), M's kind.

    D is M's diagonal, so that A's is exactly 1; not equilibrated, D is its largest entry for all.
    """
    matrix, restore = symmetric_matrix(M)
    diagonal = matrix.diagonal()
    bound = check_lambda_min(lambda_min, diagonal)
    scale = np.sqrt(diagonal)
    if not equilibrate:
        scale = np.full_like(scale, scale.max())
    matrix = matrix / (scale[:, None] * scale)
    if equilibrate:
        matrix.flat[:: len(matrix) + 1] = 1.0
    account.flops(2 * matrix.size + len(matrix))
    if bound is not None:
        bound /= float(diagonal.max())  # A ≥ λ_min D⁻¹
    return matrix, scale, bound, restore


def _refusal(error: Indefinite | Persistent, bound: float | None) -> ValueError:
    if isinstance(error, Persistent):
        return NotPositiveDefinite(
            f"M is not positive definite as far as the unit can tell: {error}"
        )
    curvature = f"{error.curvature:.3g}"
    if error.curvature < 0.0 or bound is None:
        return NotPositiveDefinite(
            "M is not positive definite: scaled to unit diagonal, it has a direction y with "
            f"yᵀMy/yᵀy = {curvature}"
        )
    return ValueError(
        "lambda_min is not a lower bound on M's smallest eigenvalue: scaled to unit diagonal, "
        f"λ_min should be at least {bound:.3g}, but a direction y has yᵀMy/yᵀy = {curvature}"
    )


@single_threaded_blas()  # small matrices, and jobs that do not depend on the number of threads
def inv(
    unit: Unit,
    M: Any,
    *,
    samples: int = 1000,
    lambda_min: float | None = None,
    interval: float = 2.0,
    guard: Guard = "lanczos",
    complements: Complements = "auto",
    equilibrate: bool = True,
) -> Result:
    """The inverse of a symmetric positive definite matrix, from the covariance of the array.

    M is scaled to unit diagonal, A = D^-½ M D^-½, and programmed; at temperature T the array
    fluctuates with covariance T A⁻¹, and M⁻¹ = D^-½ (Σ̂/T) D^-½. The mean is subtracted, so offsets
    do no harm, and the ADC's q²/12 is taken off the diagonal. The relative error (Frobenius) is
    at most about √((n+1)/N) for N samples. Larger matrices than the array are eliminated block by
    block (`thermokron.host.linalg.schur`).

    The value is an unbiased estimate for the matrix *as rounded to coupling codes*: the rounding's
    own error, M⁻¹ E M⁻¹ to first order, is not in the standard error.

    A coarse ADC biases cells that are much quieter than the loudest, whose σ is put near a quarter
    of full scale. A σ of half an ADC step is where that begins: variance and covariances are
    then 3% too small. At 0.4 steps they are 16% too small, and below 0.2 covariances vanish; the
    variance is then 1/A_ii, the least it can be. With 3 bits half a step is half the loudest σ, so
    it concerns cells whose (A⁻¹)_ii is less than a fifth of the largest; with 4 bits, less than a
    twentieth; with 5, less than an eightieth. The standard error knows of it, but for vanished
    covariances.

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
        good as independent; below, they tell less each, which the standard error knows, and below
        1 overstates: by 12% at 0.25.
    guard : {"lanczos", "norm", "cholesky", "clipping", "none"}
        How to make sure that rounding leaves the programmed matrix positive definite. "norm": a
        rigorous O(n²) bound on the rounding, too timid below 8 bits. "lanczos": where that bound
        does not decide, λ_min of the rounded matrix by Lanczos, at most 32 steps of O(n²).
        "cholesky": by factorisation, n³/3 flops per try. "clipping": trust it until samples clip,
        then Lanczos looks. Where a guard is not content, off-diagonal couplings shrink by the least
        part that helps, and `Result.shrinkage` says so. "none": trust it to the end, for
        comparison; an array whose modes grow clips at any temperature, and M is refused.
    complements : {"auto", "covariance", "means"}
        Only for matrices larger than the array: how eliminating a block finds P⁻¹Q. "covariance"
        multiplies the sampled inverse: one run per block, but its error grows with the condition
        number (n = 64 on 16 cells with 1,000 samples, relative to the inverse: 0.18 at 10, 0.28 at
        30, 1.2 at 100, useless at 300). "means" solves for its columns as `solve` does, in about
        twice the hardware time: 0.11, at all of these. "auto" uses means where λ_min of the
        scaled matrix is below √(cells/samples), the error of a block's inverse.
    equilibrate : bool
        False divides M by its largest entry instead of scaling it to unit diagonal. There for
        comparison: coupling codes are then spent on a range that most entries do not use. Only for
        matrices that fit the array.

    Returns
    -------
    Result
        `value` and `standard_error` (n, n), of M's kind and dtype.

    Raises
    ------
    ValueError
        If M is not square or not symmetric, holds NaN or inf, or an option is out of range; the
        message says which.
    NotPositiveDefinite
        If M is not positive definite as far as can be seen without O(n³), or was not after
        rounding, and nothing guarded against it. A `ValueError` too.
    UnitFault
        If the unit failed.
    """
    spec = check_unit(unit).spec
    options = _options(samples, interval, guard, complements, 2)
    account = Account(samples=options.samples)
    matrix, scale, bound, restore = _scaled(M, lambda_min, account, equilibrate=equilibrate)
    if not equilibrate and len(matrix) > spec.cells:
        raise ValueError(
            f"equilibrate = False, but M has {len(matrix)} rows; legal: up to the unit's "
            f"{spec.cells} cells, or a unit with cells = {len(matrix)} or more"
        )
    try:
        if len(matrix) <= spec.cells:
            sampled = sample_inverse(unit, matrix, bound, options, account)
            value, error = sampled.value, sampled.standard_error
        else:
            elimination = eliminate(unit, matrix, bound, options, account)
            value = elimination.inverse(account)
            error = partial(elimination.standard_error, value)
    except (Indefinite, Persistent) as refused:
        raise _refusal(refused, bound) from None
    outer = scale[:, None] * scale
    account.flops(2 * value.size)
    return Result.of(value / outer, partial(_divided, error, outer), restore, account)


def _divided(error: Any, outer: Floats) -> Floats:
    result: Floats = error() / outer
    return result


@single_threaded_blas()
def solve(
    unit: Unit,
    M: Any,
    B: Any,
    *,
    samples: int = 1000,
    refine: int = 1,
    lambda_min: float | None = None,
    interval: float = 2.0,
    guard: Guard = "lanczos",
) -> Result:
    """Solve M X = B for a symmetric positive definite M, from the mean of the array.

    Scaled to unit diagonal, M is programmed once; each right-hand side is a bias vector, and the
    array's mean under it the solution. A run with second moments comes first: it shows how far
    solutions swing, so that biases can use the ADC's range. The temperature is the lowest that
    dithers the ADC.

    The rounding of the couplings changes the solution by M⁻¹ E x to first order, tens of percent
    where codes are coarse and M is ill-conditioned. Each refinement solves again for the
    residual B - M X, which the host computes exactly, and multiplies that error, and the sampling
    error, by about ‖M⁻¹E‖; it costs another pass over the unit and 2n² flops per column.

    A matrix larger than the array is eliminated block by block, P⁻¹Q by mean solves; refinements
    use the factorisation again.

    Parameters
    ----------
    unit : Unit
        Any engine of any size.
    M : (n, n) array or tensor
        Symmetric positive definite, real.
    B : (n,) or (n, k) array or tensor
        Right-hand sides, real.
    samples : int
        Samples per right-hand side and pass.
    refine : int
        Passes after the first, 0 to 100.
    lambda_min, interval, guard
        As for `inv`.

    Returns
    -------
    Result
        `value` and `standard_error` of B's shape, kind and dtype, `residual`. The standard error
        holds sampling noise, the quantisation of ADC and bias, and an estimate of what rounded
        couplings have left, which is of the right size while ‖M⁻¹E‖ is well below 1.

    Raises
    ------
    ValueError, NotPositiveDefinite
        As for `inv`, and if B's shape does not fit.
    UnitFault
        If the unit failed.
    """
    spec = check_unit(unit).spec
    options = _options(samples, interval, guard, "means", 1)
    refine = check_integer("refine", refine, 0, 100)
    account = Account(samples=options.samples)
    matrix, scale, bound, _ = _scaled(M, lambda_min, account)
    given, restore = right_hand_sides(B, len(matrix))
    right = given.reshape(len(matrix), -1) / scale[:, None]
    probe = replace(options, samples=PROBE_SAMPLES)
    try:
        if len(matrix) <= spec.cells:
            sampled = sample_inverse(unit, matrix, bound, probe, account)
            solver = MeanSolver(unit, matrix, sampled, options.interval)
            solved = solver.solve(right, options.samples, refine, account)
        else:
            elimination = eliminate(unit, matrix, bound, probe, account, exactly=True)
            solved = refined_solve(elimination, matrix, right, options.samples, refine, account)
    except (Indefinite, Persistent) as refused:
        raise _refusal(refused, bound) from None
    account.flops(2 * right.size)
    return Result.of(
        (solved.value / scale[:, None]).reshape(given.shape),
        partial(_deviation, solved.variance, scale, given.shape),
        restore,
        account,
        _worst_residual(solved, right, scale),
    )


def _deviation(variance: Floats, scale: Floats, shape: tuple[int, ...]) -> Floats:
    return (np.sqrt(variance) / scale[:, None]).reshape(shape)


def _worst_residual(solved: Solved, right: Floats, scale: Floats) -> float:
    """The largest ‖b - M x‖/‖b‖ of all columns, in the user's units."""
    left, whole = (np.linalg.norm(scale[:, None] * r, axis=0) for r in (solved.residual, right))
    return float(np.divide(left, whole, out=np.zeros_like(left), where=whole > 0.0).max())
