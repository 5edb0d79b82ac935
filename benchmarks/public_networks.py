"""Networks that nobody here wrote, small and with random weights, on handwritten digits.

BERT, GPT-2 and ViT of transformers, and timm's ConvNeXt (`pip install 'thermokron[loops]'`), each
with its own dropout. The language models read the 64 pixels of an image as a text of 16 letters.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm_alone import load_timm
from torch import nn

from thermokron.host.kfac import KFAC
from thermokron.host.train import Digits
from thermokron.model import Unit

__all__ = ["PUBLIC", "TenSteps", "ten_steps"]

LR, BATCH = 0.03, 144
LEVELS, MASK = 16, 16  # brightnesses, and the token that stands for a hidden one
IGNORED = -100
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


class Images(nn.Module):
    """A network that classifies images, which are enlarged for it."""

    def __init__(self, network: nn.Module, enlarged: int = 1) -> None:
        super().__init__()
        self.network, self.enlarged = network, enlarged

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.interpolate(x.unflatten(1, (1, 8, 8)), scale_factor=self.enlarged)
        found: Any = self.network(x)
        logits: torch.Tensor = getattr(found, "logits", found)
        return logits

    def targets(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The labels."""
        return labels


class Texts(nn.Module):
    """A language model that foretells pixels: masked ones, or each from those before it."""

    def __init__(self, network: nn.Module, masked: bool) -> None:
        super().__init__()
        self.network, self.masked = network, masked
        hidden = torch.rand(64, generator=torch.Generator().manual_seed(0)) < 0.3
        self.register_buffer("hidden", hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = _tokens(x)
        if self.masked:
            tokens = tokens.masked_fill(self.hidden, MASK)
        logits: torch.Tensor = self.network(input_ids=tokens).logits
        return logits.flatten(0, 1)

    def targets(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """What was hidden, or comes next."""
        tokens = _tokens(x)
        if self.masked:
            return tokens.masked_fill(~self.hidden, IGNORED).flatten()
        return nn.functional.pad(tokens[:, 1:], (0, 1), value=IGNORED).flatten()


def _tokens(x: torch.Tensor) -> torch.Tensor:
    return torch.bucketize(x, torch.linspace(-1.2, 1.8, LEVELS - 1))


def bert() -> nn.Module:
    """Its output layer shares the embedding's matrix, as GPT-2's does."""
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(vocab_size=LEVELS + 1, max_position_embeddings=64, **SMALL)
    return Texts(BertForMaskedLM(config), masked=True)


def gpt2() -> nn.Module:
    """Of transformers' own Conv1D layers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2}
    config = GPT2Config(vocab_size=LEVELS, bos_token_id=0, eos_token_id=0, **sizes)
    return Texts(GPT2LMHeadModel(config), masked=False)


def vit() -> nn.Module:
    """With a class token and position embeddings that belong to no module of their own."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(image_size=8, patch_size=2, num_channels=1, num_labels=10, **SMALL)
    return Images(ViTForImageClassification(config))


def convnext() -> nn.Module:
    """Depthwise convolutions, layer norms of channels, and scales of whole layers."""
    sizes = {"dims": (8, 16, 16, 24), "depths": (1, 1, 2, 1)}
    network = load_timm().create_model("convnext_atto", in_chans=1, num_classes=10, **sizes)
    return Images(network, enlarged=4)


PUBLIC: dict[str, Callable[[], nn.Module]] = {
    "BERT, masked tokens": bert,
    "GPT-2, next tokens": gpt2,
    "ViT": vit,
    "ConvNeXt": convnext,
}


@dataclass(frozen=True)
class TenSteps:
    """What became of a network.

    Attributes
    ----------
    before, after : float
        Loss of 500 images.
    parameters : int
        Numbers that are trained.
    untouched : list of str
        Parameters that K-FAC says it leaves alone, or whose gradient a step left as it was.
    warnings : list of str
        What K-FAC said while it trained.
    """

    before: float
    after: float
    parameters: int
    untouched: list[str]
    warnings: list[str]


def ten_steps(
    build: Callable[[], nn.Module], data: Digits, unit: Unit | None = None, **options: Any
) -> TenSteps:
    """Train ten steps with K-FAC, whose options may be given, beside SGD with momentum 0.9."""
    torch.manual_seed(0)
    model, loss = build(), nn.CrossEntropyLoss(ignore_index=IGNORED)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    targets: Any = model.targets

    def whole() -> float:
        x, y = data.train_images[:500], data.train_labels[:500]
        with torch.no_grad():
            return loss(copy.deepcopy(model).eval()(x), targets(x, y)).item()

    before, untouched = whole(), []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="K-FAC has only diagonal curvature")
        kfac = KFAC(model, unit, lr=optimizer, criterion=loss, **options)
    with kfac, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step in range(10):
            chosen = torch.randperm(len(data.train_images))[:BATCH]
            x, y = data.train_images[chosen], data.train_labels[chosen]
            optimizer.zero_grad()
            loss(model(x), targets(x, y)).backward()
            plain = {name: p.grad.clone() for name, p in model.named_parameters()}
            kfac.step()
            if step == 0:
                untouched = [
                    name
                    for name, p in model.named_parameters()
                    if torch.equal(p.grad, plain[name]) and bool(p.grad.any())
                ]
            optimizer.step()
    return TenSteps(
        before=before,
        after=whole(),
        parameters=sum(p.numel() for p in model.parameters()),
        untouched=untouched + kfac.uncovered,
        warnings=[str(w.message) for w in told if "K-FAC" in str(w.message)],
    )
