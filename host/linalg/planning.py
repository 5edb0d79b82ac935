"""The planner: how an inverse or a solution of a wanted accuracy is best had, and what it costs."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np

from thermokron.host.calibration import Calibrated, Calibration
from thermokron.host.linalg.arrays import (
    Floats,
    Kind,
    check_lambda_min,
    check_second_moments,
    entries,
    right_hand_sides,
    symmetric_matrix,
)
from thermokron.host.linalg.choices import Choices, Limits, Method
from thermokron.host.linalg.explanation import reasons
from thermokron.host.linalg.functions import diagonalised
from thermokron.host.linalg.offsets import Offsets, check_offsets
from thermokron.host.linalg.planned import Plan
from thermokron.host.linalg.rehearsal import Task
from thermokron.host.linalg.result import Account, Result
from thermokron.host.linalg.rounding import GUARDS, Guard, equilibrated
from thermokron.host.linalg.stack import Stack, bounds_of, each_of
from thermokron.model import Unit
from thermokron.model.checks import check_integer, check_real
from thermokron.model.threads import single_threaded_blas
from thermokron.model.unit import check_unit

__all__ = ["Planned", "Unreachable", "check_alone", "plan", "planned"]

#: Columns that are tried, for all; of a matrix that is not diagonalised for it.
TRIED, LARGE_TRIED = 64, 16
#: Refinements at most, unless told.
MOST_REFINEMENTS = 20
LEAST_TOLERANCE = 1e-9


class Unreachable(ValueError):
    """A tolerance that no plan within its limits keeps; the message says what would help."""


def check_tolerance(tolerance: Any) -> float:
    """A relative error, as a float.

    Raises
    ------
    TypeError, ValueError
        If it is no number from `LEAST_TOLERANCE` to 1.
    """
    return check_real("tolerance", tolerance, LEAST_TOLERANCE, 1.0)


@single_threaded_blas()  # as what it plans
def plan(
    unit: Unit,
    M: Any,
    B: Any = None,
    *,
    tolerance: float = 0.05,
    columns: int | None = None,
    method: Method | None = None,
    refine: int | None = None,
    correct: bool = True,
    lambda_min: Any = None,
    guard: Guard = "lanczos",
    offsets: Offsets = "kept",
    calibration: Calibration | None = None,
    host_flops: float = 1e10,
) -> Plan:
    """How to invert M, or to solve with it, so that the relative error is within a tolerance.

    Of the ways that reach it, it takes the one that is done first: on the unit, on its ports and on
    the host together. Nothing is run on the unit; no random number is drawn from its streams.

        >>> found = plan(unit, M, tolerance=0.05)                    # doctest: +SKIP
        >>> print(found.explain())                                   # doctest: +SKIP
        >>> found.run().value                                        # doctest: +SKIP

    M is rounded and guarded as `program` does it, so that E, what rounding adds, is known. An
    inverse by covariance is forecast by sampling theory (`thermokron.host.linalg.forecast`); one by
    means, and solutions, by solving for up to 64 of the columns on an ideal unit that is worked out
    digitally (`thermokron.host.linalg.rehearsal`). Flaws of a unit that its host does not know are
    in no forecast. It is for once a kind of matrix, as it costs more operations (`Plan.flops`) than
    inverting M digitally: up to 512 rows 18n³ to diagonalise A and A + E; to rehearse, and
    beyond, where nothing is O(n³), up to a hundred thousand n².

    Parameters
    ----------
    unit : Unit
        Any engine of any size.
    M : (n, n) array or tensor, SciPy sparse array or LinearOperator
        Symmetric positive definite, real.
    B : (n,), (n, k) or (..., n, k) array or tensor, optional
        Right-hand sides to solve for. Without, and without `columns`, an inverse is planned.
    tolerance : float
        Wanted relative error, ‖X - M⁻¹‖/‖M⁻¹‖ or ‖X - M⁻¹B‖/‖M⁻¹B‖ (Frobenius), 1e-9 to 1.
    columns : int, optional
        Solve for so many right-hand sides, that are not known yet: of independent Gaussian entries.
    method : {"covariance", "means"}, optional
        How to invert; the quicker one by default. "means" solves for the columns of the identity
        and symmetrises, which needs no second moments and far fewer readings. "covariance" is not
        disturbed by offsets.
    refine : int, optional
        Refinements at most, 0 to 100, 2n² operations a column each; 20 by default.
    correct : bool
        Whether what rounding did to a covariance may be taken off, by 4n³ operations.
    lambda_min, guard, calibration
        As for `program`. What calibration does to the rounding is not forecast.
    offsets : {"kept", "blank", "chopped"}
        As for `Programmed.solve`.
    host_flops : float
        Operations a second of the host, 1 to 1e18, by which its part of the time is reckoned.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError, TypeError
        If M or B is not as it should be, or an option out of range; the message says which.
    Unreachable
        If no way keeps within the tolerance. A `ValueError` too; it says what limits it, and what
        would reach it: more coupling bits, more damping, refinement, another method.
    NotPositiveDefinite
        If M is not positive definite as far as can be seen.
    """
    spec = check_unit(unit).spec
    tolerance = check_tolerance(tolerance)
    host_flops = check_real("host_flops", host_flops, 1.0, 1e18)
    refine = MOST_REFINEMENTS if refine is None else check_integer("refine", refine, 0, 100)
    check_offsets(offsets, spec)
    inverse = B is None and columns is None
    for name, value, legal in (("guard", guard, GUARDS), ("method", method, get_args(Method))):
        if value not in legal and not (name == "method" and value is None):
            raise ValueError(f"{name} = {value!r} is unknown; legal: {', '.join(legal)}")
    if not isinstance(correct, bool):
        raise TypeError(f"correct = {correct!r} is not a bool")
    if B is not None and columns is not None:
        raise ValueError("B and columns are both given; legal: one of them, or none for an inverse")
    matrix, restore = symmetric_matrix(entries(M))
    n = len(matrix)
    methods: tuple[Method, ...] = ("means",)
    if method == "covariance":
        if not inverse:
            raise ValueError("method = 'covariance' is for inverses; legal for solving: 'means'")
        check_second_moments(spec, "an inverse with method = 'covariance'")
        if n > spec.cells:
            raise ValueError(
                f"method = 'covariance' is planned for matrices that fit the array; M has {n} rows;"
                f" legal: up to the unit's {spec.cells} cells, or 'means'"
            )
        methods = ("covariance",)
    elif method is None and inverse and spec.second_moments and n <= spec.cells:
        methods = ("means", "covariance")
    if calibration is not None:
        unit = Calibrated(unit, calibration)
    account = Account()
    bound = check_lambda_min(lambda_min, matrix.diagonal())
    scaled, scale, least = equilibrated(matrix, bound, account)
    right, count = _tried(n, B, columns, scale)
    task = Task(spec, scaled, scale, least, guard, right, count, inverse, offsets)
    choices = Choices(task, Limits(tolerance, methods, refine, correct, host_flops))
    quickest = choices.quickest()
    if quickest is None:
        raise Unreachable(reasons(choices))
    others = tuple(way for way in choices.best.values() if way is not quickest)
    return Plan(
        unit,
        tolerance,
        quickest,
        math.ceil(n / spec.cells),
        others,
        choices.flops + account.digital_flops,
        choices,
        Kind(restore, check=True),
        B,
    )


def _tried(n: int, B: Any, columns: int | None, scale: Floats) -> tuple[Floats, int]:
    """Right-hand sides that stand for all, (p, n), and how many these are."""
    rng, most = np.random.default_rng(n), TRIED if diagonalised(n) else LARGE_TRIED
    if columns is not None:
        columns = check_integer("columns", columns, 1, 2**30)
        return rng.standard_normal((min(columns, most), n)), columns
    if B is None:
        all_of, count = np.eye(n), n
    else:
        given = right_hand_sides(B, n, True, scale)
        all_of = given.columns.T.astype(np.float64)
        sizes, count = np.abs(all_of).max(axis=1), len(all_of)
        if not sizes.any():  # whose solutions are zero, however they are read
            return rng.standard_normal((min(count, most), n)), count
        all_of = all_of[sizes > 0.0] / sizes.max()  # so that squares are numbers
    some = np.sort(rng.permutation(len(all_of))[:most])
    return all_of[some], count


class Planned:
    """A matrix, (n, n), that is planned for when it is used."""

    def __init__(self, unit: Unit, M: Any, **options: Any) -> None:
        self.unit, self.M, self.options = unit, M, options
        self.shape: tuple[int, ...] = tuple(np.shape(M))
        self.cost = Account()

    def inv(self) -> Result:
        """M⁻¹."""
        return plan(self.unit, self.M, **self.options).run()

    def solve(self, B: Any) -> Result:
        """M⁻¹B."""
        return plan(self.unit, self.M, B, **self.options).run()


def planned(
    unit: Unit, M: Any, tolerance: float, lambda_min: Any = None, **options: Any
) -> Planned | Stack:
    """One matrix or several, (..., n, n), to invert or solve with to a tolerance."""
    M = entries(M)
    shape = tuple(getattr(M, "shape", ()))
    if len(shape) < 3 or 0 in shape:
        return Planned(unit, M, tolerance=tolerance, lambda_min=lambda_min, **options)
    bounds = bounds_of(lambda_min, shape)
    options["tolerance"] = tolerance

    def one(index: tuple[int, ...]) -> Planned:
        return Planned(unit, M[index], lambda_min=bounds[index], **options)

    return Stack(shape[:-2], each_of(shape[:-2], one))


def check_alone(tolerance: float, own: dict[str, Any]) -> None:
    """Refuse what is the user's `own`, if it is not None, beside a tolerance."""
    given = [name for name, value in own.items() if value is not None]
    if given:
        what = " and ".join(given)
        raise ValueError(
            f"tolerance = {tolerance!r} and {what} are both given; legal: one or the other, as a "
            f"tolerance is what {what} would be chosen for"
        )
