"""Which run a file belongs to: all that its losses depend on, and a digest that stands for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from thermokron.host.calibration import Calibration
from thermokron.host.train.config import UNIT_ENGINES, TrainConfig
from thermokron.host.train.tasks import Task
from thermokron.model import ArrayPhysics, UnitSpec
from thermokron.model.files import digest, write_whole

__all__ = ["RunFile", "about_task", "differences", "identity", "run_digest"]


def identity(
    config: TrainConfig,
    spec: UnitSpec | None,
    physics: ArrayPhysics | None,
    calibration: Calibration | None = None,
) -> dict[str, Any]:
    """What a run's losses depend on, by name.

    The number of epochs counts where the learning rate's schedule does.
    """
    known = asdict(config)
    if config.schedule == "constant":
        del known["epochs"]
    if config.engine in UNIT_ENGINES:
        for name, value in (
            ("spec", spec or UnitSpec()),
            ("physics", physics or ArrayPhysics.ideal()),
        ):
            known |= {f"{name}.{k}": v for k, v in asdict(value).items()}
        if calibration is not None:
            known["calibration"] = digest(json.loads(calibration.to_json()), digits=16)
    return known


def about_task(task: Task) -> dict[str, Any]:
    """What there is to be known of a task, beside its name in the configuration."""
    return {
        "task": task.name,
        "loss": type(task.loss).__name__,
        "examples": len(task.train),  # type: ignore[arg-type]
    }


def run_digest(known: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that stand for an `identity`."""
    return digest(known, digits=16)


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """What two runs differ in, a phrase each."""
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    if "engine" in names:  # with it comes or goes the unit, of which nothing else is to say
        names = [name for name in names if not name.startswith(("spec.", "physics."))]
    return [f"{name} = {theirs.get(name)!r}, not {ours.get(name)!r}" for name in names]


class RunFile:
    """`run.json`, which says whose folder it is in: `{"run": digest, "version", "identity"}`.

    Parameters
    ----------
    folder : Path
        Where results go.
    known : dict
        The `identity` of the run that is to write there.
    """

    def __init__(self, folder: Path, known: Mapping[str, Any]) -> None:
        self.path = folder / "run.json"
        self.digest = run_digest(known)
        self.known = dict(known)

    def write(self) -> None:
        """Make the folder this run's."""
        record = {"run": self.digest, "version": version("thermokron"), "identity": self.known}
        write_whole(self.path, json.dumps(record, indent=1) + "\n")

    def check(self) -> None:
        """`ValueError` if the folder is another run's; the message says what differs."""
        if not self.path.exists():
            return
        try:
            record = json.loads(self.path.read_text(encoding="utf-8"))
            owner, theirs = record["run"], dict(record["identity"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(f"{self.path} does not name a run ({error!r}); delete it") from None
        if owner != run_digest(theirs):
            raise ValueError(f"{self.path} was changed: its digest is wrong; delete it")
        if owner != self.digest:
            found = "; ".join(differences(theirs, json.loads(json.dumps(self.known))))
            raise ValueError(
                f"{self.path.parent} holds the results of another run: {found}; give another "
                "folder with -o"
            )
