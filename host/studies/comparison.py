"""Optimisers against each other: each tuned on other seeds, then run on the reported ones."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thermokron.host.studies.plan import take
from thermokron.host.studies.runs import Outcome, Run, Store, make_config
from thermokron.host.studies.tables import markdown, median, number, write
from thermokron.model import UnitSpec

__all__ = ["Claim", "Comparison", "Contender", "Network"]


@dataclass(frozen=True, kw_only=True)
class Network:
    """What is trained.

    Attributes
    ----------
    name : str
        For tables and plots.
    config : dict
        Settings of `TrainConfig` that belong to it.
    epochs : int
        Passes over the training images.
    unit_epochs : int, optional
        The same for contenders on a unit, which take long to simulate; `epochs` if not given.
    unit_seeds : int, optional
        The same for seeds: contenders on a unit run from this many of the first.
    unit : dict
        Fields of `UnitSpec` that suit it, such as `cells`.
    skip : list of str
        Contenders that are not run on it.
    """

    name: str
    config: dict[str, Any]
    epochs: int
    unit_epochs: int | None = None
    unit_seeds: int | None = None
    unit: dict[str, Any] = field(default_factory=dict)
    skip: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Contender:
    """An optimiser.

    Attributes
    ----------
    name : str
        For tables and plots.
    config : dict
        Settings of `TrainConfig` that belong to it.
    grid : dict
        Setting to the values tried; every combination is one trial. A list, or a table
        `{from, to, points}` of values evenly spaced in the logarithm. Without one nothing is
        tuned.
    tuned_as : str, optional
        In place of a grid: takes over what was chosen for that contender.
    unit : dict, optional
        Fields of `UnitSpec`; given, the factors are inverted on such a unit.
    """

    name: str
    config: dict[str, Any]
    grid: dict[str, Any] = field(default_factory=dict)
    tuned_as: str | None = None
    unit: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.grid and self.tuned_as is not None:
            raise ValueError(f"contender {self.name} has a grid and tuned_as; give one of them")

    @property
    def trials(self) -> list[dict[str, float]]:
        """Settings tried, in the order of the grid; without one, a single trial of no settings."""
        axes = [[(name, value) for value in _axis(name, v)] for name, v in self.grid.items()]
        return [dict(point) for point in itertools.product(*axes)]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Something that should hold on every network it names.

    Attributes
    ----------
    contender, against : str
        Who is compared with whom, by name.
    measure : "epochs" or "accuracy"
        The quotient of median epochs to the last target, or how many percentage points the
        contender's median test accuracy is lower.
    at_most : float
        What that should not exceed.
    networks : list of str
        By name.
    """

    contender: str
    against: str
    at_most: float
    networks: list[str]
    measure: str = "epochs"

    def __post_init__(self) -> None:
        if self.measure not in ("epochs", "accuracy"):
            raise ValueError(f"measure = {self.measure!r} is unknown; legal: epochs, accuracy")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Networks times contenders, medians over seeds.

    Attributes
    ----------
    name, title : str
        Of the study.
    seeds, tuning_seeds : list of int
        Seeds that are reported, and those on which settings are chosen; none in common.
    targets : list of float
        Training losses, falling. The trial with the fewest median epochs until the loss stays at
        or below the last one wins, so that a fast trial that jumps up again does not; if none
        stays there, the one with the lowest median final loss.
    networks, contenders, claims : list
        What is compared, and what should come out.
    """

    name: str
    title: str
    seeds: list[int]
    tuning_seeds: list[int]
    targets: list[float]
    networks: list[Network]
    contenders: list[Contender]
    claims: list[Claim] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, kind in (("networks", Network), ("contenders", Contender), ("claims", Claim)):
            parts = [take(kind, table) for table in getattr(self, name)]
            object.__setattr__(self, name, parts)
        shared = set(self.seeds) & set(self.tuning_seeds)
        if shared:
            raise ValueError(f"seeds and tuning_seeds share {sorted(shared)}; tune on other seeds")
        for name in ("seeds", "targets", "networks", "contenders"):
            if not getattr(self, name):
                raise ValueError(f"{name} needs one entry at least")
        if not self.tuning_seeds and any(len(c.trials) > 1 for c in self.contenders):
            raise ValueError("tuning_seeds needs one entry at least, where there is a grid")
        if sorted(self.targets, reverse=True) != self.targets or min(self.targets) <= 0.0:
            raise ValueError(f"targets = {self.targets}; legal: falling, above 0")
        known = {c.name for c in self.contenders}
        tuned = {c.name for c in self.contenders if c.grid}
        for contender in self.contenders:
            if contender.tuned_as is not None and contender.tuned_as not in tuned:
                raise ValueError(
                    f"tuned_as = {contender.tuned_as!r} names no contender with a grid; "
                    f"legal: {', '.join(sorted(tuned))}"
                )
        for name in itertools.chain(*((c.contender, c.against) for c in self.claims)):
            if name not in known:
                raise ValueError(f"a claim names {name!r}; legal: {', '.join(sorted(known))}")
        for network, contender in self._pairs():  # every setting is checked before a run is made
            self._run(network, contender, contender.trials[0], self.seeds[0])

    # ---- what to run ----------------------------------------------------------------------

    def stages(self, store: Store) -> Iterator[tuple[str, list[Run]]]:
        """Tuning, then the reported runs."""
        tuning = [run for pair in self._pairs() for run in self._tuning(*pair)]
        if tuning:
            yield "tuning", tuning
        yield (
            "reported runs",
            [run for pair in self._pairs() for run in self._reported(*pair, store)],
        )

    def _pairs(self) -> Iterator[tuple[Network, Contender]]:
        for network in self.networks:
            for contender in self.contenders:
                if contender.name not in network.skip:
                    yield network, contender

    def _run(
        self, network: Network, contender: Contender, trial: dict[str, float], seed: int
    ) -> Run:
        settings = {"epochs": network.epochs, **network.config, **contender.config, **trial}
        spec = None
        if contender.unit is not None:
            settings = {"engine": "numeric", **settings}
            settings["epochs"] = network.unit_epochs or network.epochs
            spec = take(UnitSpec, {**network.unit, **contender.unit})
        values = ", ".join(f"{name} {value:.3g}" for name, value in trial.items())
        label = f"{network.name}, {contender.name}, {values}, seed {seed}"
        return Run(label=label, config=make_config({**settings, "seed": seed}), spec=spec)

    def _tuning(self, network: Network, contender: Contender) -> list[Run]:
        if len(contender.trials) == 1:  # nothing to choose
            return []
        return [
            self._run(network, contender, trial, seed)
            for trial in contender.trials
            for seed in self.tuning_seeds
        ]

    def chosen(self, network: Network, contender: Contender, store: Store) -> dict[str, float]:
        """The settings that tuning found best."""
        if contender.tuned_as is not None:
            contender = next(c for c in self.contenders if c.name == contender.tuned_as)
        if len(contender.trials) == 1:
            return contender.trials[0]

        def rank(trial: dict[str, float]) -> tuple[float, float]:
            done = [store[self._run(network, contender, trial, s)] for s in self.tuning_seeds]
            return (
                median(o.epochs_to(self.targets[-1], for_good=True) for o in done),
                median(o.final_loss for o in done),
            )

        return min(contender.trials, key=rank)

    def _reported(self, network: Network, contender: Contender, store: Store) -> list[Run]:
        best = self.chosen(network, contender, store)
        seeds = self.seeds if contender.unit is None else self.seeds[: network.unit_seeds]
        return [self._run(network, contender, best, seed) for seed in seeds]

    # ---- what to tell ---------------------------------------------------------------------

    def report(self, store: Store, folder: Path) -> list[Path]:
        """`tables.md` and `loss.png`."""
        from thermokron.host.studies.plots import plot_curves

        parts = [f"## {self.title}"]
        for network in self.networks:
            parts += [f"### {network.name}", self._table(network, store)]
        if self.claims:
            parts += ["### What should hold", self._verdicts(store)]
        curves: dict[str, dict[str, list[list[float]]]] = {}
        for network, contender in self._pairs():
            runs = self._reported(network, contender, store)
            losses = [store[run].step_loss for run in runs]
            curves.setdefault(network.name, {})[contender.name] = losses
        return [
            write(folder / "tables.md", *parts),
            plot_curves(curves, folder / "loss.png", title=self.title, targets=self.targets),
        ]

    def _outcomes(self, network: Network, contender: Contender, store: Store) -> list[Outcome]:
        return [store[run] for run in self._reported(network, contender, store)]

    def _table(self, network: Network, store: Store) -> str:
        head = ["", "settings", *(f"epochs to {target:g}" for target in self.targets)]
        found = [
            (contender, self._outcomes(network, contender, store))
            for other, contender in self._pairs()
            if other is network
        ]
        classes = any(math.isfinite(o.test_accuracy) for _, side in found for o in side)
        head += ["final loss", "epochs run", "seeds"]
        head += ["test accuracy" if classes else "test loss", "ms per epoch"]
        head += [f"s to {self.targets[-1]:g}", "ms on the unit per epoch"]
        rows = []
        for contender, outcomes in found:
            epochs = len(outcomes[0].train_loss) - 1
            per_epoch = median(o.wall_seconds / (len(o.train_loss) - 1) for o in outcomes)
            reached = [median(o.epochs_to(t) for o in outcomes) for t in self.targets]
            hardware = median(o.hardware_seconds for o in outcomes) / epochs
            simulated = contender.unit is not None
            rows.append(
                [
                    contender.name,
                    _settings(self._reported(network, contender, store)[0]),
                    *(number(value) for value in reached),
                    number(median(o.final_loss for o in outcomes), 2),
                    str(epochs),
                    str(len(outcomes)),
                    _percent(statistics.median(o.test_accuracy for o in outcomes))
                    if classes
                    else number(median(o.test_loss for o in outcomes), 2),
                    "simulated" if simulated else number(1e3 * per_epoch),
                    "simulated" if simulated else number(reached[-1] * per_epoch),
                    number(1e3 * hardware) if simulated else "",
                ]
            )
        return markdown(head, rows)

    def _verdicts(self, store: Store) -> str:
        contenders = {c.name: c for c in self.contenders}
        networks = {n.name: n for n in self.networks}
        target = self.targets[-1]
        rows = []
        for claim in self.claims:
            for name in claim.networks:
                if name not in networks or claim.contender in networks[name].skip:
                    continue
                pair = [
                    self._outcomes(networks[name], contenders[who], store)
                    for who in (claim.contender, claim.against)
                ]
                shared = min(map(len, pair))  # the same seeds on both sides
                pair = [side[:shared] for side in pair]
                if claim.measure == "epochs":
                    what = f"epochs to {target:g}, quotient"
                    first, second = (median(o.epochs_to(target) for o in side) for side in pair)
                    found = first / second if math.isfinite(second) else math.nan
                else:
                    what = "test accuracy, points lower"
                    first, second = (
                        100.0 * statistics.median(o.test_accuracy for o in side) for side in pair
                    )
                    found = second - first
                rows.append(
                    [
                        f"{claim.contender} against {claim.against}, {name}",
                        what,
                        number(found),
                        number(claim.at_most),
                        "yes" if found <= claim.at_most else "**no**",
                    ]
                )
        head = ["medians over the same seeds", "", "measured", "at most", "holds"]
        return markdown(head, rows)


def _percent(part: float) -> str:
    """A share; nothing where there is none, as of runs that diverged."""
    return f"{100.0 * part:.1f}%" if math.isfinite(part) else ""


def _settings(run: Run) -> str:
    damping = f", damping {run.config.damping:.3g}" if run.config.optimizer == "kfac" else ""
    return f"lr {run.config.lr:.3g}{damping}"


def _axis(name: str, values: Any) -> list[float]:
    if isinstance(values, dict):
        if set(values) != {"from", "to", "points"}:
            raise ValueError(f"grid of {name} = {values}; legal: a list, or from, to and points")
        low, high, points = values["from"], values["to"], values["points"]
        if not (0 < low < high and isinstance(points, int) and points > 1):
            raise ValueError(f"grid of {name} = {values}; legal: 0 < from < to, 2 points or more")
        # three digits, so that tables say exactly what was run
        return [float(f"{low * (high / low) ** (i / (points - 1)):.3g}") for i in range(points)]
    if not isinstance(values, list) or not values:
        raise ValueError(f"grid of {name} = {values!r}; legal: a list, or from, to and points")
    return [float(value) for value in values]
