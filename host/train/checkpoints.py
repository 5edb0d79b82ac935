"""Checkpoints: a training run that is resumed ends as if it had not been interrupted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from thermokron.host.kfac import StepMetrics
from thermokron.host.train.config import UNIT_ENGINES, TrainConfig
from thermokron.host.train.tasks import Task
from thermokron.model import PHASES, ArrayPhysics, UnitSpec

__all__ = ["Account", "Checkpoints", "Stateful", "identity"]

FORMAT = "thermokron training 1"


@dataclass
class Account:
    """What a run came to so far.

    Attributes
    ----------
    losses : list of float
        Loss over all training examples: before training, then after each epoch.
    epoch_seconds : list of float
        Seconds that the steps of each epoch took.
    seconds, start_seconds : float
        Seconds of training, and those it took to open the unit before; of all sittings.

    The others are sums over steps, see `RunResult`.
    """

    losses: list[float] = field(default_factory=list)
    epoch_seconds: list[float] = field(default_factory=list)
    seconds: float = 0.0
    start_seconds: float = 0.0
    inversions: int = 0
    hardware_seconds: float = 0.0
    phase_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    unit_runs: int = 0
    bytes_to_unit: int = 0
    bytes_from_unit: int = 0
    digital_flops: int = 0
    clipped_steps: int = 0

    @property
    def epochs(self) -> int:
        """Epochs completed."""
        return len(self.epoch_seconds)

    def enter(self, metrics: StepMetrics) -> None:
        """Add what a step cost."""
        self.inversions += metrics.inversions
        self.hardware_seconds += metrics.hardware_seconds
        for phase in self.phase_seconds:
            self.phase_seconds[phase] += getattr(metrics, f"{phase}_seconds")
        self.unit_runs += metrics.runs
        self.bytes_to_unit += metrics.bytes_to_unit
        self.bytes_from_unit += metrics.bytes_from_unit
        self.digital_flops += metrics.digital_flops
        self.clipped_steps += metrics.clipped


class Stateful(Protocol):
    """What torch and K-FAC save and load."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


def identity(
    config: TrainConfig, task: Task, spec: UnitSpec | None, physics: ArrayPhysics | None
) -> dict[str, Any]:
    """Everything that a run's losses depend on, by name.

    The number of epochs counts where the learning rate's schedule does.
    """
    known = asdict(config) | {
        "task": task.name,
        "loss": type(task.loss).__name__,
        "examples": len(task.train),  # type: ignore[arg-type]
    }
    if config.schedule == "constant":
        del known["epochs"]
    if config.engine in UNIT_ENGINES:
        for name, value in (
            ("spec", spec or UnitSpec()),
            ("physics", physics or ArrayPhysics.ideal()),
        ):
            known |= {f"{name}.{k}": v for k, v in asdict(value).items()}
    return known


class Checkpoints:
    """Saves a run after every epoch, and takes it up again.

    Parameters
    ----------
    identity : dict
        Of the run, see `identity`: a checkpoint of another run is refused.
    parts : mapping of str to Stateful
        Network, optimiser and so on.
    generator : torch.Generator
        Draws the order of the examples.
    global_generator : bool
        Whether the run draws from torch's own generator too, as dropout does.
    """

    def __init__(
        self,
        identity: Mapping[str, Any],
        parts: Mapping[str, Stateful],
        generator: torch.Generator,
        *,
        global_generator: bool,
    ) -> None:
        self.identity = dict(identity)
        self.parts = dict(parts)
        self.generator = generator
        self.global_generator = global_generator

    def save(self, path: Path, account: Account) -> None:
        """Write a file that `torch.load` reads with `weights_only=True`.

        It replaces an older one as a whole: whatever happens, one of both is there.
        """
        state = {
            "format": FORMAT,
            "identity": self.identity,
            "account": asdict(account),
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "generator": self.generator.get_state(),
            "global_generator": torch.get_rng_state() if self.global_generator else None,
        }
        unfinished = path.with_name(path.name + ".part")
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)

    def load(self, path: Path) -> Account:
        """Put every part into its saved state; what the run had come to.

        Raises
        ------
        ValueError
            If the file is no checkpoint, or one of another run: the message says what differs.
        """
        state = _read(path)
        differences = self._differences(state["identity"])
        if differences:
            raise ValueError(f"{path} is a checkpoint of another run: {'; '.join(differences)}")
        lacking = [name for name in self.parts if name not in state["parts"]]
        if lacking:
            raise ValueError(f"{path} is no whole checkpoint: it lacks parts: {', '.join(lacking)}")
        try:
            account = Account(**state["account"])
        except TypeError as error:
            reason = str(error).replace("Account.__init__() ", "")
            raise ValueError(f"{path} is no whole checkpoint: account: {reason}") from error
        try:
            for name, part in self.parts.items():
                part.load_state_dict(state["parts"][name])
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())  # torch's has several lines
            raise ValueError(f"{path} does not fit the network: {name}: {reason}") from error
        try:
            self.generator.set_state(state["generator"])
            if self.global_generator:
                torch.set_rng_state(state["global_generator"])
        except (TypeError, RuntimeError) as error:
            raise ValueError(f"{path} is no whole checkpoint: generators: {error}") from error
        return account

    def _differences(self, theirs: Mapping[str, Any]) -> list[str]:
        ours = self.identity
        names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
        if "engine" in names:  # with it comes or goes the unit, of which nothing else is to say
            names = [name for name in names if not name.startswith(("spec.", "physics."))]
        return [f"{name} = {theirs.get(name)!r}, not {ours.get(name)!r}" for name in names]


def _read(path: Path) -> dict[str, Any]:
    problem = f"{path} is no checkpoint of a training run"
    with path.open("rb") as file:
        try:
            state = torch.load(file, weights_only=True)
        except Exception as error:  # bytes that are no pickle fail in any way
            raise ValueError(f"{problem}: it cannot be read, or not to the end") from error
    if not isinstance(state, dict) or "format" not in state:
        raise ValueError(problem)
    if state["format"] != FORMAT:
        raise ValueError(f"{path} has the format {state['format']!r}; legal: {FORMAT!r}")
    for name in ("identity", "account", "parts"):
        if not isinstance(state.get(name), dict):
            raise ValueError(f"{problem}: it has no {name}")
    for name in ("generator", "global_generator"):
        if name not in state:
            raise ValueError(f"{problem}: it has no {name}")
    return state
