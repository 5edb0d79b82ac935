"""The ways to reach a tolerance, tried out, of which a planner takes the quickest."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from thermokron.host.linalg.forecast import MOST_SAMPLES, Covariance, Parts
from thermokron.host.linalg.functions import diagonalised
from thermokron.host.linalg.inverse import Correct
from thermokron.host.linalg.refusals import Clipping
from thermokron.host.linalg.rehearsal import Asked, Outcome, Rehearsal, Task
from thermokron.host.linalg.result import Account
from thermokron.host.linalg.standin import Effect
from thermokron.model.spec import MAX_SAMPLES

__all__ = ["Choice", "Choices", "Limits", "Method"]

#: Whether an inverse is a covariance, or the solution for the columns of the identity.
Method = Literal["covariance", "means"]
#: Sampling intervals that are tried, in τ/λ_min: the longest wants the fewest samples, the
#: shortest half the time. A shorter one has to save this part of the time of a longer one.
INTERVALS, WORTH = (2.0, 1.0, 0.5, 0.25), 0.1
#: Parts that settling may leave of the slowest mode, the one that is likely to be best first.
SETTLES = (0.1, 0.3, 0.03, 0.01, 3e-3, 1e-3, 1e-4)
#: Passes that more samples are tried for: later ones cost less than samples do.
SAMPLED_PASSES = 3
#: What a rehearsal has to keep to of a tolerance, as the plan that just does is one that was lucky
#: in it. One of a matrix that is not diagonalised knows less.
KEPT, LARGE_KEPT = 0.95, 0.8


@dataclass(frozen=True)
class Limits:
    """What a plan has to keep to.

    Attributes
    ----------
    tolerance : float
    methods : tuple of "covariance", "means"
        That may be used.
    refine : int
        Refinements at most.
    correct : bool
        Whether what rounding did to a covariance may be taken off, by 4n³ operations.
    host_flops : float
        Operations of the host a second.
    """

    tolerance: float
    methods: tuple[Method, ...]
    refine: int
    correct: bool
    host_flops: float


@dataclass(frozen=True)
class Choice:
    """One way to do it.

    Attributes
    ----------
    method : "covariance" or "means"
    samples : int
        Of the covariance, or of each column and pass.
    interval : float
        Between samples, in τ/λ_min.
    error : float
        Expected, relative, Frobenius.
    cost : Account
    seconds : float
        All in all: of the unit, of its ports, of the host.
    correct : "rounding" or None
    settle : float or None
        The part of the slowest mode that is left undone before means are read.
    refine : int
    """

    method: Method
    samples: int
    interval: float
    error: float
    cost: Account
    seconds: float
    correct: Correct | None = None
    settle: float | None = None
    refine: int = 0


class Choices:
    """The ways to do a task.

    Attributes
    ----------
    task : Task
    limits : Limits
    least : dict of str to float
        The smallest error that was seen, by method; of a covariance of `MOST_SAMPLES`.
    """

    def __init__(self, task: Task, limits: Limits) -> None:
        self.task, self.limits = task, limits
        self.least: dict[str, float] = {}

    @cached_property
    def rehearsal(self) -> Rehearsal:
        """The matrix on a stand-in."""
        return Rehearsal(self.task)

    @cached_property
    def covariance(self) -> Covariance:
        """Forecasts of sampled inverses."""
        solver = self.rehearsal.solver
        return Covariance(self.task, solver)  # type: ignore[arg-type]

    @property
    def flops(self) -> int:
        """Digital operations so far."""
        spent = self.rehearsal.flops + self.task.own.flops
        if "covariance" in vars(self):
            spent += self.covariance.array.flops
        return spent

    @cached_property
    def best(self) -> dict[Method, Choice]:
        """The quickest of each method that is within the tolerance."""
        found: dict[Method, Choice] = {}
        for method in self.limits.methods:
            ways = self._covariances() if method == "covariance" else self._means()
            with contextlib.suppress(Clipping):  # there is no way, where it does so without flaws
                for way in ways:
                    known = found.get(method)
                    if known is None or way.seconds < known.seconds:
                        found[method] = way
        return found

    def quickest(self) -> Choice | None:
        """Of all."""
        return min(self.best.values(), key=lambda way: way.seconds, default=None)

    def parts(self, way: Choice) -> Parts:
        """What the error of one is made of."""
        if way.method == "covariance":
            return self.covariance.parts(way.samples, way.interval, way.correct)
        return self._parts_of_means(way)

    def _saw(self, method: Method, error: float) -> None:
        self.least[method] = min(error, self.least.get(method, math.inf))

    def _seconds(self, cost: Account) -> float:
        host = cost.digital_flops / self.limits.host_flops
        return sum(cost.seconds.values()) + cost.port_seconds + host

    # ---- covariances ------------------------------------------------------------------------

    def _covariances(self) -> Iterator[Choice]:
        forecast, tolerance = self.covariance, self.limits.tolerance
        corrections: list[Correct | None] = [None, "rounding"]
        if not self.limits.correct:
            del corrections[1:]
        for correct in corrections:
            last: Choice | None = None
            for interval in INTERVALS:
                cycles = forecast.interval_cycles(interval)
                if last is not None and cycles == forecast.interval_cycles(last.interval):
                    continue  # the unit cannot follow
                samples = forecast.samples(tolerance, interval, correct)
                if samples is None:
                    most = forecast.parts(MOST_SAMPLES, interval, correct)
                    self._saw("covariance", most.error)
                    break
                cost = forecast.cost(samples, interval, correct)
                seconds, error = self._seconds(cost), forecast.parts(samples, interval, correct)
                if last is not None and seconds > (1.0 - WORTH) * last.seconds:
                    continue
                last = Choice("covariance", samples, interval, error.error, cost, seconds, correct)
            if last is not None:
                yield last

    # ---- means ------------------------------------------------------------------------------

    def _means(self) -> Iterator[Choice]:
        best = math.inf
        for settle in SETTLES:
            for way in self._settled(settle, best):
                best = min(best, way.seconds)
                yield way

    def _settled(self, settle: float, best: float) -> Iterator[Choice]:
        kept = KEPT if diagonalised(self.rehearsal.unit.size) else LARGE_KEPT
        target, asked = kept * self.limits.tolerance, Asked(1, settle)

        def enough(outcome: Outcome) -> bool:
            return outcome.error <= target or self._seconds(outcome.cost) > best

        outcomes = self.rehearsal.tried(asked, self.limits.refine + 1, enough)
        done = len(outcomes)
        for passes, outcome in enumerate(outcomes):
            self._saw("means", outcome.error)
            if outcome.error <= target:
                yield self._way(asked, passes, outcome)
                done = passes
                break
        # fewer passes with more samples: what noise alone keeps from the target
        for passes, outcome in enumerate(outcomes[: min(done, SAMPLED_PASSES)]):
            room = target**2 - outcome.lasting**2
            if room <= 0.0 or self._seconds(outcome.cost) > best:
                continue
            count = math.ceil(outcome.noise**2 / room)
            for _ in range(3):
                if not 1 < count <= MAX_SAMPLES:
                    break
                more = replace(asked, samples=count)
                tried = self.rehearsal.tried(more, passes + 1)[-1]
                if tried.error <= target:
                    yield self._way(more, passes, tried)
                    break
                count = math.ceil(1.2 * count)

    def _way(self, asked: Asked, passes: int, outcome: Outcome) -> Choice:
        return Choice(
            "means",
            asked.samples,
            asked.interval,
            outcome.error,
            outcome.cost,
            self._seconds(outcome.cost),
            settle=float(asked.settle),
            refine=passes,
        )

    def _parts_of_means(self, way: Choice) -> Parts:
        """How much less the error is without noise or conversion, which add up as independent ones
        do; the rest is shared in proportion to what rounding and settling do without each other,
        for they may cancel."""
        assert way.settle is not None
        asked, spec = Asked(way.samples, way.settle, way.interval), self.task.spec
        passes, silent = way.refine + 1, frozenset[Effect]({"sampling"})

        def saved(outcomes: list[Outcome]) -> float:
            return math.sqrt(max(way.error**2 - outcomes[-1].error ** 2, 0.0))

        sampling = saved(self.rehearsal.tried(asked, passes, without=silent))
        heat, waited = self.rehearsal.temperature, asked
        if self.rehearsal.time is not None:  # the slowest rate is another one without rounding
            waited = replace(asked, settle=f"{self.rehearsal.time!r}tau")
        rounded = self.rehearsal.tried(asked, passes, without=silent | {"settling"})[-1].error
        sharp = Rehearsal(replace(self.task, spec=replace(spec, adc_bits=16, bias_bits=16)))
        adc = saved(sharp.tried(asked, passes, temperature=heat))
        finer = Rehearsal(replace(self.task, spec=replace(spec, coupling_bits=16)))
        hasty = finer.tried(waited, passes, without=silent)[-1].error
        for other in (finer, sharp):
            self.rehearsal.spent(other.flops)
        rest = math.sqrt(max(way.error**2 - sampling**2 - adc**2, 0.0))
        rest /= math.hypot(rounded, hasty) or 1.0
        return Parts(sampling, rest * rounded, adc, rest * hasty)
