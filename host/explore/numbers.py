"""Numbers with their units, as pages and terminals show them."""

from __future__ import annotations

import math

from thermokron.host.predict.units import scaled
from thermokron.host.tables import number

__all__ = ["si"]


def si(value: float, unit: str, digits: int = 3) -> str:
    """A number with a prefix of its unit, "3.14 µs"; a dash for what is not known."""
    if not math.isfinite(value):
        return "–"
    factor, shown = scaled(unit, value)
    shown = f"µ{shown[1:]}" if shown.startswith("u") else shown
    return f"{number(factor * value, digits)} {shown}".replace("m2", "m²")
