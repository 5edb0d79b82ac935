"""A matrix larger than the array, in blocks: what is done with it once it is eliminated."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np

from thermokron.host.linalg.arrays import (
    Floats,
    Kind,
    check_reading,
    check_second_moments,
    vector,
)
from thermokron.host.linalg.covariance import SETTLING_BIAS, Estimator, check_estimator
from thermokron.host.linalg.definite import Definiteness
from thermokron.host.linalg.elimination import Pivot, Reduction, eliminate
from thermokron.host.linalg.inverse import Correct, Inverse, check_correct
from thermokron.host.linalg.reading import LEAST_LEFT, Reading
from thermokron.host.linalg.refusals import refusals
from thermokron.host.linalg.result import Account, Result
from thermokron.host.linalg.settling import Settle, Settling, check_settle
from thermokron.host.linalg.solver import Solver
from thermokron.host.linalg.spread import Parts, excess
from thermokron.model import Unit
from thermokron.model.checks import check_integer
from thermokron.model.threads import single_threaded_blas

__all__ = ["Eliminated"]


class Eliminated(Solver):
    """A symmetric positive definite M larger than the array, with the methods of `Programmed`.

    Made by `thermokron.host.linalg.program`, which eliminates block by block: W takes the unit, and
    the complements S = R - QᵀW the host, about n³/3 multiplications in all, counted in `cost`.

    Attributes
    ----------
    unit : Unit
        That holds the pivots, one after the other.
    shape : (int, int)
        Of M.
    pivots : tuple of Pivot
    cost : Account
        What elimination cost.
    """

    def __init__(
        self,
        unit: Unit,
        matrix: Floats,
        scale: Floats,
        bound: float | None,
        *,
        kind: Kind,
        reduction: Reduction,
        like: Eliminated | None = None,
        pivots: tuple[Pivot, ...] | None = None,
    ) -> None:
        """From A and the diagonal of D^½; with `pivots`, it was eliminated before."""
        self.unit, self.shape, self.kind = unit, matrix.shape, kind
        self.reduction, self.bound = reduction, bound
        self.matrix, self.scale = matrix, scale
        self.inverse_scale = 1.0 / scale
        self.cost = Account()
        if pivots is None:
            earlier = () if like is None or like.shape != self.shape else like.pivots
            pivots = eliminate(unit, matrix, bound, kind, reduction, self.cost, earlier)
        self.pivots: tuple[Pivot, ...] = pivots

    # ---- solving --------------------------------------------------------------------------------

    def one_pass(
        self, rows: Floats, account: Account, *, unit: Floats | float, asked: dict[str, Any]
    ) -> _Substituted:
        """As of `Solver`: about 2n² operations a row."""
        steps = []
        for pivot in self.pivots:
            block, rest, array = pivot.block, pivot.rest, pivot.array
            rows[:, rest] -= rows[:, block] @ pivot.reduced
            own = rows[:, block] * array.inverse_scale
            reading = array.read(own, account, unit=array.inverse_scale, **asked)
            rows[:, block] = reading.value
            steps.append(_Step(block, pivot.reduced, reading))
        self._back(rows)
        account.flops(2 * rows.size * len(self.matrix) + 2 * rows.size)
        rows *= unit
        return _Substituted(rows, unit, tuple(steps))

    @property
    def shrinkage(self) -> float:
        """As of `Solver`."""
        return max(pivot.array.shrinkage for pivot in self.pivots)

    def refusals(self) -> AbstractContextManager[None]:
        """As of `Solver`."""
        return refusals(self.bound, self.reduction.guard != "none")

    def _back(self, state: Floats) -> None:
        """Back substitution, in place, for (k, n) rows that the pivots have been solved for."""
        for pivot in reversed(self.pivots):
            state[:, pivot.block] -= state[:, pivot.rest] @ pivot.reduced.T

    # ---- inverting and sampling -----------------------------------------------------------------

    @single_threaded_blas()
    def inv(
        self,
        *,
        samples: int = 1000,
        interval: float = 2.0,
        estimator: Estimator = "unbiased",
        correct: Correct | None = None,
    ) -> Result:
        """M⁻¹ as `Programmed.inv` makes it, put together from the pivots': n³ on the host.

        Estimator and correction are those of each pivot. With complements by covariance the pivots'
        inverses are those that W was made with, uncorrected, and `samples` is what `program` was
        given. W is not corrected, so that error bars are those of an inverse without correction.
        """
        check_reading(samples, interval, 2)
        check_second_moments(self.pivots[0].array.unit.spec, "an inverse")
        check_estimator(estimator)
        check_correct(correct)
        account = Account(samples=samples)
        with self.refusals():
            found = []
            for pivot in self.pivots:
                sampled = pivot.sampled or pivot.array.covariance(samples, interval, account)
                found.append(Inverse(sampled, pivot.array.equation, correct).guarded(account))
        n = len(self.matrix)
        whole = np.empty((n, n), self.matrix.dtype)
        for pivot, inverse in zip(reversed(self.pivots), reversed(found), strict=True):
            block, rest = pivot.block, pivot.rest
            c, r = pivot.row.shape
            factor = inverse.sampled.shortening() if estimator == "quadratic" else 1.0
            across = -pivot.reduced @ whole[rest, rest]
            whole[block, rest] = across
            whole[rest, block] = across.T
            outer = pivot.array.inverse_scale[:, None] * pivot.array.inverse_scale
            corner = inverse.value(account) * (outer * factor) - across @ pivot.reduced.T
            whole[block, block] = 0.5 * (corner + corner.T)
            account.flops(2 * c * r * r + 2 * c * c * r + 6 * c * c)
        outer = self.inverse_scale[:, None] * self.inverse_scale
        account.flops(2 * n * n)
        spread = _Spread(whole, tuple(map(_Part.of, self.pivots, found)), outer)
        few = any(each.sampled.samples <= len(each.sampled.value) for each in found)
        definiteness = Definiteness(whole, self.matrix, outer, few)
        return Result.of(
            whole * outer, spread, self.kind.restore, account, definiteness=definiteness
        )

    @single_threaded_blas()
    def sample(self, count: int, b: Any = None, *, settle: Settle = SETTLING_BIAS) -> Result:
        """Draws from N(M⁻¹b, M⁻¹) as `Programmed.sample` makes them, block by block.

        Given the rest, a block of x ~ N(0, M⁻¹) is distributed as N(-W x_rest, P⁻¹).
        """
        count = check_integer("count", count, 1, 2**30)
        check_settle(settle)
        n = len(self.matrix)
        account = Account(samples=1)
        state, shift = np.zeros((count, n)), np.zeros(n)
        if b is not None:
            shift = vector(b, n, self.kind.check) * self.inverse_scale
        rounding = np.zeros(n)
        settling: Settling | None = None
        with self.refusals():
            for pivot in self.pivots:
                block, array = pivot.block, pivot.array
                shift[pivot.rest] -= shift[block] @ pivot.reduced
                own = shift[block] * array.inverse_scale
                drawn, root, each = array.draw(own, count, account, settle=settle)
                state[:, block] = drawn * array.inverse_scale
                step = self.unit.spec.adc_step / math.sqrt(12.0)
                rounding[block] = step / root * array.inverse_scale
                settling = _slower(settling, each)
        self._back(state)
        account.flops(state.size * n + 3 * state.size + n * n)
        return Result.of(
            state * self.inverse_scale,
            partial(np.tile, rounding * self.inverse_scale, (count, 1)),
            self.kind.restore,
            account,
            settling=settling,
        )

    # ---- state ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What `load` makes the same of, on a unit of the same spec: arrays, numbers and text."""
        return {
            "matrix": self.matrix,
            "scale": self.scale,
            "bound": self.bound,
            "reduction": vars(self.reduction),
            "pivots": [pivot.state_dict() for pivot in self.pivots],
        }

    @classmethod
    def load(cls, unit: Unit, state: dict[str, Any], kind: Kind) -> Self:
        """What `state_dict` was made of."""
        return cls(
            unit,
            state["matrix"],
            state["scale"],
            state["bound"],
            kind=kind,
            reduction=Reduction(**state["reduction"]),
            pivots=tuple(Pivot.load(unit, pivot, kind) for pivot in state["pivots"]),
        )

    def __repr__(self) -> str:
        n, spec = len(self.matrix), self.unit.spec
        return f"<Eliminated {n}x{n} in {len(self.pivots)} blocks on {spec.cells} cells>"


def _slower(one: Settling | None, other: Settling) -> Settling:
    return other if one is None or other.rate < one.rate else one


@dataclass(frozen=True)
class _Step:
    """What the variance of a solution needs of one pivot."""

    block: slice
    reduced: Floats
    reading: Reading


@dataclass(frozen=True)
class _Substituted:
    """Solutions by substitution, see `thermokron.host.linalg.refinement.Answer`."""

    value: Floats
    unit: Floats | float
    steps: tuple[_Step, ...]

    @property
    def settling(self) -> Settling:
        return min((step.reading.settling for step in self.steps), key=lambda s: s.rate)

    def variance(self, residual: Floats | None = None) -> Floats:
        """That of every pivot's readings, carried back by substitution, and what a residual shows.

        Errors are found from a residual by substitution too, with the pivots as programmed.
        """
        variance = np.zeros(self.value.shape)
        for step in self.steps:
            variance[:, step.block] = step.reading.variance() * step.reading.unit**2
        self._back(variance, squared=True)
        if residual is None:
            return variance
        error = residual.astype(np.float64)
        for step in self.steps:
            rest, scale = slice(step.block.stop, None), step.reading.unit
            error[:, rest] -= error[:, step.block] @ step.reduced
            error[:, step.block] = step.reading.equation.rough(error[:, step.block] * scale) * scale
        self._back(error)
        square = np.asarray(self.value / self.unit, np.float64) ** 2
        seen, known, gains = (Parts(each, each) for each in (error**2, variance, square))
        least = known.times(LEAST_LEFT)
        return least.cells + excess(seen, least, (known, gains))

    def _back(self, rows: Floats, *, squared: bool = False) -> None:
        """Back substitution of solutions, or of their variances, in place."""
        for step in reversed(self.steps):
            rest = slice(step.block.stop, None)
            if squared:
                rows[:, step.block] += rows[:, rest] @ (step.reduced**2).T
            else:
                rows[:, step.block] -= rows[:, rest] @ step.reduced.T


@dataclass(frozen=True)
class _Part:
    """What the spread of an inverse needs of one pivot."""

    block: slice
    row: Floats
    reduced: Floats
    raw: Floats
    factor: float
    inverse: Inverse
    solved: bool

    @classmethod
    def of(cls, pivot: Pivot, inverse: Inverse) -> _Part:
        """From a pivot and its inverse."""
        outer = pivot.array.inverse_scale[:, None] * pivot.array.inverse_scale
        raw, factor = inverse.sampled.raw * outer, float(inverse.sampled.scatter().max())
        return cls(
            pivot.block, pivot.row, pivot.reduced, raw, factor, inverse, pivot.sampled is None
        )

    def rounding(self) -> float:
        """Mean square of what rounding added to an entry of the pivot, in the user's units.

        Where its effect is taken off the pivot's inverse too: it is not taken off W.
        """
        added, c = self.inverse.rounding, len(self.raw)
        scale = float(self.inverse.sampled.raw.trace() / self.raw.trace())
        return float((added**2).sum()) / max(c * (c - 1), 1) * scale**2


@dataclass(frozen=True)
class _Spread:
    """The standard error of an inverse, worked out when it is called."""

    whole: Floats
    parts: tuple[_Part, ...]
    outer: Floats

    def __call__(self) -> Floats:
        """One sigma per entry, (n, n)."""
        variance = np.zeros(self.whole.shape)
        for i, part in enumerate(self.parts):
            influence = self._influence(i)
            spread = influence.T @ part.raw @ influence
            diagonal = spread.diagonal()
            variance += part.factor * (diagonal[:, None] * diagonal + spread**2)
            rounded = part.raw @ influence
            moved = rounded.T @ rounded
            diagonal = moved.diagonal()
            variance += part.rounding() * (diagonal[:, None] * diagonal + moved**2)
        return np.sqrt(variance) * self.outer

    def _influence(self, i: int) -> Floats:
        """F of a pivot, (c, n)."""
        part = self.parts[i]
        rest = slice(part.block.stop, None)
        influence = np.zeros((len(part.raw), len(self.whole)))
        influence[:, part.block] = np.eye(len(part.raw))
        if not part.solved:  # else W, and the complements, know nothing of the error
            towards = part.row @ self.whole[rest, rest]
            influence[:, part.block] += towards @ part.reduced.T
            influence[:, rest] = -towards
        for earlier in reversed(self.parts[:i]):
            after = slice(earlier.block.stop, None)
            influence[:, earlier.block] = -influence[:, after] @ earlier.reduced.T
        return influence
