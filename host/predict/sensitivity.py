"""When does it pay? What an advantage hangs on, and where it begins."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from thermokron.host.predict.prediction import Question
from thermokron.host.predict.quantity import Quantity, Values
from thermokron.host.predict.units import with_unit

__all__ = ["BreakEven", "Swing", "break_even", "speedup", "tornado"]

#: Points of a scan for break-even, before what lies between is halved.
POINTS, HALVINGS = 41, 40


@dataclass(frozen=True)
class Swing:
    """What one quantity does to a ratio of times.

    Attributes
    ----------
    quantity : Quantity
    at_low, at_high : float
        The ratio with the quantity at either end of its range, all others nominal.
    """

    quantity: Quantity
    at_low: float
    at_high: float

    @property
    def width(self) -> float:
        """How far it swings, as a factor."""
        return max(self.at_low / self.at_high, self.at_high / self.at_low)


def tornado(one: Question, other: Question) -> list[Swing]:
    """What the speedup of `one` over `other`, per step, hangs on; the most first."""
    nominal = Values()
    speedup(one, other, nominal)
    swings = [
        Swing(
            each,
            speedup(one, other, Values(fixed={each.name: each.low})),
            speedup(one, other, Values(fixed={each.name: each.high})),
        )
        for each in nominal.uncertain()
    ]
    return sorted(swings, key=lambda swing: -swing.width)


def speedup(one: Question, other: Question, values: Values) -> float:
    """How many steps of `one` fit into one of `other`, with quantities worth what `values` says."""
    times = [float(each.evaluate(values).total_seconds) for each in (other, one)]
    return times[0] / times[1]


@dataclass(frozen=True)
class BreakEven:
    """Where one optimiser's step becomes shorter than another's.

    Attributes
    ----------
    name, unit : str
        Of what was moved, all else fixed.
    low, high : float
        Between which it was looked for.
    crossings : tuple of (float, bool)
        Values at which both take as long, and whether `one` is the shorter beyond.
    at_low : bool
        Whether it is at the lower end.
    points : tuple of (float, float)
        Values, and speedups there.
    integers : bool
        Whether only whole values were looked at.
    """

    name: str
    unit: str
    low: float
    high: float
    crossings: tuple[tuple[float, bool], ...]
    at_low: bool
    points: tuple[tuple[float, float], ...]
    integers: bool = False

    def told(self) -> str:
        """In words: where `one` is the shorter."""
        within = f"from {self.written(self.low)} to {self.written(self.high)}"
        if not self.crossings:
            return f"{'everywhere' if self.at_low else 'nowhere'} {within}"
        ranges, begin = [], "" if self.at_low else None
        for value, pays in self.crossings:
            told = self.written(value)
            if pays:
                begin = f"from {told}"
            else:
                ranges.append(f"{begin} to {told}" if begin else f"up to {told}")
                begin = None
        if begin:
            ranges.append(begin)
        return " and ".join(ranges)

    def written(self, value: float) -> str:
        """A value of what was moved, with its unit."""
        return f"{value:,.0f}" if self.integers else with_unit(self.unit, value)


def break_even(
    name: str,
    unit: str,
    ratio: Callable[[float], float],
    low: float,
    high: float,
    *,
    integers: bool = False,
) -> BreakEven:
    """Look for where a speedup passes 1, along the logarithm of what is moved.

    Parameters
    ----------
    name, unit : str
        Of what is moved.
    ratio : callable
        The speedup at a value.
    low, high : float
        Above 0.
    integers : bool
        Whether only whole values are.

    Raises
    ------
    ValueError
        If the range is none.
    """
    if not (0.0 < low < high and math.isfinite(high)):
        raise ValueError(f"{name} from {low} to {high}; legal: above 0, rising")
    values: Sequence[float] = np.geomspace(low, high, POINTS).tolist()
    if integers:
        values = sorted({float(round(value)) for value in values})
    points = [(value, ratio(value)) for value in values]
    crossings = []
    for (left, before), (right, after) in itertools.pairwise(points):
        if (before > 1.0) == (after > 1.0):
            continue
        for _ in range(HALVINGS):
            middle = math.sqrt(left * right)
            if integers and right - left <= 1.0:
                break
            middle = float(round(middle)) if integers else middle
            if middle in (left, right):
                break
            if (ratio(middle) > 1.0) == (before > 1.0):
                left = middle
            else:
                right = middle
        crossings.append((right, after > 1.0))
    return BreakEven(
        name,
        unit,
        low,
        high,
        tuple(crossings),
        points[0][1] > 1.0,
        tuple(points),
        integers,
    )
