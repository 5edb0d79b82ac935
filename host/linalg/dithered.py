"""A matrix on the array several times, rounded at random: what their answers have in common.

Rounding a coupling to the code above with a probability of what the code below lacks, E[code] is
the value that is wanted. The error of one such matrix, A⁻¹EA⁻¹ to first order, is of mean zero;
over R of them it falls as 1/√R. What stays is the second order, A⁻¹E(A⁻¹)EA⁻¹, which has a mean:
from ε the error falls towards ε² (arXiv 2401.16231, "Error mitigation for thermodynamic
computing"). One rounding at random has √2 times the error of the nearest codes where entries lie
anywhere between two, and more where they are small beside a step, so that the first two to four
members only make up for that.

A guard looks at every member. Where it has to shrink couplings, E[code] is what is left of them:
that part of the error all members have in common, and no number of them averages it out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property, partial
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
from thermokron.host.linalg.inverse import Correct, Inverse, check_correct, inverse_of
from thermokron.host.linalg.programmed import Programmed
from thermokron.host.linalg.reading import Equation, Reading
from thermokron.host.linalg.refusals import refusals
from thermokron.host.linalg.result import Account, Result
from thermokron.host.linalg.rounding import TRUSTING
from thermokron.host.linalg.sampled import Sampled
from thermokron.host.linalg.settling import Settle, check_settle
from thermokron.host.linalg.solver import Solver
from thermokron.model import Unit
from thermokron.model.checks import check_integer
from thermokron.model.threads import single_threaded_blas

__all__ = ["Dithered", "draws_of", "rounded_each"]

#: Members at most.
MOST = 1024


def draws_of(dither: Any, seed: Any, guard: str, rows: int, cells: int) -> list[int | None]:
    """Which draws the members' roundings are; of one that is rounded to the nearest code, None.

    Raises
    ------
    ValueError, TypeError
        If `dither` or `seed` is out of range, or does not go with the guard or the size.
    """
    seed = check_integer("seed", seed, 0, 2**63 - 1)
    if dither is None:
        return [None]
    count = check_integer("dither", dither, 1, MOST)
    if guard in TRUSTING:
        raise ValueError(
            f"guard = {guard!r} does not go with dither = {count}: of roundings at random some are "
            "indefinite; legal: 'lanczos', 'norm', 'cholesky'"
        )
    if count > 1 and rows > cells:
        raise ValueError(
            f"dither = {count}, but M has {rows} rows; legal: 1, or a matrix that fits the unit's "
            f"{cells} cells"
        )
    states = np.random.SeedSequence(seed).generate_state(count, np.uint64)
    return [int(state >> 1) for state in states]


@dataclass(frozen=True)
class Merged(Equation):
    """The equation that the mean of solutions of several, `parts`, solves; `codes` of the first."""

    parts: tuple[Equation, ...] = ()

    @classmethod
    def of(cls, parts: Sequence[Equation]) -> Self:
        """Of one matrix, rounded several times."""
        first = parts[0]
        return cls(first.spec, first.matrix, first.codes, first.corrections, tuple(parts))

    @cached_property
    def effective(self) -> Floats:
        """The inverse of the mean of inverses, O(n³) a part, for error bars."""
        whole = inverse_of(_average(inverse_of(part.effective) for part in self.parts))
        return 0.5 * (whole + whole.T)

    @cached_property
    def known_rounding(self) -> Floats:
        """The mean of what roundings added: E without its second order."""
        return _average(part.rounding for part in self.parts)

    @property
    def merged(self) -> bool:
        return True


class Dithered(Solver):
    """A matrix that fits the array, with the methods of `Programmed`, as `program` made it.

    Every answer is the mean of all members' answers, in as many times the hardware time.

    Attributes
    ----------
    unit : Unit
        That holds them, one after the other.
    shape : (int, int)
        Of M.
    members : tuple of Programmed
        M, each rounded by another draw.
    cost : Account
        What programming them cost.
    """

    def __init__(self, members: Sequence[Programmed]) -> None:
        self.members = tuple(members)
        first = self.members[0]
        self.unit, self.shape, self.kind = first.unit, first.shape, first.kind
        self.matrix, self.scale = first.matrix, first.scale
        self.inverse_scale, self.cost = first.inverse_scale, Account()
        for member in self.members:
            self.cost.add(member.cost)

    @property
    def shrinkage(self) -> float:
        """As of `Solver`."""
        return max(member.shrinkage for member in self.members)

    def refusals(self) -> AbstractContextManager[None]:
        """As of `Solver`."""
        return refusals(self.members[0].plan.bound)

    def one_pass(
        self, rows: Floats, account: Account, *, unit: Floats | float, asked: dict[str, Any]
    ) -> Reading:
        """As of `Solver`: the mean of one pass over each member."""
        readings = [
            member.one_pass(rows.copy(), account, unit=unit, asked=asked) for member in self.members
        ]
        count = len(readings)
        account.flops(count * rows.size)
        return replace(
            min(readings, key=lambda reading: reading.settling.rate),
            value=_average(reading.value for reading in readings),
            amplitude=np.sqrt(_average(reading.amplitude**2 for reading in readings)),
            equation=Merged.of([member.equation for member in self.members]),
            temperature=math.fsum(reading.temperature for reading in readings) / count,
            averaging=readings[0].averaging / count,
        )

    @single_threaded_blas()
    def inv(
        self,
        *,
        samples: int = 1000,
        interval: float = 2.0,
        estimator: Estimator = "unbiased",
        correct: Correct | None = None,
    ) -> Result:
        """M⁻¹ as `Programmed.inv` makes it, from the mean of members' covariances.

        Each has `samples` samples. `correct` takes off what the members' rounding errors have left
        of their mean, which is the larger part only where they are few.
        """
        check_reading(samples, interval, 2)
        check_second_moments(self.unit.spec, "an inverse")
        check_estimator(estimator)
        check_correct(correct)
        account = Account(samples=samples)
        with self.refusals():
            each = [member.covariance(samples, interval, account) for member in self.members]
        sampled = _mean(each)
        outer = self.inverse_scale[:, None] * self.inverse_scale
        account.flops((len(each) + 2) * outer.size)
        if estimator == "quadratic":
            outer *= sampled.shortening()
        merged = Merged.of([member.equation for member in self.members])
        found = Inverse(sampled, merged, correct).guarded(account)
        return found.result(outer, self.kind.restore, account)

    @single_threaded_blas()
    def sample(self, count: int, b: Any = None, *, settle: Settle = SETTLING_BIAS) -> Result:
        """Draws as `Programmed.sample` makes them, an equal share of each member, in turn.

        Together they have the mean of the members' covariances, beside what their means differ.
        """
        count = check_integer("count", count, 1, 2**30)
        check_settle(settle)
        n, members = len(self.matrix), self.members
        account = Account(samples=1)
        shift = np.zeros(n)
        if b is not None:
            shift = vector(b, n, self.kind.check) * self.inverse_scale
        value, rounding = np.empty((count, n)), np.empty((count, n))
        slowest = None
        with self.refusals():
            for first, member in enumerate(members[:count]):
                share = slice(first, None, len(members))
                drawn, root, settling = member.draw(
                    shift, len(value[share]), account, settle=settle
                )
                value[share] = drawn * self.inverse_scale
                rounding[share] = (
                    self.unit.spec.adc_step / math.sqrt(12.0) / root * self.inverse_scale
                )
                if slowest is None or settling.rate < slowest.rate:
                    slowest = settling
        account.flops(2 * value.size)
        return Result.of(
            value, partial(np.copy, rounding), self.kind.restore, account, settling=slowest
        )

    def state_dict(self) -> dict[str, Any]:
        """What `load` makes the same of, on a unit of the same spec: arrays, numbers and text."""
        return {"members": [member.state_dict() for member in self.members]}

    @classmethod
    def load(cls, unit: Unit, state: dict[str, Any], kind: Kind) -> Self:
        """What `state_dict` was made of."""
        return cls([Programmed.load(unit, member, kind) for member in state["members"]])

    def __repr__(self) -> str:
        return f"<Dithered {len(self.members)} times, the first: {self.members[0]!r}>"


def rounded_each(
    draws: Sequence[int | None], like: Any, make: Callable[..., Programmed]
) -> Programmed | Dithered:
    """One matrix by each of the draws, `make(draw=, like=)`, like those before it, if any."""
    before = like.members if isinstance(like, Dithered) else (like,)
    members = [
        make(draw=draw, like=old if isinstance(old, Programmed) else None)
        for draw, old in zip(draws, itertools.chain(before, itertools.repeat(None)), strict=False)
    ]
    return members[0] if len(members) == 1 else Dithered(members)


def _mean(each: Sequence[Sampled]) -> Sampled:
    """The mean of sampled inverses, which has the degrees of freedom of all of them.

    Errors of a calibration they have in common.
    """
    count = len(each)
    return replace(
        each[0],
        value=_average(one.value for one in each),
        raw=_average(one.raw for one in each),
        rate=min(one.rate for one in each),
        samples=1 + count * (each[0].samples - 1),
        adc_variance=math.fsum(one.adc_variance for one in each) / count,
    )


def _average(arrays: Iterable[Floats]) -> Floats:
    average: Floats = np.mean(list(arrays), axis=0)
    return average
