"""Numbers with their units, as pages and terminals show them."""

from __future__ import annotations

import math

from thermokron.host.predict.units import scaled
from thermokron.host.tables import number

__all__ = ["between", "si"]


def si(value: float, unit: str, digits: int = 3) -> str:
    """A number with a prefix of its unit, "3.14 µs"; a dash for what is not known."""
    if not math.isfinite(value):
        return "–"
    factor, shown = scaled(unit, value)
    return f"{number(factor * value, digits)} {_written(shown)}"


def between(low: float, high: float, unit: str) -> str:
    """An interval with a prefix of its unit, "17–32 µs"."""
    factor, shown = scaled(unit, high)
    return f"{number(factor * low, 2)}–{number(factor * high, 2)} {_written(shown)}"


def _written(unit: str) -> str:
    return (f"µ{unit[1:]}" if unit.startswith("u") else unit).replace("m2", "m²")
