"""Optimisers beside each other on one workload: figures, with intervals."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from thermokron.host.predict.conditions import Target
from thermokron.host.predict.hardware.technology import Technology
from thermokron.host.predict.optimizers import Optimizer
from thermokron.host.predict.prediction import FREE, Costs, Question
from thermokron.host.predict.quantity import Number

__all__ = ["Prediction", "Predictions", "Spread"]

#: Percentiles between which nine of ten draws lie.
PERCENTILES = (5.0, 95.0)


@dataclass(frozen=True)
class Spread:
    """A figure with nominal inputs, and between what nine of ten draws lie."""

    nominal: float
    low: float
    high: float

    @classmethod
    def of(cls, nominal: Number, drawn: Number) -> Spread:
        """From its value at nominal inputs, and at draws."""
        low, high = np.percentile(drawn, PERCENTILES)
        return cls(float(nominal), float(low), float(high))


@dataclass(frozen=True)
class Prediction:
    """One optimiser's step, and its training.

    Attributes
    ----------
    question : Question
        What was asked.
    nominal, drawn : Costs
        By part, at nominal inputs and at draws.
    steps : (number, number) or None
        Until the target, nominal and drawn.
    """

    question: Question
    nominal: Costs
    drawn: Costs
    steps: tuple[Number, Number] | None

    @property
    def optimizer(self) -> Optimizer:
        """Whose step it is."""
        return self.question.optimizer

    @cached_property
    def seconds(self) -> dict[str, Spread]:
        """Of the parts of a step."""
        now, drawn = self.nominal.seconds, self.drawn.seconds
        return {part: Spread.of(now[part], drawn[part]) for part in now}

    @cached_property
    def joules(self) -> dict[str, Spread]:
        """Of the parts of a step."""
        now, drawn = self.nominal.joules, self.drawn.joules
        return {part: Spread.of(now[part], drawn[part]) for part in now}

    @property
    def seconds_per_step(self) -> Spread:
        """Of the whole step."""
        return Spread.of(self.nominal.total_seconds, self.drawn.total_seconds)

    @property
    def joules_per_step(self) -> Spread:
        """Of the whole step, all devices and units."""
        return Spread.of(self.nominal.total_joules, self.drawn.total_joules)

    @property
    def seconds_to_target(self) -> Spread | None:
        """None where it is not known how many steps there are."""
        return None if self.steps is None else Spread.of(*self._to_target("total_seconds"))

    @property
    def joules_to_target(self) -> Spread | None:
        """None where it is not known how many steps there are."""
        return None if self.steps is None else Spread.of(*self._to_target("total_joules"))

    def _to_target(self, what: str) -> tuple[Number, Number]:
        assert self.steps is not None
        nominal, drawn = self.steps
        return nominal * getattr(self.nominal, what), drawn * getattr(self.drawn, what)

    def speedup(self, other: Prediction) -> Spread:
        """How many steps of this one fit into one of the other, both with the same draws."""
        return Spread.of(
            other.nominal.total_seconds / self.nominal.total_seconds,
            other.drawn.total_seconds / self.drawn.total_seconds,
        )

    def speedup_to_target(self, other: Prediction) -> Spread | None:
        """The other's time to the target over this one's."""
        if self.steps is None or other.steps is None:
            return None
        mine, others = self._to_target("total_seconds"), other._to_target("total_seconds")
        return Spread.of(others[0] / mine[0], others[1] / mine[1])

    def for_free(self) -> Prediction:
        """What it would be if inverting and applying took no time: Amdahl's limit."""

        def left(costs: Costs) -> Costs:
            kept = [part for part in costs.seconds if part not in FREE]
            return Costs(
                {part: costs.seconds[part] for part in kept},
                {part: costs.joules[part] for part in kept},
            )

        return replace(self, nominal=left(self.nominal), drawn=left(self.drawn))


@dataclass(frozen=True)
class Predictions:
    """Predictions of several optimisers on one workload.

    Attributes
    ----------
    predictions : tuple of Prediction
        In the order asked for.
    target : Target or None
        Where training is to come.
    draws, seed : int
        Of the intervals.
    remark : str
        Why there is no target, where one might be expected.
    """

    predictions: tuple[Prediction, ...]
    target: Target | None
    draws: int
    seed: int
    remark: str = ""

    def __getitem__(self, name: str) -> Prediction:
        """The prediction of an optimiser, by its name."""
        for each in self.predictions:
            if each.optimizer.name == name:
                return each
        raise KeyError(name)

    def find(self, name: str) -> Prediction | None:
        """The same, or None."""
        return next((p for p in self.predictions if p.optimizer.name == name), None)

    def digital(self, prediction: Prediction) -> Prediction | None:
        """Exact K-FAC that renews factors and inverses as often as another K-FAC, or None."""
        how = prediction.optimizer
        return self.find(replace(how, kind="kfac-exact").name) if how.kfac else None

    @property
    def question(self) -> Question:
        """The first one: workload, machine and devices are those of all."""
        return self.predictions[0].question

    @property
    def technology(self) -> Technology | None:
        """Of those that need one."""
        built = [p.question.technology for p in self.predictions if p.optimizer.on_unit]
        return built[0] if built else None
