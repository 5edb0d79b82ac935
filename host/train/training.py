"""One training run: configuration, network, loop."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from thermokron.host.engines import open_unit
from thermokron.host.kfac import KFAC, diagonal, exact
from thermokron.host.train.data import CLASSES, Digits
from thermokron.host.train.results import RunResult
from thermokron.model import ArrayPhysics, UnitSpec
from thermokron.model.checks import check_integer, check_real

__all__ = [
    "ENGINES",
    "OPTIMIZERS",
    "UNIT_ENGINES",
    "Progress",
    "TrainConfig",
    "mlp",
    "one_thread",
    "train",
]

OPTIMIZERS = ("kfac", "adam", "sgd")
#: Engines that are thermodynamic units.
UNIT_ENGINES = ("numeric", "cosim")
#: Ways to invert that need none.
INVERTERS = {"exact": exact, "diagonal": diagonal}
#: What may invert K-FAC's factors.
ENGINES = (*UNIT_ENGINES, *INVERTERS)

#: Learning rates that `make demo` found best on other seeds than it reports.
DEFAULT_LR = {"kfac": 0.07, "adam": 0.04, "sgd": 0.5}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What to train, and how.

    Attributes
    ----------
    optimizer : "kfac", "adam" or "sgd"
        K-FAC preconditions plain SGD with momentum.
    engine : "numeric", "cosim", "exact" or "diagonal"; None for Adam and SGD
        What inverts the factors: a thermodynamic unit on an engine of that name, Cholesky
        factorisation on the host, or the inverse of the diagonal alone.
    epochs, batch_size : int
        Passes over the training images, and images per step; the last batch may be smaller.
    lr : float or None
        Learning rate; None for one that suits the optimiser.
    momentum : float
        Momentum of SGD and K-FAC.
    damping : float
        Tikhonov damping of K-FAC.
    samples : int
        Samples per run of the unit.
    hidden : tuple of int
        Widths of the hidden tanh layers.
    seed : int
        Decides split, initial weights, order of the images and the unit's noise.

    Raises
    ------
    ValueError, TypeError
        If a value is illegal; the message names it and the legal range.
    """

    optimizer: str = "kfac"
    engine: str | None = "numeric"
    epochs: int = 10
    batch_size: int = 144
    lr: float | None = None
    momentum: float = 0.9
    damping: float = 0.03
    samples: int = 1000
    hidden: tuple[int, ...] = (32,)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer = {self.optimizer!r} is unknown; legal: {OPTIMIZERS}")
        legal = ENGINES if self.optimizer == "kfac" else (None,)
        if self.engine not in legal:
            raise ValueError(
                f"engine = {self.engine!r} does not go with optimizer = {self.optimizer!r}; "
                f"legal: {legal}"
            )
        check_integer("epochs", self.epochs, 1, 10**6)
        check_integer("batch_size", self.batch_size, 1, 10**6)
        check_integer("samples", self.samples, 2, 2**20)
        check_integer("seed", self.seed, 0, 2**32 - 1)
        check_real("momentum", self.momentum, 0.0, 0.9999)
        check_real("damping", self.damping, 1e-12, 1e12)
        for width in self.hidden:
            check_integer("hidden", width, 1, 10**5)
        if self.lr is None:
            object.__setattr__(self, "lr", DEFAULT_LR[self.optimizer])
        check_real("lr", self.lr, 1e-30, 1e37)

    @property
    def label(self) -> str:
        """Optimiser and engine in a few words."""
        return f"{self.optimizer} ({self.engine})" if self.engine else self.optimizer


@dataclass(frozen=True)
class Progress:
    """Where a run stands: after `step` of `steps`, with the last completed epoch's loss."""

    step: int
    steps: int
    loss: float


def mlp(sizes: tuple[int, ...], generator: torch.Generator) -> torch.nn.Sequential:
    """Linear layers of these sizes with tanh between them, torch's usual initial weights."""
    layers: list[torch.nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layer = torch.nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
        for parameter in layer.parameters():
            # from our own generator, so that runs side by side do not share one
            torch.nn.init.uniform_(parameter, -(inputs**-0.5), inputs**-0.5, generator=generator)
        layers += [layer, torch.nn.Tanh()]
    return torch.nn.Sequential(*layers[:-1])


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
    """
    data = Digits.load(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    sizes = (data.train_images.shape[1], *config.hidden, CLASSES)
    model = mlp(sizes, generator)
    with one_thread(), ExitStack() as stack:
        started = time.perf_counter()
        kfac = None
        if config.optimizer == "kfac":
            settings: dict[str, Any] = {"inverse": INVERTERS.get(config.engine or "")}
            if config.engine in UNIT_ENGINES:
                where = {"simulator": simulator} if config.engine == "cosim" else {}
                unit = open_unit(
                    config.engine, spec or UnitSpec(), physics, seed=config.seed, **where
                )
                settings = {"unit": stack.enter_context(unit), "samples": config.samples}
            assert config.lr is not None
            kfac = KFAC(model, lr=config.lr, damping=config.damping, **settings)
            stack.enter_context(kfac)
        start_seconds = time.perf_counter() - started
        return _loop(config, model, data, generator, kfac, progress, start_seconds)


def _loop(
    config: TrainConfig,
    model: torch.nn.Module,
    data: Digits,
    generator: torch.Generator,
    kfac: KFAC | None,
    progress: Callable[[Progress], None] | None,
    start_seconds: float,
) -> RunResult:
    assert config.lr is not None
    optimizer: torch.optim.Optimizer
    if config.optimizer == "adam":
        optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=config.momentum)
    cross_entropy = torch.nn.functional.cross_entropy

    @torch.no_grad()
    def training_loss() -> float:
        return cross_entropy(model(data.train_images), data.train_labels).item()

    started = time.perf_counter()
    losses = [training_loss()]
    metrics = []
    batches = math.ceil(len(data.train_images) / config.batch_size)
    for epoch in range(config.epochs):
        order = torch.randperm(len(data.train_images), generator=generator)
        for batch, chosen in enumerate(torch.split(order, config.batch_size)):
            optimizer.zero_grad()
            output = model(data.train_images[chosen])
            cross_entropy(output, data.train_labels[chosen]).backward()  # type: ignore[no-untyped-call]
            if kfac is not None:
                metrics.append(kfac.step())
            optimizer.step()
            if batch + 1 == batches:
                losses.append(training_loss())
            if progress is not None:
                step = epoch * batches + batch + 1
                progress(Progress(step, config.epochs * batches, losses[-1]))
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(
                f"{config.label}: the training loss is {losses[-1]} after epoch {epoch + 1}; "
                f"lower lr = {config.lr:g}"
            )
    with torch.no_grad():
        hits = model(data.test_images).argmax(dim=1) == data.test_labels
    return RunResult(
        optimizer=config.optimizer,
        engine=config.engine,
        seed=config.seed,
        initial_loss=losses[0],
        train_loss=losses[1:],
        test_accuracy=hits.sum().item() / len(hits),
        wall_seconds=time.perf_counter() - started,
        start_seconds=start_seconds,
        inversions=sum(m.inversions for m in metrics),
        hardware_seconds=sum(m.hardware_seconds for m in metrics),
        unit_runs=sum(m.runs for m in metrics),
        digital_flops=sum(m.digital_flops for m in metrics),
        clipped_steps=sum(m.clipped for m in metrics),
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=config.lr,
        momentum=None if config.optimizer == "adam" else config.momentum,
        damping=config.damping if kfac is not None else None,
        samples=config.samples if config.engine in UNIT_ENGINES else None,
        hidden=list(config.hidden),
    )
