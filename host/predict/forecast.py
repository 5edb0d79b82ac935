"""Ask for a forecast: workload, machine, technology and optimisers in, steps and training out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from thermokron.host.predict import report
from thermokron.host.predict.conditions import CONDITIONS, TARGETS, Conditions, Target
from thermokron.host.predict.hardware.technology import Technology
from thermokron.host.predict.machines.machine import Machine
from thermokron.host.predict.optimizers import OPTIMIZERS, Optimizer, optimizer
from thermokron.host.predict.prediction import Question
from thermokron.host.predict.predictions import Prediction, Predictions
from thermokron.host.predict.quantity import Number, Values
from thermokron.host.predict.workloads.workload import Workload
from thermokron.model.checks import check_integer

__all__ = ["Forecast", "forecast"]


class Forecast(Predictions):
    """Predictions of several optimisers on one workload, and what may be said of them."""

    def explain(self) -> str:
        """In a paragraph: who is the quickest, what limits it, and whether a unit pays."""
        return report.explain(self)

    def as_dict(self) -> dict[str, Any]:
        """All figures, units in their names; spreads as nominal, low and high."""
        return report.as_dict(self)

    def as_json(self) -> str:
        """The same as text."""
        return report.as_json(self)

    def __str__(self) -> str:
        return report.in_words(self)


def forecast(
    workload: Workload,
    *,
    machine: Machine,
    technology: Technology | None = None,
    optimizers: Sequence[str | Optimizer] = OPTIMIZERS,
    conditions: Conditions = CONDITIONS,
    devices: int = 1,
    target: Target | None = None,
    draws: int = 10_000,
    seed: int = 0,
) -> Forecast:
    """Predict a training step of several optimisers, and training where its steps are known.

    Parameters
    ----------
    workload : Workload
        From `network` or `trace`.
    machine : Machine
        From `machine`.
    technology : Technology, optional
        From `technology`; without one, optimisers that need a unit are left out.
    optimizers : sequence of str or Optimizer
        Such as "adam" or "kfac-solve@10".
    conditions : Conditions
        What depends on the data.
    devices : int
        Machines side by side, each with a batch of its own.
    target : Target, optional
        Steps to the target; if not given that of the workload's name, if there is one, of the batch
        of all devices together.
    draws, seed : int
        Of the intervals.

    Raises
    ------
    ValueError
        If an optimiser is unknown, a factor does not fit, or a number is out of range.
    """
    check_integer("draws", draws, 100, 10**7)
    check_integer("seed", seed, 0, 2**63 - 1)
    remark, batch = "", workload.batch * devices
    target = TARGETS.get(workload.name) if target is None else target
    if target is not None and target.batch not in (None, batch):
        remark = (
            f"How many steps there are to {target.what} is known for a batch of {target.batch:,} "
            f"in all, and here it is {batch:,}."
        )
        target = None
    chosen = [optimizer(each) if isinstance(each, str) else each for each in optimizers]
    if technology is None:
        chosen = [each for each in chosen if not each.on_unit]
    if not chosen:
        raise ValueError("optimizers is empty, or all need a technology")
    predictions = []
    for each in chosen:
        question = Question(workload, machine, each, technology, conditions, devices)
        both = Values(), Values(draws, seed)
        nominal, drawn = (question.evaluate(values) for values in both)
        steps = None
        if target is not None and each.kind != "sgd":  # of which nobody has published steps
            steps = tuple(_steps(target, each, values) for values in both)
        predictions.append(Prediction(question, nominal, drawn, steps))  # type: ignore[arg-type]
    return Forecast(tuple(predictions), target, draws, seed, remark)


def _steps(target: Target, how: Optimizer, values: Values) -> Number:
    first = values(target.steps)
    return first * values(target.ratio) if how.kfac else first
