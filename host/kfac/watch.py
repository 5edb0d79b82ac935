"""Watches a model's passes, and hands every layer what its curvature is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from thermokron.host.kfac.layers import Attention, Coverage, Layer
from thermokron.host.kfac.losses import LossCurvature

__all__ = ["Watcher"]


class _Pass:
    """One forward pass of the model.

    Attributes
    ----------
    terms : float or None
        Loss terms that the mean is taken over; None until the model, or the loss, returned.
    scale : float
        Derivative of what is backpropagated with respect to the loss: 1, unless the loss is
        divided over accumulated batches, or scaled for half precision.
    seen : set of Layer
        Layers that have recorded a use in this pass.
    whole : bool
        Whether it is a pass of the model, and not of a submodule that was called alone.
    """

    def __init__(self, *, whole: bool) -> None:
        self.whole = whole
        self.terms: float | None = None
        self.scale = 1.0
        self.seen: set[Layer] = set()


@dataclass(frozen=True, eq=False)
class _Use:
    """One call of a module: the layer that records it, and what `Layer.prepare` kept of it."""

    layer: Layer
    module: torch.nn.Module
    prepared: torch.Tensor


class Watcher:
    """Hooks on a model, and on its loss, until `close`.

    Passes of modules in eval mode, and those under `torch.no_grad`, leave no trace; nor does a
    forward pass that is never followed by a backward pass.

    For the empirical Fisher, layers record in the backward pass itself, once it reaches their
    weight: one that asks for other gradients alone, as for a penalty on those of the inputs, is
    none of theirs. For "mc" and "ggn" the loss module's forward is when vectors are sent back, from
    its first argument to the outputs of the layers, without touching any parameter's gradient.

    Copies of the model, by `copy.deepcopy` or pickled, are not watched. Nor are passes inside
    `torch.func` transforms, and those of nested tensors.

    Parameters
    ----------
    model : torch.nn.Module
        The network.
    coverage : Coverage
        Its layers.
    criterion : torch.nn.Module or None
        The loss module.
    curvature : LossCurvature or None
        What is known of it.
    fisher : "empirical", "mc" or "ggn"
        Which gradients are recorded.
    reduce : bool
        Weight sharing.
    mean : bool
        Whether the loss is a mean over its terms.
    mc_samples : int
        Vectors per pass for "mc".
    generator : torch.Generator
        Draws them.
    due : callable
        Whether passes are to be recorded now.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        coverage: Coverage,
        *,
        criterion: torch.nn.Module | None,
        curvature: LossCurvature | None,
        fisher: str,
        reduce: bool,
        mean: bool,
        mc_samples: int,
        generator: torch.Generator,
        due: Callable[[], bool],
    ) -> None:
        self.curvature, self.fisher, self.reduce, self.mean = curvature, fisher, reduce, mean
        self.mc_samples, self.generator, self.due = mc_samples, generator, due
        self.loss: torch.Tensor | None = None
        self._asleep = False
        self._pass = _Pass(whole=False)
        self._tape: list[tuple[_Use, Any, _Pass]] = []
        #: what backward passes brought to layers whose weight they have not reached yet
        self._waiting: dict[Layer, list[tuple[int, _Use, torch.Tensor, float, _Pass]]] = {}
        self._gates: dict[Layer, tuple[torch.Tensor, Any]] = {}
        self._handles: list[Any] = [
            model.register_forward_pre_hook(self._begin),
            model.register_forward_hook(self._finish),
        ]
        watched = {layer for _, parts in coverage.attentions for layer in parts.values()}
        for layer in coverage.layers:
            if layer not in watched:
                self._handles += [
                    module.register_forward_hook(
                        partial(self._used, layer.part_at(module)), with_kwargs=True
                    )
                    for module in layer.modules
                ]
        self._attentions = [
            Attention(module, partial(self._projected, parts))
            for module, parts in coverage.attentions
        ]
        if criterion is not None:
            self._handles.append(criterion.register_forward_hook(self._judged, with_kwargs=True))

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return not self._handles

    def close(self) -> None:
        """Take the hooks off; a second call does nothing."""
        for handle in self._handles:
            handle.remove()
        for attention in self._attentions:
            attention.close()
        for _, gate in self._gates.values():
            gate.remove()
        self._handles, self._attentions, self._gates = [], [], {}
        self.take_loss()

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """Passes meanwhile leave no trace."""
        self._asleep = True
        try:
            yield
        finally:
            self._asleep = False

    def take_loss(self) -> torch.Tensor | None:
        """The last loss, if there was one since the last call; passes without one are let go."""
        loss, self.loss, self._tape = self.loss, None, []
        self._waiting.clear()
        return loss

    def __deepcopy__(self, memo: Any) -> Watcher:
        """What a copy of the model has of it: hooks that do nothing."""
        return _blind()

    def __reduce__(self) -> Any:
        return _blind, ()

    # ---- the model's forward pass ----------------------------------------------------------

    def _begin(self, module: torch.nn.Module, args: Any) -> None:
        self._pass = _Pass(whole=True)

    def _finish(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        # the loss module knows better, and may have been called inside the model
        if self._pass.terms is None:
            self._pass.terms = _rows(output)

    def _used(
        self, layer: Layer, module: torch.nn.Module, args: Any, kwargs: Any, output: torch.Tensor
    ) -> None:
        if module.training:
            inputs = args[0] if args else kwargs["input"]
            self._enter(layer, module, inputs, output)

    def _projected(
        self, parts: Mapping[str, Layer], part: str, inputs: torch.Tensor, output: torch.Tensor
    ) -> None:
        layer = parts.get(part)
        if layer is not None:
            self._enter(layer, layer.module, inputs, output)

    def _enter(
        self, layer: Layer, module: torch.nn.Module, inputs: torch.Tensor, output: torch.Tensor
    ) -> None:
        if self._asleep or not (torch.is_grad_enabled() and output.requires_grad and self.due()):
            return
        if inputs.is_nested or torch._C._functorch.is_functorch_wrapped_tensor(output):
            return
        weight = layer.parameters[0]
        if not weight.requires_grad:  # frozen since
            return
        if layer in self._pass.seen:  # after the backward pass: a submodule is called alone
            self._pass = _Pass(whole=False)
        use, here = _Use(layer, module, layer.prepare(module, inputs)), self._pass
        if self.fisher == "empirical":
            self._open_gate(layer, weight)
            output.register_hook(partial(self._collect, use, here))  # type: ignore[no-untyped-call]
        else:
            # the edge, as an in-place activation will make the tensor another one's
            edge = torch.autograd.graph.get_gradient_edge(output)
            self._tape.append((use, edge, here))

    # ---- gradients -------------------------------------------------------------------------

    @torch.no_grad()
    def _collect(self, use: _Use, here: _Pass, gradient: torch.Tensor) -> None:
        terms = here.terms if here.terms is not None else float(len(gradient))
        scale = (terms if self.mean else 1.0) / here.scale
        entry = (torch._C._current_graph_task_id(), use, gradient.detach() * scale, terms, here)
        self._waiting.setdefault(use.layer, []).append(entry)

    def _open_gate(self, layer: Layer, weight: torch.Tensor) -> None:
        """Have `_reached` called when a backward pass gets to a layer's weight."""
        known, gate = self._gates.get(layer, (None, None))
        if known is not weight:  # at its first use, or the parameter was replaced
            if gate is not None:
                gate.remove()
            gate = weight.register_hook(partial(self._reached, layer))  # type: ignore[no-untyped-call]
            self._gates[layer] = (weight, gate)

    @torch.no_grad()
    def _reached(self, layer: Layer, gradient: torch.Tensor) -> None:
        for task, use, own, terms, here in self._waiting.pop(layer, []):
            if task == torch._C._current_graph_task_id():  # else of a pass that did not get here
                self._record(use, [own], terms, here)

    def _record(
        self, use: _Use, gradients: Sequence[torch.Tensor], terms: float, here: _Pass
    ) -> None:
        first = not here.whole or use.layer not in here.seen
        here.seen.add(use.layer)
        use.layer.record(
            use.module, use.prepared, gradients, terms if first else 0.0, reduce=self.reduce
        )

    # ---- the loss --------------------------------------------------------------------------

    def _judged(self, module: torch.nn.Module, args: Any, kwargs: Any, loss: torch.Tensor) -> None:
        """The loss module's forward hook."""
        if self.closed or self._asleep or not (torch.is_grad_enabled() and loss.requires_grad):
            return
        here, self.loss = self._pass, loss.detach()
        given = (*args, *kwargs.values())
        outputs, target = given[0], given[1]
        if self.curvature is not None:
            here.terms = self.curvature.total(outputs.detach(), target)
        if self.fisher == "empirical":
            loss.register_hook(partial(_take_scale, here))  # type: ignore[no-untyped-call]
        elif self._tape:
            self._send_back(outputs, target, here)

    def _send_back(self, outputs: torch.Tensor, target: torch.Tensor, here: _Pass) -> None:
        assert self.curvature is not None
        assert here.terms is not None
        fixed = outputs.detach()
        with torch.no_grad():
            if self.fisher == "ggn":
                vectors = list(self.curvature.columns(fixed, target))
                repeats = 1
            else:
                repeats = self.mc_samples
                vectors = [
                    self.curvature.sample(fixed, target, self.generator) for _ in range(repeats)
                ]
        edges = [edge for _, edge, _ in self._tape]
        found: list[list[torch.Tensor]] = [[] for _ in edges]
        for vector in vectors:
            with self.asleep():  # checkpointed parts run forward again
                gradients = torch.autograd.grad(
                    outputs, edges, vector, retain_graph=True, allow_unused=True
                )
            for held, gradient in zip(found, gradients, strict=True):
                if gradient is not None:
                    held.append(gradient / repeats**0.5)
        left = []
        with torch.no_grad():
            for entry, held in zip(self._tape, found, strict=True):
                use, _, own = entry
                if held:
                    self._record(use, held, here.terms, own)
                else:  # of another pass, whose loss is still to come
                    left.append(entry)
        self._tape = left


def _blind() -> Watcher:
    """A watcher that watches nothing."""
    watcher = object.__new__(Watcher)
    watcher._handles, watcher._asleep, watcher._pass = [], True, _Pass(whole=False)
    watcher._waiting = {}
    return watcher


def _take_scale(here: _Pass, gradient: torch.Tensor) -> None:
    scale = float(gradient)
    here.scale = scale if scale else 1.0


def _rows(output: Any) -> float | None:
    """Rows of the first tensor with rows that a model returned, if there is any."""
    if isinstance(output, torch.Tensor):
        if output.ndim == 0 or output.is_nested:  # a loss, perhaps
            return None
        return float(output.shape[:-1].numel() if output.ndim > 1 else len(output))
    values = output.values() if isinstance(output, dict) else output
    if not isinstance(output, dict | list | tuple):
        return None
    return next((rows for v in values if (rows := _rows(v)) is not None), None)
