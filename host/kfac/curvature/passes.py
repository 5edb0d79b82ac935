"""Forward passes of a model as K-FAC tells them apart, and what their graphs remember of layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any, NamedTuple

import torch

from thermokron.host.kfac.curvature.compiled import check_kept
from thermokron.host.kfac.curvature.layers import Layer

__all__ = ["Pass", "Use", "blame", "mark", "passes_of", "said_later", "uses_of"]


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
    counted : set of Layer
        Those of them that have its loss terms in what they hold.
    whole : bool
        Whether it is a pass of the model, and not of submodules that were called alone.
    running : bool
        Whether the model has not returned yet.
    used : bool
        Whether a graph knows of it.
    judged : bool
        Whether the loss module was called on its outputs.
    trouble : Exception or None
        Why it could not be recorded; the next step says it, if the pass counts there.
    replay : callable or None
        What makes it again, where that is wanted.
    """

    def __init__(self, *, whole: bool) -> None:
        self.whole = whole
        self.terms: float | None = None
        self.part = self.scale = 1.0
        self.seen: set[Layer] = set()
        self.counted: set[Layer] = set()
        self.running = whole
        self.used = self.judged = False
        self.trouble: Exception | None = None
        self.replay: Any = None

    @property
    def own(self) -> float | None:
        """Its own loss terms."""
        return None if self.terms is None else self.terms * self.part

    def finish(self, output: Any) -> None:
        """The model has returned this."""
        self.running = False
        if self.terms is None:  # else the loss module knew better, called inside the model
            self.terms = rows_of(output)

    def share(self, layer: Layer, default: float) -> float:
        """Loss terms that a use of a layer counts: none where it was used in the pass before."""
        if layer in self.counted:
            return 0.0
        return default if self.own is None else self.own


def blame(passes: Iterable[Pass], what: str, error: Exception) -> None:
    """Note in passes why they could not be recorded."""
    if not isinstance(error, FloatingPointError):
        cause, error = error, RuntimeError(f"K-FAC cannot take {what} into account: {error}")
        error.__cause__ = cause
    for here in passes:
        here.trouble = here.trouble or error


def said_later(hook: Callable[..., None]) -> Callable[..., None]:
    """A hook in the user's forward pass that raises nothing there, but blames the pass."""

    @wraps(hook)
    def quiet(watcher: Any, *args: Any) -> None:
        try:
            hook(watcher, *args)
        except Exception as error:
            blame([watcher.current], "this pass", error)

    return quiet


class Use(NamedTuple):
    """One call of a module in a pass.

    The graph holds it, so nothing of it leads back to the graph, which could not be freed then.

    Attributes
    ----------
    layer : Layer
        What records it.
    module : torch.nn.Module
        Which of the layer's modules was called.
    prepared : tensor
        What `Layer.prepare` kept of its input.
    examples : int
        Length of its output.
    here : Pass
        Where.
    edge : int
        Which output of its node in the graph it made.
    """

    layer: Layer
    module: torch.nn.Module
    prepared: torch.Tensor
    examples: int
    here: Pass
    edge: int


def mark(output: torch.Tensor, key: str, use: Use) -> None:
    """Note in the graph what made a layer's output; the note lives as long as the graph does."""
    if output.grad_fn is not None:
        _notes(output.grad_fn).setdefault(key, []).append(use)


def passes_of(loss: torch.Tensor, key: str) -> set[Pass]:
    """The passes that made what a loss was computed from: of the layers nearest to it."""
    return {use.here for _, use in _marked(loss, key, beyond=False)}


def uses_of(outputs: torch.Tensor, key: str) -> list[tuple[torch.autograd.graph.GradientEdge, Use]]:
    """All uses of layers that outputs depend on, in an order that the graph alone decides.

    Raises
    ------
    RuntimeError
        If there is a region under reentrant checkpointing, into which no graph leads, or one that
        was compiled to be run backward once.
    """
    return [
        (torch.autograd.graph.GradientEdge(node, use.edge, None), use)
        for node, use in _marked(outputs, key, beyond=True)
    ]


def _marked(
    start: torch.Tensor, key: str, *, beyond: bool
) -> Iterator[tuple[torch.autograd.graph.Node, Use]]:
    """Nodes with notes and what these say; `beyond` those nearest to the start, too."""
    known: set[torch.autograd.graph.Node] = set()
    waiting = [start.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in known:
            continue
        known.add(node)
        found = _notes(node).get(key)
        if beyond:
            check_kept(node)
        if found is None and beyond and type(node).__name__ == "CheckpointFunctionBackward":
            raise RuntimeError(
                "fisher 'mc' and 'ggn' cannot look into a region under "
                "torch.utils.checkpoint.checkpoint(..., use_reentrant=True); "
                "legal: use_reentrant=False, or fisher = 'empirical'"
            )
        for use in found or ():
            yield node, use
        if found is None or beyond:
            waiting += [function for function, _ in node.next_functions]


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
