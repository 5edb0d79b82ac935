"""Iterative refinement: the unit solves again for what it has left, the host keeps count.

A pass over the unit is a rough inverse, another one each time: it preconditions. What its passes
give is combined by generalised conjugate residuals (Eisenstat, Elman & Schultz, SIAM J. Numer.
Anal. 20, 1983), which take of every new direction what makes the residual smallest, and keep it
apart from the directions before. Unlike conjugate gradients that needs no preconditioner that is
the same in every pass, and the residual never grows.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from thermokron.host.linalg.arrays import Floats, RightHandSides
from thermokron.host.linalg.refusals import NotConverged
from thermokron.host.linalg.result import LEAST_RTOL, Account, Result
from thermokron.host.linalg.settling import Settling
from thermokron.model.checks import check_integer, check_real

__all__ = ["Answer", "Once", "Solved", "check_refinement", "refined"]


class Answer(Protocol):
    """What one pass over the unit gives."""

    @property
    def value(self) -> Floats:
        """Solutions, (k, n), one per row."""
        ...

    @property
    def settling(self) -> Settling:
        """Of the array before it was read."""
        ...

    def variance(self, residual: Floats | None = None) -> Floats:
        """Of solutions in the array's units, (k, n), whose `residual` (k, n) is known."""
        ...


#: Refinements at most.
MOST = 100
#: A pass that leaves more than this of every residual is the last: it is as small as it gets.
STALLED = 0.999
#: Passes whose directions are kept apart from a new one.
REMEMBERED = 12
#: A pass over the unit: for right-hand sides (k, n), which it may overwrite.
Once = Callable[[Floats, Account], Answer]


@dataclass(frozen=True)
class Solved:
    """Solutions of A x = b.

    Attributes
    ----------
    value : (k, n) float
        x, one per row.
    answer : Answer
        Of the last pass, in the array's units.
    residual : (k, n) float or None
        b - A x in the array's units, where refinement to an `rtol` has worked it out.
    unit : (n,) float, or 1
        What entries of `value` are, of those in the array's units.
    """

    value: Floats
    answer: Answer
    residual: Floats | None
    unit: Floats | float = 1.0

    def times(self, unit: Floats, *, done: bool = False) -> Solved:
        """The same with every entry times its `unit`, (n,), unless that is `done`."""
        return replace(self, value=self.value if done else self.value * unit, unit=unit)

    def result(
        self,
        given: RightHandSides,
        matrix: Floats,
        scale: Floats,
        account: Account,
        enough: float,
    ) -> Result:
        """What the user gets, who asked for M X = B with M = D^½ A D^½, `scale` being D^½'s
        diagonal, and values in the user's units; if a residual was to be `enough`, but is not,
        warned."""
        value = self.value
        if given.sizes.size > 1 or given.sizes[0] != 1.0:
            value = value * given.sizes
        left = _Left(self, given, matrix, scale)
        if enough and (worst := left.worst()) > enough:
            warnings.warn(
                f"rtol = {enough:g} was not reached: a residual of {worst:.2g} is left after "
                f"{account.runs} runs. More passes help where `refine` limits them, and more "
                "coupling bits, a longer settle, more samples, or more damping of the matrix",
                NotConverged,
                stacklevel=4,
            )
        return Result.of(
            given.like_given(value.T),
            left.deviation,
            given.restore,
            account,
            residual=left.worst,
            settling=self.answer.settling,
        )


def refined(
    once: Once,
    matrix: Floats,
    right: Floats,
    refine: int,
    account: Account,
    *,
    enough: float = 0.0,
    scale: Floats | float = 1.0,
    watch: Callable[[Floats], bool] | None = None,
) -> Solved:
    """Solve A x = b for (k, n) rows b with `refine` refinements; without any, no product is made.

    It ends before where ‖b - A x‖/‖b‖, of entries times their `scale`, is at most `enough` in every
    row, and where passes no longer lower it; or where `watch`, which is shown the solutions of
    every pass, says so.
    """
    if refine == 0:
        answer = once(right, account)
        return Solved(answer.value, answer, None)
    k, n = right.shape
    value, residual = np.zeros_like(right), right.copy()
    last, wanted = _lengths(right), enough * _lengths(right * scale)
    before: deque[tuple[Floats, Floats, Floats]] = deque(maxlen=REMEMBERED)
    for passes in range(refine + 1):
        answer = once(residual.copy(), account)
        step = answer.value
        image = step @ matrix
        for earlier, its_image, weight in before:
            part = _over((image * its_image).sum(axis=1), weight)
            step = step - part * earlier
            image = image - part * its_image
        weight = (image * image).sum(axis=1)
        part = _over((image * residual).sum(axis=1), weight)
        value = value + part * step
        residual = residual - part * image
        account.flops(2 * n * n * k + (8 + 8 * len(before)) * n * k)
        before.append((step, image, weight))
        if watch is not None and watch(value):
            break
        if enough and passes < refine:
            left = _lengths(residual)
            account.flops(5 * n * k)
            if (_lengths(residual * scale) <= wanted).all() or (left > STALLED * last).all():
                break
            last = left
    if not enough:  # nobody may ask
        return Solved(value, answer, None)
    account.flops(2 * n * n * k + n * k)
    residual = right - value @ matrix
    return Solved(value, answer, residual)


def check_refinement(refine: Any, rtol: Any, default: int) -> tuple[int, float]:
    """How many refinements at most, and the residual that is enough, 0 for none."""
    if rtol is None:
        return (default if refine is None else check_integer("refine", refine, 0, MOST)), 0.0
    enough = check_real("rtol", rtol, LEAST_RTOL, 1.0)
    return (MOST if refine is None else check_integer("refine", refine, 0, MOST)), enough


def _over(part: Floats, whole: Floats) -> Floats:
    """Their quotients as a column, 0 where there is nothing to divide by."""
    quotients: Floats = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0.0)
    return quotients[:, None]


def _lengths(rows: Floats) -> Floats:
    lengths: Floats = np.sqrt((rows * rows).sum(axis=1))
    return lengths


@dataclass(frozen=True)
class _Left:
    """What solutions leave of their right-hand sides, and what that says about them.

    `matrix` is A of M = D^½ A D^½, `scale` D^½'s diagonal.
    """

    solved: Solved
    given: RightHandSides
    matrix: Floats
    scale: Floats

    def residual(self) -> Floats:
        """b - A x in the array's units, (k, n); 2n²k operations, unless refinement has done so."""
        if self.solved.residual is not None:
            return self.solved.residual
        # in double precision, so that what is left is no rounding error
        right = (self.given.columns.T / self.given.sizes).astype(np.float64)
        image = (self.solved.value * self.scale) @ self.matrix.astype(np.float64)
        left: Floats = right / self.scale - image
        return left

    def worst(self) -> float:
        """The largest ‖b - M x‖/‖b‖ of all columns b, in the user's units."""
        right = self.given.columns.T / self.given.sizes
        left, whole = (
            np.linalg.norm(each, axis=1) for each in (self.residual() * self.scale, right)
        )
        return float(np.divide(left, whole, out=np.zeros_like(left), where=whole > 0.0).max())

    def deviation(self) -> Floats:
        """√variance of the user's values, in the shape of right-hand sides."""
        variance = self.solved.answer.variance(self.residual())
        found: Floats = np.sqrt(variance) * self.given.sizes * self.solved.unit
        found[~self.given.columns.any(axis=0)] = 0.0  # nothing was asked, and nothing is exact
        return self.given.like_given(found.T)
