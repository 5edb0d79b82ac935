"""K-FAC as it comes beside Adam at its best of seven rates, on tasks that no study tuned.

    python benchmarks/untuned.py --output runs/untuned
    python benchmarks/untuned.py --tasks digits,diabetes --scales 1 --seeds 2

Every task is trained at several scales of its inputs, which stand in for what nobody normalised.
Its target is the training loss, over all examples, at which the best of Adam's rates has arrived
after half of the epochs, so that tuned Adam needs half of them whatever the task. Epochs until a
target are interpolated, log loss against epochs. All figures are medians over seeds, which decide
split, weights and order of the examples, and are the same for all contenders. Each contender but
Adam has one recipe for everything: K-FAC's defaults beside SGD with rate 0.1 and momentum 0.9, and
lr="auto". Tasks of `UNSEEN` took no part in the choice of K-FAC's defaults, the others did.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.datasets
import torch
from torch import nn

from thermokron.host.kfac import KFAC

__all__ = ["CONTENDERS", "TASKS", "UNSEEN", "Run", "Task", "compare", "train"]

EPOCHS = 20
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
SCALES = (0.3, 1.0, 3.0)

Data = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Task:
    """A network, its data and its loss.

    Attributes
    ----------
    data : callable
        Inputs, standardised, and targets, by a seed.
    network : callable
        Makes it.
    loss : type of torch.nn.Module
        Of the loss module.
    batch : int
        Examples per step.
    """

    data: Callable[[int], Data]
    network: Callable[[], nn.Module]
    loss: type[nn.Module]
    batch: int


def _table(name: str) -> Callable[[int], Data]:
    """A data set of scikit-learn, each column to mean 0 and variance 1."""

    def data(seed: int) -> Data:
        inputs, targets = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
        x = torch.tensor(inputs, dtype=torch.float32)
        x = (x - x.mean(0)) / x.std(0)
        if np.issubdtype(targets.dtype, np.integer):
            return x, torch.tensor(targets, dtype=torch.int64)
        y = torch.tensor(targets, dtype=torch.float32)[:, None]
        return x, (y - y.mean()) / y.std()

    return data


def _digits(seed: int) -> Data:
    """Pixels, all together to mean 0 and variance 1."""
    pixels, labels = sklearn.datasets.load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=torch.float32)
    return (x - x.mean()) / x.std(), torch.tensor(labels, dtype=torch.int64)


def _images(seed: int) -> Data:
    x, y = _digits(seed)
    return x.reshape(-1, 1, 8, 8), y


def _copies(seed: int) -> Data:
    """Images that are their own targets; the target's scale is not that of the input."""
    x, _ = _digits(seed)
    return x, x.clone()


def _teacher(seed: int) -> Data:
    """What a network with random weights makes of correlated Gaussian inputs, and 5% of noise."""
    draw = torch.Generator().manual_seed(1000 + seed)
    x = torch.randn(1200, 20, generator=draw) * torch.logspace(-1, 0.5, 20)
    x = x @ torch.linalg.qr(torch.randn(20, 20, generator=draw)).Q
    x = x / x.std()
    hidden = torch.tanh(x @ torch.randn(20, 30, generator=draw) / 2)
    y = hidden @ torch.randn(30, 4, generator=draw)
    y = (y - y.mean(0)) / y.std(0)
    return x, y + 0.05 * torch.randn(y.shape, generator=draw)


class _Rows(nn.Module):
    """A small transformer over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(8, 16)
        self.place = nn.Parameter(0.1 * torch.randn(8, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.leave = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(self.enter(x.reshape(-1, 8, 8)) + self.place)
        return self.leave(hidden.mean(1))


def _mlp(*widths: int, activation: type[nn.Module] = nn.Tanh) -> Callable[[], nn.Module]:
    def network() -> nn.Module:
        layers: list[nn.Module] = []
        for n, m in pairwise(widths):
            layers += [nn.Linear(n, m), activation()]
        return nn.Sequential(*layers[:-1])

    return network


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


ENTROPY, SQUARES = nn.CrossEntropyLoss, nn.MSELoss
TASKS = {
    "digits": Task(_digits, _mlp(64, 32, 10), ENTROPY, 128),
    "deep digits": Task(_digits, _mlp(64, 32, 32, 32, 10, activation=nn.ReLU), ENTROPY, 128),
    "cnn": Task(_images, _cnn, ENTROPY, 128),
    "transformer": Task(_images, _Rows, ENTROPY, 128),
    "cancer": Task(_table("breast_cancer"), _mlp(30, 16, 2), ENTROPY, 32),
    "wine": Task(_table("wine"), _mlp(13, 16, 3), ENTROPY, 32),
    "autoencoder": Task(_copies, _mlp(64, 32, 8, 32, 64), SQUARES, 128),
    "teacher": Task(_teacher, _mlp(20, 32, 32, 4), SQUARES, 32),
    "diabetes": Task(_table("diabetes"), _mlp(10, 32, 32, 1, activation=nn.ReLU), SQUARES, 32),
}
#: Neither tried nor looked at before the defaults were what they are.
UNSEEN = ("cnn", "transformer", "wine")


@dataclass(frozen=True)
class Run:
    """What came out of a run: losses before the first epoch and after each, and wall time."""

    train: list[float]
    test: list[float]
    step_ms: float

    def epochs_to(self, target: float) -> float:
        """Epochs until the training loss is at or below a target; inf if it never is."""
        for epoch, (before, after) in enumerate(pairwise(self.train)):
            if after <= target:
                if not before > target:
                    return float(epoch)
                if after <= 0.0 or not math.isfinite(before):
                    return epoch + 1.0
                return epoch + math.log(before / target) / math.log(before / after)
        return math.inf

    def test_at(self, target: float) -> float:
        """The test loss after the epoch in which the target was reached."""
        epochs = self.epochs_to(target)
        return self.test[math.ceil(epochs)] if epochs < math.inf else math.inf


#: A step of an optimiser, after the backward pass.
Step = Callable[[], object]


def _adam(model: nn.Module, criterion: nn.Module, **options: Any) -> Step:
    return torch.optim.Adam(model.parameters(), **options).step


def _kfac(model: nn.Module, criterion: nn.Module, **options: Any) -> Step:
    rate, momentum = options.pop("rate", 0.1), options.pop("momentum", 0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)
    if options.pop("judge", False):
        options["criterion"] = criterion
    kfac = KFAC(model, lr=optimizer, **options)

    def step() -> None:
        kfac.step()
        optimizer.step()

    return step


def _auto(model: nn.Module, criterion: nn.Module, **options: Any) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    kfac = KFAC(model, lr="auto", criterion=criterion, **options)

    def step() -> None:
        kfac.step()
        optimizer.step()

    return step


CONTENDERS: dict[str, Callable[..., Step]] = {"adam": _adam, "kfac": _kfac, "auto": _auto}


def train(
    task: Task, contender: str, scale: float, seed: int, epochs: int = EPOCHS, **options: Any
) -> Run:
    """Train once; a run whose loss is no number any more has the loss inf from then on."""
    x, y = task.data(seed)
    x = x * scale
    order = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(x), generator=order)
    test, rest = shuffled[: len(x) // 5], shuffled[len(x) // 5 :]
    torch.manual_seed(seed)
    model, criterion, unwatched = task.network(), task.loss(), task.loss()
    step = CONTENDERS[contender](model, criterion, **options)
    losses: tuple[list[float], list[float]] = ([], [])
    spent, steps = 0.0, 0

    def judge() -> bool:
        model.eval()
        with torch.no_grad():
            for found, part in zip(losses, (rest, test), strict=True):
                found.append(float(unwatched(model(x[part]), y[part])))
        model.train()
        return math.isfinite(losses[0][-1])

    fine = judge()
    for _ in range(epochs):
        for chosen in rest[torch.randperm(len(rest), generator=order)].split(task.batch):
            started = time.perf_counter()
            model.zero_grad()
            criterion(model(x[chosen]), y[chosen]).backward()
            try:
                step()
            except FloatingPointError:
                fine = False
            spent, steps = spent + time.perf_counter() - started, steps + 1
            if not fine:
                break
        fine = fine and judge()
        if not fine:
            break
    for found in losses:
        found[:] = [loss if math.isfinite(loss) else math.inf for loss in found]
        found += [math.inf] * (epochs + 1 - len(found))
    return Run(*losses, 1e3 * spent / max(steps, 1))


def _median(values: Iterator[float]) -> float:
    return statistics.median(list(values))


def compare(name: str, scale: float, seeds: Sequence[int], others: Sequence[str]) -> dict[str, Any]:
    """A row of the table: Adam at its best, and the others.

    Parameters
    ----------
    name : str
        Of the task.
    scale : float
        What its inputs are multiplied by.
    seeds : sequence of int
        One run each.
    others : sequence of str
        Contenders beside Adam.
    """
    task = TASKS[name]
    adam = {rate: [train(task, "adam", scale, seed, lr=rate) for seed in seeds] for rate in RATES}
    half = EPOCHS // 2
    target = min(_median(run.train[half] for run in runs) for runs in adam.values())
    rate = min(adam, key=lambda r: _median(run.epochs_to(target) for run in adam[r]))
    ends = min(adam, key=lambda r: _median(run.train[-1] for run in adam[r]))
    row: dict[str, Any] = {"task": name, "scale": scale, "target": target, "rate": rate}
    row["adam"] = _figures(adam[rate], target)
    row["adam"]["train"] = _median(run.train[-1] for run in adam[ends])
    row["adam"]["test"] = _median(run.test[-1] for run in adam[ends])
    row["runs"] = {f"adam {r}": [asdict(run) for run in runs] for r, runs in adam.items()}
    for other in others:
        runs = [train(task, other, scale, seed) for seed in seeds]
        row[other] = _figures(runs, target)
        row[other]["part"] = row[other]["epochs"] / row["adam"]["epochs"]
        row["runs"][other] = [asdict(run) for run in runs]
    return row


def _figures(runs: Sequence[Run], target: float) -> dict[str, float]:
    return {
        "epochs": _median(run.epochs_to(target) for run in runs),
        "test at target": _median(run.test_at(target) for run in runs),
        "train": _median(run.train[-1] for run in runs),
        "test": _median(run.test[-1] for run in runs),
        "step_ms": _median(run.step_ms for run in runs),
    }


def _table_of(rows: Sequence[dict[str, Any]], others: Sequence[str]) -> str:
    names = ["adam", *others]
    head = ["task", "inputs", "target", "Adam's rate", *(f"epochs, {n}" for n in names)]
    head += [f"test there, {n}" for n in names] + [f"training at the end, {n}" for n in names]
    head += [f"test at the end, {n}" for n in names] + [f"ms per step, {n}" for n in names]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    for row in rows:
        cells = [row["task"], f"x{row['scale']:g}", f"{row['target']:.2g}", f"{row['rate']:g}"]
        for name in names:
            part = f" ({row[name]['part']:.2f})" if name != "adam" else ""
            cells.append(f"{row[name]['epochs']:.1f}{part}")
        for key, form in (
            ("test at target", ".2g"),
            ("train", ".2g"),
            ("test", ".2g"),
            ("step_ms", ".1f"),
        ):
            cells += [format(row[name][key], form) for name in names]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *_summary(rows, others)])


def _summary(rows: Sequence[dict[str, Any]], others: Sequence[str]) -> Iterator[str]:
    for other in others:
        for which, chosen in (
            ("all", rows),
            ("unseen", [row for row in rows if row["task"] in UNSEEN]),
        ):
            if not chosen:
                continue
            parts = [row[other]["part"] for row in chosen]
            lower = sum(row[other]["train"] < row["adam"]["train"] for row in chosen)
            lower_test = sum(row[other]["test"] < row["adam"]["test"] for row in chosen)
            at_most = ", ".join(
                f"{sum(part <= most for part in parts)} at most {most} times"
                for most in (0.7, 0.8, 1.0, 1.5)
            )
            yield (
                f"- {other}, {which} {len(parts)} cases, Adam's epochs: {at_most}; the worst "
                f"{max(parts):.2f}, median {statistics.median(parts):.2f}. It ends lower than "
                f"Adam in {lower} (training), {lower_test} (test)."
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", default=",".join(TASKS), help="names, with commas")
    parser.add_argument("--scales", default=",".join(map(str, SCALES)), help="of inputs")
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0")
    parser.add_argument("--contenders", default="kfac,auto", help="beside Adam")
    parser.add_argument("--output", type=Path, help="a folder for table.md and runs.json")
    given = parser.parse_args()
    tasks, others = given.tasks.split(","), given.contenders.split(",")
    for name, legal in [*((t, TASKS) for t in tasks), *((c, CONTENDERS) for c in others)]:
        if name not in legal:
            parser.error(f"{name!r} is unknown; legal: {', '.join(legal)}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the first step's gradients without data, and the like
    started, rows = time.perf_counter(), []
    for name in tasks:
        for scale in map(float, given.scales.split(",")):
            rows.append(compare(name, scale, range(given.seeds), others))
            parts = ", ".join(f"{o} {rows[-1][o]['part']:.2f}" for o in others)
            passed = time.perf_counter() - started
            print(f"{passed:5.0f} s  {name} x{scale:g}: {parts} of Adam's epochs", flush=True)
            if given.output is not None:  # as far as it is, should it be interrupted
                given.output.mkdir(parents=True, exist_ok=True)
                text = _table_of(rows, others) + "\n"
                (given.output / "table.md").write_text(text, encoding="utf-8")
                (given.output / "runs.json").write_text(json.dumps(rows), encoding="utf-8")
    print(_table_of(rows, others))


if __name__ == "__main__":
    main()
