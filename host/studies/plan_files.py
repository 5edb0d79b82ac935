"""Plans as files: TOML that comes with a package, or that a person wrote."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

__all__ = ["PlanFiles"]

#: A plan of more is none that a person wrote.
MOST_BYTES = 1_000_000


class PlanFiles:
    """Plans in the folder `plans` of a package, and files anywhere.

    Parameters
    ----------
    package : str
        Dotted name of the package.
    """

    def __init__(self, package: str) -> None:
        self.package = package

    def _own(self) -> dict[str, Any]:
        return {
            item.name.removesuffix(".toml"): item
            for item in (files(self.package) / "plans").iterdir()
            if item.name.endswith(".toml")
        }

    def names(self) -> list[str]:
        """Of the plans that come with the package."""
        return sorted(self._own())

    def text(self, name: str) -> str:
        """A plan as it is written: one of `names()`, or the path of a TOML file.

        Raises
        ------
        ValueError
            If there is no such plan, or it is not one; the message says what is legal.
        OSError
            If the file cannot be read.
        """
        if name.endswith(".toml"):
            path = Path(name)
            if path.is_file() and path.stat().st_size > MOST_BYTES:
                raise ValueError(
                    f"plan {path.stem}: it has {path.stat().st_size:,} bytes; legal: "
                    f"{MOST_BYTES:,} at most"
                )
            try:
                return path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"plan {name} is not UTF-8: {error}") from None
        if name not in self._own():
            raise ValueError(
                f"no plan is called {name!r}; legal: {', '.join(self.names())}, or a path that "
                "ends in .toml"
            )
        text: str = self._own()[name].read_text(encoding="utf-8")
        return text

    def table(self, name: str) -> tuple[str, dict[str, Any]]:
        """A plan's name, which is its file's, and what it says; errors as of `text`."""
        text = self.text(name)
        name = Path(name).stem if name.endswith(".toml") else name
        try:
            return name, tomllib.loads(text)
        except RecursionError:
            raise ValueError(f"plan {name}: it is nested too deeply to be a plan") from None
        except ValueError as error:  # integers of thousands of digits, too
            raise ValueError(f"plan {name}: {error}") from None
