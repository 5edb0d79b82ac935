"""Networks that break K-FAC implementations, each trained here for one epoch.

    pip install --no-deps asdfghjkl==0.1a5     # ASDL, imported as `asdl`; left out where missing
    pip install 'thermokron[loops]'            # transformers and timm; left out where missing
    python benchmarks/troublesome.py [-o runs/troublesome]

Handwritten digits, batches of 144, K-FAC at its defaults with exact inverses and on a unit
(numeric engine, 8-bit couplings, 1,000 samples), SGD with momentum 0.9. Beside it, whether one
step of ASDL's K-FAC on the same network ends without an error; whether its result is right is
not looked at. Writes troublesome.md, and in public.md ten steps of networks that others wrote, see
`public_networks`.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from thermokron.host import open_unit
from thermokron.host.kfac import KFAC
from thermokron.host.tables import markdown, number, write
from thermokron.host.train import Digits
from thermokron.model import Unit, UnitSpec

LR = 0.03


class Unused(nn.Module):
    """Holds a layer that no data reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
        self.spare = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.body(x)
        return result


class Tied(nn.Module):
    """Uses one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.head = nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.twice(torch.tanh(self.first(x))))
        result: torch.Tensor = self.head(torch.tanh(self.twice(x)))
        return result


class TiedHead(nn.Module):
    """Reads brightnesses as tokens, and shares their embedding with its output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(16, 8), nn.Linear(64 * 8, 8)
        self.head = nn.Linear(8, 16)  # of which ten are classes
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = torch.bucketize(x, torch.linspace(-1.2, 1.8, 15))
        result: torch.Tensor = self.head(torch.tanh(self.mix(self.embed(tokens).flatten(1))))
        return result


class Transposed(nn.Module):
    """Gives its layers inputs that are not contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.head = nn.Linear(8, 16), nn.Linear(16 * 8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        columns = x.unflatten(1, (8, 8)).mT
        result: torch.Tensor = self.head(torch.relu(self.rows(columns)).mT.flatten(1))
        return result


class Attention(nn.Module):
    """Attends from every row of the image to every other."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.unflatten(1, (8, 8))
        result: torch.Tensor = self.head((rows + self.attend(rows, rows, rows)[0]).flatten(1))
        return result


def conv(*, groups: int = 1, inplace: bool = False, **options: object) -> nn.Sequential:
    """Two convolutions, the second of them with these options, and a linear layer."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(inplace=inplace),
        nn.Conv2d(8, 8, 3, groups=groups, **options),
        nn.ReLU(inplace=inplace),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "grouped convolution": lambda: conv(groups=2, padding=1),
    "depthwise convolution": lambda: conv(groups=8, padding=1),
    "dilated convolution": lambda: conv(dilation=2, padding=2),
    'padding="same"': lambda: conv(padding="same"),
    "circular padding": lambda: conv(padding=1, padding_mode="circular"),
    "channels_last": lambda: conv(padding=1).to(memory_format=torch.channels_last),
    "in-place ReLU": lambda: conv(padding=1, inplace=True),
    "unused layer": Unused,
    "layer used twice": Tied,
    "output layer tied to the embedding": TiedHead,
    "attention": Attention,
    "input that is not contiguous": Transposed,
}


def train(build: Callable[[], nn.Module], data: Digits, unit: Unit | None) -> tuple[float, float]:
    """Training loss before and after one epoch."""
    torch.manual_seed(0)
    model, loss = build(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)

    def whole() -> float:
        with torch.no_grad():
            return float(loss(model(data.train_images), data.train_labels))

    before = whole()
    with KFAC(model, unit, lr=LR) as kfac:
        for chosen in torch.randperm(len(data.train_images)).split(144):
            optimizer.zero_grad()
            loss(model(data.train_images[chosen]), data.train_labels[chosen]).backward()
            kfac.step()
            optimizer.step()
    return before, whole()


def asdl_step(build: Callable[[], nn.Module], x: torch.Tensor, y: torch.Tensor) -> str:
    """What one step of ASDL's K-FAC comes to."""
    try:
        from asdl import FISHER_EMP, KfacGradientMaker, PreconditioningConfig
    except ModuleNotFoundError:
        return "not installed"
    # it marks ranges for a GPU profiler, which builds of torch without CUDA refuse
    torch.cuda.nvtx.range = lambda *_: nullcontext()
    torch.manual_seed(0)
    model = build()
    config = PreconditioningConfig(damping=0.03, ema_decay=0.05, data_size=144)
    try:
        maker = KfacGradientMaker(model, config, fisher_type=FISHER_EMP)
        output = maker.setup_model_call(model, x)
        maker.setup_loss_call(nn.functional.cross_entropy, output, y)
        maker.forward_and_backward()
    except Exception as error:
        return type(error).__name__
    return "no error"


def public_rows(data: Digits) -> list[list[str]]:
    """The networks that others wrote; none where they are not installed."""
    if not (find_spec("transformers") and find_spec("timm")):
        print("transformers and timm are not installed: without BERT, GPT-2, ViT and ConvNeXt")
        return []
    from public_networks import BATCH, PUBLIC, ten_steps

    rows = []
    for name, build in PUBLIC.items():
        exact = ten_steps(build, data)
        with open_unit("numeric", UnitSpec(cells=128, adc_bits=8), seed=0) as unit:
            sampled = ten_steps(build, data, unit)
        x = data.train_images[:BATCH]
        asdl = asdl_step(build, x, build().targets(x, data.train_labels[:BATCH]))
        covered = "all" if not exact.untouched else f"not {', '.join(exact.untouched)}"
        losses = map(number, (exact.before, exact.after, sampled.after))
        rows.append([name, f"{exact.parameters:,}", covered, *losses, asdl])
    return rows


def main() -> None:
    """Train every network, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/troublesome"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    data = Digits.load(0)
    rows, batch = [], (data.train_images[:144], data.train_labels[:144])
    for name, build in NETWORKS.items():
        before, exact = train(build, data, None)
        with open_unit("numeric", UnitSpec(cells=128, adc_bits=8), seed=0) as unit:
            _, sampled = train(build, data, unit)
        rows.append([name, *map(number, (before, exact, sampled)), asdl_step(build, *batch)])
    head = ["", "loss before", "after, exact", "after, on a unit", "a step of ASDL 0.1a5"]
    text = markdown(head, rows)
    write(args.output / "troublesome.md", text)
    print(text)
    rows = public_rows(data)
    if rows:
        head = ["", "parameters", "covered", "loss before", "after ten steps, exact"]
        text = markdown([*head, "on a unit", "a step of ASDL 0.1a5"], rows)
        write(args.output / "public.md", text)
        print(text)


if __name__ == "__main__":
    main()
