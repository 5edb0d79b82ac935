"""Checks at the border whose messages name the argument, its value and what is legal."""

from __future__ import annotations

import json
import math
import numbers
from dataclasses import fields
from typing import Any

__all__ = ["check_choice", "check_integer", "check_real", "fields_from_json", "finite"]


def finite(value: numbers.Real | float) -> bool:
    """Whether a number fits a float, and is neither NaN nor infinite."""
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


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
    if not (finite(value) and low <= float(value) <= high):
        raise ValueError(f"{name} = {value} is out of range; legal: {low:g} to {high:g}")
    return float(value)


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """A `ValueError` that names it, unless `value` is one of the choices and of its type."""
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        legal = ", ".join(map(str, choices))
        raise ValueError(f"{name} = {value!r} is not legal; legal: {legal}")


def fields_from_json(kind: type[Any], text: str) -> dict[str, Any]:
    """The fields of dataclass `kind` in one JSON object, all of them and no others.

    Raises
    ------
    ValueError
        Naming what is not JSON, no object, unknown or missing.
    """
    name = kind.__name__
    problem = f"not {'an' if name[0] in 'AEIO' else 'a'} {name}"
    known = [f.name for f in fields(kind)]
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:  # integers too long, lists too deep
        raise ValueError(f"{problem}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{problem}: expected an object with the fields {', '.join(known)}")
    for what, names in (
        ("unknown", [key for key in values if key not in known]),
        ("missing", [key for key in known if key not in values]),
    ):
        if names:
            raise ValueError(f"{problem}: {what} {', '.join(names)}; legal: {', '.join(known)}")
    return values
