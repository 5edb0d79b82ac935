"""One training run: any task, the three-line form of K-FAC, a record of what happened."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from thermokron.host.calibration import Calibrated, Calibration
from thermokron.host.engines import open_unit
from thermokron.host.kfac import KFAC, LevenbergMarquardt, Thermodynamic
from thermokron.host.linalg.arrays import check_second_moments
from thermokron.host.train.checkpoints import Account, Checkpoints, Stateful
from thermokron.host.train.config import INVERTERS, UNIT_ENGINES, TrainConfig
from thermokron.host.train.evaluation import Evaluation, evaluate
from thermokron.host.train.identity import about_task, identity, run_digest
from thermokron.host.train.named import make_task, naming
from thermokron.host.train.networks import BUILDERS
from thermokron.host.train.results import RunResult
from thermokron.host.train.schedules import scheduler
from thermokron.host.train.tasks import Task, batch_of
from thermokron.model import ArrayPhysics, Unit, UnitSpec
from thermokron.model.files import check_writable

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
    calibration: Calibration | None = None,
    simulator: str = "verilator",
    timeout_s: float | None = None,
    progress: Callable[[Progress], None] | None = None,
    checkpoint: Path | None = None,
    resume: Path | None = None,
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
    calibration : Calibration, optional
        Of that unit, by which what it programs and reads is corrected.
    simulator : str
        What runs the Verilog, for engine "cosim".
    timeout_s : float, optional
        How long that may give no sign of life, see `open_unit`.
    progress : callable, optional
        Called after every step.
    checkpoint : Path, optional
        File that is written anew after every epoch.
    resume : Path, optional
        Such a file, from which training goes on, exactly as if it had not been interrupted. All
        that it depends on must be the same; only `epochs` may be another where the learning rate
        is constant. A task's own generators, other than torch's, are not saved.

    Raises
    ------
    FloatingPointError
        If the loss became NaN or inf.
    UnitFault
        If the unit failed.
    ValueError, TypeError
        If the task is not one, or an option does not go with it or with another; if a function
        that the configuration names, or what it returned, raised an error; if the loss is NaN or
        inf before the first step; or if the file to resume from is no checkpoint of this run, or
        the one to write is there already.
    OSError
        If the checkpoint cannot be written where it should be, or another run has written it
        meanwhile.
    """
    if checkpoint is not None:
        _check_checkpoint(checkpoint, resume)
    # the networks that come along draw nothing while they train
    draws = task is not None or config.network not in BUILDERS
    generator = torch.Generator().manual_seed(config.seed)
    with one_thread(), ExitStack() as stack:
        if task is None:
            task = stack.enter_context(make_task(config, generator))
        optimizer = _optimizer(config, task.model)
        started = time.perf_counter()
        where = {"simulator": simulator, "timeout_s": timeout_s} if config.engine == "cosim" else {}
        kfac = _kfac(config, task, optimizer, stack, spec, physics, calibration, where)
        known = identity(config, spec, physics, calibration)
        run = _Run(config, task, optimizer, generator, kfac, known)
        checkpoints = run.checkpoints(global_generator=draws)
        run.account.start_seconds = time.perf_counter() - started
        if resume is not None:
            run.take_up(checkpoints.load(resume))
        return run.finish(progress, partial(checkpoints.save, checkpoint) if checkpoint else None)


def _check_checkpoint(path: Path, resume: Path | None) -> None:
    """Before the first epoch, which would be lost."""
    again = resume is not None and path.resolve() == resume.resolve()
    if path.is_file() and not again:
        raise ValueError(f"checkpoint = {path} exists; resume from it, or remove it")
    check_writable(path)


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
    calibration: Calibration | None,
    where: dict[str, Any],
) -> KFAC | None:
    """The preconditioner, with its unit; both close with the stack."""
    if config.optimizer != "kfac":
        return None
    assert config.engine is not None
    settings: dict[str, Any]
    if config.engine in UNIT_ENGINES:
        if config.method_used == "inverse":  # before a simulator is built
            check_second_moments(spec or UnitSpec(), "method = 'inverse'")
        unit: Unit = stack.enter_context(
            open_unit(config.engine, spec or UnitSpec(), physics, seed=config.seed, **where)
        )
        if calibration is not None:
            unit = Calibrated(unit, calibration)
        settings = {
            "inverse": Thermodynamic(
                unit,
                config.samples,
                config.settle,
                equilibrate=config.equilibrate,
                guard=config.guard,
            )
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


class _Run:
    """A training run, from epoch to epoch."""

    def __init__(
        self,
        config: TrainConfig,
        task: Task,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        kfac: KFAC | None,
        known: dict[str, Any],
    ) -> None:
        self.config, self.task, self.kfac, self.known = config, task, kfac, known
        self.optimizer, self.generator = optimizer, generator
        self.examples = len(task.train)  # type: ignore[arg-type]
        self.batches = math.ceil(self.examples / config.batch_size)
        self.steps = config.epochs * self.batches
        self.schedule = scheduler(
            optimizer, config.schedule, steps=self.steps, warmup=config.warmup
        )
        self.account = Account()

    def checkpoints(self, *, global_generator: bool) -> Checkpoints:
        parts: dict[str, Stateful] = {
            "model": self.task.model,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "loss": self.task.loss,
        }
        if self.kfac is not None:
            parts["kfac"] = self.kfac
        return Checkpoints(
            self.known | about_task(self.task),
            parts,
            self.generator,
            global_generator=global_generator,
        )

    def take_up(self, account: Account) -> None:
        """Go on from what a checkpoint had come to."""
        if account.epochs > self.config.epochs:
            raise ValueError(
                f"epochs = {self.config.epochs} is out of range; legal: {account.epochs} or more, "
                "which the checkpoint has seen"
            )
        account.start_seconds += self.account.start_seconds
        self.account = account

    def finish(
        self,
        progress: Callable[[Progress], None] | None,
        save: Callable[[Account], None] | None,
    ) -> RunResult:
        """Train to the last epoch; call `save` after each."""
        config, task, account = self.config, self.task, self.account
        started, before = time.perf_counter(), account.seconds
        task.model.train()
        if not account.losses:
            account.losses.append(self._loss_before())
        for epoch in range(account.epochs, config.epochs):
            self._epoch(epoch, progress)
            if not math.isfinite(account.losses[-1]):
                raise FloatingPointError(
                    f"{config.label}: the training loss is {account.losses[-1]} after epoch "
                    f"{epoch + 1}; lower lr = {config.lr:g}"
                )
            account.seconds = before + time.perf_counter() - started
            if save is not None:
                save(account)
        with self._naming("testing it"):
            tested = None if task.test is None else evaluate(task, task.test)
        account.seconds = before + time.perf_counter() - started
        return _result(config, run_digest(self.known), task, account, tested)

    def _naming(
        self, doing: str, *, passing: tuple[type[Exception], ...] = ()
    ) -> AbstractContextManager[None]:
        """Says whose error it is, where the task is not one of ours."""
        name = self.config.network
        return naming(name, doing, passing=passing) if ":" in name else nullcontext()

    def _loss_before(self) -> float:
        """Loss over the training examples; looks at the test examples, too, while it is early."""
        with self._naming("applying model and loss to its training examples"):
            loss = evaluate(self.task, self.task.train).loss
        if not math.isfinite(loss):
            raise ValueError(
                f"{self.task.name}: the training loss is {loss} before the first step; NaN or inf "
                "is in the inputs, the targets or the initial weights"
            )
        if self.task.test is not None and self.config.network not in BUILDERS:
            # what it draws is not to change the run
            with torch.random.fork_rng(devices=[]), self._naming("testing it"):
                evaluate(self.task, self.task.test)
        return loss

    def _epoch(self, epoch: int, progress: Callable[[Progress], None] | None) -> None:
        started = time.perf_counter()
        order = torch.randperm(self.examples, generator=self.generator)
        for batch, chosen in enumerate(torch.split(order, self.config.batch_size)):
            step = epoch * self.batches + batch
            record = {"step": step, "epoch": epoch} | self._step(chosen)
            if batch + 1 == self.batches:
                self.account.epoch_seconds.append(time.perf_counter() - started)
                with self._naming("applying model and loss to its training examples"):
                    self.account.losses.append(evaluate(self.task, self.task.train).loss)
            if progress is not None:
                progress(Progress(step + 1, self.steps, self.account.losses[-1], record))

    def _step(self, chosen: torch.Tensor) -> dict[str, float]:
        task, kfac = self.task, self.kfac
        self.optimizer.zero_grad()
        with self._naming("a training step"):
            inputs, targets = batch_of(task.train, chosen)
            loss = _loss(task, inputs, targets)
            loss.backward()  # type: ignore[no-untyped-call]
        record = {"loss": loss.item(), "lr": float(self.optimizer.param_groups[0]["lr"])}
        if kfac is not None:
            with self._naming("a step of K-FAC", passing=(ValueError,)):
                self.account.enter(kfac.step())
        self.optimizer.step()
        self.schedule.step()
        if kfac is None:
            return record
        if self.config.adapt_damping:
            kfac.adapt(partial(_loss, task, inputs, targets))
        assert kfac.metrics is not None
        return kfac.metrics.as_dict() | record


def _result(
    config: TrainConfig, run: str, task: Task, account: Account, tested: Evaluation | None
) -> RunResult:
    with_kfac, on_unit = config.optimizer == "kfac", config.engine in UNIT_ENGINES
    return RunResult(
        run=run,
        network=task.name,
        loss=type(task.loss).__name__,
        optimizer=config.optimizer,
        engine=config.engine,
        seed=config.seed,
        initial_loss=account.losses[0],
        train_loss=account.losses[1:],
        test_loss=None if tested is None else tested.loss,
        test_accuracy=None if tested is None else tested.accuracy,
        wall_seconds=account.seconds,
        start_seconds=account.start_seconds,
        epoch_seconds=account.epoch_seconds,
        inversions=account.inversions,
        hardware_seconds=account.hardware_seconds,
        phase_seconds=account.phase_seconds,
        port_seconds=account.port_seconds,
        span_seconds=account.span_seconds,
        unit_runs=account.unit_runs,
        activity=account.activity,
        bytes_to_unit=account.bytes_to_unit,
        bytes_from_unit=account.bytes_from_unit,
        digital_flops=account.digital_flops,
        clipped_steps=account.clipped_steps,
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=config.lr,
        schedule=config.schedule,
        warmup=config.warmup,
        momentum=None if config.optimizer == "adam" else config.momentum,
        weight_decay=config.weight_decay,
        damping=config.damping if with_kfac else None,
        adapt_damping=config.adapt_damping if with_kfac else None,
        kfac_options=config.kfac_options | {"method": config.method_used} if with_kfac else None,
        samples=config.samples_used if on_unit else None,
        settle=config.settle if on_unit and config.method_used == "solve" else None,
        equilibrate=config.equilibrate if on_unit else None,
        guard=config.guard if on_unit else None,
        hidden=list(task.hidden),
    )
