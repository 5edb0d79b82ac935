"""Which parameters of a model K-FAC covers, and which it does not."""

from __future__ import annotations

import fnmatch
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from thermokron.host.kfac.curvature.layers.attention import (
    PARTS,
    Attention,
    LastMoments,
    ProjectionLayer,
)
from thermokron.host.kfac.curvature.layers.base import Layer
from thermokron.host.kfac.curvature.layers.diagonal import FreeLayer
from thermokron.host.kfac.curvature.layers.embedding import OPTIONS
from thermokron.host.kfac.curvature.layers.kronecker import KroneckerLayer
from thermokron.host.kfac.curvature.layers.linear import LinearLayer
from thermokron.host.kfac.curvature.layers.norm import NormLayer
from thermokron.host.kfac.curvature.layers.registry import known_class, layer_class_of
from thermokron.host.kfac.curvature.layers.tied import TiedLayer

__all__ = ["Choice", "Coverage", "find_layers", "in_words", "intact_of"]

ATTENTION = torch.nn.MultiheadAttention
TRANSFORMERS = torch.nn.TransformerEncoderLayer | torch.nn.TransformerDecoderLayer
STACKS = torch.nn.TransformerEncoder | torch.nn.TransformerDecoder

#: What is covered, in words.
COVERED = (
    "Linear, Conv1d-3d, Embedding, LayerNorm, RMSNorm, GroupNorm, BatchNorm, MultiheadAttention, "
    "and what register_layer was told of"
)

#: A name, of a module with all that is in it, which may have wildcards; a class; a module.
Chosen = str | type[torch.nn.Module] | torch.nn.Module
Choice = Chosen | Iterable[Chosen] | None


@dataclass(frozen=True)
class Coverage:
    """What `find_layers` found.

    Attributes
    ----------
    layers : list of Layer
        In the model's order.
    attentions : list of (torch.nn.MultiheadAttention, {part: ProjectionLayer})
        Attention modules, and the layers of their input projections.
    free : dict of str to str
        Parameters that no layer class knows the use of, by name, and why: each is a `FreeLayer`.
    plain : dict of str to str
        The other parameters to train by name, and why they are not covered; "" of those that the
        user left out.
    """

    layers: list[Layer]
    attentions: list[tuple[torch.nn.MultiheadAttention, dict[str, ProjectionLayer]]]
    free: dict[str, str] = field(default_factory=dict)
    plain: dict[str, str] = field(default_factory=dict)

    @property
    def uncovered(self) -> list[str]:
        """Parameters of one module that are not covered for one reason, in words."""
        return in_words({name: reason for name, reason in self.plain.items() if reason})

    @property
    def left_out(self) -> list[str]:
        """Parameters that the user did not want."""
        return in_words({name: "left out" for name, reason in self.plain.items() if not reason})

    def tell(self) -> None:
        """Warn the caller of `KFAC` of what is not covered, or not as one would expect.

        Raises
        ------
        ValueError
            If nothing is.
        """
        if len(self.layers) == len(self.free):
            raise ValueError(f"model holds nothing trainable that K-FAC covers: {COVERED}")
        if self.uncovered:
            warnings.warn(
                f"K-FAC does not cover {'; '.join(self.uncovered)}: plain gradients there",
                stacklevel=3,
            )
        if self.free:
            warnings.warn(
                "K-FAC has only diagonal curvature, from gradients of whole batches, for "
                f"{'; '.join(in_words(self.free))}; others = 'plain' leaves their gradients alone",
                stacklevel=3,
            )
        cut = [
            f"{letter} of {layer.name or '(model)'} ({size:,} rows)"
            for layer in self.layers
            if isinstance(layer, KroneckerLayer)
            for letter, size, diagonal in zip(
                "AG", layer.sizes, (f.diagonal for f in layer.factors.values()), strict=True
            )
            if diagonal
            and layer.dense_limit is not None
            and size > layer.dense_limit
            and not (letter == "A" and layer.diagonal_inputs)
        ]
        if cut:
            warnings.warn(
                f"K-FAC keeps only the diagonal of {', '.join(cut)}: more than dense_limit rows",
                stacklevel=3,
            )


def find_layers(
    model: torch.nn.Module,
    *,
    include: Choice = None,
    exclude: Choice = None,
    dense_limit: int | None = None,
    others: str = "plain",
) -> Coverage:
    """Sort a model's modules.

    Modules of one kind that share all they train form one layer, used at several places. Those
    that share a weight matrix otherwise, such as an embedding and the output layer, or two linear
    layers with a bias each, form a `TiedLayer`. Other shared parameters are not covered, as their
    gradient is a sum that belongs to no single block. A second name that a parameter has in a
    module around the one that uses it, as the bias of BERT's output layer has, is no use of it.

    Parameters
    ----------
    model : torch.nn.Module
        The network.
    include, exclude : str, module class, module, or several of them
        Which modules to look at, all if `include` is None, and which of these not.
    dense_limit : int or None
        Rows up to which a factor is dense.
    others : "diagonal" or "plain"
        What parameters that no layer class knows the use of get.

    Raises
    ------
    ValueError
        If the model holds lazy modules that do not know their sizes yet, or a choice matches no
        module.
    """
    lazy = [name for name, p in model.named_parameters() if is_lazy(p)]
    if lazy:
        raise ValueError(f"model holds lazy parameters: {', '.join(lazy)}; run it on data first")
    names = {module: name for name, module in model.named_modules()}
    left_out = _left_out(names, include, exclude)
    coverage, uses = Coverage([], []), _uses(names)
    users: dict[int, list[torch.nn.Module]] = defaultdict(list)
    for module, held in uses.items():
        for key in held:
            users[key].append(module)
    hidden: dict[torch.nn.Module, str] = {}  # modules whose forward is never called
    sequence_first: set[torch.nn.Module] = set()
    reasons: dict[torch.nn.Module, str] = dict.fromkeys(left_out, "")
    for module, name in names.items():
        sequence_first |= _sequence_first(module)
        if isinstance(module, torch.nn.MultiheadAttention) and module not in left_out:
            if Attention.covers(module) and len(_sharing(module, uses, users)) <= 1:
                sequence_first.add(module.out_proj)
                _add_attention(coverage, name, module)
                reasons[module] = "MultiheadAttention has no layer for it"
            else:
                reasons[module] = "not as torch made MultiheadAttention"
                hidden[module.out_proj] = f"called by {name or '(model)'} past its forward"
    done: set[torch.nn.Module] = {module for module, _ in coverage.attentions}
    found: dict[torch.nn.Module, list[Layer]] = {}
    for module in names:
        if not uses[module] or module in done:
            continue
        group = _sharing(module, uses, users)
        done.update(group)
        if any(m in left_out or m in hidden or m in found for m in group):
            layer = None
        else:
            layer = _layer_of(group, names, uses, sequence_first)
        if layer is not None:
            layer.limit(dense_limit)
            found[module] = [layer]
            continue
        for member in group:
            rest = [names[m] or "(model)" for m in group if m is not member]
            reasons.setdefault(member, hidden.get(member) or _reason(member, rest))
    found |= {module: list(parts.values()) for module, parts in coverage.attentions}
    for _, parts in coverage.attentions:
        for part in parts.values():
            part.limit(dense_limit)
    coverage.layers.extend(layer for module in names for layer in found.get(module, ()))
    covered = {id(p) for layer in coverage.layers for p in layer.parameters}
    by_name = {name: module for module, name in names.items()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in covered:
            holder = by_name[name.rpartition(".")[0]]
            why = reasons[holder] if holder in reasons else _reason(holder, [])
            if isinstance(holder, ParametrizationList):
                why = "parametrized"
            if others == "plain" or not why or not _may_be_free(holder, parameter):
                coverage.plain[name] = why
                continue
            coverage.free[name] = why
            coverage.layers.append(FreeLayer(name, holder))
    return coverage


def intact_of(layers: Sequence[Layer]) -> list[Layer]:
    """The layers that are still what they were, each with parameters of its own.

    Several layers of one module, as the projections of attention, share them from the start;
    others do once their weights were tied.
    """
    owners: dict[int, Layer] = {}
    intact, shared = [layer for layer in layers if layer.intact], set[Layer]()
    for layer in intact:
        for parameter in layer.parameters:
            owner = owners.setdefault(id(parameter), layer)
            if owner.module is not layer.module:
                shared |= {owner, layer}
    return [layer for layer in intact if layer not in shared] if shared else intact


def in_words(reasons: Mapping[str, str]) -> list[str]:
    """Parameters with the reasons that they have, those of one module together."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, reason in reasons.items():
        groups[name.rpartition(".")[0], reason].append(name)
    return [f"{', '.join(names)} ({reason})" for (_, reason), names in groups.items()]


def _left_out(
    names: Mapping[torch.nn.Module, str], include: Choice, exclude: Choice
) -> set[torch.nn.Module]:
    """Modules that the user does not want to be looked at."""
    chosen = set(names) if include is None else _matching("include", include, names)
    return (set(names) - chosen) | _matching("exclude", exclude, names)


def _matching(
    option: str, choice: Choice, names: Mapping[torch.nn.Module, str]
) -> set[torch.nn.Module]:
    """Modules that a choice names, with all that is in them.

    Raises
    ------
    TypeError, ValueError
        If part of it is no choice, or fits no module.
    """
    one = isinstance(choice, str | type | torch.nn.Module) or not isinstance(choice, Iterable)
    parts: Iterable[Any] = () if choice is None else [choice] if one else choice  # type: ignore
    found: set[torch.nn.Module] = set()
    for part in parts:
        if isinstance(part, str):
            tops = [m for m, name in names.items() if fnmatch.fnmatchcase(name, part)]
        elif isinstance(part, type) and issubclass(part, torch.nn.Module):
            tops = [m for m in names if isinstance(m, part)]
        elif isinstance(part, torch.nn.Module):
            tops = [m for m in names if m is part]
        else:
            raise TypeError(
                f"{option} = {part!r} is out of range; legal: names of modules, which may have "
                "wildcards, module classes, modules, or a list of these"
            )
        if not tops:
            raise ValueError(f"{option} = {part!r} fits no module of the model")
        found.update(module for top in tops for module in top.modules())
    return found


def _uses(names: Mapping[torch.nn.Module, str]) -> dict[torch.nn.Module, set[int]]:
    """The trained parameters that modules use, by their id.

    Whoever holds a parameter uses it, but for modules around another that is known to use it.
    """
    uses = {module: set(map(id, _trained(module).values())) for module in names}
    for outer, held in uses.items():
        if held and layer_class_of(outer) is None and not isinstance(outer, ATTENTION):
            inside = (m for m in outer.modules() if m is not outer and layer_class_of(m))
            held.difference_update(*(uses[m] for m in inside))
    return uses


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
    module: torch.nn.Module,
    uses: Mapping[torch.nn.Module, set[int]],
    users: Mapping[int, list[torch.nn.Module]],
) -> list[torch.nn.Module]:
    """The modules that share parameters with one, and with one another; itself first."""
    group = {module: None}  # a set that keeps its order
    waiting = [module]
    while waiting:
        for key in uses[waiting.pop()]:
            new = [m for m in users[key] if m not in group]
            group |= dict.fromkeys(new)
            waiting += new
    return list(group)


def _layer_of(
    group: Sequence[torch.nn.Module],
    names: Mapping[torch.nn.Module, str],
    uses: Mapping[torch.nn.Module, set[int]],
    sequence_first: Set[torch.nn.Module],
) -> Layer | None:
    """The layer that modules which share parameters form, if they do."""
    alike: dict[Any, list[torch.nn.Module]] = defaultdict(list)
    for module in group:
        kind = layer_class_of(module)
        if kind is None:
            return None
        alike[kind, frozenset(uses[module]), getattr(module, "groups", 1)].append(module)
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
    if parts or any(p.requires_grad for p in module.out_proj.parameters()):
        coverage.attentions.append((module, parts))


def _reason(module: torch.nn.Module, others: Sequence[str]) -> str:
    """Why a module's parameters are not covered."""
    name, known = type(module).__name__, known_class(module)
    if isinstance(module, torch.nn.Embedding):
        options = [option for option in OPTIONS if getattr(module, option)]
        if options:
            return f"{name} with {', '.join(options)}"
    if others:
        return f"{name}, shares parameters with {' and '.join(others)}"
    if known is not None and type(module).forward is known.forward:
        return f"{name} whose weight is complex, frozen, pruned or parametrized"
    if known is not None:
        return (
            f"{name} extends {known.__name__} by a forward of its own: use register_layer if it "
            "computes the same"
        )
    if next(module.children(), None) is not None:
        return f"held by {name} itself"
    return f"no layer class is registered for {name}"


def _may_be_free(holder: torch.nn.Module, parameter: torch.nn.Parameter) -> bool:
    """Whether a gradient is dense and real."""
    return not (parameter.is_complex() or getattr(holder, "sparse", False))


def _trained(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {k: p for k, p in module._parameters.items() if p is not None and p.requires_grad}
