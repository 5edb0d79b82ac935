"""One training run: any task, the three-line form of K-FAC, a record of what happened."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from thermokron.host.engines import open_unit
from thermokron.host.kfac import KFAC, LevenbergMarquardt, Thermodynamic
from thermokron.host.train.config import INVERTERS, UNIT_ENGINES, TrainConfig
from thermokron.host.train.evaluation import evaluate
from thermokron.host.train.results import RunResult
from thermokron.host.train.schedules import scheduler
from thermokron.host.train.tasks import Task, batch_of, make_task
from thermokron.model import ArrayPhysics, UnitSpec

__all__ = ["Progress", "one_thread", "train"]


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes
    ----------
    step, steps : int
        Steps taken, and those there will be.
    loss : float
        Loss over all training examples after the last completed epoch.
    metrics : dict
        Of this step: "step" and "epoch" from 0, "loss" of its batch, "lr", and what
        `StepMetrics.as_dict` holds, where K-FAC took part.
    """

    step: int
    steps: int
    loss: float
    metrics: dict[str, float] = field(default_factory=dict)


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in torch depend on how many threads share them; with one they are reproducible."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train(
    config: TrainConfig,
    *,
    task: Task | None = None,
    spec: UnitSpec | None = None,
    physics: ArrayPhysics | None = None,
    simulator: str = "verilator",
    progress: Callable[[Progress], None] | None = None,
) -> RunResult:
    """Train once; the same arguments give the same losses, whatever else is running.

    Parameters
    ----------
    config : TrainConfig
        What to train, and how.
    task : Task, optional
        Trains this, in place of what `config.network` names. Its model is changed.
    spec, physics : UnitSpec, ArrayPhysics, optional
        The unit, where the engine is one.
    simulator : str
        What runs the Verilog, for engine "cosim".
    progress : callable, optional
        Called after every step.

    Raises
    ------
    FloatingPointError
        If the loss became NaN or inf.
    UnitFault
        If the unit failed.
    ValueError, TypeError
        If the task is not one, or an option does not go with it or with another.
    """
    generator = torch.Generator().manual_seed(config.seed)
    with one_thread(), ExitStack() as stack:
        if task is None:
            task = stack.enter_context(make_task(config, generator))
        optimizer = _optimizer(config, task.model)
        started = time.perf_counter()
        kfac = _kfac(config, task, optimizer, stack, spec, physics, simulator)
        start_seconds = time.perf_counter() - started
        return _loop(config, task, optimizer, generator, kfac, progress, start_seconds)


def _optimizer(config: TrainConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    decay = config.weight_decay
    if config.optimizer == "adam":
        kind = torch.optim.AdamW if decay else torch.optim.Adam
        return kind(model.parameters(), lr=config.lr, weight_decay=decay)
    return torch.optim.SGD(
        model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=decay
    )


def _kfac(
    config: TrainConfig,
    task: Task,
    optimizer: torch.optim.Optimizer,
    stack: ExitStack,
    spec: UnitSpec | None,
    physics: ArrayPhysics | None,
    simulator: str,
) -> KFAC | None:
    """The preconditioner, with its unit; both close with the stack."""
    if config.optimizer != "kfac":
        return None
    assert config.engine is not None
    settings: dict[str, Any]
    if config.engine in UNIT_ENGINES:
        where = {"simulator": simulator} if config.engine == "cosim" else {}
        unit = open_unit(config.engine, spec or UnitSpec(), physics, seed=config.seed, **where)
        stack.enter_context(unit)
        settings = {
            "inverse": Thermodynamic(unit, config.samples, config.equilibrate, config.guard)
        }
    else:
        settings = {"inverse": INVERTERS[config.engine]}
    damping = LevenbergMarquardt(config.damping) if config.adapt_damping else config.damping
    kfac = KFAC(
        task.model,
        lr=optimizer,
        damping=damping,
        criterion=task.loss,
        seed=config.seed,
        **config.kfac_options,
        **settings,
    )
    return stack.enter_context(kfac)


def _loss(task: Task, inputs: tuple[Any, ...], targets: Any) -> torch.Tensor:
    loss: torch.Tensor = task.loss(task.model(*inputs), targets)
    return loss


def _loop(
    config: TrainConfig,
    task: Task,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    kfac: KFAC | None,
    progress: Callable[[Progress], None] | None,
    start_seconds: float,
) -> RunResult:
    data = task.train
    examples = len(data)  # type: ignore[arg-type]
    batches = math.ceil(examples / config.batch_size)
    steps = config.epochs * batches
    schedule = scheduler(optimizer, config.schedule, steps=steps, warmup=config.warmup)
    task.model.train()
    started = time.perf_counter()
    losses = [evaluate(task, data).loss]
    epoch_seconds = []
    metrics = []
    for epoch in range(config.epochs):
        epoch_started = time.perf_counter()
        order = torch.randperm(examples, generator=generator)
        for batch, chosen in enumerate(torch.split(order, config.batch_size)):
            inputs, targets = batch_of(data, chosen)
            optimizer.zero_grad()
            loss = _loss(task, inputs, targets)
            loss.backward()  # type: ignore[no-untyped-call]
            record = {
                "step": epoch * batches + batch,
                "epoch": epoch,
                "loss": loss.item(),
                "lr": float(optimizer.param_groups[0]["lr"]),
            }
            if kfac is not None:
                metrics.append(kfac.step())
            optimizer.step()
            schedule.step()
            if kfac is not None:
                if config.adapt_damping:
                    kfac.adapt(partial(_loss, task, inputs, targets))
                assert kfac.metrics is not None
                record = kfac.metrics.as_dict() | record
            if batch + 1 == batches:
                epoch_seconds.append(time.perf_counter() - epoch_started)
                losses.append(evaluate(task, data).loss)
            if progress is not None:
                step = epoch * batches + batch + 1
                progress(Progress(step, steps, losses[-1], record))
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(
                f"{config.label}: the training loss is {losses[-1]} after epoch {epoch + 1}; "
                f"lower lr = {config.lr:g}"
            )
    tested = None if task.test is None else evaluate(task, task.test)
    return RunResult(
        network=task.name,
        loss=type(task.loss).__name__,
        optimizer=config.optimizer,
        engine=config.engine,
        seed=config.seed,
        initial_loss=losses[0],
        train_loss=losses[1:],
        test_loss=None if tested is None else tested.loss,
        test_accuracy=None if tested is None else tested.accuracy,
        wall_seconds=time.perf_counter() - started,
        start_seconds=start_seconds,
        epoch_seconds=epoch_seconds,
        inversions=sum(m.inversions for m in metrics),
        hardware_seconds=sum(m.hardware_seconds for m in metrics),
        unit_runs=sum(m.runs for m in metrics),
        digital_flops=sum(m.digital_flops for m in metrics),
        clipped_steps=sum(m.clipped for m in metrics),
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=config.lr,
        schedule=config.schedule,
        warmup=config.warmup,
        momentum=None if config.optimizer == "adam" else config.momentum,
        weight_decay=config.weight_decay,
        damping=config.damping if kfac is not None else None,
        adapt_damping=config.adapt_damping if kfac is not None else None,
        kfac_options=config.kfac_options if kfac is not None else None,
        samples=config.samples if config.engine in UNIT_ENGINES else None,
        equilibrate=config.equilibrate if config.engine in UNIT_ENGINES else None,
        guard=config.guard if config.engine in UNIT_ENGINES else None,
        hidden=list(task.hidden),
    )
