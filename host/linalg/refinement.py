"""Iterative refinement: solving again for the residual, as any text on linear algebra has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
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

    def variance(self) -> Floats:
        """Of the entries of `value`."""
        ...


#: A pass over the unit: for right-hand sides (k, n), which it may overwrite.
Once = Callable[[Floats, Account], Answer]


@dataclass(frozen=True)
class Solved:
    """Solutions.

    Attributes
    ----------
    value : (k, n) float
        x, one per row.
    variance : callable
        That of its entries, (k, n), worked out when it is called.
    residual : (k, n) float or None
        b - A x, where refinement has worked it out.
    settling : Settling
        Of the last pass.
    """

    value: Floats
    variance: Callable[[], Floats]
    residual: Floats | None
    settling: Settling

    def times(self, unit: Floats) -> Solved:
        """The same with every entry times its `unit`, (n,); the residual is left."""
        return replace(self, value=self.value * unit, variance=partial(_times, self.variance, unit))

    def result(
        self, given: RightHandSides, matrix: Floats, scale: Floats, account: Account
    ) -> Result:
        """What the user gets, who asked for M X = B with M = D^½ A D^½, `scale` being D^½'s
        diagonal, and values in the user's units."""
        value = self.value
        if given.sizes.size > 1 or given.sizes[0] != 1.0:
            value = value * given.sizes
        return Result.of(
            value.T.reshape(given.shape),
            partial(_deviation, self, given),
            given.restore,
            account,
            residual=partial(_worst_residual, self, given, matrix, scale),
            settling=self.settling,
        )


def refined(
    once: Once,
    matrix: Floats,
    right: Floats,
    refine: int,
    account: Account,
    *,
    observe: bool = False,
    enough: float = 0.0,
) -> Solved:
    """Solve A x = b for (k, n) rows b with `refine` refinements; without any, no product is made.

    It ends before where ‖b - A x‖/‖b‖ is at most `enough` in every row.

    Where a pass would make a column's residual larger, for coarse couplings and large condition
    numbers, it is shortened to what makes it smallest. With `observe`, the solver's variance knows
    nothing of its lasting errors: what they leave of the last step is then judged by how much
    smaller it was than the one before.
    """
    if refine == 0:
        answer = once(right, account)
        return Solved(answer.value, answer.variance, None, answer.settling)
    k, n = right.shape
    value, residual = np.zeros_like(right), right
    before: Floats | None = None
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
        reach = (step * step).sum(axis=1)
        lasting = np.zeros_like(reach)
        if observe and before is not None:
            lasting = np.divide(reach, before, out=np.ones_like(reach), where=before > reach)
        before = reach
        account.flops(4 * n * n * k + 9 * n * k)
        if enough:
            left, whole = (np.sqrt((each * each).sum(axis=1)) for each in (residual, right))
            account.flops(4 * n * k)
            if (left <= enough * whole).all():
                break
    variance = _OfLast(answer, part, lasting)
    return Solved(value, variance, residual, answer.settling)


@dataclass(frozen=True)
class _OfLast:
    """The variance after a last step, of which a `part` was taken and a `lasting` part is wrong."""

    answer: Answer
    part: Floats
    lasting: Floats

    def __call__(self) -> Floats:
        step = self.answer.value
        variance = self.answer.variance() * self.part**2 + ((1.0 - self.part) * step) ** 2
        variance += self.lasting[:, None] * step**2
        return variance


def _times(variance: Callable[[], Floats], unit: Floats) -> Floats:
    return variance() * unit**2


def _worst_residual(solved: Solved, given: RightHandSides, matrix: Floats, scale: Floats) -> float:
    """The largest ‖b - M x‖/‖b‖ of all columns b, in the user's units; 2n²k operations.

    `matrix` and the residual of `solved` are in the array's units, M = D^½ A D^½; `scale` is D^½'s
    diagonal.
    """
    right = given.columns.T / given.sizes
    if solved.residual is None:
        residual = right - ((solved.value * scale) @ matrix) * scale
    else:
        residual = solved.residual * scale
    left, whole = (np.linalg.norm(each, axis=1) for each in (residual, right))
    return float(np.divide(left, whole, out=np.zeros_like(left), where=whole > 0.0).max())


def _deviation(solved: Solved, given: RightHandSides) -> Floats:
    """√variance, in the shape of right-hand sides."""
    found: Floats = (np.sqrt(solved.variance()) * given.sizes).T.reshape(given.shape)
    return found
