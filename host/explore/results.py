"""What came of candidates: losses, costs, and the front of those that are good enough."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from thermokron.host.explore.candidate import Candidate
from thermokron.host.explore.plan import Plan
from thermokron.host.predict.hardware.costs import side_by_side, unit_joules, unit_seconds
from thermokron.host.predict.hardware.technology import Technology
from thermokron.host.predict.hardware.trained import demand_of
from thermokron.host.predict.quantity import Number, Values
from thermokron.host.studies.runs import Outcome
from thermokron.host.tables import median

__all__ = ["OBJECTIVES", "Costs", "Evaluated", "Found", "costs", "evaluate"]

#: What is to be small, and its unit.
OBJECTIVES = {"time": "s", "energy": "J", "area": "m2"}
#: Draws of an interval, their seed, and the percentiles that it lies between.
DRAWS, SEED, PERCENTILES = 2000, 0, (5.0, 95.0)
#: A violation that no finite loss comes near: of runs that did not end well.
WORST = 1e3


@dataclass(frozen=True)
class Costs:
    """Of a step, the mean over training and seeds; numbers, or one for every draw.

    Attributes
    ----------
    seconds, joules : mapping of str to number
        By part, see `thermokron.host.predict.hardware.costs.UNIT_PARTS`.
    area : number
        m² of all units.
    """

    seconds: Mapping[str, Number]
    joules: Mapping[str, Number]
    area: Number

    @property
    def objectives(self) -> tuple[Number, Number, Number]:
        """Time, energy and area."""
        return sum(self.seconds.values()), sum(self.joules.values()), self.area


def costs(candidate: Candidate, outcomes: Sequence[Outcome], values: Values) -> Costs:
    """What a candidate's steps cost, by what its trainings asked of the unit.

    Parameters
    ----------
    candidate : Candidate
    outcomes : sequence of Outcome
        Of runs that ended well.
    values : Values
    """
    technology = candidate.technology
    each = [_one(technology, outcome, values) for outcome in outcomes]
    seconds = {part: _mean([s[part] for s, _ in each]) for part in each[0][0]}
    joules = {part: _mean([j[part] for _, j in each]) for part in each[0][1]}
    return Costs(seconds, joules, technology.area(values))


def _one(
    technology: Technology, outcome: Outcome, values: Values
) -> tuple[dict[str, Number], dict[str, Number]]:
    unit, steps = outcome.unit, len(outcome.step_loss)
    demand = demand_of(technology, unit, steps, values)
    share: Number = 1.0
    if technology.units > 1 and outcome.hardware_seconds > 0.0:
        share = side_by_side(technology.units, outcome.hardware_seconds, unit["span"])
    return (
        unit_seconds(technology, demand, values, share=share),
        unit_joules(technology, demand, values, share=share),
    )


def _mean(numbers: Sequence[Number]) -> Number:
    total: Number = sum(numbers)
    return total / len(numbers)


@dataclass(frozen=True)
class Evaluated:
    """A candidate, and what came of it.

    Attributes
    ----------
    name : str
        Of a trial its number, "#7".
    candidate : Candidate
    outcomes : tuple of Outcome
        By seed.
    loss : float
        Median over seeds of the training loss after the last epoch.
    ratio : float
        Of exact K-FAC's, see `evaluate`.
    violation : float
        By how much the ratio is above what the plan allows; at most 0 where it is not.
    """

    name: str
    candidate: Candidate
    outcomes: tuple[Outcome, ...]
    loss: float
    ratio: float
    violation: float

    @property
    def feasible(self) -> bool:
        """Whether all seeds ended well, within what the plan allows."""
        return self.violation <= 0.0

    @property
    def end(self) -> str:
        """How its runs ended: "finished", or what the first that did not end well did."""
        return next((o.end for o in self.outcomes if o.end != "finished"), "finished")

    @cached_property
    def nominal(self) -> Costs | None:
        """At nominal inputs; None if a run did not end well."""
        if self.end != "finished":
            return None
        return costs(self.candidate, self.outcomes, Values())

    @cached_property
    def spreads(self) -> tuple[tuple[float, float], ...]:
        """Time, energy and area: between what nine of ten draws of all prices lie.

        τ and clock are the candidate's own, and not drawn.
        """
        spec = self.candidate.spec
        own = {"tau": spec.tau_s, "clock": spec.clock_hz}
        drawn = costs(self.candidate, self.outcomes, Values(DRAWS, SEED, own))
        low_high = (np.percentile(each, PERCENTILES) for each in drawn.objectives)
        return tuple((float(low), float(high)) for low, high in low_high)

    @property
    def objectives(self) -> tuple[float, float, float]:
        """Time, energy and area, nominal; inf for what is not known."""
        if self.nominal is None:
            return math.inf, math.inf, float(self.candidate.technology.area(Values()))
        time, energy, area = self.nominal.objectives
        return float(time), float(energy), float(area)

    def dominates(self, other: Evaluated) -> bool:
        """Whether it is nowhere worse than another, and somewhere better."""
        mine, its = self.objectives, other.objectives
        return mine != its and all(a <= b for a, b in zip(mine, its, strict=True))


def evaluate(
    plan: Plan,
    name: str,
    candidate: Candidate,
    outcomes: Sequence[Outcome],
    exact: float | Sequence[float],
) -> Evaluated:
    """A candidate by its runs, one a seed.

    Parameters
    ----------
    exact : float or sequence of float
        Loss of exact K-FAC, to which the median over seeds is held; or one for every seed: what
        counts is then the median of ratios, in which the luck of a seed that both had cancels.
    """
    loss = median(outcome.final_loss for outcome in outcomes)
    ended = all(outcome.end == "finished" for outcome in outcomes)
    if isinstance(exact, float):
        ratio = loss / exact
    else:
        pairs = zip(outcomes, exact, strict=True)
        ratio = median(o.final_loss / max(its, sys.float_info.min) for o, its in pairs)
    violation = min(ratio - (1.0 + plan.within), WORST) if ended else WORST
    return Evaluated(name, candidate, tuple(outcomes), loss, ratio, violation)


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes
    ----------
    plan : Plan
    exact : float
        Loss of exact K-FAC, median over seeds.
    baselines : tuple of Evaluated
        The default unit first.
    trials : tuple of Evaluated
        In the order in which they were proposed.
    again : mapping of str to Evaluated
        By name the front and the baselines, trained from the plan's `check_seeds` and held to
        exact K-FAC seed by seed.
    """

    plan: Plan
    exact: float
    baselines: tuple[Evaluated, ...]
    trials: tuple[Evaluated, ...]
    again: Mapping[str, Evaluated] = field(default_factory=dict)

    @cached_property
    def distinct(self) -> list[Evaluated]:
        """Trials, the first of those that are the same."""
        first: dict[Candidate, Evaluated] = {}
        for trial in self.trials:
            first.setdefault(trial.candidate, trial)
        return list(first.values())

    @cached_property
    def front(self) -> list[Evaluated]:
        """Feasible trials that no other feasible one dominates, fastest first."""
        feasible = [trial for trial in self.distinct if trial.feasible]
        best = [one for one in feasible if not any(other.dominates(one) for other in feasible)]
        return sorted(best, key=lambda one: one.objectives)

    def holds(self, one: Evaluated) -> bool:
        """Whether it is good enough from the other seeds, too."""
        return one.name in self.again and self.again[one.name].feasible

    @cached_property
    def holding(self) -> list[Evaluated]:
        """Those of the front that hold."""
        return [one for one in self.front if self.holds(one)]

    @property
    def chosen(self) -> dict[str, Evaluated]:
        """Of those that hold the fastest, thriftiest, smallest, and the least product of all."""
        if not self.holding:
            return {}
        named = {
            name: min(self.holding, key=lambda one, i=i: one.objectives[i])  # type: ignore[misc]
            for i, name in enumerate(("fastest", "least energy", "smallest"))
        }
        return {"balanced": min(self.holding, key=lambda one: math.prod(one.objectives))} | named
