"""Numbers with units, as people write them: 66.8 ns, 500 Gbit/s, 440 um2."""

from __future__ import annotations

import math

from thermokron.host.tables import number

__all__ = ["scaled", "with_unit"]

PREFIXES = {-15: "f", -12: "p", -9: "n", -6: "u", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T"}
#: Units that take none.
PLAIN = ("1",)


def scaled(unit: str, value: float) -> tuple[float, str]:
    """By what to multiply values about as large as this one, and the unit that they then have."""
    if unit in PLAIN or value == 0.0:
        return 1.0, "" if unit in PLAIN else unit
    if unit == "m2":
        return (1e6, "mm2") if value >= 1e-8 else (1e12, "um2")
    power = 3 * math.floor(math.log10(abs(value)) / 3.0)
    power = min(max(power, min(PREFIXES)), max(PREFIXES))
    return 10.0**-power, PREFIXES[power] + unit


def with_unit(unit: str, *values: float) -> str:
    """The first, and the others in brackets, as a range; all in the unit that suits the first."""
    factor, shown = scaled(unit, values[0])
    first, *others = (number(factor * value) for value in values)
    told = first if not others else f"{first} ({'–'.join(others)})"
    return f"{told} {shown}".strip()
