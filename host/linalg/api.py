"""`program`, and its short uses `inv` and `solve`."""

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
from thermokron.host.linalg.inverse import Correct, check_correct
from thermokron.host.linalg.offsets import Offsets
from thermokron.host.linalg.programmed import Programmed
from thermokron.host.linalg.refusals import refusals
from thermokron.host.linalg.result import Account, Result
from thermokron.host.linalg.rounding import GUARDS, Guard, equilibrated
from thermokron.host.linalg.settling import Settle, check_settle
from thermokron.host.linalg.stack import Stack, each_of
from thermokron.model import Unit
from thermokron.model.checks import check_integer, check_real
from thermokron.model.threads import single_threaded_blas
from thermokron.model.unit import check_unit

__all__ = ["inv", "program", "solve"]


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
        try:
            bounds = np.broadcast_to(lambda_min, batch)
        except ValueError:
            raise ValueError(
                f"lambda_min has shape {np.shape(lambda_min)}; legal for M, {shape}: a number, or "
                f"what broadcasts to {batch}"
            ) from None
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


def inv(
    unit: Unit,
    M: Any,
    *,
    samples: int = 1000,
    lambda_min: Any = None,
    interval: float = 2.0,
    guard: Guard = "lanczos",
    complements: Complements = "auto",
    equilibrate: bool = True,
    correct: Correct | None = None,
    calibration: Calibration | None = None,
    dither: int | None = None,
    seed: int = 0,
) -> Result:
    """The inverse of a symmetric positive definite matrix, from the covariance of the array.

    M is scaled to unit diagonal, A = D^-½ M D^-½, and programmed; at temperature T the array
    fluctuates with covariance T A⁻¹, and M⁻¹ = D^-½ (Σ̂/T) D^-½. The mean is subtracted, so offsets
    do no harm, and the ADC's q²/12 is taken off the diagonal. The relative error (Frobenius) is
    at most about √((n+1)/N) for N samples. Larger matrices than the array are eliminated block by
    block (`thermokron.host.linalg.blocks`).

    The value is an unbiased estimate for the matrix *as rounded to coupling codes*. The rounding's
    own error, M⁻¹ E M⁻¹ to first order, is in the standard error, and taken off by
    `correct="rounding"`. To invert one matrix several times, `program` it.

    Noise may make the value indefinite, where samples are few or the ADC coarse; with no more
    samples than rows it is certain to be. `Result.indefinite` says so, and it counts among
    `Result.repairs`; `Result.nearest_definite()` is the nearest inverse that is not.

    A coarse ADC biases cells that are much quieter than the loudest, whose σ is put near a quarter
    of full scale. A σ of half an ADC step is where that begins: variance and covariances are
    then 3% too small. At 0.4 steps they are 16% too small, and below 0.2 covariances vanish; the
    variance is then 1/A_ii, the least it can be. With 3 bits half a step is half the loudest σ, so
    it concerns cells whose (A⁻¹)_ii is less than a fifth of the largest; with 4 bits, less than a
    twentieth; with 5, less than an eightieth. The standard error knows of it, but for vanished
    covariances.

    Parameters
    ----------
    unit, M, lambda_min, guard, equilibrate, calibration, dither, seed
        As for `program`.
    samples : int
        Samples per run; from 2. Error falls as 1/√samples, hardware time grows in proportion.
    interval : float
        Sampling interval in units of τ/λ_min, if the accumulator can follow. At 2 samples are as
        good as independent; below, they tell less each, which the standard error knows to 8%. The
        variance that the subtracted mean takes along is given back, to a tenth of it or so: 0.25
        and 20 samples lose 20% of the trace, of which 2 to 4% are left, 50 less than 2%.
    correct : "rounding", optional
        Takes off, to first order, what rounded couplings did, by 4n³ digital operations. It is
        worth them where bits are few and samples many.
    complements : {"auto", "covariance", "means"}
        Only for matrices larger than the array, see `program`.

    Returns
    -------
    Result
        `value` and `standard_error` (n, n), of M's kind and dtype.

    Raises
    ------
    ValueError
        If M is not square or not symmetric, holds NaN or inf, an option is out of range, or the
        unit has no second moments; the message says which.
    NotPositiveDefinite
        If M is not positive definite as far as can be seen without O(n³), or was not after
        rounding, and nothing guarded against it. A `ValueError` too.
    UnitFault
        If the unit failed.
    """
    check_reading(samples, interval, 2)
    check_second_moments(check_unit(unit).spec, "an inverse")
    check_correct(correct)
    programmed = program(
        unit,
        M,
        lambda_min=lambda_min,
        guard=guard,
        equilibrate=equilibrate,
        complements=complements,
        samples=samples,
        interval=interval,
        tolerance=0.03,
        calibration=calibration,
        dither=dither,
        seed=seed,
    )
    result = programmed.inv(samples=samples, interval=interval, correct=correct)
    return result.with_cost_of(programmed.cost).looked_at()


def solve(
    unit: Unit,
    M: Any,
    B: Any,
    *,
    samples: int = 1000,
    refine: int | None = None,
    rtol: float | None = None,
    settle: Settle = SETTLING_BIAS,
    lambda_min: Any = None,
    interval: float = 2.0,
    guard: Guard = "lanczos",
    offsets: Offsets = "kept",
    calibration: Calibration | None = None,
    dither: int | None = None,
    seed: int = 0,
) -> Result:
    """Solve M X = B for a symmetric positive definite M, from the mean of the array.

    Scaled to unit diagonal, M is programmed once; each right-hand side is a bias vector, and the
    array's mean under it the solution. The temperature is the lowest that dithers the ADC.

    The rounding of the couplings changes the solution by M⁻¹ E x to first order, tens of percent
    where codes are coarse and M is ill-conditioned. Each refinement solves again for the
    residual B - M X, which the host computes exactly, and multiplies that error, and the sampling
    error, by about ‖M⁻¹E‖ or less; it costs another pass over the unit and 2n² flops per column.
    With `rtol` it goes on until the residual is that small, to working precision if need be. To
    solve with one matrix several times, or as cheaply as can be, `program` it.

    A matrix larger than the array is eliminated block by block, P⁻¹Q by mean solves; refinements
    use the factorisation again.

    Parameters
    ----------
    unit, M, lambda_min, guard, calibration, dither, seed
        As for `program`.
    B : (n,), (n, k) or (..., n, k) array or tensor
        Right-hand sides, real; with several M, as `numpy.linalg.solve` broadcasts.
    samples : int
        Samples per right-hand side and pass.
    refine : int, optional
        Passes after the first, 0 to 100; 1 by default.
    rtol : float, optional
        As for `Programmed.solve`: passes until the residual is that small.
    settle, interval, offsets
        As for `Programmed.solve`.

    Returns
    -------
    Result
        `value` and `standard_error` of B's shape, kind and dtype, `residual`. The standard error
        holds sampling noise, the quantisation of ADC and bias, what rounded couplings have left,
        and what the residual shows of flaws that the host does not know. It is of the right size
        while ‖M⁻¹E‖ is well below 1.

    Raises
    ------
    ValueError, NotPositiveDefinite
        As for `inv`, and if B's shape does not fit.
    UnitFault
        If the unit failed.
    """
    programmed = program(
        unit,
        M,
        lambda_min=lambda_min,
        guard=guard,
        samples=256,
        interval=interval,
        tolerance=0.003,
        calibration=calibration,
        dither=dither,
        seed=seed,
    )
    if refine is None and rtol is None:
        refine = 1
    result = programmed.solve(
        B,
        samples=samples,
        settle=settle,
        refine=refine,
        rtol=rtol,
        interval=interval,
        offsets=offsets,
    )
    return result.with_cost_of(programmed.cost)
