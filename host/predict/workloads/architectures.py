"""Networks of the presets, as their papers and repositories have them, of plain torch modules."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch

__all__ = [
    "GPT2",
    "Bert",
    "MessagePassing",
    "ResNet50",
    "TransformerLayer",
    "VisionTransformer",
    "mlp",
]

nn, F = torch.nn, torch.nn.functional


def mlp(width: int, depth: int, classes: int = 10) -> nn.Sequential:
    """`depth` hidden layers with tanh between `width` inputs and the classes."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(width, classes))


# ---- transformers --------------------------------------------------------------------------------


class Attention(nn.Module):
    """Self-attention by its products.

    Parameters
    ----------
    width, heads : int
        Of tokens.
    fused : bool
        One projection for query, key and value, as GPT-2 has it.
    causal : bool
        Whether a token sees those before it alone.
    dropout : float
        Of weights.
    finite : bool
        Queries scaled in place of scores, which are limited from below, as OPT has it.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        fused: bool,
        causal: bool,
        dropout: float,
        finite: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.causal, self.dropout, self.finite = heads, causal, dropout, finite
        self.fused = nn.Linear(width, 3 * width) if fused else None
        if not fused:
            self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, S, width) to the same."""
        if self.fused is None:
            parts = (self.query(x), self.key(x), self.value(x))
        else:
            parts = self.fused(x).chunk(3, dim=-1)
        q, k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in parts)
        root = math.sqrt(q.shape[-1])
        scores = (q / root) @ k.mT if self.finite else q @ k.mT / root
        if self.causal:
            length = x.shape[1]
            scores = scores + torch.full((length, length), -math.inf).triu(1)
        if self.finite:
            scores = torch.maximum(scores, torch.tensor(torch.finfo(scores.dtype).min))
        weights = F.dropout(scores.softmax(dim=-1), self.dropout, self.training)
        mixed = (weights @ v).transpose(1, 2).flatten(2)
        answer: torch.Tensor = self.out(mixed)
        return answer


class TransformerLayer(nn.Module):
    """Attention and a feed-forward part, each beside what it gets.

    Parameters
    ----------
    width, heads, hidden : int
        Of tokens, and of the feed-forward part.
    first : bool
        Whether what is normalised is what the parts get, and not what they return.
    activation : callable
        Of the feed-forward part.
    fused, causal, finite : bool
        Of `Attention`.
    dropout, forgetting : float
        Of what the parts return, and of attention's weights; the same if `forgetting` is None.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        first: bool,
        activation: Callable[[torch.Tensor], torch.Tensor] = F.gelu,
        fused: bool = False,
        causal: bool = False,
        dropout: float = 0.0,
        forgetting: float | None = None,
        finite: bool = False,
    ) -> None:
        super().__init__()
        self.first, self.activation = first, activation
        own = dropout if forgetting is None else forgetting
        self.attention = Attention(
            width, heads, fused=fused, causal=causal, dropout=own, finite=finite
        )
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, S, width) to the same."""
        if self.first:
            x = x + self.drop(self.attention(self.norm1(x)))
            answer: torch.Tensor = x + self.drop(self._forward(self.norm2(x)))
            return answer
        x = self.norm1(x + self.drop(self.attention(x)))
        normalised: torch.Tensor = self.norm2(x + self.drop(self._forward(x)))
        return normalised

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.down(self.activation(self.up(x)))
        return answer


class VisionTransformer(nn.Module):
    """ViT-S/16 of AlgoPerf: no class token, the mean of tokens, a tanh layer before the head."""

    def __init__(
        self, width: int = 384, depth: int = 12, heads: int = 6, hidden: int = 1536
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, stride=16)
        self.register_buffer("positions", torch.zeros(196, width))  # sine and cosine
        self.layers = nn.Sequential(
            *(TransformerLayer(width, heads, hidden, first=True) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width)
        self.before, self.head = nn.Linear(width, width), nn.Linear(width, 1000)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, 1000) of images (B, 3, 224, 224)."""
        tokens = self.patches(images).flatten(2).mT + self.positions
        pooled = self.norm(self.layers(tokens)).mean(dim=1)
        logits: torch.Tensor = self.head(torch.tanh(self.before(pooled)))
        return logits


class Bert(nn.Module):
    """BERT-base with its head for masked tokens, whose weight is that of the embedding."""

    VOCABULARY = 30522

    def __init__(self, width: int = 768, depth: int = 12, heads: int = 12) -> None:
        super().__init__()
        self.words = nn.Embedding(self.VOCABULARY, width)
        self.places, self.kinds = nn.Embedding(512, width), nn.Embedding(2, width)
        self.norm, self.drop = nn.LayerNorm(width), nn.Dropout(0.1)
        self.encoder = nn.Sequential(
            *(
                TransformerLayer(width, heads, 4 * width, first=False, dropout=0.1)
                for _ in range(depth)
            )
        )
        self.transform, self.last = nn.Linear(width, width), nn.LayerNorm(width)
        self.decoder = nn.Linear(width, self.VOCABULARY)
        self.decoder.weight = self.words.weight

    def forward(
        self, tokens: torch.Tensor, kinds: torch.Tensor, masked: torch.Tensor
    ) -> torch.Tensor:
        """Logits (B * M, words) at M masked places of every sequence.

        Parameters
        ----------
        tokens, kinds : (B, S) int64 tensors
            Words, and which of two sentences they are of.
        masked : (B * M,) int64 tensor
            Places among the B * S.
        """
        places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        x = self.words(tokens) + self.places(places) + self.kinds(kinds)
        x = self.encoder(self.drop(self.norm(x))).flatten(0, 1).index_select(0, masked)
        logits: torch.Tensor = self.decoder(self.last(F.gelu(self.transform(x))))
        return logits


class GPT2(nn.Module):
    """GPT-2 small, its output layer tied to the embedding."""

    VOCABULARY = 50257

    def __init__(self, width: int = 768, depth: int = 12, heads: int = 12) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(self.VOCABULARY, width), nn.Embedding(1024, width)
        self.drop = nn.Dropout(0.1)
        layer = {"first": True, "fused": True, "causal": True, "dropout": 0.1}
        self.layers = nn.Sequential(
            *(TransformerLayer(width, heads, 4 * width, **layer) for _ in range(depth))  # type: ignore[arg-type]
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, self.VOCABULARY, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (B, S, words) of tokens (B, S)."""
        places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        x = self.layers(self.drop(self.words(tokens) + self.places(places)))
        logits: torch.Tensor = self.head(self.norm(x))
        return logits


# ---- graphs --------------------------------------------------------------------------------------


class MessagePassing(nn.Module):
    """The graph network of AlgoPerf for OGBG-molpcba.

    Five steps, each of which renews edges, nodes, and what is common to a graph, by a linear layer,
    LayerNorm and ReLU of all that they touch.
    """

    def __init__(self, width: int = 256, steps: int = 5, outputs: int = 128) -> None:
        super().__init__()
        self.outputs = outputs
        self.embed_nodes, self.embed_edges = nn.Linear(9, width), nn.Linear(3, width)
        common = [outputs, *(width for _ in range(steps - 1))]
        self.edges, self.nodes, self.graphs = (
            nn.ModuleList(self._part(touched * width + c, width) for c in common)
            for touched in (3, 3, 2)
        )
        self.decoder = nn.Linear(width, outputs)

    @staticmethod
    def _part(inputs: int, width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(inputs, width), nn.LayerNorm(width), nn.ReLU(), nn.Dropout(0.1)
        )

    def forward(
        self,
        atoms: torch.Tensor,
        bonds: torch.Tensor,
        senders: torch.Tensor,
        receivers: torch.Tensor,
        graph_of_node: torch.Tensor,
        graph_of_edge: torch.Tensor,
        graphs: torch.Tensor,
    ) -> torch.Tensor:
        """Logits (B, 128) of B graphs with N atoms and E directed bonds together.

        Parameters
        ----------
        atoms, bonds : (N, 9), (E, 3) tensors
            Features.
        senders, receivers, graph_of_node, graph_of_edge : int64 tensors
            Whose nodes, and whose graphs.
        graphs : (B, 128) tensor
            Zeros.
        """
        v, e, u = self.embed_nodes(atoms), self.embed_edges(bonds), graphs
        for edges, nodes, common in zip(self.edges, self.nodes, self.graphs, strict=True):
            of_edge = u.index_select(0, graph_of_edge)
            e = edges(torch.cat([e, v[senders], v[receivers], of_edge], dim=-1))
            sent, received = (_summed(e, ends, len(v)) for ends in (senders, receivers))
            of_node = u.index_select(0, graph_of_node)
            v = nodes(torch.cat([v, sent, received, of_node], dim=-1))
            sums = _summed(v, graph_of_node, len(u)), _summed(e, graph_of_edge, len(u))
            u = common(torch.cat([*sums, u], dim=-1))
        logits: torch.Tensor = self.decoder(u)
        return logits


def _summed(rows: torch.Tensor, places: torch.Tensor, count: int) -> torch.Tensor:
    return rows.new_zeros(count, rows.shape[-1]).index_add(0, places, rows)


# ---- convolutions --------------------------------------------------------------------------------


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions beside a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.path = nn.Sequential(
            *_convolved(inputs, width, 1),
            nn.ReLU(inplace=True),
            *_convolved(width, width, 3, stride),
            nn.ReLU(inplace=True),
            *_convolved(width, outputs, 1),
        )
        changed = stride > 1 or inputs != outputs
        self.shortcut: nn.Module = (
            nn.Sequential(*_convolved(inputs, outputs, 1, stride)) if changed else nn.Identity()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, inputs, H, W) to (B, 4 width, H / stride, W / stride)."""
        return F.relu(self.path(x) + self.shortcut(x), inplace=True)


class ResNet50(nn.Sequential):
    """ResNet-50 with the stride in 3 x 3 convolutions, as torchvision has it."""

    def __init__(self) -> None:
        blocks: list[nn.Module] = []
        inputs = 64
        for width, count, first in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for stride in itertools.chain([first], itertools.repeat(1, count - 1)):
                blocks.append(Bottleneck(inputs, width, stride))
                inputs = 4 * width
        super().__init__(
            *_convolved(3, 64, 7, 2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(inputs, 1000),
        )


def _convolved(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]
