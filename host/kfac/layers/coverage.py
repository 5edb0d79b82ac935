"""Which parameters of a model K-FAC covers, and which it does not."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch

from thermokron.host.kfac.layers.attention import PARTS, Attention, ProjectionLayer
from thermokron.host.kfac.layers.base import Layer
from thermokron.host.kfac.layers.conv import ConvLayer
from thermokron.host.kfac.layers.embedding import EmbeddingLayer
from thermokron.host.kfac.layers.linear import LinearLayer
from thermokron.host.kfac.layers.norm import NormLayer

__all__ = ["COVERED", "Coverage", "find_layers"]

#: Kinds of layers that belong to one module each.
KINDS: tuple[type[Layer], ...] = (LinearLayer, ConvLayer, EmbeddingLayer, NormLayer)

TRANSFORMERS = torch.nn.TransformerEncoderLayer | torch.nn.TransformerDecoderLayer

#: The same in words.
COVERED = "Linear, Conv1d-3d, Embedding, LayerNorm, GroupNorm, BatchNorm, MultiheadAttention"


@dataclass(frozen=True)
class Coverage:
    """What `find_layers` found.

    Attributes
    ----------
    layers : list of Layer
        In the model's order.
    attentions : list of (torch.nn.MultiheadAttention, {part: ProjectionLayer})
        Attention modules, and the layers of their input projections.
    uncovered : list of str
        Modules that hold other parameters to train, with their kind and, where it is not the
        kind, the reason.
    """

    layers: list[Layer]
    attentions: list[tuple[torch.nn.MultiheadAttention, dict[str, ProjectionLayer]]]
    uncovered: list[str]


def find_layers(model: torch.nn.Module) -> Coverage:
    """Sort a model's modules.

    Parameters that several modules share are covered where all of them are of one covered kind
    and share all they train: they form one layer, used at several places. Otherwise their
    gradient is a sum that belongs to no single block.
    """
    coverage = Coverage([], [], [])
    users = defaultdict(list)
    names = {module: name for name, module in model.named_modules()}
    for module in names:
        for key in _trained(module).values():
            users[id(key)].append(module)
    hidden: set[torch.nn.Module] = set()  # modules whose forward is never called
    sequence_first: set[torch.nn.Module] = set()
    done: set[torch.nn.Module] = set()
    for module, name in names.items():
        if isinstance(module, TRANSFORMERS) and not module.self_attn.batch_first:
            sequence_first |= {module.linear1, module.linear2}
        trained = _trained(module)
        label = f"{name or '(model)'} ({type(module).__name__}"
        others = {id(m): m for p in trained.values() for m in users[id(p)]}.values()
        if isinstance(module, torch.nn.MultiheadAttention):
            if Attention.covers(module) and len(others) <= 1:
                sequence_first.add(module.out_proj)
                _add_attention(coverage, name, module)
                continue
            hidden.add(module.out_proj)
        if not trained or module in done:
            continue
        kind = next((k for k in KINDS if k.covers(module)), None)
        if kind is None or module in hidden:
            coverage.uncovered.append(label + ")")
        elif any(type(m) is not type(module) or set(_ids(m)) != set(_ids(module)) for m in others):
            coverage.uncovered.append(label + ", shared parameters)")
        else:
            layer = kind(name, list(others))
            if isinstance(layer, LinearLayer) and module in sequence_first:
                layer.batch_axis = 1
            coverage.layers.append(layer)
            done.update(others)
    return coverage


def _add_attention(coverage: Coverage, name: str, module: torch.nn.MultiheadAttention) -> None:
    layers = {part: ProjectionLayer(name, module, part) for part in PARTS}
    parts = {part: layer for part, layer in layers.items() if layer.weight.requires_grad}
    coverage.layers.extend(parts.values())
    if parts or any(p.requires_grad for p in module.out_proj.parameters()):
        coverage.attentions.append((module, parts))
    covered = {id(p) for layer in parts.values() for p in layer.parameters}
    plain = [key for key, p in _trained(module).items() if id(p) not in covered]
    if plain:
        coverage.uncovered.append(
            f"{name or '(model)'} (MultiheadAttention, its {', '.join(plain)})"
        )


def _trained(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {k: p for k, p in module._parameters.items() if p is not None and p.requires_grad}


def _ids(module: torch.nn.Module) -> list[int]:
    return [id(p) for p in _trained(module).values()]
