"""The demo: K-FAC on a unit's RTL beside exact K-FAC, a diagonal control, Adam and SGD."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from thermokron.host.engines import open_unit
from thermokron.host.train.config import TrainConfig
from thermokron.host.train.results import RunResult
from thermokron.host.train.training import train
from thermokron.host.train.workers import Results, workers
from thermokron.model import UnitSpec

__all__ = ["MARKS", "Claim", "DemoOutcome", "DemoPlan", "Listener", "median_loss", "run_demo"]

#: Epochs whose loss is reported.
MARKS = (1, 3, 5, 10)

#: What listens to the demo: called with a stage, the parts done, the parts there are, and a remark.
Listener = Callable[[str, int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class DemoPlan:
    """What the demo runs.

    Attributes
    ----------
    seeds, tuning_seeds : tuple of int
        Seeds that are reported, and other ones on which learning rates are chosen.
    epochs : int
        Passes over the training images.
    grids : dict
        Learning rates tried, by optimiser and engine. K-FAC on the unit takes over the one that
        was chosen for exact K-FAC.
    unit_engine : str
        Engine of the unit.
    spec : UnitSpec
        The unit.
    timeout_s : float, optional
        How long its simulator may give no sign of life, see `open_unit`.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    tuning_seeds: tuple[int, ...] = (10, 11, 12)
    epochs: int = 10
    grids: dict[tuple[str, str | None], tuple[float, ...]] = field(
        default_factory=lambda: {
            ("kfac", "exact"): (0.035, 0.07, 0.14),
            ("kfac", "diagonal"): (0.01, 0.02, 0.03, 0.05, 0.07),
            ("adam", None): (0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1),
            ("sgd", None): (0.1, 0.2, 0.3, 0.4, 0.5, 0.7),
        }
    )
    unit_engine: str = "compiled"
    spec: UnitSpec = field(default_factory=UnitSpec)
    timeout_s: float | None = None

    @property
    def twins(self) -> dict[str, tuple[int, ...]]:
        """Other engines that repeat the unit's runs, and on which seeds, with the same losses."""
        numeric = {"numeric": self.seeds}
        return {"compiled": {"cosim": self.seeds[:1], **numeric}, "cosim": numeric}.get(
            self.unit_engine, {}
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What its results depend on, by name."""
        grids = {f"lr.{'.'.join(filter(None, key))}": grid for key, grid in self.grids.items()}
        known = asdict(self) | {"kind": "demo", "timeout_s": None}
        spec = {f"spec.{name}": value for name, value in known.pop("spec").items()}
        return {**known, **spec, "grids": None, **grids}


@dataclass(frozen=True)
class Claim:
    """Something that the demo shows, with the numbers, and whether it held this time."""

    text: str
    holds: bool


@dataclass(frozen=True)
class DemoOutcome:
    """Everything the demo found.

    Attributes
    ----------
    runs : list of RunResult
        The reported runs, each kind once per seed, in the order of the table.
    tuning : list of dict
        Every learning rate that was tried: "optimizer", "engine", "lr", "train_loss" (median
        over the tuning seeds, by epoch; null if a run diverged), "chosen".
    claims : list of Claim
        What it shows.
    wall_seconds : float
        All of it, without building the simulator.
    """

    runs: list[RunResult]
    tuning: list[dict[str, Any]]
    claims: list[Claim]
    wall_seconds: float


def median_loss(runs: Sequence[RunResult], epoch: int) -> float:
    """Median training loss after an epoch, counted from 1."""
    return statistics.median(run.train_loss[epoch - 1] for run in runs)


def run_demo(plan: DemoPlan, listen: Listener) -> DemoOutcome:
    """Tune, train and compare; a fault of the unit is raised, a claim that fails is not."""
    engines = {plan.unit_engine: plan.seeds, **plan.twins}
    for done, engine in enumerate(engines):
        listen("building the unit", done, len(engines), engine)
        patience = plan.timeout_s if engine == "cosim" else None
        open_unit(engine, plan.spec, timeout_s=patience).close()
    listen("building the unit", 1, 1, "")
    started = time.perf_counter()
    jobs = len(os.sched_getaffinity(0))
    with workers(jobs) as results:
        tuning, rates = _tuned(plan, results, listen)
        rates["kfac", plan.unit_engine] = rates["kfac", "exact"]
        kinds = [(optimizer, engine, lr, plan.seeds) for (optimizer, engine), lr in rates.items()]
        kinds += [
            ("kfac", engine, rates["kfac", "exact"], seeds) for engine, seeds in plan.twins.items()
        ]
        # what takes longest begins first
        kinds.sort(key=lambda kind: kind[1] not in plan.twins)
        tasks = [(kind[:3], seed) for kind in kinds for seed in kind[3]]
        runs: dict[Any, RunResult] = {}
        for task, run in results(partial(_trained, plan), tasks):
            assert run is not None  # a rate that did not diverge
            runs[task] = run
            listen("training", len(runs), len(tasks), f"{run.label}, seed {run.seed}")

    def of(optimizer: str, engine: str | None) -> list[RunResult]:
        lr = rates.get((optimizer, engine), rates["kfac", "exact"])
        return [run for s in plan.seeds if (run := runs.get(((optimizer, engine, lr), s)))]

    unit = of("kfac", plan.unit_engine)
    others = {kind: of(*kind) for kind in rates if kind != ("kfac", plan.unit_engine)}
    twins = {engine: of("kfac", engine) for engine in plan.twins}
    every = unit + [run for kind in others.values() for run in kind]
    claims = _claims(plan, unit, others, twins)
    return DemoOutcome(every, tuning, claims, time.perf_counter() - started)


def _trained(plan: DemoPlan, task: tuple[tuple[str, str | None, float], int]) -> RunResult | None:
    """One run, in whichever process; None if it diverged."""
    (optimizer, engine, lr), seed = task
    config = TrainConfig(optimizer=optimizer, engine=engine, lr=lr, epochs=plan.epochs, seed=seed)
    try:
        return train(config, spec=plan.spec, timeout_s=plan.timeout_s)
    except FloatingPointError:
        return None


def _tuned(
    plan: DemoPlan, results: Results, listen: Listener
) -> tuple[list[dict[str, Any]], dict[tuple[str, str | None], float]]:
    """What was tried, and by optimiser and engine the learning rate that is best.

    The lowest median loss after the last epoch, over the tuning seeds, wins.
    """
    kinds = [(*kind, lr) for kind, grid in plan.grids.items() for lr in grid]
    tasks = [(kind, seed) for kind in kinds for seed in plan.tuning_seeds]
    runs: dict[Any, RunResult | None] = {}
    for task, run in results(partial(_trained, plan), tasks):
        runs[task] = run
        optimizer, engine, lr = task[0]
        name = f"{optimizer} ({engine})" if engine else optimizer
        listen("tuning learning rates", len(runs), len(tasks), f"{name}, lr {lr:g}")
    tuning: list[dict[str, Any]] = []
    rates = {}
    for (optimizer, engine), grid in plan.grids.items():
        tried: list[dict[str, Any]] = []
        for lr in grid:
            found = [runs[(optimizer, engine, lr), seed] for seed in plan.tuning_seeds]
            stable = [run for run in found if run is not None]
            losses = None
            if len(stable) == len(found):
                losses = [median_loss(stable, epoch + 1) for epoch in range(plan.epochs)]
            tried.append({"optimizer": optimizer, "engine": engine, "lr": lr, "train_loss": losses})
        usable = [t for t in tried if t["train_loss"] is not None]
        if not usable:
            raise ValueError(f"{optimizer}: every learning rate of {list(grid)} diverged")
        best = min(usable, key=lambda t: float(t["train_loss"][-1]))
        rates[optimizer, engine] = best["lr"]
        tuning += [{**t, "chosen": t is best} for t in tried]
    return tuning, rates


def _claims(
    plan: DemoPlan,
    unit: Sequence[RunResult],
    others: dict[tuple[str, str | None], list[RunResult]],
    twins: dict[str, list[RunResult]],
) -> list[Claim]:
    adam, control = others["adam", None], others["kfac", "diagonal"]
    last = plan.epochs
    claims = []
    marks = [m for m in MARKS[1:] if m <= last]
    if marks:
        ratios = [median_loss(adam, m) / median_loss(unit, m) for m in marks]
        claims.append(
            Claim(
                "training loss below tuned Adam's: "
                + ", ".join(f"{r:.1f}x at epoch {m}" for r, m in zip(ratios, marks, strict=True)),
                min(ratios) > 1.0,
            )
        )
    ratio = median_loss(control, last) / median_loss(unit, last)
    claims.append(
        Claim(f"below the tuned diagonal control's: {ratio:.1f}x at epoch {last}", ratio >= 3)
    )
    ours, exact = (
        statistics.median(run.test_accuracy or 0.0 for run in runs)
        for runs in (unit, others["kfac", "exact"])
    )
    claims.append(
        Claim(
            f"test accuracy {ours:.4f}, with exact inverses {exact:.4f}", abs(ours - exact) <= 0.01
        )
    )
    losses = {run.seed: run.train_loss for run in unit}
    for engine, runs in twins.items():
        same = [run.train_loss == losses[run.seed] for run in runs]
        what = {"cosim": "the Verilog in a simulator"}.get(engine, f"the {engine} engine")
        text = f"{what} gives bit-identical losses: {sum(same)} of {len(same)} seeds"
        claims.append(Claim(text, all(same)))
    return claims
