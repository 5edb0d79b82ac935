"""Groups of processes on gloo, and trainings that run in them: helpers of the distributed tests."""

from __future__ import annotations

import copy
import io
import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from thermokron.host.kfac import KFAC, LevenbergMarquardt
from thermokron.model import NumericUnit, UnitSpec

__all__ = ["Run", "Training", "launch", "many", "same", "train"]

ROWS, INPUTS, CLASSES = 24, 6, 4


@dataclass
class Run:
    """What came of one process."""

    value: Any = None
    error: str | None = None
    kind: str | None = None
    code: int | None = None
    seconds: float = 0.0


def launch(
    folder: Path, size: int, function: Callable[..., Any], *args: Any, timeout: float = 30.0
) -> list[Run]:
    """Call `function(rank, *args)` in `size` processes of a group; it is an error if one hangs.

    `timeout` is the group's, in seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed", "processes"])
    store = folder / f"store-{time.monotonic_ns()}"
    began, runs, started = time.monotonic(), [], []
    path = list(sys.path)
    # of which a new process gets a copy: functions of test modules are called `tests.host...`
    sys.path.append(str(Path(__file__).parents[2]))
    for rank in range(size):
        here, there = context.Pipe(duplex=False)
        process = context.Process(
            target=_process,
            args=(rank, size, store, timeout, there, function, args),
            daemon=True,
        )
        process.start()
        there.close()
        started.append((process, here))
    sys.path[:] = path
    for process, here in started:
        run = Run()
        try:
            if here.poll(60.0):
                run = torch.load(io.BytesIO(here.recv_bytes()), weights_only=False)
        except EOFError:
            pass
        finally:
            process.join(10.0)
            run.code, run.seconds = process.exitcode, time.monotonic() - began
            process.kill()
        runs.append(run)
    assert None not in [run.code for run in runs], "a process hangs"
    return runs


def _process(rank: int, size: int, store: Path, timeout: float, pipe, function, args) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout),
    )
    run = Run()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run.value = function(rank, *args)
    except Exception as error:
        run.error, run.kind = str(error), type(error).__name__
    torch.save(run, buffer := io.BytesIO())
    pipe.send_bytes(buffer.getvalue())
    pipe.close()


class Experts(nn.Module):
    """Half of the examples go through one layer, half through another; all through two more."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(INPUTS, 5), nn.Linear(5, CLASSES)
        self.experts = nn.ModuleList(nn.Linear(5, 5) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(x))
        chosen = (x[:, 0] > 0).long()
        parts = hidden.clone()
        for number, expert in enumerate(self.experts):
            if (chosen == number).any():
                parts[chosen == number] = torch.tanh(expert(hidden[chosen == number]))
        return self.last(parts)


class Positions(nn.Sequential):
    """Rows of two positions each, with a loss term for both."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(INPUTS, 8), nn.Tanh(), nn.Linear(8, 2 * CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).unflatten(1, (CLASSES, 2))


def network(kind: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(1)
    if kind == "experts":
        return Experts().to(dtype)
    if kind == "positions":  # several loss terms for each example, which the network mixes
        return Positions().to(dtype)
    if kind == "conv":
        layers = [
            nn.Unflatten(1, (2, 3)),
            nn.Conv1d(2, 4, 2, groups=2),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(8, CLASSES),
        ]
    else:
        layers = [
            nn.Linear(INPUTS, 7),
            nn.Tanh(),
            nn.LayerNorm(7),
            nn.Linear(7, 8),
            nn.ReLU(),
            nn.Linear(8, CLASSES, bias=False),
        ]
    model = nn.Sequential(*layers).to(dtype)
    if kind == "dead":  # nothing gets through to the first layer
        nn.init.constant_(model[3].bias, -100.0)
    return model


@dataclass
class Training:
    """How to train, on however many processes.

    Attributes
    ----------
    shares : tuple of int
        What part of each batch is whose; repeated over the ranks.
    sort : bool
        Whether each process sees data of a kind.
    summed : bool
        Whether the loss is a sum.
    unit : tuple of int or None
        Seeds of units by rank, below 0 for none.
    inner : bool
        Whether KFAC is given the model inside.
    zero : dict
        Options of `zero_grad`.
    """

    options: dict[str, Any] = field(default_factory=dict)
    kind: str = "mlp"
    steps: int = 50
    shares: tuple[int, ...] = (1,)
    accumulate: int = 1
    dtype: torch.dtype = torch.float64
    lr: float = 0.05
    momentum: float = 0.9
    sort: bool = False
    criterion: bool = True
    unit: tuple[int, ...] | None = None
    inner: bool = False
    ddp: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] | None = None
    adapt: bool = False
    summed: bool = False
    zero: dict[str, Any] = field(default_factory=dict)


def train(rank: int, training: Training) -> dict[str, Any]:
    """Train in this process's part of the group, or alone where there is none."""
    t = training
    size = distributed.get_world_size() if distributed.is_initialized() else 1
    model = network(t.kind, t.dtype)
    wrapped = DistributedDataParallel(model, **t.ddp) if size > 1 else model
    criterion = nn.CrossEntropyLoss(reduction="sum" if t.summed else "mean")
    optimizer = torch.optim.SGD(model.parameters(), lr=t.lr, momentum=t.momentum)
    options = {"lr": optimizer, "damping": 0.03, "kl_clip": 1e-2} | t.options
    if t.criterion:
        options["criterion"] = criterion
    if t.adapt:
        options["damping"] = LevenbergMarquardt(0.1, interval=2)
    unit = None
    if t.unit is not None and t.unit[rank % len(t.unit)] >= 0:
        unit = NumericUnit(UnitSpec(cells=8, lanes=2), seed=t.unit[rank % len(t.unit)])
    kfac = KFAC(model if t.inner else wrapped, unit, **options)
    if t.state is not None:
        for part, name in ((model, "model"), (optimizer, "optimizer"), (kfac, "kfac")):
            part.load_state_dict(copy.deepcopy(t.state[name]))
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(ROWS, INPUTS, generator=generator).to(t.dtype)
    y = torch.randint(CLASSES, (ROWS,), generator=generator)
    if t.kind == "positions":
        y = torch.stack([y, y.roll(1)], dim=1)
    losses, metrics = [], []
    for step in range(50):
        rows = torch.randperm(ROWS, generator=generator)[:12]
        if t.sort:  # each process sees other experts
            rows = rows[torch.argsort(x[rows, 0])]
        if step != kfac.steps or step >= t.steps:  # another part of the run makes it
            continue
        optimizer.zero_grad(**t.zero)
        parts = rows.tensor_split(t.accumulate)
        total = 0.0
        for number, part in enumerate(parts):
            own = _share(part, rank, size, t.shares)
            waits = size > 1 and number < len(parts) - 1
            with wrapped.no_sync() if waits else nullcontext():
                loss = criterion(wrapped(x[own]), y[own])
                # so that the mean over ranks, which DDP makes, is the mean over the batch
                weight = (1.0 if t.summed else len(own)) / len(rows)
                (loss * (weight * size)).backward()
            total += loss.item() * weight
        metrics.append(kfac.step())
        optimizer.step()
        if t.adapt:
            own = _share(rows, rank, size, t.shares)
            kfac.adapt(lambda own=own: criterion(wrapped(x[own]), y[own]))
        losses.append(_sum(total, size))
    states = {"model": model, "optimizer": optimizer, "kfac": kfac}
    return {
        "losses": losses,
        "metrics": metrics,
        "draws": kfac.training.drawing.initial_seed(),
        "stream": None if unit is None else unit.stream,
        "owners": {layer.name: owner for layer, owner in kfac._solver.division.owner.items()},
    } | {name: copy.deepcopy(part.state_dict()) for name, part in states.items()}


def _share(rows: torch.Tensor, rank: int, size: int, shares: tuple[int, ...]) -> torch.Tensor:
    weights = [shares[r % len(shares)] for r in range(size)]
    bounds = [round(len(rows) * sum(weights[:r]) / sum(weights)) for r in range(size + 1)]
    return rows[bounds[rank] : bounds[rank + 1]]


def _sum(value: float, size: int) -> float:
    if size == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64)
    distributed.all_reduce(total)
    return total.item()


def many(rank: int, trainings: dict[str, Training]) -> dict[str, Any]:
    """Several trainings in one group."""
    return {name: train(rank, training) for name, training in trainings.items()}


def same(one: Any, other: Any) -> bool:
    """Whether two states are the same to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other
