"""What a plan's tables say, checked against the dataclasses that they become."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from thermokron.model.checks import finite

__all__ = ["about", "check_number_of_runs", "hints", "own_tasks", "take"]

#: Says what a value is, in not too many words.
_SHORT = reprlib.Repr()
_SHORT.maxlist = _SHORT.maxdict = _SHORT.maxtuple = 20
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 200

#: What a value should be, and several of them.
_NAMES: dict[Any, tuple[str, str]] = {
    str: ("a text", "texts"),
    int: ("an integer", "integers"),
    float: ("a finite number", "finite numbers"),
    bool: ("true or false", "true or false"),
    dict: ("a table", "tables"),
}


@contextmanager
def about(what: str) -> Iterator[None]:
    """Say `what` before the message of a `ValueError` or `TypeError`, which becomes the former."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise ValueError(f"{what}: {error}") from error


#: Runs of a study at most, in whose thousands a mistake shows before it takes the memory.
MOST_RUNS = 100_000


def check_number_of_runs(*factors: int) -> None:
    """`ValueError` if so many times so many are more runs than a study may have."""
    if (runs := math.prod(factors)) > MOST_RUNS:
        raise ValueError(f"the plan asks for {runs:,} runs; legal: {MOST_RUNS:,} at most")


def own_tasks(configs: Iterable[Mapping[str, Any]]) -> list[str]:
    """The networks of some settings that are functions, "module:function"."""
    names = {config.get("network") for config in configs}
    return sorted(name for name in names if isinstance(name, str) and ":" in name)


@cache
def hints(kind: type[Any]) -> dict[str, Any]:
    """Types of a class's fields by name."""
    return get_type_hints(kind)


def take(kind: Any, settings: dict[str, Any]) -> Any:
    """A dataclass from a plan's table.

    Parameters
    ----------
    kind : type
        The dataclass.
    settings : dict
        Its fields by name.

    Raises
    ------
    ValueError
        If one is unknown, missing, of another type than the dataclass has it, or illegal.
    """
    if not isinstance(settings, dict):
        raise ValueError(f"{settings!r} should be a table of {kind.__name__}")
    known = {field.name: field for field in fields(kind)}
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise ValueError(f"{unknown[0]} is unknown in {kind.__name__}; legal: {', '.join(known)}")
    needed = [
        name
        for name, field in known.items()
        if field.default is MISSING and field.default_factory is MISSING
    ]
    missing = [name for name in needed if name not in settings]
    if missing:
        raise ValueError(f"{missing[0]} is missing in {kind.__name__}; needed: {', '.join(needed)}")
    for name, value in settings.items():
        hint = hints(kind)[name]
        if not _fits(value, hint):
            raise ValueError(f"{name} = {_SHORT.repr(value)}; legal: {_name(hint)}")
    try:
        return kind(**settings)
    except TypeError as error:
        raise ValueError(str(error)) from None


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is what a field's type says; true where only the field itself can tell."""
    origin, inner = get_origin(hint), get_args(hint)
    if isinstance(hint, UnionType):
        return any(_fits(value, part) for part in inner)
    if origin in (list, tuple):
        return isinstance(value, origin) and all(_fits(entry, inner[0]) for entry in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(entry, inner[1]) for entry in value.values())
    if is_dataclass(hint):
        return isinstance(value, dict)
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and finite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool, NoneType):
        return isinstance(value, hint)
    return True


def _name(hint: Any, *, several: bool = False) -> str:
    """A type as people say it."""
    origin, inner = get_origin(hint), get_args(hint)
    if isinstance(hint, UnionType):
        return " or ".join(_name(part, several=several) for part in inner if part is not NoneType)
    if origin in (list, tuple):
        return f"{'lists' if several else 'a list'} of {_name(inner[0], several=True)}"
    if origin is dict and inner[1] is float:
        return f"{'tables' if several else 'a table'} of finite numbers"
    if origin is dict or is_dataclass(hint):
        hint = dict
    return _NAMES[hint][several]
