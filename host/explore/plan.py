"""Plans of searches: TOML files that say what is trained, what varies, and what is good enough."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from thermokron.host.explore.axes import AXES, Axis, axis
from thermokron.host.explore.candidate import Candidate
from thermokron.host.explore.numbers import si
from thermokron.host.studies.plan_files import PlanFiles
from thermokron.host.studies.runs import Run, make_config
from thermokron.host.studies.settings import about, check_number_of_runs, own_tasks, take
from thermokron.host.train.networks import BUILDERS
from thermokron.model import UnitSpec
from thermokron.model.checks import check_integer, check_real
from thermokron.model.files import digest

__all__ = ["Plan", "load_plan", "plan_names", "plan_text"]

PLANS = PlanFiles("thermokron.host.explore")
ENGINES = ("numeric", "statistical")
#: Settings of training that a plan has elsewhere.
ELSEWHERE = ("engine", "optimizer", "seed", "samples", "settle", "method")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is searched.

    Attributes
    ----------
    name, title : str
        For folders and headings; the name is the file's.
    config : dict
        Settings of `TrainConfig`: at least `network`. Exact K-FAC trains with them, too.
    space : dict
        Name of an axis of `thermokron.host.explore.axes.AXES` to a value, a list of values, or a
        range `{from, to}` with `step` or `log = true`. What is not there is fixed.
    trials : int
        Candidates proposed, rounded up to whole generations.
    generation : int
        So many are proposed before the first of them is trained: what is proposed does not depend
        on who trains them, or in which order.
    search_seed : int
        Of the search.
    seeds : list of int
        Of training; losses are medians over them, costs means.
    check_seeds : list of int
        Others, from which the front trains again when all is searched: whoever was chosen for its
        losses had luck with them. Here each is held to exact K-FAC from the same seed.
    engine : "numeric" or "statistical"
        What the candidates are trained on.
    within : float
        A candidate is feasible if its loss is at most 1 + so much of exact K-FAC's.
    clock_hz : float
        Of the unit.
    conversion_ns, discharge_ns : float
        What a conversion and a discharge take, rounded up to clock cycles.
    word_bits : int
        Of a word on the link, one for a code.

    Raises
    ------
    ValueError
        If a value is illegal, or one on its axis; the message names it.
    """

    name: str
    title: str
    config: dict[str, Any]
    space: dict[str, Any]
    trials: int
    generation: int = 8
    search_seed: int = 0
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    check_seeds: list[int] = field(default_factory=lambda: [100, 101, 102, 103, 104])
    engine: str = "numeric"
    within: float = 0.1
    clock_hz: float = 1e9
    conversion_ns: float = 10.0
    discharge_ns: float = 20.0
    word_bits: int = 16

    def __post_init__(self) -> None:
        check_integer("trials", self.trials, 1, 100_000)
        check_integer("generation", self.generation, 1, 1000)
        check_integer("search_seed", self.search_seed, 0, 2**32 - 1)
        check_real("within", self.within, 1e-6, 100.0)
        check_real("clock_hz", self.clock_hz, 1e3, 1e10)
        check_real("conversion_ns", self.conversion_ns, 1e-3, 1e9)
        check_real("discharge_ns", self.discharge_ns, 1e-3, 1e9)
        check_integer("word_bits", self.word_bits, 1, 64)
        if self.engine not in ENGINES:
            raise ValueError(f"engine = {self.engine!r} is unknown; legal: {', '.join(ENGINES)}")
        for name, seeds in (("seeds", self.seeds), ("check_seeds", self.check_seeds)):
            if not seeds or len(set(seeds)) < len(seeds):
                raise ValueError(f"{name} = {seeds}; legal: one at least, each once")
        if shared := set(self.seeds) & set(self.check_seeds):
            raise ValueError(
                f"check_seeds = {self.check_seeds} has {min(shared)}, which is in seeds; legal: "
                "none of those of the search"
            )
        check_number_of_runs(self.trials, len(self.seeds) + len(self.check_seeds))
        for name in ELSEWHERE:
            if name in self.config:
                raise ValueError(f"{name} does not belong in config; the plan has it elsewhere")
        if "network" not in self.config:
            raise ValueError("network is missing in config")
        network = self.config["network"]
        if not isinstance(network, str) or (":" not in network and network not in BUILDERS):
            raise ValueError(
                f"config: network = {network!r} is unknown; legal: {', '.join(BUILDERS)}, or "
                '"module:function"'
            )
        with about("config"):
            for seed in [*self.seeds, *self.check_seeds]:
                self.reference(seed)
        if all(each.fixed for each in self.axes.values()):
            raise ValueError("space has nothing to choose; legal: a list or a range at least")
        self._check_space()

    def _check_space(self) -> None:
        """Every value, with all others as they are if left out, makes a unit and a run."""
        axes = self.axes
        for cells in axes["cells"].steps:
            for folds in axes["folds"].steps:
                if cells % folds:
                    raise ValueError(
                        f"folds in space has {folds}, which does not divide cells = {cells}; "
                        "legal: divisors of all cells"
                    )
        plain = {name: fixed for name, (_, fixed) in AXES.items()}
        for name, each in axes.items():
            for value in each.ends:
                with about(f"{name} = {value} in space"):
                    cells = axes["cells"].ends[0] if name == "folds" else plain["cells"]
                    values = plain | {"cells": cells, name: value}
                    candidate = Candidate.of(values, self.unit, self.word_bits)
                    self.run("", candidate, self.seeds[0])
                    _ = candidate.technology
        for name in ("coupling_bits", "bias_bits", "adc_bits"):
            self._check_word(f"{name} in space", max(axes[name].ends))
        for spec in (one.spec for one in self.baselines.values()):
            self._check_word("the default unit", max(spec.coupling_bits, spec.bias_bits))

    def _check_word(self, what: str, bits: int) -> None:
        if bits > self.word_bits:
            raise ValueError(
                f"word_bits = {self.word_bits}, but {what} has codes of {bits} bits; legal: "
                f"{bits} to 64"
            )

    # ---- what to try ----------------------------------------------------------------------

    @cached_property
    def axes(self) -> dict[str, Axis]:
        """All of them, by name."""
        given = {name: axis(name, value) for name, value in self.space.items()}
        return {name: given.get(name) or axis(name, fixed) for name, (_, fixed) in AXES.items()}

    @property
    def generations(self) -> int:
        """Of so many trials."""
        return -(-self.trials // self.generation)

    @property
    def unit(self) -> dict[str, Any]:
        """Fields of `UnitSpec` that are no axes."""
        return {
            "clock_hz": self.clock_hz,
            "adc_cycles": max(math.ceil(1e-9 * self.conversion_ns * self.clock_hz - 1e-6), 4),
            "discharge_cycles": max(math.ceil(1e-9 * self.discharge_ns * self.clock_hz - 1e-6), 1),
        }

    def candidate(self, values: Mapping[str, Any]) -> Candidate:
        """Of a value for each axis; of those that have but one it may be left out."""
        fixed = {name: each.values[0] for name, each in self.axes.items() if each.fixed}
        return Candidate.of(fixed | dict(values), self.unit, self.word_bits)

    @property
    def baselines(self) -> dict[str, Candidate]:
        """What the search has to beat, by name: the default unit, and the same at this clock."""
        default = UnitSpec()
        clocked = UnitSpec(**self.unit)
        return {
            "the default unit": Candidate(default, word_bits=self.word_bits),
            f"the default, {si(self.clock_hz, 'Hz', 2)}": Candidate(
                clocked, word_bits=self.word_bits
            ),
        }

    # ---- what to run ----------------------------------------------------------------------

    @property
    def tasks(self) -> list[str]:
        """Functions of the user's that it imports and calls."""
        return own_tasks([self.config])

    def reference(self, seed: int) -> Run:
        """Exact K-FAC from a seed."""
        settings = {**self.config, "optimizer": "kfac", "engine": "exact", "seed": seed}
        return Run(label=f"exact K-FAC, seed {seed}", config=make_config(settings))

    def run(self, name: str, candidate: Candidate, seed: int) -> Run:
        """A candidate's training from a seed."""
        settings = {
            **self.config,
            "optimizer": "kfac",
            "engine": self.engine,
            "seed": seed,
            **candidate.settings,
        }
        return Run(label=f"{name}, seed {seed}", config=make_config(settings), spec=candidate.spec)

    @cached_property
    def digest(self) -> str:
        """Stands for all that decides what is proposed: not the number of trials, nor the check."""
        axes = {name: str(each) for name, each in self.axes.items()}
        runs = [self.reference(seed).key for seed in self.seeds]
        return digest(
            axes,
            runs,
            self.unit,
            [self.generation, self.search_seed, self.engine, self.within, self.word_bits],
            digits=16,
        )


def plan_names() -> list[str]:
    """Names of the plans that come with the package."""
    return PLANS.names()


def plan_text(name: str) -> str:
    """A plan as it is written; arguments and errors as of `load_plan`."""
    return PLANS.text(name)


def load_plan(name: str) -> Plan:
    """The plan of a search.

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
    name, table = PLANS.table(name)
    with about(f"plan {name}"):
        plan: Plan = take(Plan, {"name": name, **table})
    return plan
