"""What a step costs: the host's operations, counted where they happen, and the unit's time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from thermokron.host.engines.pool import Pool, makespan
from thermokron.host.kfac.curvature.context import undisturbed
from thermokron.host.linalg import Account
from thermokron.model import Unit

__all__ = ["Cost", "work_out"]

T = TypeVar("T")


@dataclass
class Cost(Account):
    """The account of one step.

    Attributes
    ----------
    inversions : int
        Factors inverted, decomposed, or solved with.
    makespan : float
        Seconds from the first run's begin to the last one's end, where units work side by side.
    span : float
        The same of as many units as there are pieces of work: what the longest of them take.

    The others are those of `thermokron.host.linalg.Result`; operations are counted as there:
    additions, multiplications, divisions and square roots, 1 each.
    """

    inversions: int = 0
    makespan: float = 0.0
    span: float = 0.0

    def product(self, left: int, inner: int, right: int, blocks: int = 1) -> None:
        """Enter a product (left, inner) x (inner, right), or several."""
        self.flops(2 * blocks * left * inner * right)

    def cholesky(self, size: int, blocks: int = 1, *, inverse: bool = False) -> None:
        """Enter a Cholesky factorisation, n³/3, and the inverse that is made of it, 2n³/3 more."""
        self.flops(blocks * size**3 * (1.0 if inverse else 1.0 / 3.0))

    def eigen(self, size: int, blocks: int = 1) -> None:
        """Enter a symmetric eigendecomposition, 9n³ (Golub & Van Loan, Matrix Computations 8.3)."""
        self.flops(9 * blocks * size**3)


def work_out(unit: Unit | None, pieces: Sequence[Callable[[Cost], T]], cost: Cost) -> list[T]:
    """Results of pieces of work that do not depend on each other; `cost` gets what they cost.

    On the units of a pool they are done side by side, each with an account of its own.
    """
    if not isinstance(unit, Pool):
        results, ends = [], [sum(cost.seconds.values())]
        for piece in pieces:
            results.append(piece(cost))
            ends.append(sum(cost.seconds.values()))
        cost.makespan += ends[-1] - ends[0]
        cost.span += max((end - begin for begin, end in itertools.pairwise(ends)), default=0.0)
        return results
    done = unit.map([partial(_accounted, piece) for piece in pieces])
    for _, own in done:
        cost.add(own)
        cost.inversions += own.inversions
    times = [sum(own.seconds.values()) for _, own in done]
    cost.makespan += makespan(len(unit.units), times)
    cost.span += max(times, default=0.0)
    return [result for result, _ in done]


def _accounted(piece: Callable[[Cost], T]) -> tuple[T, Cost]:
    cost = Cost()
    with undisturbed():  # which is a thread's own affair
        return piece(cost), cost
