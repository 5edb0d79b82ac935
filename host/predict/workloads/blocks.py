"""The blocks that K-FAC has for a network, from the code that covers it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch

from thermokron.host.kfac.curvature.layers import (
    Attention,
    Coverage,
    DiagonalLayer,
    FreeLayer,
    KroneckerLayer,
    Layer,
    find_layers,
)
from thermokron.host.kfac.curvature.layers.coverage import in_words
from thermokron.host.predict.workloads.workload import Block

__all__ = ["Covered", "cover"]


@dataclass(frozen=True)
class Covered:
    """What K-FAC does with a network.

    Attributes
    ----------
    blocks : tuple of Block
        In the network's order.
    uncovered : tuple of str
        Parameters that keep their plain gradients, and why.
    diagonal : int
        Outputs of layers with diagonal curvature, in all examples.
    """

    blocks: tuple[Block, ...]
    uncovered: tuple[str, ...]
    diagonal: int


def cover(
    model: torch.nn.Module,
    forward: Callable[[], Any],
    *,
    sharing: str = "expand",
    dense_limit: int | None = 8192,
) -> Covered:
    """What K-FAC covers, with the rows that a forward pass brings.

    Parameters
    ----------
    model : torch.nn.Module
        In training mode.
    forward : callable
        Runs it once.
    sharing : "expand" or "reduce"
        How positions are combined, see `thermokron.host.kfac.curvature.layers.KroneckerLayer`.
    dense_limit : int or None
        Rows up to which a factor is dense.

    Raises
    ------
    ValueError
        If nothing is covered by Kronecker factors.
    """
    coverage = find_layers(model, dense_limit=dense_limit, others="diagonal")
    uses = _Uses(coverage, reduce=sharing == "reduce")
    try:
        forward()
    finally:
        uses.close()
    blocks, uncovered = [], list(coverage.uncovered)
    for layer in coverage.layers:
        if isinstance(layer, KroneckerLayer) and layer in uses.rows:
            blocks.append(_block(layer, uses.rows[layer], uses.shared(layer)))
        elif not isinstance(layer, FreeLayer) and layer not in uses.rows:
            uncovered.append(f"{layer.name or '(model)'} (the example does not reach it)")
    if not blocks:
        others = [*uncovered, *in_words(coverage.free)]
        which = f": {'; '.join(others)}" if others else ""
        raise ValueError(
            f"model {type(model).__name__} has nothing that K-FAC covers by Kronecker factors"
            f"{which}; legal: Linear, Conv1d-3d, Embedding, MultiheadAttention, and what "
            "register_layer was told of"
        )
    return Covered(tuple(blocks), tuple(uncovered), uses.diagonal)


def _block(layer: KroneckerLayer, rows: int, shared: str) -> Block:
    inputs, outputs = layer.sizes
    a, g = layer.factors.values()
    return Block(
        name=layer.name,
        inputs=inputs,
        outputs=outputs,
        rows=rows,
        diagonal_inputs=a.diagonal,
        diagonal_outputs=g.diagonal,
        blocks=layer.blocks or 1,
        shared=shared,
        patch=prod(getattr(layer.module, "kernel_size", ())),
        bias=layer.has_bias,
    )


class _Uses:
    """Hooks that count the rows which layers see.

    Attributes
    ----------
    rows : dict of Layer to int
        Those of the moments.
    diagonal : int
        Numbers that layers with diagonal curvature return.
    """

    def __init__(self, coverage: Coverage, *, reduce: bool) -> None:
        self.rows: dict[Layer, int] = {}
        self.diagonal = 0
        self._reduce = reduce
        self._seen: dict[Layer, list[Any]] = {}  # what tells inputs apart
        self._kept: list[torch.Tensor] = []  # storages that are gone would be taken for others
        inside = {layer for _, parts in coverage.attentions for layer in parts.values()}
        self._handles = [
            module.register_forward_hook(partial(self._used, layer), with_kwargs=True)
            for layer in coverage.layers
            if layer not in inside and not isinstance(layer, FreeLayer)
            for module in layer.modules
        ]
        self._attentions = [
            Attention(module, partial(self._projected, parts))
            for module, parts in coverage.attentions
        ]

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        for attention in self._attentions:
            attention.close()

    def shared(self, layer: Layer) -> str:
        """The first layer that has the same inputs, if any other has them."""
        alike = [other for other, seen in self._seen.items() if seen == self._seen[layer]]
        return alike[0].name if len(alike) > 1 else ""

    def _projected(
        self, parts: Mapping[str, Layer], part: str, inputs: torch.Tensor, output: torch.Tensor
    ) -> None:
        if part in parts:
            self._enter(parts[part], parts[part].module, inputs, output)

    def _used(
        self, layer: Layer, module: torch.nn.Module, args: Any, kwargs: Any, output: Any
    ) -> None:
        inputs = args[0] if args else next(iter(kwargs.values()))
        self._enter(layer, module, inputs, output)

    def _enter(
        self, layer: Layer, module: torch.nn.Module, inputs: torch.Tensor, output: torch.Tensor
    ) -> None:
        part = layer.part_at(module)
        rows = 0
        if isinstance(part, KroneckerLayer):
            with torch.no_grad():
                try:
                    rows = part.input_examples(module, inputs, self._reduce).shape[-2]
                except NotImplementedError:  # one-hot, given as indices
                    rows = inputs.numel()
        elif isinstance(layer, DiagonalLayer):
            self.diagonal += output.numel()
        self.rows[layer] = self.rows.get(layer, 0) + rows
        about = (
            inputs.untyped_storage()._cdata,
            inputs.storage_offset(),
            inputs.shape,
            inputs.stride(),
            inputs._version,
            isinstance(layer, KroneckerLayer) and layer.sizes[0],
        )
        self._seen.setdefault(layer, []).append(about)
        self._kept.append(inputs)
