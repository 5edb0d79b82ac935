"""Short uses of `program`: `inv` and `solve`."""

from __future__ import annotations

from typing import Any

from thermokron.host.calibration import Calibration
from thermokron.host.linalg.arrays import (
    check_reading,
    check_second_moments,
)
from thermokron.host.linalg.covariance import SETTLING_BIAS
from thermokron.host.linalg.elimination import Complements
from thermokron.host.linalg.inverse import Correct, check_correct
from thermokron.host.linalg.offsets import Offsets
from thermokron.host.linalg.planning import check_alone, planned
from thermokron.host.linalg.programming import program
from thermokron.host.linalg.result import Result
from thermokron.host.linalg.rounding import Guard
from thermokron.host.linalg.settling import Settle
from thermokron.model import Unit
from thermokron.model.unit import check_unit

__all__ = ["inv", "solve"]


def inv(
    unit: Unit,
    M: Any,
    *,
    samples: int | None = None,
    tolerance: float | None = None,
    lambda_min: Any = None,
    interval: float | None = None,
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
    samples : int, optional
        Samples per run; from 2, 1000 by default. Error falls as 1/√samples, hardware time grows in
        proportion.
    tolerance : float, optional
        The relative error (Frobenius) that is wanted, instead of how to sample: `plan` chooses, in
        what way too.
    interval : float, optional
        Sampling interval in units of τ/λ_min, 2 by default, if the accumulator can follow. At 2
        samples are as good as independent; below, they tell less each, which the standard error
        knows to 8%. The variance that the subtracted mean takes along is given back, to a tenth of
        it or so: 0.25 and 20 samples lose 20% of the trace, of which 2 to 4% are left, 50 less
        than 2%.
    correct : "rounding", optional
        Takes off, to first order, what rounded couplings did, by 4n³ digital operations. It is
        worth them where bits are few and samples many; where so few that the first order says
        nothing, it is left out, with a `NotConverged` warning.
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
    Unreachable
        If no way of inverting keeps within the tolerance. A `ValueError` too.
    UnitFault
        If the unit failed.
    """
    check_correct(correct)
    if tolerance is not None:
        own: dict[str, Any] = {"samples": samples, "interval": interval, "correct": correct}
        own |= {"dither": dither, "seed": seed or None}
        own["complements"] = None if complements == "auto" else complements
        own["equilibrate"] = None if equilibrate else equilibrate
        check_alone(tolerance, own)
        return planned(unit, M, tolerance, lambda_min, guard=guard, calibration=calibration).inv()
    samples = 1000 if samples is None else samples
    interval = 2.0 if interval is None else interval
    check_reading(samples, interval, 2)
    check_second_moments(check_unit(unit).spec, "an inverse")
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
    samples: int | None = None,
    tolerance: float | None = None,
    refine: int | None = None,
    rtol: float | None = None,
    settle: Settle = SETTLING_BIAS,
    lambda_min: Any = None,
    interval: float | None = None,
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
    samples : int, optional
        Samples per right-hand side and pass, 1000 by default.
    tolerance : float, optional
        The relative error (Frobenius) that is wanted, instead of how to read: `plan` chooses.
    refine : int, optional
        Passes after the first, 0 to 100; 1 by default.
    rtol : float, optional
        As for `Programmed.solve`: passes until the residual is that small.
    settle, interval, offsets
        As for `Programmed.solve`, 2 apart by default.

    Returns
    -------
    Result
        `value` and `standard_error` of B's shape, kind and dtype, `residual`. The standard error
        holds sampling noise, the quantisation of ADC and bias, what rounded couplings have left,
        and what the residual shows of flaws that the host does not know.

    Raises
    ------
    ValueError, NotPositiveDefinite, Unreachable
        As for `inv`, and if B's shape does not fit.
    UnitFault
        If the unit failed.
    """
    if tolerance is not None:
        own: dict[str, Any] = {
            "samples": samples,
            "refine": refine,
            "rtol": rtol,
            "interval": interval,
        }
        own |= {"dither": dither, "seed": seed or None}
        own["settle"] = None if settle == SETTLING_BIAS else settle
        check_alone(tolerance, own)
        how: dict[str, Any] = {"guard": guard, "offsets": offsets, "calibration": calibration}
        return planned(unit, M, tolerance, lambda_min, **how).solve(B)
    samples = 1000 if samples is None else samples
    interval = 2.0 if interval is None else interval
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
