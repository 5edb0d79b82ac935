"""Plans: TOML files that say what a study runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from thermokron.host.studies.plan_files import PlanFiles
from thermokron.host.studies.runs import Run, Store
from thermokron.host.studies.settings import about, take

__all__ = ["Study", "load_study", "plan_names", "plan_text"]


#: Those that come with the package, and others.
PLANS = PlanFiles("thermokron.host.studies")


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


def plan_names() -> list[str]:
    """Names of the plans that come with the package."""
    return PLANS.names()


def plan_text(name: str) -> str:
    """A plan as it is written; arguments and errors as of `load_study`."""
    return PLANS.text(name)


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
    name, plan = PLANS.table(name)
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
