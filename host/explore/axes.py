"""What a search varies: fixed values, lists of them, and ranges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thermokron.model.checks import finite

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

__all__ = ["AXES", "Axis", "axis"]

#: By name, of what kind its values are, and what it is where a plan does not say.
AXES: dict[str, tuple[type, int | float | str]] = {
    "cells": (int, 64),
    "folds": (int, 1),
    "coupling_bits": (int, 8),
    "bias_bits": (int, 8),
    "adc_bits": (int, 8),
    "tau_ns": (float, 50.0),
    "rhs_depth": (int, 64),
    "method": (str, "solve"),
    "samples": (int, 1),
    "inverse_samples": (int, 1000),
    "settle": (float, 0.1),
    "ports": (int, 1),
    "units": (int, 1),
}
LEGAL = "a value, a list of them, or { from, to } with step or log = true"


@dataclass(frozen=True)
class Axis:
    """One of them.

    Attributes
    ----------
    name : str
        One of `AXES`.
    values : tuple
        Those tried; empty for a range.
    low, high : number
        Of a range, both included.
    step : int or None
        Of a range of integers.
    log : bool
        Whether a range is even in the logarithm.
    """

    name: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: int | None = None
    log: bool = False

    @property
    def fixed(self) -> bool:
        """Whether there is nothing to choose."""
        return len(self.values) == 1

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values between which all others lie, for checks."""
        return self.values or (self.low, self.high)

    @property
    def steps(self) -> tuple[Any, ...]:
        """All values, where they can be counted."""
        if self.values:
            return self.values
        return tuple(range(int(self.low), int(self.high) + 1, self.step or 1))

    def distribution(self) -> BaseDistribution:
        """For Optuna. Of a list of numbers the place in it, so that neighbours are neighbours."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        if self.values and not self._ordered:
            return CategoricalDistribution(self.values)
        if self.values:
            return IntDistribution(0, len(self.values) - 1)
        if AXES[self.name][0] is int:
            return IntDistribution(int(self.low), int(self.high), self.log, self.step or 1)
        return FloatDistribution(self.low, self.high, log=self.log)

    def value(self, drawn: Any) -> Any:
        """What a value of `distribution()` stands for; three digits, so that tables say it all."""
        if self.values:
            return self.values[drawn] if self._ordered else drawn
        return drawn if AXES[self.name][0] is int else float(f"{drawn:.3g}")

    @property
    def _ordered(self) -> bool:
        return not any(isinstance(value, str) for value in self.values)

    def __str__(self) -> str:
        if self.values:
            return ", ".join(map(str, self.values))
        how = " in the logarithm" if self.log else f" by {self.step}" if self.step else ""
        return f"{self.low:g} to {self.high:g}{how}"


def axis(name: str, given: Any) -> Axis:
    """The axis of what a plan says.

    Raises
    ------
    ValueError
        If the name is unknown, or it is none; the message says what is legal.
    """
    if name not in AXES:
        raise ValueError(f"{name} is unknown in space; legal: {', '.join(AXES)}")
    kind = AXES[name][0]
    if isinstance(given, dict):
        return _range(name, kind, given)
    values = given if isinstance(given, list) else [given]
    if not values or not all(_fits(kind, name, value) for value in values):
        raise ValueError(f"{name} = {given!r} in space; legal: {LEGAL}")
    if any(values.count(value) > 1 for value in values):
        raise ValueError(f"{name} = {given!r} in space; legal: each value once")
    if not any(isinstance(value, str) for value in values):
        values = sorted(values)
    return Axis(name, tuple(values))


def _range(name: str, kind: type, given: dict[str, Any]) -> Axis:
    told = f"{name} = {given} in space"
    if kind is str or not {"from", "to"} <= set(given) <= {"from", "to", "step", "log"}:
        raise ValueError(f"{told}; legal: {LEGAL if kind is not str else 'texts'}")
    low, high, step, log = given["from"], given["to"], given.get("step"), given.get("log", False)
    if not all(_fits(kind, "", value) for value in (low, high)) or not 0 < low < high:
        raise ValueError(f"{told}; legal: 0 < from < to, {_several(kind)}")
    if not isinstance(log, bool) or (log and step is not None):
        raise ValueError(f"{told}; legal: log = true or false, and without step where it is true")
    if step is not None and (kind is not int or not _fits(int, "", step) or step < 1):
        raise ValueError(f"{told}; legal: step, an integer above 0, of integers")
    if step is not None and (high - low) % step:
        raise ValueError(f"{told}; legal: to = from and a multiple of step")
    return Axis(name, (), low, high, step, log)


def _several(kind: type) -> str:
    return "integers" if kind is int else "numbers"


def _fits(kind: type, name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, str):
        return kind is str or name == "settle"  # which may be a time, "5tau"
    if kind is float:
        return isinstance(value, int | float) and finite(value)
    return isinstance(value, kind)
