"""Broken copies: the design with one mistake in it, which a property has to find."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

__all__ = ["Broken", "broken"]

_PACKAGE = "thermokron.rtl."


@dataclass(frozen=True)
class Broken:
    """A mistake, as an edit of one module's text, and the properties that it must break.

    Parameters
    ----------
    mistake : str
        What is wrong with the copy.
    module : str
        Module of `thermokron.rtl` in which it is.
    old, new : str
        Text that stands there once, and what stands there in the copy.
    breaks : tuple of str
        Names of properties; each alone must fail.
    """

    mistake: str
    module: str
    old: str
    new: str
    breaks: tuple[str, ...]


@contextmanager
def broken(copy: Broken) -> Iterator[None]:
    """While this lasts, every module of `thermokron.rtl` builds with the copy's classes.

    Raises
    ------
    ValueError
        If the text to be replaced does not stand in the module exactly once: the design has
        changed, and the copy has to follow.
    """
    name = _PACKAGE + copy.module
    module = importlib.import_module(name)
    assert module.__file__ is not None
    text = Path(module.__file__).read_text(encoding="utf-8")
    if (found := text.count(copy.old)) != 1:
        raise ValueError(
            f"the broken copy {copy.mistake!r} replaces a text that stands {found} times in "
            f"{Path(module.__file__).name}, not once: {copy.old!r}"
        )
    edited = ModuleType(name)
    edited.__file__ = module.__file__
    exec(compile(text.replace(copy.old, copy.new), module.__file__, "exec"), edited.__dict__)
    substitutes = {
        id(value): getattr(edited, key)
        for key, value in vars(module).items()
        if getattr(value, "__module__", None) == name
    }
    replaced = [
        (user, key, value)
        for other, user in sys.modules.items()
        if other.startswith(_PACKAGE)
        for key, value in vars(user).items()
        if id(value) in substitutes
    ]
    try:
        for user, key, value in replaced:
            setattr(user, key, substitutes[id(value)])
        yield
    finally:
        for user, key, value in replaced:
            setattr(user, key, value)
