"""Predicted and measured seconds of K-FAC's parts, for networks that took no part in measuring.

    python benchmarks/predict_this.py [--threads 1] [--measure]

The computer is measured first, if it was not or `--measure` asks for it. Networks, each in float32
with the empirical Fisher, factors and inverses renewed at every step:

    mlp            640, 896, 896, 768, 100; a batch of 384
    cnn            3 x 3 convolutions to 48, 96 and 192 channels with batch normalisation, of 24
                   images of 3 x 20 x 20
    transformer    two encoder layers of width 320 and 960, 12 sequences of 96

and three more, "known", that were looked at while the predictions were made.

Inversion and apply are timed where they happen, inside of `KFAC.step`; factors, which are made in
hooks of the backward pass, are the difference of steps with and without them. Of all rounds the
least counts.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import nn

from thermokron.host.kfac import KFAC
from thermokron.host.kfac.solve import solver
from thermokron.host.predict.machines import digital, measured
from thermokron.host.predict.machines.machine import Machine
from thermokron.host.predict.machines.measure import about, clock_of, measure
from thermokron.host.predict.quantity import Values
from thermokron.host.predict.workloads.tracing import trace
from thermokron.host.predict.workloads.workload import Workload
from thermokron.host.tables import markdown

PARTS = ("forward, backward", "factors", "inversion", "apply")
NEVER = 10**9
Parts = dict[str, float]
Build = Callable[[], tuple[nn.Module, torch.Tensor]]


def mlp(batch: int, *sizes: int) -> tuple[nn.Module, torch.Tensor]:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1]), torch.randn(batch, sizes[0])


def cnn(batch: int, side: int, *channels: int) -> tuple[nn.Module, torch.Tensor]:
    layers: list[nn.Module] = []
    for place, (inputs, outputs) in enumerate(itertools.pairwise((3, *channels))):
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
        if place == 1:
            layers.append(nn.MaxPool2d(2))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], 10))
    return nn.Sequential(*layers, *head), torch.randn(batch, 3, side, side)


class Transformer(nn.Module):
    """Encoder layers, and the mean token classified."""

    def __init__(self, width: int, hidden: int, layers: int) -> None:
        super().__init__()
        layer = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.layers = nn.Sequential(
            *(nn.TransformerEncoderLayer(width, 4, hidden, **layer) for _ in range(layers))
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x).mean(dim=1))


def transformer(
    batch: int, tokens: int, width: int, hidden: int, layers: int
) -> tuple[nn.Module, torch.Tensor]:
    return Transformer(width, hidden, layers), torch.randn(batch, tokens, width)


NETWORKS: dict[str, Build] = {
    "mlp": partial(mlp, 384, 640, 896, 896, 768, 100),
    "cnn": partial(cnn, 24, 20, 48, 96, 192),
    "transformer": partial(transformer, 12, 96, 320, 960, 2),
    "mlp, known": partial(mlp, 512, 784, 1024, 1024, 512, 10),
    "cnn, known": partial(cnn, 32, 16, 64, 128, 256),
    "transformer, known": partial(transformer, 16, 64, 256, 1024, 2),
}


class Watch:
    """Seconds spent in one function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        start = clock_of()()
        try:
            return self.function(*args, **kwargs)
        finally:
            self.seconds += clock_of()() - start


class Step:
    """A step of training with K-FAC, or of none, and the least seconds of its parts."""

    def __init__(self, build: Build, intervals: tuple[int, int] | None) -> None:
        torch.manual_seed(0)
        self.model, self.inputs = build()
        self.labels = torch.randint(10, (len(self.inputs),))
        self.loss = nn.CrossEntropyLoss()
        self.kfac = None
        if intervals is not None:
            factor, inverse = intervals
            self.kfac = KFAC(self.model, lr=0.01, factor_interval=factor, inverse_interval=inverse)
        self.times: dict[str, list[float]] = {"whole": [], "inversion": [], "apply": []}

    def run(self, inverting: Watch) -> None:
        """Once."""
        clock, inverting.seconds = clock_of(), 0.0
        self.model.zero_grad()
        start = clock()
        self.loss(self.model(self.inputs), self.labels).backward()
        middle = clock()
        if self.kfac is not None:
            self.kfac.step()
        end = clock()
        for part, seconds in (
            ("whole", end - start),
            ("inversion", inverting.seconds),
            ("apply", end - middle),
        ):
            self.times[part].append(seconds)

    def least(self, part: str) -> float:
        """The first round makes what others reuse."""
        return min(self.times[part][1:])


def measured_parts(build: Build, seconds: float) -> Parts:
    """By `PARTS`."""
    plain, again, renewed, whole = (
        Step(build, intervals) for intervals in (None, (NEVER, NEVER), (1, NEVER), (1, 1))
    )
    inverting = Watch(solver.prepare)
    begin = time.perf_counter()
    with mock.patch.object(solver, "prepare", inverting):
        while len(plain.times["whole"]) < 6 or time.perf_counter() - begin < seconds:
            for step in (plain, again, renewed, whole):
                step.run(inverting)
    found = (
        plain.least("whole"),
        renewed.least("whole") - again.least("whole"),
        whole.least("inversion"),
        again.least("apply"),
    )
    return dict(zip(PARTS, found, strict=True))


def labelled(y: torch.Tensor) -> torch.Tensor:
    """Cross entropy, whatever the labels."""
    return nn.functional.cross_entropy(y, torch.zeros(len(y), dtype=torch.int64))


def predicted_parts(workload: Workload, machine: Machine) -> Parts:
    """The same, nominal."""
    values, blocks = Values(), workload.blocks
    operations = (
        workload.operations,
        digital.curvature_operations(blocks, workload.diagonal),
        [each for block in blocks for each in digital.inversion_operations(block)],
        [each for block in blocks for each in digital.apply_operations(block)],
    )
    return {
        part: float(machine.seconds(each, values))
        for part, each in zip(PARTS, operations, strict=True)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", action="store_true", help="anew")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each network")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.measure or not measured.path().exists():
        machine = measure(lambda done, what: print(f"{100 * done:3.0f}% {what}", flush=True))
        print(measured.save(machine, about()))
    machine = measured.load()
    rows = []
    for name, build in NETWORKS.items():
        model, x = build()
        expected = predicted_parts(trace(model, x, loss=labelled, name=name), machine)
        found = measured_parts(build, args.seconds)
        for part in PARTS:
            ours, theirs = 1e3 * expected[part], 1e3 * found[part]
            rows.append([name, part, f"{ours:.1f}", f"{theirs:.1f}", f"{ours / theirs - 1:+.0%}"])
            print(*rows[-1], flush=True)
    print(markdown(["network", "part", "predicted ms", "measured ms", "off by"], rows))


if __name__ == "__main__":
    main()
