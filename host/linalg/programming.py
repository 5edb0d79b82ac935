"""`program`: a matrix on the array, in whatever way it has to be there."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, get_args

import numpy as np

from thermokron.host.calibration import Calibrated, Calibration
from thermokron.host.linalg.arrays import (
    Kind,
    check_lambda_min,
    check_reading,
    check_second_moments,
    entries,
    symmetric_matrix,
    unchecked,
)
from thermokron.host.linalg.blocks import Eliminated
from thermokron.host.linalg.covariance import SETTLING_BIAS
from thermokron.host.linalg.dithered import Dithered, draws_of, rounded_each
from thermokron.host.linalg.elimination import Complements, Reduction
from thermokron.host.linalg.programmed import Programmed
from thermokron.host.linalg.refusals import refusals
from thermokron.host.linalg.result import Account
from thermokron.host.linalg.rounding import GUARDS, Guard, equilibrated
from thermokron.host.linalg.settling import Settle, check_settle
from thermokron.host.linalg.stack import Stack, bounds_of, each_of
from thermokron.model import Unit
from thermokron.model.checks import check_integer, check_real
from thermokron.model.threads import single_threaded_blas
from thermokron.model.unit import check_unit

__all__ = ["program"]


@single_threaded_blas()  # small matrices, and jobs that do not depend on the number of threads
def program(
    unit: Unit,
    M: Any,
    *,
    lambda_min: Any = None,
    guard: Guard = "lanczos",
    equilibrate: bool = True,
    like: Programmed | Eliminated | Dithered | None = None,
    check: bool = True,
    complements: Complements = "means",
    samples: int = 1000,
    settle: Settle = SETTLING_BIAS,
    interval: float = 2.0,
    tolerance: float = 0.01,
    calibration: Calibration | None = None,
    dither: int | None = None,
    seed: int = 0,
) -> Programmed | Eliminated | Dithered | Stack:
    """Put a symmetric positive definite matrix on the array, to solve with it, invert or sample it.

    It is scaled to unit diagonal, rounded to coupling codes and guarded, once, as `scipy.linalg`'s
    `lu_factor` factorises once:

        >>> M = program(unit, covariance)                            # doctest: +SKIP
        >>> M.solve(B), M.inv(samples=1000), M.sample(100)           # doctest: +SKIP

    Parameters
    ----------
    unit : Unit
        Any engine of any size.
    M : (n, n) or (..., n, n) array or tensor, SciPy sparse array or LinearOperator
        Symmetric positive definite, real. Of several each is programmed when its turn comes. A
        `LinearOperator` is multiplied n times, for what is programmed are entries.
    lambda_min : float or (...) array, optional
        A lower bound on the smallest eigenvalue of M, such as the damping added to it. Without it
        Lanczos estimates one, in at most 32 steps of 2n² flops.
    guard : {"lanczos", "norm", "cholesky", "clipping", "none"}
        How to make sure that rounding leaves the programmed matrix positive definite. "norm": a
        rigorous O(n²) bound on the rounding, too timid below 8 bits. "lanczos": where that bound
        does not decide, λ_min of the rounded matrix by Lanczos, at most 32 steps of O(n²).
        "cholesky": by factorisation, n³/3 flops per try. "clipping": trust it until samples clip,
        then Lanczos looks. Where a guard is not content, off-diagonal couplings shrink by the least
        part that helps, and `Result.shrinkage` says so. "none": trust it to the end, for
        comparison; an array whose modes grow clips at any temperature, and M is refused.
    equilibrate : bool
        False divides M by its largest entry instead of scaling it to unit diagonal. There for
        comparison: coupling codes are then spent on a range that most entries do not use. Only for
        matrices that fit the array.
    like : Programmed, Eliminated or Dithered, optional
        The matrix before, where matrices follow each other and differ little, as in training: what
        the guard found of it is taken over for up to 15 matrices, if the rounding has not grown and
        `lambda_min` is about the same, and how strongly its columns could be driven.
    check : bool
        False does not look whether M and right-hand sides are finite, and M symmetric.
    complements, samples, settle, interval, tolerance
        Only for matrices larger than the array, which are eliminated block by block
        (`thermokron.host.linalg.blocks`): how W = P⁻¹Q is found of a block P and its row Q.
        "covariance" multiplies the sampled inverse: one run per block, but its error grows with the
        condition number (n = 64 on 16 cells with 1,000 samples, relative to the inverse: 0.18 at
        10, 0.28 at 30, 1.2 at 100, useless at 300). "means" solves for its columns, in about twice
        the hardware time: 0.11, at all of these. "auto" uses means where λ_min of the scaled matrix
        is below √(cells/samples), the error of a block's inverse. `samples` are those of an
        inverse, or of all columns of W together, but at least 8 each; `settle` and `interval` are
        as of `Programmed.solve`; where couplings are coarse, means are refined, six times at
        most, until their residual is within `tolerance`.
    calibration : Calibration, optional
        What `thermokron.host.calibrate` has found of this unit: codes, biases and readings are
        corrected by it. A `thermokron.host.calibration.Calibrated` unit brings its own.
    dither, seed : int, optional
        Rounds so many times at random, E[code] = value, with draws from `seed`, and merges what
        each gives (`thermokron.host.linalg.dithered`), in as many times the hardware time. What
        rounding does falls from ε towards ε²: 4 are about as good as the nearest codes once, 16
        have two thirds to a third of their error. Of a matrix in blocks 1, a rounding at random.

    Returns
    -------
    Programmed, Eliminated, Dithered or Stack
        With methods `solve`, `inv` and `sample`, `cost`, and a `repr` that says what it is: of a
        matrix that fits the array, of one in blocks, of one rounded several times, or of several.

    Raises
    ------
    ValueError
        If M is not square or not symmetric, holds NaN or inf, or an option is out of range; the
        message says which.
    NotPositiveDefinite
        If M is not positive definite as far as can be seen without O(n³). A `ValueError` too.
    ForeignCalibration, StaleCalibration
        If the calibration is another unit's, or not to be trusted any more. `ValueError`s too.
    UnitFault
        If the unit failed.
    """
    spec = check_unit(unit).spec
    if calibration is not None:
        unit = Calibrated(unit, calibration)
    for name, value, legal in (
        ("guard", guard, GUARDS),
        ("complements", complements, get_args(Complements)),
    ):
        if value not in legal:
            raise ValueError(f"{name} = {value!r} is unknown; legal: {', '.join(legal)}")
    check_reading(samples, interval, 1 if complements == "means" else 2)
    if complements == "covariance":
        check_second_moments(spec, "complements = 'covariance'")
    check_settle(settle)
    tolerance = check_real("tolerance", tolerance, 1e-9, 1.0)
    if not isinstance(like, Programmed | Eliminated | Dithered | None):
        raise TypeError(f"like = {like!r} is no programmed matrix")
    M = entries(M)
    shape = tuple(getattr(M, "shape", ()))
    if len(shape) > 2 and 0 not in shape:
        batch = shape[:-2]
        bounds = bounds_of(lambda_min, shape)
        of_each = partial(
            program,
            unit,
            guard=guard,
            equilibrate=equilibrate,
            like=like,
            check=check,
            complements=complements,
            samples=samples,
            settle=settle,
            interval=interval,
            tolerance=tolerance,
            dither=dither,
        )
        seeds = check_integer("seed", seed, 0, 2**62) + np.arange(math.prod(batch)).reshape(batch)
        return Stack(
            batch,
            each_of(batch, lambda i: of_each(M[i], lambda_min=bounds[i], seed=int(seeds[i]))),
        )
    matrix, restore = symmetric_matrix(M) if check else unchecked(M)
    kind = Kind(restore, check)
    bound = check_lambda_min(lambda_min, matrix.diagonal())
    if not equilibrate and len(matrix) > spec.cells:
        raise ValueError(
            f"equilibrate = False, but M has {len(matrix)} rows; legal: up to the unit's "
            f"{spec.cells} cells, or a unit with cells = {len(matrix)} or more"
        )
    draws = draws_of(dither, seed, guard, len(matrix), spec.cells)
    account = Account()
    scaled, scale, least = equilibrated(matrix, bound, account, whole=not equilibrate)
    made: Programmed | Eliminated | Dithered
    with refusals(least, guard != "none"):
        if len(matrix) <= spec.cells:
            made = rounded_each(
                draws,
                like,
                lambda **which: Programmed(
                    *(unit, scaled, scale, least),
                    guard=guard,
                    kind=kind,
                    interval=interval,
                    **which,
                ),
            )
        else:
            made = Eliminated(
                unit,
                scaled,
                scale,
                least,
                kind=kind,
                reduction=Reduction(
                    complements, samples, settle, interval, tolerance, guard, draws[0]
                ),
                like=like if isinstance(like, Eliminated) else None,
            )
    made.cost.add(account)
    return made
