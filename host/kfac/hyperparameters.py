"""Hyperparameters that are a number, or a function of the step."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from thermokron.host.kfac.curvature.layers import Layer
from thermokron.host.linalg import Settle, check_settle

__all__ = [
    "Hyperparameters",
    "Interval",
    "OptionalSchedule",
    "RateOf",
    "Samples",
    "Schedule",
    "SettleSchedule",
    "check_count",
    "learning_rate",
]

Schedule = float | Callable[[int], float]
Interval = int | Callable[[int], int]
OptionalSchedule = float | Callable[[int], float | None] | None
Samples = int | Callable[[int], int | None] | None
SettleSchedule = Settle | Callable[[int], Settle]

MOMENTUM = 0.9  # what a rate that comes as a number is taken to go with
TINY = 1e-16  # the least damping and clip; there for the message, nobody wants less
#: What else `KFAC` takes, for the messages of what is no number.
BESIDE_NUMBERS = {
    "damping": ", Relative(...), LevenbergMarquardt(...)",
    "kl_clip": ", None, 'adaptive', TrustRegion(...)",
}
#: May be None, which switches them off, or leaves them to the method.
OPTIONAL = ("kl_clip", "norm_constraint", "refresh_threshold", "samples")


class Hyperparameters:
    """Values by name, each a number or a callable of the step index, checked when they are used."""

    def __init__(self, **given: Any) -> None:
        self.given = given
        self._constants: dict[str, Any] = {}

    def at(self, name: str, step: int) -> Any:
        """The value of a hyperparameter at a step.

        Raises
        ------
        ValueError, TypeError
            If it is illegal; the message names it, its value and the legal range.
        """
        given = self.given[name]
        if callable(given):
            return self._checked(name, given(step))
        if name not in self._constants:
            self._constants[name] = self._checked(name, given)
        return self._constants[name]

    def rates(self, step: int, layers: Iterable[Layer], *, in_the_end: bool = False) -> list[float]:
        """The learning rate of each layer: that of its parameters' group, where groups are known.

        0 of parameters that the optimiser does not have. `in_the_end` multiplies them by what
        momentum makes of a step in the end, that of the group, or 0.9 where groups are not known.
        """
        rate, given = self.at("lr", step), self.given["lr"]
        if not isinstance(given, RateOf):
            rate *= 1.0 / (1.0 - MOMENTUM) if in_the_end else 1.0
            return [rate for _ in layers]
        by_parameter = given.by_parameter(in_the_end=in_the_end)
        return [max(by_parameter.get(id(p), 0.0) for p in layer.parameters) for layer in layers]

    @staticmethod
    def _checked(name: str, value: Any) -> Any:
        if value is None and name in OPTIONAL:
            return None
        if name.endswith("interval") or name == "samples":
            return check_count(name, value)
        if name == "settle":
            return check_settle(value)
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if name == "decay":
            legal, fine = "0 to below 1", real and 0.0 <= value < 1.0
        elif name == "lr":  # schedules begin or end at 0, where a step is nothing
            legal, fine = "0 or more", real and 0.0 <= value < math.inf
        else:
            legal, fine = f"{TINY:g} or more", real and TINY <= value < math.inf
            legal += "" if real else BESIDE_NUMBERS.get(name, "")
        if not fine:
            error = ValueError if real else TypeError
            raise error(f"{name} = {value!r} is out of range; legal: {legal}")
        return float(value)

    def __iter__(self) -> Any:
        return iter(self.given)


def learning_rate(given: Schedule | torch.optim.Optimizer | str) -> Schedule:
    """A rate, or what reads it from an optimiser; 1 where steps are made whole, for "auto"."""
    if isinstance(given, str):
        if given != "auto":
            raise ValueError(f"lr = {given!r} is unknown; legal: a number, an optimiser, 'auto'")
        return 1.0
    return RateOf(given) if isinstance(given, torch.optim.Optimizer) else given


@dataclass(frozen=True)
class RateOf:
    """Reads the rates of an optimiser's parameter groups; as a schedule the largest of them."""

    optimizer: torch.optim.Optimizer

    def __call__(self, step: int) -> float:
        return max((float(group["lr"]) for group in self.optimizer.param_groups), default=0.0)

    def by_parameter(self, *, in_the_end: bool = False) -> dict[int, float]:
        """The rate of every parameter that the optimiser has, by its id."""
        return {
            id(p): float(group["lr"]) * (_gain(group) if in_the_end else 1.0)
            for group in self.optimizer.param_groups
            for p in group["params"]
        }

    def __repr__(self) -> str:
        return f"that of {type(self.optimizer).__name__}"


def _gain(group: dict[str, Any]) -> float:
    """What becomes of a step by the momentum of a group: 1 + m + m² + ..., of SGD's kind."""
    momentum = float(group.get("momentum", 0.0))
    kept = 1.0 - float(group.get("dampening", 0.0)) if momentum else 1.0
    return kept / (1.0 - min(momentum, 0.999))


def check_count(name: str, value: Any, low: int = 1) -> int:
    """An integer of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} = {value!r} is not an integer; legal: {low} or more")
    if value < low:
        raise ValueError(f"{name} = {value} is out of range; legal: {low} or more")
    return int(value)
