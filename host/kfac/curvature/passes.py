"""Forward passes of a model, as K-FAC tells them apart."""

from __future__ import annotations

from typing import Any

import torch

from thermokron.host.kfac.curvature.layers import Layer

__all__ = ["Pass", "mark", "marked", "rows_of"]


class Pass:
    """One forward pass of the model.

    Attributes
    ----------
    terms : float or None
        Loss terms that the mean is taken over; None until the model, or the loss, returned.
    part : float
        Which part of them is the pass's own, where a loss compares the outputs of several.
    scale : float
        Derivative of what is backpropagated with respect to the loss: 1, unless the loss is
        divided over accumulated batches, or scaled for half precision.
    seen : set of Layer
        Layers that have recorded a use in this pass.
    whole : bool
        Whether it is a pass of the model, and not of submodules that were called alone.
    running : bool
        Whether the model has not returned yet.
    judged : bool
        Whether the loss module was called on its outputs.
    """

    def __init__(self, *, whole: bool) -> None:
        self.whole = whole
        self.terms: float | None = None
        self.part = self.scale = 1.0
        self.seen: set[Layer] = set()
        self.running = whole
        self.judged = False

    @property
    def own(self) -> float | None:
        """Its own loss terms."""
        return None if self.terms is None else self.terms * self.part

    def share(self, layer: Layer, default: float) -> float:
        """Loss terms that a use of a layer counts: none where it was used in the pass before."""
        if layer in self.seen:
            return 0.0
        return default if self.own is None else self.own

    def take_scale(self, gradient: torch.Tensor) -> None:
        """The loss's hook in the backward pass."""
        self.scale = float(gradient) or 1.0


def mark(output: torch.Tensor, key: str, here: Pass) -> None:
    """Note in the graph which pass a layer's output belongs to."""
    if output.grad_fn is not None:
        _notes(output.grad_fn)[key] = here


def marked(loss: torch.Tensor, key: str) -> set[Pass]:
    """The passes that made what a loss was computed from: of the layers nearest to it."""
    found, known = set(), set()
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in known:
            continue
        known.add(node)
        here = _notes(node).get(key)
        if here is None:
            waiting += [function for function, _ in node.next_functions]
        else:
            found.add(here)
    return found


def _notes(node: torch.autograd.graph.Node) -> dict[str, Any]:
    """What may be noted in a node of the graph."""
    notes: Any = node.metadata  # torch has it as a property, and its types as a method
    return notes  # type: ignore[no-any-return]


def rows_of(output: Any) -> float | None:
    """Rows of the first tensor with rows that a model returned, if there is any."""
    if isinstance(output, torch.Tensor):
        if output.ndim == 0 or output.is_nested:  # a loss, perhaps
            return None
        return float(output.shape[:-1].numel() if output.ndim > 1 else len(output))
    values = output.values() if isinstance(output, dict) else output
    if not isinstance(output, dict | list | tuple):
        return None
    return next((rows for v in values if (rows := rows_of(v)) is not None), None)
