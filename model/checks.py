"""Range checks whose messages name the argument, its value and the legal range."""

from __future__ import annotations

import math
import numbers
from typing import Any

__all__ = ["check_integer", "check_real"]


def check_integer(name: str, value: Any, low: int, high: int) -> int:
    """`value` as an int within [low, high], or a `TypeError` or `ValueError` that names it."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} = {value!r} is not an integer; legal: {low} to {high}")
    if not low <= int(value) <= high:
        raise ValueError(f"{name} = {value} is out of range; legal: {low} to {high}")
    return int(value)


def check_real(name: str, value: Any, low: float, high: float) -> float:
    """`value` as a finite float within [low, high], or an error that names it."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} = {value!r} is not a number; legal: {low:g} to {high:g}")
    if not (math.isfinite(value) and low <= float(value) <= high):
        raise ValueError(f"{name} = {value} is out of range; legal: {low:g} to {high:g}")
    return float(value)
