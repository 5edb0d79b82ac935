"""The networks that come with the package, each with its data and loss.

`hidden`, and what it is if not given:

    mlp     (32,)       widths of the tanh layers between 64 pixels and 10 classes
    cnn     (8, 16)     channels of the two convolutions
    vit     (64, 64)    widths of the feed-forward layers, one per transformer block
    graph   (32, 32)    widths of the graph convolutions, one per step of message passing
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch.utils.data import TensorDataset

from thermokron.host.train.data import CLASSES, SIDE, Digits
from thermokron.host.train.molecules import ELEMENTS, FEATURES, Molecules
from thermokron.host.train.tasks import Task

__all__ = ["BUILDERS", "GraphNetwork", "VisionTransformer", "cnn", "mlp"]

Hidden = tuple[int, ...] | None


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


def cnn(channels: tuple[int, int]) -> torch.nn.Sequential:
    """Two 3 x 3 convolutions with ReLU, pooled to 4 x 4 and 2 x 2, and a linear layer."""
    first, second = channels
    return torch.nn.Sequential(
        torch.nn.Unflatten(1, (1, SIDE, SIDE)),
        torch.nn.Conv2d(1, first, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(first, second, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(second * (SIDE // 4) ** 2, CLASSES),
    )


class VisionTransformer(torch.nn.Module):
    """Sixteen patches of 2 x 2 pixels as tokens, encoder blocks, the mean token classified.

    Parameters
    ----------
    feed_forward : tuple of int
        Width of every block's feed-forward layer; as many blocks.
    width, heads : int
        Of tokens and attention.
    """

    PATCH = 2

    def __init__(self, feed_forward: tuple[int, ...], width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.tokens = (SIDE // self.PATCH) ** 2
        self.patches = torch.nn.Conv2d(1, width, self.PATCH, stride=self.PATCH)
        self.positions = torch.nn.Embedding(self.tokens, width)
        self.blocks = torch.nn.Sequential(
            *(
                torch.nn.TransformerEncoderLayer(
                    width,
                    heads,
                    hidden,
                    dropout=0.0,
                    activation="gelu",
                    batch_first=True,
                    norm_first=True,
                )
                for hidden in feed_forward
            )
        )
        self.norm = torch.nn.LayerNorm(width)
        self.head = torch.nn.Linear(width, CLASSES)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits (B, 10) of pixels (B, 64)."""
        images = pixels.reshape(-1, 1, SIDE, SIDE)
        patches = self.patches(images).flatten(2).mT
        # per example, so that its gradient is a sum over examples like every other
        places = torch.arange(self.tokens).expand(len(pixels), -1)
        hidden = self.blocks(patches + self.positions(places))
        logits: torch.Tensor = self.head(self.norm(hidden).mean(dim=1))
        return logits


class GraphNetwork(torch.nn.Module):
    """Message passing between bonded atoms, their sum read out by two linear layers.

    Every step, an atom's state becomes tanh(W [own state, sum of its neighbours' states] + b).
    Atoms of all molecules are rows of one matrix, so that padding is no data to any layer.

    Parameters
    ----------
    widths : tuple of int
        Width of an atom's state after every step of message passing; as many steps.
    """

    TYPICAL_ATOMS = 8.0  # keeps sums over molecules of order one

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        sizes = (FEATURES, *widths)
        self.steps = torch.nn.ModuleList(
            torch.nn.Linear(2 * inputs, outputs) for inputs, outputs in itertools.pairwise(sizes)
        )
        self.readout = torch.nn.Sequential(
            torch.nn.Linear(sizes[-1], sizes[-1]), torch.nn.Tanh(), torch.nn.Linear(sizes[-1], 1)
        )

    def forward(self, atoms: torch.Tensor, bonds: torch.Tensor) -> torch.Tensor:
        """Predictions (B,) for atoms (B, N, 16) and bonds (B, N, N)."""
        real = atoms[..., : len(ELEMENTS)].sum(dim=-1) > 0.0
        state, padded = atoms[real], atoms
        for step in self.steps:
            neighbours = (bonds @ padded)[real]
            state = torch.tanh(step(torch.cat([state, neighbours], dim=-1)))
            padded = state.new_zeros(*real.shape, state.shape[-1])
            padded[real] = state
        outputs: torch.Tensor = self.readout(padded.sum(dim=1) / self.TYPICAL_ATOMS)
        return outputs.squeeze(-1)


def _digits(name: str, seed: int, model: torch.nn.Module, hidden: tuple[int, ...]) -> Task:
    data = Digits.load(seed)
    return Task(
        name=name,
        model=model,
        train=TensorDataset(data.train_images, data.train_labels),
        test=TensorDataset(data.test_images, data.test_labels),
        loss=torch.nn.CrossEntropyLoss(),
        hidden=hidden,
    )


def _mlp(seed: int, hidden: Hidden, generator: torch.Generator) -> Task:
    widths = (32,) if hidden is None else hidden
    return _digits("mlp", seed, mlp((SIDE**2, *widths, CLASSES), generator), widths)


def _cnn(seed: int, hidden: Hidden, generator: torch.Generator) -> Task:
    channels = (8, 16) if hidden is None else hidden
    if len(channels) != 2:
        raise ValueError(f"hidden = {channels} is out of range; legal for cnn: two channels")
    return _digits("cnn", seed, cnn((channels[0], channels[1])), channels)


def _vit(seed: int, hidden: Hidden, generator: torch.Generator) -> Task:
    widths = (64, 64) if hidden is None else hidden
    return _digits("vit", seed, VisionTransformer(widths), widths)


def _graph(seed: int, hidden: Hidden, generator: torch.Generator) -> Task:
    widths = (32, 32) if hidden is None else hidden
    data = Molecules.load(seed)
    return Task(
        name="graph",
        model=GraphNetwork(widths),
        train=TensorDataset(data.train_atoms, data.train_bonds, data.train_targets),
        test=TensorDataset(data.test_atoms, data.test_bonds, data.test_targets),
        loss=torch.nn.MSELoss(),
        hidden=widths,
    )


#: By name, what makes a task of a seed, `hidden` and a generator.
BUILDERS: dict[str, Callable[[int, Hidden, torch.Generator], Task]] = {
    "mlp": _mlp,
    "cnn": _cnn,
    "vit": _vit,
    "graph": _graph,
}
