"""What training leaves behind: a record of each run, and the file that holds them."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from thermokron.model import ArrayPhysics, UnitSpec

__all__ = ["RunResult", "StepLog", "check_writable", "write_result"]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One training run: what it was, what came out, what it cost.

    Attributes
    ----------
    network : str
        Name of the task.
    loss : str
        Class of its loss, such as "CrossEntropyLoss".
    optimizer : str
        "kfac", "adam" or "sgd".
    engine : str or None
        What inverted K-FAC's factors; None for other optimisers.
    seed : int
        Seed of split, weights, order and noise.
    initial_loss : float
        Mean loss over all training examples, before training; cross entropy is in nats.
    train_loss : list of float
        The same after each epoch.
    test_loss : float or None
        The same over the test examples at the end, if there are any; NaN or inf is null in JSON.
    test_accuracy : float or None
        Fraction of them that is recognised, if the targets are classes.
    wall_seconds, start_seconds : float
        Seconds of training, and those it took to open the unit before.
    epoch_seconds : list of float
        Seconds that the steps of each epoch took, without the loss over all examples.
    inversions : int
        Factors inverted.
    hardware_seconds : float
        Time on the unit in seconds: simulated, except where the unit is real.
    phase_seconds : dict of str to float
        The same by phase: loading couplings and biases into the DACs, discharging, settling,
        sampling.
    unit_runs : int
        Runs of the unit.
    bytes_to_unit, bytes_from_unit : int
        What passed its port.
    digital_flops : int
        The host's floating-point operations beyond forward and backward pass and the factors'
        moments.
    clipped_steps : int
        Steps that the KL clip shortened.

    The rest repeats the configuration; None where it does not apply.
    """

    network: str
    loss: str
    optimizer: str
    engine: str | None
    seed: int
    initial_loss: float
    train_loss: list[float]
    test_loss: float | None
    test_accuracy: float | None
    wall_seconds: float
    start_seconds: float
    epoch_seconds: list[float]
    inversions: int
    hardware_seconds: float
    phase_seconds: dict[str, float]
    unit_runs: int
    bytes_to_unit: int
    bytes_from_unit: int
    digital_flops: int
    clipped_steps: int
    epochs: int
    batch_size: int
    lr: float
    schedule: str
    warmup: int
    momentum: float | None
    weight_decay: float
    damping: float | None
    adapt_damping: bool | None
    kfac_options: dict[str, Any] | None
    samples: int | None
    settle: float | str | None
    equilibrate: bool | None
    guard: str | None
    hidden: list[int]

    @property
    def label(self) -> str:
        """Optimiser and engine, as plots and tables name them."""
        names = {
            None: {"adam": "Adam", "sgd": "SGD"}.get(self.optimizer, self.optimizer),
            "cosim": "K-FAC, co-simulated",
            "numeric": "K-FAC, numeric",
            "exact": "K-FAC, exact",
            "diagonal": "K-FAC, diagonal",
        }
        return names[self.engine]


class StepLog:
    """One line of JSON per step, written at once, so that a run can be followed.

    A log begins anew with step 0. With a later step, as of a run that is resumed, it goes on, and
    lines from that step on, of what was not saved, are dropped.

    Parameters
    ----------
    path : Path
        The file; folders are made as needed.
    outdated : sequence of Path
        Files of an older run, which are removed with its log.

    Attributes
    ----------
    missing : int
        Steps before the first, of a run that is resumed, which the file did not hold.
    """

    def __init__(self, path: Path, outdated: Sequence[Path] = ()) -> None:
        self.path = path
        self.missing = 0
        self._outdated = tuple(outdated)
        self._begun = False

    def write(self, metrics: Mapping[str, float]) -> None:
        """Add a line; `metrics` has a "step"."""
        if not self._begun:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for file in self._outdated:
                file.unlink(missing_ok=True)
            kept = self._before(metrics["step"]) if metrics["step"] > 0 else []
            self.missing = int(metrics["step"]) - len(kept)
            self.path.write_text("".join(line + "\n" for line in kept))
            self._begun = True
        with self.path.open("a") as lines:
            lines.write(json.dumps(_finite(metrics), allow_nan=False) + "\n")

    def _before(self, step: float) -> list[str]:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        # the lines of a run are in the order of its steps, and there is one for each
        return lines[: int(step)]


def write_result(
    path: Path,
    runs: Sequence[RunResult],
    *,
    spec: UnitSpec | None = None,
    physics: ArrayPhysics | None = None,
    **more: Any,
) -> Path:
    """Write `{"version", "spec", "physics", ..., "runs": [...]}` as JSON, and return the path.

    `spec` and `physics` are null where no unit took part; `more` joins them at the top level. JSON
    has no NaN and no inf: they are null. Folders are made as needed.
    """

    def plain(value: UnitSpec | ArrayPhysics | None) -> Any:
        return None if value is None else json.loads(value.to_json())

    record: Mapping[str, Any] = {
        "version": version("thermokron"),
        "spec": plain(spec),
        "physics": plain(physics),
        **more,
        "runs": [asdict(run) for run in runs],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_finite(record), indent=2, allow_nan=False) + "\n")
    return path


def _finite(value: Any) -> Any:
    """The value with None for every number that JSON has not: NaN and the infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value


def check_writable(path: Path) -> None:
    """Try whether a file can be written, folders included, and leave nothing behind.

    Raises
    ------
    OSError
        If it cannot; it names what is in the way.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    missing = [folder for folder in path.parents if not folder.exists()]
    trial = path.with_name(f"{path.name}.{os.getpid()}.trial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            trial.touch()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        with suppress(OSError):
            trial.unlink()
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
