"""Numbers with their units, as people write them."""

from __future__ import annotations

import math

__all__ = ["si"]

_PREFIXES = {-15: "f", -12: "p", -9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M", 9: "G"}


def si(value: float, unit: str, digits: int = 3) -> str:
    """A number with a prefix of its unit, "3.14 µs"; areas in mm² or µm²."""
    if not math.isfinite(value):
        return "–"
    value = float(f"{value:.{digits - 1}e}")
    if unit == "m²":
        scale, unit = (1e6, "mm²") if value >= 1e-8 else (1e12, "µm²")
        return f"{_digits(value * scale, digits)} {unit}"
    power = 0
    if value != 0.0:
        power = min(max(3 * math.floor(math.log10(abs(value)) / 3), -15), 9)
    return f"{_digits(value / 10.0**power, digits)} {_PREFIXES[power]}{unit}"


def _digits(value: float, digits: int) -> str:
    if value == 0.0:
        return "0"
    places = max(digits - 1 - math.floor(math.log10(abs(value)) + 1e-9), 0)
    return f"{value:,.{places}f}"
