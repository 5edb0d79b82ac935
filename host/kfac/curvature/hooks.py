"""Watches a model's passes, and hands every layer what its curvature is made of."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch

from thermokron.host.kfac.curvature.layers import Attention, Coverage, Layer
from thermokron.host.kfac.curvature.losses import LossCurvature
from thermokron.host.kfac.curvature.passes import Pass, mark, marked, rows_of

__all__ = ["Watcher"]


class _Use(NamedTuple):
    """One call of a module.

    The layer that records it, what `Layer.prepare` kept of it, and the length of its output.
    """

    layer: Layer
    module: torch.nn.Module
    prepared: torch.Tensor
    examples: int


class Watcher:
    """Hooks on a model, and on its loss, until `close`.

    Passes of modules in eval mode, and those under `torch.no_grad`, leave no trace.

    For the empirical Fisher, layers record in the backward pass itself, once it reaches their
    weight: a forward pass without one leaves no trace, and one that asks for other gradients
    alone, as for a penalty on those of the inputs, is none of theirs. For "mc" and "ggn" the loss
    module's forward is when vectors are sent back, from its outputs to those of the layers, without
    touching any parameter's gradient: every loss counts that could be differentiated, whether it
    ever is or not.

    A loss belongs to the forward passes whose layers its graph meets first.

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
        Draws them, and the signs of loss terms for "ggn".
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
        self._asleep = self._warned = False
        self._pass = Pass(whole=False)
        self._recorded: list[Pass] = []
        self._mark = f"thermokron {id(self)}"  # of graph nodes, for the pass that made them
        self._tape: list[tuple[_Use, Any, Pass]] = []
        #: what backward passes brought to layers whose weight they have not reached yet
        self._waiting: dict[Layer, list[tuple[int, _Use, torch.Tensor, float, Pass]]] = {}
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
        """The last loss, if there was one since the last call; passes without one are let go.

        A layer that some passes of the model made no use of, as an expert that was not asked,
        counts their loss terms too: accumulated batches are one batch.
        """
        loss, self.loss, self._tape = self.loss, None, []
        self._waiting.clear()
        recorded, self._recorded = self._recorded, []
        if len(recorded) > 1:
            for layer in set[Layer]().union(*(here.seen for here in recorded)):
                others = [here for here in recorded if here.whole and layer not in here.seen]
                if others:
                    layer.pass_over(sum(here.own or 0.0 for here in others))
        return loss

    def __deepcopy__(self, memo: Any) -> Watcher:
        """What a copy of the model has of it: hooks that do nothing."""
        return _blind()

    def __reduce__(self) -> Any:
        return _blind, ()

    # ---- the model's forward pass ----------------------------------------------------------

    def _begin(self, module: torch.nn.Module, args: Any) -> None:
        self._pass = Pass(whole=True)

    def _finish(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        self._pass.running = False
        # the loss module knows better, and may have been called inside the model
        if self._pass.terms is None:
            self._pass.terms = rows_of(output)

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
        if self._is_over(layer):
            self._pass = Pass(whole=False)
        here = self._pass
        use = _Use(layer, module, layer.prepare(module, inputs), len(output))
        mark(output, self._mark, here)
        if self.fisher == "empirical":
            self._open_gate(layer, weight)
            output.register_hook(partial(self._collect, use, here))  # type: ignore[no-untyped-call]
        else:
            # the edge, as an in-place activation will make the tensor another one's
            edge = torch.autograd.graph.get_gradient_edge(output)
            self._tape.append((use, edge, here))

    def _is_over(self, layer: Layer) -> bool:
        """Whether a layer that is used now is called alone, after the pass known last."""
        here = self._pass
        if layer in here.seen:  # its backward pass has been
            return True
        recomputed = torch._C._current_graph_task_id() != -1  # inside a backward pass
        return here.judged and not here.running and not recomputed

    # ---- gradients -------------------------------------------------------------------------

    def _collect(self, use: _Use, here: Pass, gradient: torch.Tensor) -> None:
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
                self._record(use, own, here.share(layer, terms), here)

    def _record(
        self, use: _Use, gradient: torch.Tensor, terms: float, here: Pass, *, again: bool = False
    ) -> None:
        if not here.seen:
            self._recorded.append(here)
        here.seen.add(use.layer)
        use.layer.record(use.module, use.prepared, gradient, terms, reduce=self.reduce, again=again)

    # ---- the loss --------------------------------------------------------------------------

    def _judged(self, module: torch.nn.Module, args: Any, kwargs: Any, loss: torch.Tensor) -> None:
        """The loss module's forward hook."""
        if self.closed or self._asleep or not (torch.is_grad_enabled() and loss.requires_grad):
            return
        passes = marked(loss, self._mark)
        if not passes:
            if self._pass.judged:  # the loss of another model
                return
            passes = {self._pass}  # nothing is recorded now, or all of it is checkpointed
        if any(here.judged for here in passes):
            self._warn_of_several()
        self.loss = loss.detach()
        for here in passes:
            here.judged = True
        if self.curvature is not None:
            outputs, target = self.curvature.arguments(args, kwargs)
            total = self.curvature.total(outputs.detach(), target)
            for here in passes:
                here.terms, here.part = total, 1.0 / len(passes)
            if self.fisher != "empirical" and self._tape:
                self._send_back(outputs, target, total)
        if self.fisher == "empirical":
            for here in passes:
                loss.register_hook(here.take_scale)  # type: ignore[no-untyped-call]

    def _warn_of_several(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                "criterion was called again on the outputs of one forward pass: K-FAC's curvature "
                "is not that of the sum of such losses. Put them into one call, give K-FAC the "
                "loss module of one of them alone, or none and the empirical Fisher; call under "
                "torch.no_grad() what is only logged",
                stacklevel=6,  # of who called criterion
            )

    def _send_back(self, outputs: torch.Tensor, target: torch.Tensor, total: float) -> None:
        fixed = outputs.detach()
        with torch.no_grad():
            vectors = self._vectors(fixed, target)
        edges = [edge for _, edge, _ in self._tape]
        repeats = self.mc_samples if self.fisher == "mc" else 1
        counts: list[float] = []  # loss terms that every use adds, with all vectors together
        reached: list[bool] = []
        for column, vector in enumerate(vectors):
            with self.asleep():  # checkpointed parts run forward again
                gradients = torch.autograd.grad(
                    outputs, edges, vector, retain_graph=True, allow_unused=True
                )
            if column == 0:
                # what is not reached is of another pass, whose loss is still to come
                reached = [gradient is not None for gradient in gradients]
            with torch.no_grad():
                for index, gradient in enumerate(gradients):
                    use, _, here = self._tape[index]
                    if column == 0:
                        counts.append(here.share(use.layer, total) if gradient is not None else 0.0)
                    if gradient is None:
                        continue
                    terms = counts[index] / len(vectors)
                    own = gradient if repeats == 1 else gradient / repeats**0.5
                    self._record(use, own, terms, here, again=column > 0)
        self._tape = [e for e, done in zip(self._tape, reached, strict=True) if not done]

    def _vectors(self, outputs: torch.Tensor, target: torch.Tensor) -> list[torch.Tensor]:
        """What is sent back from the outputs."""
        curvature, generator = self.curvature, self.generator
        assert curvature is not None
        if self.fisher == "mc":
            return [curvature.sample(outputs, target, generator) for _ in range(self.mc_samples)]
        columns = list(curvature.columns(outputs, target))
        terms = curvature.term_shape(outputs).numel()
        alone = min((use.examples for use, _, _ in self._tape), default=terms) >= terms
        if alone or self.reduce:  # "reduce" takes all of an example together
            return columns
        # an example has several loss terms, which the network may mix
        return [column * curvature.signs(outputs, generator) for column in columns]


def _blind() -> Watcher:
    """A watcher that watches nothing."""
    watcher = object.__new__(Watcher)
    watcher._handles, watcher._asleep, watcher._pass = [], True, Pass(whole=False)
    watcher._waiting, watcher._recorded = {}, []
    return watcher
