"""Plans: TOML files that say what a study runs."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from thermokron.host.studies.runs import Run, Store

__all__ = ["Study", "load_study", "plan_names", "plan_text", "take"]


class Study(Protocol):
    """What a plan becomes.

    Attributes
    ----------
    name, title : str
        Of the study, for folders and for headings.
    """

    name: str
    title: str

    def stages(self, store: Store) -> Iterator[tuple[str, list[Run]]]:
        """Stages by name, each with its runs; a later one may depend on outcomes of earlier ones.

        The outcomes of a stage are in the store when the next is asked for.
        """
        ...

    def report(self, store: Store, folder: Path) -> list[Path]:
        """Write tables and plots of outcomes that are all in the store; what was written."""
        ...


def _plans() -> dict[str, Any]:
    folder = files("thermokron.host.studies") / "plans"
    return {
        item.name.removesuffix(".toml"): item
        for item in folder.iterdir()
        if item.name.endswith(".toml")
    }


def plan_names() -> list[str]:
    """Names of the plans that come with the package."""
    return sorted(_plans())


def plan_text(name: str) -> str:
    """A plan as it is written; arguments and errors as of `load_study`."""
    if name.endswith(".toml"):
        return Path(name).read_text()
    if name not in _plans():
        raise ValueError(
            f"no plan is called {name!r}; legal: {', '.join(plan_names())}, or a path that ends "
            "in .toml"
        )
    text: str = _plans()[name].read_text()
    return text


def load_study(name: str) -> Study:
    """The study of a plan.

    Parameters
    ----------
    name : str
        One of `plan_names()`, or the path of a TOML file.

    Raises
    ------
    ValueError
        If there is no such plan, or it is not one; the message says what is legal.
    OSError
        If the file cannot be read.
    """
    text = plan_text(name)
    name = Path(name).stem if name.endswith(".toml") else name
    try:
        plan = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"plan {name}: {error}") from None
    from thermokron.host.studies.comparison import Comparison
    from thermokron.host.studies.quantisation import Quantisation

    kinds = {"comparison": Comparison, "quantisation": Quantisation}
    kind = plan.pop("kind", None)
    if kind not in kinds:
        raise ValueError(f"plan {name}: kind = {kind!r} is unknown; legal: {', '.join(kinds)}")
    try:
        study: Study = take(kinds[kind], {"name": name, **plan})
        return study
    except ValueError as error:
        raise ValueError(f"plan {name}: {error}") from None


def take(kind: Any, settings: dict[str, Any]) -> Any:
    """A dataclass from a plan's table; `ValueError` names what is unknown or missing."""
    if not isinstance(settings, dict):
        raise ValueError(f"{settings!r} should be a table of {kind.__name__}")
    known = [field.name for field in fields(kind)]
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise ValueError(f"{unknown[0]} is unknown in {kind.__name__}; legal: {', '.join(known)}")
    try:
        return kind(**settings)
    except TypeError as error:
        raise ValueError(str(error).replace("__init__() ", "")) from None
