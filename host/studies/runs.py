"""One training run of a study: what it is, what came out, and the file that remembers it."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from thermokron.host.linalg import NotPositiveDefinite
from thermokron.host.studies.settings import hints, take
from thermokron.host.train import Progress, TrainConfig, train
from thermokron.host.train.cluster import check_wanted
from thermokron.model import UnitSpec
from thermokron.model.files import digest, write_whole

__all__ = ["Outcome", "Run", "Store", "execute", "make_config"]


#: How a run can end.
ENDS = ("finished", "diverged", "refused")
#: Of the files that hold outcomes, and of what they mean: another one's are not taken for these.
FORMAT = "thermokron study run 2"


def make_config(settings: Mapping[str, Any]) -> TrainConfig:
    """`TrainConfig` of a plan's settings; without an `engine`, the one that needs no unit.

    "none" stands for None where that is legal, as TOML has no word for it.
    """
    optional = {name for name, hint in hints(TrainConfig).items() if NoneType in get_args(hint)}
    settings = {
        name: None if value == "none" and name in optional else value
        for name, value in settings.items()
    }
    optimizer = settings.get("optimizer", "kfac")
    settings.setdefault("engine", "exact" if optimizer == "kfac" else None)
    if isinstance(settings.get("hidden"), list):
        settings["hidden"] = tuple(settings["hidden"])
    config: TrainConfig = take(TrainConfig, settings)
    return config


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run.

    Attributes
    ----------
    label : str
        What it is called while it runs; two runs that differ in nothing else are the same.
    config : TrainConfig
        What to train, and how.
    spec : UnitSpec or None
        The unit, where the engine is one.
    """

    label: str
    config: TrainConfig
    spec: UnitSpec | None = None

    @cached_property
    def record(self) -> dict[str, Any]:
        """All that decides the outcome, as JSON."""
        spec = None if self.spec is None else json.loads(self.spec.to_json())
        record: dict[str, Any] = json.loads(
            json.dumps({"config": asdict(self.config), "spec": spec})
        )
        return record

    @cached_property
    def key(self) -> str:
        """Sixteen hexadecimal digits that stand for `record`."""
        return digest(FORMAT, self.record, digits=16)

    def with_seed(self, seed: int) -> Run:
        """The same run from another seed."""
        return replace(self, config=replace(self.config, seed=seed))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run left.

    Attributes
    ----------
    train_loss : list of float
        Loss over all training examples: before training, then after each epoch. It ends with inf
        where the run did not end well.
    step_loss : list of float
        Loss of every step's batch, before the step; as many as there were.
    test_accuracy : float
        At the end; NaN where the targets are no classes, or the run did not end well.
    wall_seconds : float
        Of training, on one thread.
    hardware_seconds : float
        On the unit, by its clock; 0 without one.
    inversions : int
        Factors inverted.
    test_loss : float
        At the end; NaN where the run did not end well.
    unit : dict of str to float
        What it asked of the unit: `runs`, the counts of `thermokron.host.linalg.Activity`, seconds
        by phase, such as "load", and their "span" on as many units as there are layers. Empty
        where the run did not end well, or an older version made it.
    end : "finished", "diverged" or "refused"
        How it ended: whether the loss became NaN or inf, or the unit refused a factor that it
        could not hold as a positive definite matrix.
    """

    train_loss: list[float] = field(repr=False)
    step_loss: list[float] = field(repr=False)
    test_accuracy: float
    wall_seconds: float
    hardware_seconds: float
    inversions: int
    test_loss: float = math.nan
    unit: dict[str, float] = field(default_factory=dict, repr=False)
    end: str = "finished"

    @property
    def final_loss(self) -> float:
        """Training loss after the last epoch; inf where the run did not end well."""
        return self.train_loss[-1]

    def epochs_to(self, target: float, *, for_good: bool = False) -> float:
        """Epochs after which the training loss first is at or below `target`; inf if never.

        With `for_good`, those after which it stays there until the end. Between the ends of two
        epochs the logarithm of the loss is interpolated linearly.
        """
        above = [loss > target for loss in self.train_loss]
        if for_good:
            epoch = len(above) - (above[::-1].index(True) if True in above else len(above))
        else:
            epoch = above.index(False) if False in above else len(above)
        if epoch == len(above):
            return math.inf
        if epoch == 0:
            return 0.0
        before, loss = self.train_loss[epoch - 1 : epoch + 1]
        return epoch - math.log(target / loss) / math.log(before / loss)


def execute(run: Run, timeout_s: float | None = None) -> Outcome:
    """Train on an ideal array; a run that diverges, or whose factors the unit refuses, has an
    outcome too. A simulator may give no sign of life for `timeout_s`, see `open_unit`.

    Raises
    ------
    UnitFault
        If the unit failed.
    ValueError
        If the run cannot be made; the message names it.
    """
    losses: list[float] = []
    steps: list[float] = []

    def follow(now: Progress) -> None:
        check_wanted()
        if not losses or now.loss != losses[-1]:
            losses.append(now.loss)
        steps.append(now.metrics["loss"])

    patience = timeout_s if run.config.engine == "cosim" else None
    try:
        result = train(run.config, spec=run.spec, timeout_s=patience, progress=follow)
    except (FloatingPointError, NotPositiveDefinite) as error:
        return Outcome(
            train_loss=[*itertools.takewhile(math.isfinite, losses), math.inf],
            step_loss=[*itertools.takewhile(math.isfinite, steps)],
            test_accuracy=math.nan,
            wall_seconds=math.nan,
            hardware_seconds=math.nan,
            inversions=0,
            end="diverged" if isinstance(error, FloatingPointError) else "refused",
        )
    except ValueError as error:
        raise ValueError(f"{run.label}: {error}") from error
    return Outcome(
        train_loss=[result.initial_loss, *result.train_loss],
        step_loss=steps,
        test_accuracy=math.nan if result.test_accuracy is None else result.test_accuracy,
        wall_seconds=result.wall_seconds,
        hardware_seconds=result.hardware_seconds,
        inversions=result.inversions,
        test_loss=math.nan if result.test_loss is None else result.test_loss,
        unit={
            "runs": result.unit_runs,
            **result.activity,
            **result.phase_seconds,
            "span": result.span_seconds,
        },
    )


def _plain(outcome: Outcome) -> dict[str, Any]:
    """As JSON knows numbers: finite, or null."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {name: plain(value) for name, value in vars(outcome).items()}


def _restored(run: Run, record: dict[str, Any]) -> Outcome:
    """The outcome that a file holds for a run; `ValueError` if it cannot be that run's."""
    content = {name: value for name, value in record.items() if name != "checksum"}
    if record.get("format") != FORMAT:
        raise ValueError(f"format = {record.get('format')!r}; legal: {FORMAT!r}")
    if record.get("checksum") != digest(content):
        raise ValueError("its checksum is wrong: it was changed after the run")
    for name, value in {**run.record, "physics": None}.items():
        if record.get(name) != value:
            raise ValueError(f"its {name} is another run's")
    told = record["outcome"]
    take(Outcome, dict(_numbers(told, 0.0, 0.0)))  # so that everything is of its kind
    outcome = Outcome(**dict(_numbers(told, math.inf, math.nan)))
    if outcome.end not in ENDS:
        raise ValueError(f"end = {outcome.end!r}; legal: {', '.join(ENDS)}")
    epochs, finished = run.config.epochs, outcome.end == "finished"
    least = epochs + 1 if finished else 1
    if not least <= len(outcome.train_loss) <= epochs + 1:
        raise ValueError(
            f"train_loss has {len(outcome.train_loss)} entries; legal for {epochs} epochs: "
            f"{least} to {epochs + 1}"
        )
    return outcome


def _numbers(record: dict[str, Any], infinite: float, unknown: float) -> Iterator[tuple[str, Any]]:
    """Fields of an outcome, with these numbers in place of null."""
    for name, value in record.items():
        if name == "train_loss":
            yield name, [infinite if loss is None else loss for loss in value]
        else:
            yield name, unknown if value is None else value


class Store:
    """Outcomes by run, each in a file of its own.

    A file holds the outcome, what was run, on which array (`physics`; null is an ideal one), by
    which version of this package, and a checksum. It appears whole or not at all, so that an
    interruption costs no more than the runs that were under way. What is read is held against
    the run that is asked for.

    Parameters
    ----------
    folder : Path
        Where the files are; made when the first is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, Outcome] = {}
        self._versions: dict[str, str] = {}

    def get(self, run: Run) -> Outcome | None:
        """The outcome of a run, or None if it has not been run to its end.

        Raises
        ------
        ValueError
            If its file cannot be read as one; the message names the file.
        """
        if run.key not in self._known:
            path = self._path(run)
            if not path.exists():
                return None
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
                self._known[run.key] = _restored(run, record)
                self._versions[run.key] = str(record["version"])
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                raise ValueError(
                    f"{path} is not the result of a run ({error}); delete it to run again"
                ) from None
        return self._known[run.key]

    def __getitem__(self, run: Run) -> Outcome:
        outcome = self.get(run)
        if outcome is None:
            raise KeyError(run.label)
        return outcome

    def missing(self, runs: list[Run]) -> Iterator[Run]:
        """Those without an outcome, each once."""
        seen = set()
        for run in runs:
            if run.key not in seen and self.get(run) is None:
                seen.add(run.key)
                yield run

    def put(self, run: Run, outcome: Outcome) -> None:
        """Keep an outcome."""
        record = {
            "format": FORMAT,
            "label": run.label,
            "version": version("thermokron"),
            **run.record,
            "physics": None,
            "outcome": _plain(outcome),
        }
        record["checksum"] = digest(record)
        write_whole(self._path(run), json.dumps(record, indent=1) + "\n")
        self._known[run.key] = outcome
        self._versions[run.key] = version("thermokron")

    def told_runs(self) -> str:
        """A sentence on which runs the outcomes asked for are of."""
        return f"Made from {len(self._known):,} runs, digest {digest(sorted(self._known))}."

    def told_versions(self) -> str:
        """A sentence on what made the outcomes asked for; "" if only the installed version did."""
        counts = Counter(self._versions.values())
        if set(counts) <= {version("thermokron")}:
            return ""
        made = ", ".join(f"{name} ({count:,})" for name, count in sorted(counts.items()))
        return f"Versions of thermokron that made the runs, with their numbers of runs: {made}."

    def _path(self, run: Run) -> Path:
        return self.folder / f"{run.key}.json"
