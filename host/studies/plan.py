"""Plans: TOML files that say what a study runs."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from thermokron.host.studies.runs import Run, Store
from thermokron.host.studies.settings import about, take

__all__ = ["Study", "load_study", "plan_names", "plan_text"]


#: A plan of more is none that a person wrote.
MOST_BYTES = 1_000_000


class Study(Protocol):
    """What a plan becomes.

    Attributes
    ----------
    name, title : str
        Of the study, for folders and for headings.
    tasks : list of str
        Functions of the user's that it imports and calls, "module:function".
    """

    name: str
    title: str

    @property
    def tasks(self) -> list[str]: ...

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
        path = Path(name)
        if path.is_file() and path.stat().st_size > MOST_BYTES:
            raise ValueError(
                f"plan {path.stem}: it has {path.stat().st_size:,} bytes; legal: {MOST_BYTES:,} at "
                "most"
            )
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"plan {name} is not UTF-8: {error}") from None
    if name not in _plans():
        raise ValueError(
            f"no plan is called {name!r}; legal: {', '.join(plan_names())}, or a path that ends "
            "in .toml"
        )
    text: str = _plans()[name].read_text(encoding="utf-8")
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
    except RecursionError:
        raise ValueError(f"plan {name}: it is nested too deeply to be a plan") from None
    except ValueError as error:  # integers of thousands of digits, too
        raise ValueError(f"plan {name}: {error}") from None
    from thermokron.host.studies.comparison import Comparison
    from thermokron.host.studies.quantisation import Quantisation

    kinds = {"comparison": Comparison, "quantisation": Quantisation}
    kind = plan.pop("kind", None)
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"plan {name}: kind = {kind!r} is unknown; legal: {', '.join(kinds)}")
    try:
        with about(f"plan {name}"):
            study: Study = take(kinds[kind], {"name": name, **plan})
    except RecursionError:
        raise ValueError(f"plan {name}: it is nested too deeply to be a plan") from None
    return study
