"""What training leaves behind: a record of each run, and the file that holds them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from thermokron.host.train.identity import RunFile
from thermokron.model import ArrayPhysics, UnitSpec
from thermokron.model.files import naming_file, write_whole

__all__ = ["RunResult", "StepLog", "write_result"]


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
        sampling, and results that leave while the array waits.
    port_seconds : float
        For how long what was moved takes the unit's ports, beside that time.
    span_seconds : float
        Time on as many units as there are layers.
    unit_runs : int
        Runs of the unit.
    activity : dict of str to int
        What they came to, see `thermokron.host.linalg.Activity`.
    bytes_to_unit, bytes_from_unit : int
        What passed its port.
    digital_flops : int
        The host's floating-point operations beyond forward and backward pass and the factors'
        moments.
    clipped_steps : int
        Steps that the KL clip shortened.

    run : str
        Digest of all that the losses depend on, see `thermokron.host.train.identity`.

    The rest repeats the configuration; None where it does not apply.
    """

    run: str
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
    port_seconds: float
    span_seconds: float
    unit_runs: int
    activity: dict[str, int]
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
            "compiled": "K-FAC, compiled RTL",
            "numeric": "K-FAC, numeric",
            "statistical": "K-FAC, statistical",
            "exact": "K-FAC, exact",
            "diagonal": "K-FAC, diagonal",
        }
        return names[self.engine]


class StepLog:
    """One line of JSON per step, written at once, so that a run can be followed.

    Each line names its run, and `run.json` beside it says what that is. A log begins anew with
    step 0. With a later step, as of a run that is resumed, it goes on, and lines from that step on,
    of what was not saved, are dropped.

    Parameters
    ----------
    path : Path
        The file; folders are made as needed.
    owner : RunFile
        Whose it is.
    outdated : sequence of Path
        Files of an older run, which are removed with its log.

    Attributes
    ----------
    missing : int
        Steps before the first, of a run that is resumed, which the file did not hold.
    """

    def __init__(self, path: Path, owner: RunFile, outdated: Sequence[Path] = ()) -> None:
        self.path = path
        self.missing = 0
        self._owner = owner
        self._outdated = tuple(outdated)
        self._begun = False

    def check_resumable(self) -> None:
        """`ValueError` if the folder, or a line of the file, is another run's."""
        self._owner.check()
        self._kept()

    def begin(self, step: int | None) -> None:
        """Make file and folder this run's, of which `step` comes next, or none any more (None)."""
        if self._begun:
            return
        known = self._kept() if step != 0 else []
        kept = [line for number, line in known if step is None or number < step]
        for file in self._outdated:
            file.unlink(missing_ok=True)
        self.missing = 0 if step is None else step - len(kept)
        self._owner.write()
        if kept or step is not None:
            write_whole(self.path, "".join(line + "\n" for line in kept))
        self._begun = True

    def write(self, metrics: Mapping[str, float]) -> None:
        """Add a line; `metrics` has a "step"."""
        self.begin(int(metrics["step"]))
        line = json.dumps(_finite({**metrics, "run": self._owner.digest}), allow_nan=False)
        with naming_file(self.path), self.path.open("a", encoding="utf-8") as lines:
            lines.write(line + "\n")

    def _kept(self) -> list[tuple[int, str]]:
        """The file's lines, each with its step; but for the last, if it was cut short."""
        if not self.path.exists():
            return []
        kept: list[tuple[int, str]] = []
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                run, step = record.get("run"), int(record["step"])
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                if number == len(lines):
                    break
                raise ValueError(
                    f"{self.path}, line {number}, is damaged ({error!r}); remove it, or give "
                    "another folder with -o"
                ) from None
            if run != self._owner.digest:
                raise ValueError(
                    f"{self.path}, line {number}, is of another run ({run}, not "
                    f"{self._owner.digest}); give another folder with -o"
                )
            kept.append((step, line))
        return kept


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
    return write_whole(path, json.dumps(_finite(record), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """The value with None for every number that JSON has not: NaN and the infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
