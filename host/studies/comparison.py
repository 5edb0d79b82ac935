"""Optimisers against each other: each tuned on other seeds, then run on the reported ones."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thermokron.host.studies.claims import Claim
from thermokron.host.studies.comparison_report import write_report
from thermokron.host.studies.effects import check_effects
from thermokron.host.studies.runs import Outcome, Run, Store, make_config
from thermokron.host.studies.settings import about, check_number_of_runs, hints, own_tasks, take
from thermokron.host.tables import median
from thermokron.host.train import TrainConfig
from thermokron.host.train.config import UNIT_ENGINES
from thermokron.model import UnitSpec
from thermokron.model.checks import finite

__all__ = ["Comparison", "Contender", "Network"]

#: Values of one setting that are tried at most.
MOST_POINTS = 1000


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

    def __post_init__(self) -> None:
        _refuse(self.config, ("epochs", "seed"), "config")
        for name in ("unit_epochs", "unit_seeds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} = {value}; legal: 1 or more")


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
            raise ValueError("there are a grid and tuned_as; give one of them")
        for settings, where in ((self.config, "config"), (self.grid, "grid")):
            _refuse(settings, ("network", "epochs", "seed"), where)
        twice = sorted(set(self.config) & set(self.grid))
        if twice:
            raise ValueError(f"{twice[0]} is in config and in grid; give it once")
        engine = self.config.get("engine")
        if self.unit is None and engine in UNIT_ENGINES:
            raise ValueError(f"engine = {engine!r} needs a unit; unit = {{}} is the default one")
        if self.unit is not None and engine not in (None, *UNIT_ENGINES):
            raise ValueError(f"unit has no effect with engine = {engine!r}")
        if self.unit is not None and self.config.get("optimizer", "kfac") != "kfac":
            raise ValueError(f"unit has no effect with optimizer = {self.config['optimizer']!r}")
        axes = [_axis(name, values) for name, values in self.grid.items()]
        check_number_of_runs(*map(len, axes))

    @property
    def trials(self) -> list[dict[str, float]]:
        """Settings tried, in the order of the grid; without one, a single trial of no settings."""
        axes = [[(name, value) for value in _axis(name, v)] for name, v in self.grid.items()]
        return [dict(point) for point in itertools.product(*axes)]


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
            parts = []
            for place, table in enumerate(getattr(self, name), 1):
                with about(f"{name}, {table.get('name', f'entry {place}')}"):
                    parts.append(take(kind, table))
            object.__setattr__(self, name, parts)
        for name in ("seeds", "targets", "networks", "contenders"):
            if not getattr(self, name):
                raise ValueError(f"{name} needs one entry at least")
        shared = set(self.seeds) & set(self.tuning_seeds)
        if shared:
            raise ValueError(f"seeds and tuning_seeds share {sorted(shared)}; tune on other seeds")
        for name, entries in (
            ("seeds", self.seeds),
            ("tuning_seeds", self.tuning_seeds),
            ("networks", [network.name for network in self.networks]),
            ("contenders", [contender.name for contender in self.contenders]),
        ):
            twice = [entry for entry, count in Counter(entries).items() if count > 1]
            if twice:
                raise ValueError(f"{name} holds {twice[0]!r} twice; legal: each once")
        if not self.tuning_seeds and any(len(c.trials) > 1 for c in self.contenders):
            raise ValueError("tuning_seeds needs one entry at least, where there is a grid")
        trials = sum(len(contender.trials) for contender in self.contenders)
        seeds = len(self.tuning_seeds) + len(self.seeds)
        check_number_of_runs(len(self.networks), trials, seeds)
        if sorted(set(self.targets), reverse=True) != self.targets or min(self.targets) <= 0.0:
            raise ValueError(f"targets = {self.targets}; legal: falling, above 0")
        self._check_names()
        self._check_runs()

    def _check_names(self) -> None:
        """Who is named exists, and runs where it is needed."""
        contenders = {c.name: c for c in self.contenders}
        networks = {n.name: n for n in self.networks}
        tuned = [c.name for c in self.contenders if c.grid]
        for contender in self.contenders:
            other = contender.tuned_as
            if other is not None and other not in tuned:
                raise ValueError(
                    f"contenders, {contender.name}: tuned_as = {other!r} names no contender with "
                    f"a grid; legal: {', '.join(tuned)}"
                )
        for network, contender in self.pairs():
            if contender.tuned_as in network.skip:
                raise ValueError(
                    f"networks, {network.name}: skip has {contender.tuned_as!r}, as which "
                    f"{contender.name!r} is tuned; skip both or neither"
                )
        for network in self.networks:
            for name in network.skip:
                if name not in contenders:
                    raise ValueError(
                        f"networks, {network.name}: skip has {name!r}; "
                        f"legal: {', '.join(contenders)}"
                    )
        for place, claim in enumerate(self.claims, 1):
            for who in (claim.contender, claim.against):
                if who not in contenders:
                    raise ValueError(
                        f"claims, entry {place}: a claim names {who!r}; "
                        f"legal: {', '.join(contenders)}"
                    )
            for name in claim.networks:
                if name not in networks:
                    raise ValueError(
                        f"claims, entry {place}: networks has {name!r}; "
                        f"legal: {', '.join(networks)}"
                    )
                for who in (claim.contender, claim.against):
                    if who in networks[name].skip:
                        raise ValueError(
                            f"claims, entry {place}: {who!r} is not run on {name!r}, which skips it"
                        )

    def _check_runs(self) -> None:
        """Every setting of every trial is legal, and has an effect somewhere."""
        runs: list[tuple[Network, Contender, Run]] = []
        for network, contender in self.pairs():
            for trial in self._tuned_as(contender).trials:
                with about(_label(network, contender, trial)):
                    run = self._run(network, contender, trial, self.seeds[0])
                runs.append((network, contender, run))
        for contender in self.contenders:
            with about(f"contenders, {contender.name}"):
                mine = [run for _, who, run in runs if who is contender]
                check_effects((*contender.config, *contender.grid), mine)
                overridden = set(contender.config) & set(self._tuned_as(contender).grid)
                if overridden:
                    raise ValueError(
                        f"{min(overridden)} has no effect: it is taken over from "
                        f"{contender.tuned_as!r}"
                    )
        for network in self.networks:
            with about(f"networks, {network.name}"):
                here = [run for where, _, run in runs if where is network]
                if not here:
                    raise ValueError("skip leaves no contender")
                check_effects(network.config, here)
                if all(run.spec is None for run in here):
                    for name in ("unit", "unit_epochs", "unit_seeds"):
                        if getattr(network, name):
                            raise ValueError(f"{name} has no effect: no contender has a unit")

    # ---- what to run ----------------------------------------------------------------------

    @property
    def tasks(self) -> list[str]:
        """Functions of the user's that it imports and calls."""
        return own_tasks(network.config for network in self.networks)

    def stages(self, store: Store) -> Iterator[tuple[str, list[Run]]]:
        """Tuning, then the reported runs."""
        tuning = [run for pair in self.pairs() for run in self._tuning(*pair)]
        if tuning:
            yield "tuning", tuning
        yield (
            "reported runs",
            [run for pair in self.pairs() for run in self.reported(*pair, store)],
        )

    def pairs(self) -> Iterator[tuple[Network, Contender]]:
        """Who is run on what."""
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
        label = f"{_label(network, contender, trial)}, seed {seed}"
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
        contender = self._tuned_as(contender)
        if len(contender.trials) == 1:
            return contender.trials[0]

        def rank(trial: dict[str, float]) -> tuple[float, float]:
            done = [store[self._run(network, contender, trial, s)] for s in self.tuning_seeds]
            return (
                median(o.epochs_to(self.targets[-1], for_good=True) for o in done),
                median(o.final_loss for o in done),
            )

        return min(contender.trials, key=rank)

    def _tuned_as(self, contender: Contender) -> Contender:
        """Whose trials count: those of the contender itself, or of the one it names."""
        if contender.tuned_as is None:
            return contender
        return next(c for c in self.contenders if c.name == contender.tuned_as)

    def reported(self, network: Network, contender: Contender, store: Store) -> list[Run]:
        """The runs that are reported, by seed."""
        best = self.chosen(network, contender, store)
        seeds = self.seeds if contender.unit is None else self.seeds[: network.unit_seeds]
        return [self._run(network, contender, best, seed) for seed in seeds]

    def report(self, store: Store, folder: Path) -> list[Path]:
        """`tables.md` and `loss.png`."""
        results: dict[str, dict[str, list[tuple[Run, Outcome]]]] = {}
        for network, contender in self.pairs():
            runs = self.reported(network, contender, store)
            found = [(run, store[run]) for run in runs]
            results.setdefault(network.name, {})[contender.name] = found
        return write_report(
            folder,
            title=self.title,
            targets=self.targets,
            results=results,
            claims=self.claims,
            made_from=store.told_runs(),
            versions=store.told_versions(),
        )


def _label(network: Network, contender: Contender, trial: dict[str, float]) -> str:
    return ", ".join(
        [network.name, contender.name, *(f"{name} {value:.3g}" for name, value in trial.items())]
    )


def _refuse(settings: dict[str, Any], names: tuple[str, ...], where: str) -> None:
    """`ValueError` for settings that a plan says elsewhere, and that would be overridden."""
    for name in names:
        if name in settings:
            raise ValueError(f"{name} does not belong in {where}; the plan has it elsewhere")


def _axis(name: str, values: Any) -> list[float]:
    if isinstance(values, dict):
        if set(values) != {"from", "to", "points"}:
            raise ValueError(f"grid of {name} = {values}; legal: a list, or from, to and points")
        low, high, points = values["from"], values["to"], values["points"]
        if not (
            all(isinstance(value, int | float) and finite(value) for value in (low, high))
            and 0 < low < high
            and isinstance(points, int)
            and 1 < points <= MOST_POINTS
        ):
            raise ValueError(
                f"grid of {name} = {values}; legal: 0 < from < to, 2 to {MOST_POINTS:,} points"
            )
        # three digits, so that tables say exactly what was run
        return [float(f"{low * (high / low) ** (i / (points - 1)):.3g}") for i in range(points)]
    kind = int if hints(TrainConfig).get(name) is int else float

    def fits(value: Any) -> bool:
        return isinstance(value, int | kind) and not isinstance(value, bool) and finite(value)

    if not isinstance(values, list) or not values or not all(map(fits, values)):
        numbers = "integers" if kind is int else "numbers"
        raise ValueError(
            f"grid of {name} = {values!r}; legal: a list of {numbers}, or from, to and points"
        )
    return [kind(value) for value in values]
