"""The demo: K-FAC on a co-simulated unit beside exact K-FAC, a diagonal control, Adam and SGD."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from thermokron.host.engines import open_unit
from thermokron.host.train.config import TrainConfig
from thermokron.host.train.results import RunResult
from thermokron.host.train.training import Progress, one_thread, train
from thermokron.model import UnitSpec

__all__ = ["MARKS", "Claim", "DemoOutcome", "DemoPlan", "Listener", "median_loss", "run_demo"]

#: Epochs whose loss is reported.
MARKS = (1, 3, 5, 10)

#: What listens to the demo: called with a job's name, the steps done, the steps there are, and
#: a remark.
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
    unit_engine: str = "cosim"
    spec: UnitSpec = field(default_factory=UnitSpec)
    timeout_s: float | None = None

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
    if plan.unit_engine == "cosim":
        listen("building the simulator", 0, 1, "")
        open_unit("cosim", plan.spec, timeout_s=plan.timeout_s).close()
        listen("building the simulator", 1, 1, "")
    started = time.perf_counter()
    tuning = []
    rates: dict[tuple[str, str | None], float] = {}
    with one_thread():
        for (optimizer, engine), grid in plan.grids.items():
            tried = _tune(plan, optimizer, engine, grid, listen)
            tuning += tried
            rates[optimizer, engine] = next(t["lr"] for t in tried if t["chosen"])
        rates["kfac", plan.unit_engine] = rates["kfac", "exact"]
        # a thread mostly waits for its simulator, while two numeric units would share one process
        side_by_side = len(plan.seeds) if plan.unit_engine == "cosim" else 1
        with ThreadPoolExecutor(side_by_side) as pool:
            config = _config(plan, "kfac", plan.unit_engine, rates["kfac", plan.unit_engine])
            unit_runs = list(pool.map(lambda s: _train(plan, config, s, listen), plan.seeds))
        others = {}
        for (optimizer, engine), lr in rates.items():
            if engine != plan.unit_engine:
                config = _config(plan, optimizer, engine, lr)
                others[optimizer, engine] = [_train(plan, config, s, listen) for s in plan.seeds]
        numeric = None
        if plan.unit_engine != "numeric":
            config = _config(plan, "kfac", "numeric", rates["kfac", "exact"])
            numeric = [_train(plan, config, s, listen) for s in plan.seeds]
    claims = _claims(plan, unit_runs, others, numeric)
    runs = unit_runs + [run for kind in others.values() for run in kind]
    return DemoOutcome(runs, tuning, claims, time.perf_counter() - started)


def _config(plan: DemoPlan, optimizer: str, engine: str | None, lr: float) -> dict[str, Any]:
    return {"optimizer": optimizer, "engine": engine, "lr": lr, "epochs": plan.epochs}


def _train(plan: DemoPlan, config: dict[str, Any], seed: int, listen: Listener) -> RunResult:
    settings = TrainConfig(seed=seed, **config)
    name = f"{settings.label}, seed {seed}"

    def follow(now: Progress) -> None:
        listen(name, now.step, now.steps, f"loss {now.loss:.4f}")

    return train(settings, spec=plan.spec, timeout_s=plan.timeout_s, progress=follow)


def _tune(
    plan: DemoPlan,
    optimizer: str,
    engine: str | None,
    grid: Sequence[float],
    listen: Listener,
) -> list[dict[str, Any]]:
    """Try the grid on the tuning seeds; the lowest median loss after the last epoch wins."""
    name = f"tuning {optimizer}" + (f" ({engine})" if engine else "")
    tried: list[dict[str, Any]] = []
    for index, lr in enumerate(grid):
        listen(name, index, len(grid), f"lr {lr:g}")
        config = _config(plan, optimizer, engine, lr)
        losses: list[float] | None
        try:
            runs = [train(TrainConfig(seed=seed, **config)) for seed in plan.tuning_seeds]
            losses = [median_loss(runs, epoch + 1) for epoch in range(plan.epochs)]
        except FloatingPointError:
            losses = None
        tried.append({"optimizer": optimizer, "engine": engine, "lr": lr, "train_loss": losses})
    stable = [t for t in tried if t["train_loss"] is not None]
    if not stable:
        raise ValueError(f"{name}: every learning rate of {list(grid)} diverged")
    best = min(stable, key=lambda t: float(t["train_loss"][-1]))
    listen(name, len(grid), len(grid), f"lr {best['lr']:g}")
    return [{**t, "chosen": t is best} for t in tried]


def _claims(
    plan: DemoPlan,
    unit: Sequence[RunResult],
    others: dict[tuple[str, str | None], list[RunResult]],
    numeric: Sequence[RunResult] | None,
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
    if numeric is not None:
        same = [a.train_loss == b.train_loss for a, b in zip(unit, numeric, strict=True)]
        text = f"the numeric engine gives bit-identical losses: {sum(same)} of {len(same)} seeds"
        claims.append(Claim(text, all(same)))
    return claims
