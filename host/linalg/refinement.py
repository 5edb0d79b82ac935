"""Iterative refinement: solving again for the residual, as any text on linear algebra has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from thermokron.host.linalg.arrays import Floats, RightHandSides
from thermokron.host.linalg.result import Account, Result
from thermokron.host.linalg.settling import Settling

__all__ = ["Answer", "Once", "Solved", "refined"]


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
        b - A x in the array's units, where refinement has worked it out.
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
        self, given: RightHandSides, matrix: Floats, scale: Floats, account: Account
    ) -> Result:
        """What the user gets, who asked for M X = B with M = D^½ A D^½, `scale` being D^½'s
        diagonal, and values in the user's units."""
        value = self.value
        if given.sizes.size > 1 or given.sizes[0] != 1.0:
            value = value * given.sizes
        left = _Left(self, given, matrix, scale)
        return Result.of(
            value.T.reshape(given.shape),
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
) -> Solved:
    """Solve A x = b for (k, n) rows b with `refine` refinements; without any, no product is made.

    It ends before where ‖b - A x‖/‖b‖ is at most `enough` in every row.

    Where a pass would make a column's residual larger, for coarse couplings and large condition
    numbers, it is shortened to what makes it smallest.
    """
    if refine == 0:
        answer = once(right, account)
        return Solved(answer.value, answer, None)
    k, n = right.shape
    value, residual = np.zeros_like(right), right
    for _ in range(refine + 1):
        answer = once(residual.copy(), account)
        step = answer.value
        image = step @ matrix
        along, length = (image * residual).sum(axis=1), (image * image).sum(axis=1)
        # ‖r - αAs‖² = ‖r‖² - 2α·along + α²·length is below ‖r‖² for α = 1 if 2·along > length
        best = np.divide(along, length, out=np.zeros_like(along), where=length > 0.0)
        part = np.where(2.0 * along > length, 1.0, best)[:, None]
        value = value + part * step
        residual = right - value @ matrix
        account.flops(4 * n * n * k + 8 * n * k)
        if enough:
            left, whole = (np.sqrt((each * each).sum(axis=1)) for each in (residual, right))
            account.flops(4 * n * k)
            if (left <= enough * whole).all():
                break
    return Solved(value, answer, residual)


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
        whole: Floats = found.T.reshape(self.given.shape)
        return whole
