"""Numbers that are not known exactly: a range, a unit, and where they come from."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ASSUMED", "Number", "Quantity", "Values", "exactly"]

#: The source of what nobody has measured, or nobody has published.
ASSUMED = "assumed"

#: What a quantity is worth: a number, or one for every draw.
Number = float | NDArray[np.float64]


@dataclass(frozen=True)
class Quantity:
    """A number with its range.

    Attributes
    ----------
    name : str
        By which tables, tornados and `Values` know it, such as "link bandwidth".
    low, nominal, high : float
        Half of the belief lies between `low` and `nominal`, half between `nominal` and `high`.
    unit : str
        Such as "J" or "bit/s"; "1" for a plain number.
    source : str
        Where it comes from, or "assumed", which may be followed by a reason.

    Raises
    ------
    ValueError
        If the numbers are not finite, not positive, or not in order, or unit or source is missing.
        0 is legal where all three are.
    """

    name: str
    low: float
    nominal: float
    high: float
    unit: str
    source: str

    def __post_init__(self) -> None:
        numbers = (self.low, self.nominal, self.high)
        if not all(isinstance(x, int | float) and math.isfinite(x) for x in numbers):
            raise ValueError(f"{self.name} = {numbers} {self.unit}; legal: three finite numbers")
        if not (0.0 < self.low <= self.nominal <= self.high or numbers == (0, 0, 0)):
            raise ValueError(
                f"{self.name} = {numbers} {self.unit}; legal: low <= nominal <= high, all above 0"
            )
        for what in ("unit", "source"):
            if not getattr(self, what).strip():
                raise ValueError(f"{self.name} has no {what}; 1 and {ASSUMED!r} are legal")

    @property
    def certain(self) -> bool:
        """Whether it has no range."""
        return self.low == self.high

    def draw(self, count: int, seed: int) -> NDArray[np.float64]:
        """(count,) draws: uniform in the logarithm on either side of `nominal`, their median.

        They depend on seed and name alone, not on what else is drawn.
        """
        if self.certain:
            return np.full(count, self.nominal)
        rng = np.random.default_rng([seed, zlib.crc32(self.name.encode())])
        low, middle, high = np.log([self.low, self.nominal, self.high])
        place = rng.uniform(-1.0, 1.0, count)
        side = np.where(place < 0.0, middle - low, high - middle)
        drawn: NDArray[np.float64] = np.exp(middle + place * side)
        return drawn


def exactly(name: str, value: float, unit: str, source: str) -> Quantity:
    """A quantity without a range."""
    return Quantity(name, value, value, value, unit, source)


class Values:
    """What quantities are worth in one evaluation: nominal, drawn, or moved one at a time.

    Parameters
    ----------
    count : int
        Draws; 0 for nominal values.
    seed : int
        Of the draws.
    fixed : mapping of str to float
        By name: values that are neither nominal nor drawn.

    Attributes
    ----------
    used : dict of str to Quantity
        What has been asked for, by name.
    """

    def __init__(
        self, count: int = 0, seed: int = 0, fixed: Mapping[str, float | Number] | None = None
    ) -> None:
        self.count, self.seed, self.fixed = count, seed, dict(fixed or {})
        self.used: dict[str, Quantity] = {}
        self._drawn: dict[str, Number] = {}

    def __call__(self, quantity: Quantity) -> Number:
        """Its value here."""
        name = quantity.name
        known = self.used.setdefault(name, quantity)
        if known is not quantity and known != quantity:
            raise ValueError(f"two quantities are called {name!r}: {known} and {quantity}")
        if name in self.fixed:
            return self.fixed[name]
        if not self.count:
            return quantity.nominal
        if name not in self._drawn:
            self._drawn[name] = quantity.draw(self.count, self.seed)
        return self._drawn[name]

    def uncertain(self) -> Iterable[Quantity]:
        """Those asked for that have a range."""
        return [quantity for quantity in self.used.values() if not quantity.certain]
