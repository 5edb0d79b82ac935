"""Which parameters of a model K-FAC covers, and which it does not."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from thermokron.host.kfac.curvature.layers.attention import (
    PARTS,
    Attention,
    LastMoments,
    ProjectionLayer,
)
from thermokron.host.kfac.curvature.layers.base import KroneckerLayer, Layer
from thermokron.host.kfac.curvature.layers.conv import ConvLayer
from thermokron.host.kfac.curvature.layers.embedding import OPTIONS, EmbeddingLayer
from thermokron.host.kfac.curvature.layers.linear import LinearLayer
from thermokron.host.kfac.curvature.layers.norm import NormLayer
from thermokron.host.kfac.curvature.layers.tied import TiedLayer

__all__ = ["COVERED", "Coverage", "find_layers"]

#: Kinds of layers that belong to one module each.
KINDS: tuple[type[Layer], ...] = (LinearLayer, ConvLayer, EmbeddingLayer, NormLayer)

TRANSFORMERS = torch.nn.TransformerEncoderLayer | torch.nn.TransformerDecoderLayer
STACKS = torch.nn.TransformerEncoder | torch.nn.TransformerDecoder

#: The same in words.
COVERED = (
    "Linear, Conv1d-3d, Embedding, LayerNorm, RMSNorm, GroupNorm, BatchNorm, MultiheadAttention"
)


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

    def tell(self) -> None:
        """Warn the caller of `KFAC` of what is not covered.

        Raises
        ------
        ValueError
            If nothing is.
        """
        if not self.layers:
            raise ValueError(f"model holds nothing trainable that K-FAC covers: {COVERED}")
        if self.uncovered:
            warnings.warn(
                f"K-FAC does not cover {', '.join(self.uncovered)}: plain gradients there",
                stacklevel=3,
            )


def find_layers(model: torch.nn.Module) -> Coverage:
    """Sort a model's modules.

    Modules of one kind that share all they train form one layer, used at several places. Those
    that share a weight matrix otherwise, such as an embedding and the output layer, or two linear
    layers with a bias each, form a `TiedLayer`. Other shared parameters are not covered, as their
    gradient is a sum that belongs to no single block.

    Raises
    ------
    ValueError
        If the model holds lazy modules that do not know their sizes yet.
    """
    lazy = [name for name, p in model.named_parameters() if is_lazy(p)]
    if lazy:
        raise ValueError(f"model holds lazy parameters: {', '.join(lazy)}; run it on data first")
    coverage = Coverage([], [], [])
    names = {module: name for name, module in model.named_modules()}
    users: dict[int, list[torch.nn.Module]] = defaultdict(list)
    hidden: set[torch.nn.Module] = set()  # modules whose forward is never called
    sequence_first: set[torch.nn.Module] = set()
    for module in names:
        for key in _ids(module):
            users[key].append(module)
        sequence_first |= _sequence_first(module)
    watched = set()
    for module in names:
        if isinstance(module, torch.nn.MultiheadAttention):
            if Attention.covers(module) and len(_sharing(module, users)) <= 1:
                watched.add(module)
                sequence_first.add(module.out_proj)
            else:
                hidden.add(module.out_proj)
    done: set[torch.nn.Module] = set()
    for module, name in names.items():
        if module in watched:
            assert isinstance(module, torch.nn.MultiheadAttention)
            _add_attention(coverage, name, module)
            continue
        if not _ids(module) or module in done:
            continue
        group = _sharing(module, users)
        done.update(group)
        layer = None if hidden & set(group) else _layer_of(group, names, sequence_first)
        if layer is not None:
            coverage.layers.append(layer)
            continue
        for member in group:
            reasons = [type(member).__name__]
            if isinstance(member, torch.nn.Embedding):
                reasons += [f"its {name}" for name in OPTIONS if getattr(member, name)]
            if len(group) > 1:
                others = (names[m] or "(model)" for m in group if m is not member)
                reasons.append("shares parameters with " + " and ".join(others))
            coverage.uncovered.append(f"{names[member] or '(model)'} ({', '.join(reasons)})")
    return coverage


def _sequence_first(module: torch.nn.Module) -> set[torch.nn.Module]:
    """Submodules of one of torch's transformers that are given (S, N, entries)."""
    if isinstance(module, TRANSFORMERS) and not module.self_attn.batch_first:
        return set(module.children())
    if isinstance(module, STACKS) and len(module.layers) and module.norm is not None:
        first = module.layers[0]
        if isinstance(first, TRANSFORMERS) and not first.self_attn.batch_first:
            return {module.norm}
    return set()


def _sharing(
    module: torch.nn.Module, users: Mapping[int, list[torch.nn.Module]]
) -> list[torch.nn.Module]:
    """The modules that share parameters with one, and with one another; itself first."""
    group = {module: None}  # a set that keeps its order
    waiting = [module]
    while waiting:
        for key in _ids(waiting.pop()):
            new = [m for m in users[key] if m not in group]
            group |= dict.fromkeys(new)
            waiting += new
    return list(group)


def _layer_of(
    group: Sequence[torch.nn.Module],
    names: Mapping[torch.nn.Module, str],
    sequence_first: Set[torch.nn.Module],
) -> Layer | None:
    """The layer that modules which share parameters form, if they do."""
    alike: dict[Any, list[torch.nn.Module]] = defaultdict(list)
    for module in group:
        kind = next((k for k in KINDS if k.covers(module)), None)
        if kind is None:
            return None
        alike[kind, frozenset(_ids(module)), getattr(module, "groups", 1)].append(module)
    parts: list[Layer] = [
        kind(names[modules[0]], modules) for (kind, _, _), modules in alike.items()
    ]
    for part in parts:
        if isinstance(part, LinearLayer | NormLayer):
            part.sequence_first = frozenset(part.modules) & sequence_first
    if len(parts) == 1:
        return parts[0]
    tied = [part for part in parts if isinstance(part, KroneckerLayer)]
    first = tied[0] if tied else None
    if first is None or len(tied) < len(parts):
        return None
    if any(part.weight is not first.weight or part.blocks != first.blocks for part in tied):
        return None
    return TiedLayer(first.name, tied)


def _add_attention(coverage: Coverage, name: str, module: torch.nn.MultiheadAttention) -> None:
    last = LastMoments()
    layers = {part: ProjectionLayer(name, module, part, last) for part in PARTS}
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
