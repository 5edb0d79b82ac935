"""Watches a model's passes, and hands every layer what its curvature is made of."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from thermokron.host.kfac.curvature.compiled import KeptBuffers, uncompiled
from thermokron.host.kfac.curvature.context import undisturbed
from thermokron.host.kfac.curvature.gathering import Gathering
from thermokron.host.kfac.curvature.layers import (
    Attention,
    Coverage,
    FreeLayer,
    Layer,
    full_precision,
)
from thermokron.host.kfac.curvature.layers.base import Sums
from thermokron.host.kfac.curvature.losses import LossCurvature
from thermokron.host.kfac.curvature.passes import (
    Pass,
    Use,
    blame,
    mark,
    passes_of,
    said_later,
    uses_of,
)
from thermokron.host.kfac.curvature.replay import Replays
from thermokron.host.kfac.curvature.vectors import Vectors

__all__ = ["Watcher"]


class Watcher:
    """Hooks on a model, and on its loss, until `close`.

    Passes of modules in eval mode, and those under `torch.no_grad`, leave no trace; nor do forward
    passes that no backward pass follows, and backward passes that do not reach the weights, as for
    saliency maps, or whose gradient was thrown away since. What is known of a pass lives in its
    graph, and goes with it.

    For the empirical Fisher, layers record in the backward pass itself. For "mc" and "ggn" vectors
    are sent back from the outputs to those of the layers when the backward pass begins at the
    loss, without touching any parameter's gradient.

    A loss belongs to the forward passes whose layers its graph meets first. Nothing that happens
    in a hook is raised there, in the user's forward or backward pass: the next step says it.

    Copies of the model, by `copy.deepcopy` or pickled, are not watched. Nor are passes inside
    `torch.func` transforms, and those of nested tensors.

    Parameters
    ----------
    model, criterion : torch.nn.Module
        The network, and the loss module, if it is known.
    coverage : Coverage
        The network's layers.
    curvature : LossCurvature or None
        What is known of it.
    vectors : Vectors or None
        What is sent back from the outputs; None for the empirical Fisher.
    reduce : bool
        Weight sharing.
    mean : bool
        Whether the loss is a mean over its terms.
    due : callable
        Whether to record.
    replays : bool
        Whether passes are to be made again.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        coverage: Coverage,
        *,
        criterion: torch.nn.Module | None,
        curvature: LossCurvature | None,
        vectors: Vectors | None,
        reduce: bool,
        mean: bool,
        due: Callable[[], bool],
        replays: bool = False,
    ) -> None:
        self.curvature, self.vectors, self.due = curvature, vectors, due
        self.reduce, self.mean = reduce, mean
        self.loss: torch.Tensor | None = None
        self._asleep = self._several = self._told = False
        self.current = Pass(whole=False)
        self._mark = f"thermokron {id(self)}"  # of graph nodes, for the uses that made them
        self._gathering = Gathering(hold_free=vectors is None, mean=mean)
        self._free = [layer for layer in coverage.layers if isinstance(layer, FreeLayer)]
        self._handles: list[Any] = [
            model.register_forward_pre_hook(uncompiled(self._begin)),
            model.register_forward_hook(uncompiled(self._finish)),
            *(() if vectors is None else KeptBuffers(model).handles),
        ]
        watched = {layer for _, parts in coverage.attentions for layer in parts.values()}
        for layer in coverage.layers:
            if layer not in watched and not isinstance(layer, FreeLayer):
                self._handles += [
                    module.register_forward_hook(
                        uncompiled(partial(self._used, layer.part_at(module))), with_kwargs=True
                    )
                    for module in layer.modules
                ]
        self._attentions = [
            Attention(module, uncompiled(partial(self._projected, parts)))
            for module, parts in coverage.attentions
        ]
        if criterion is not None and replays:
            self._handles += Replays(model, criterion, lambda: self.current).handles
        if criterion is not None:
            hook = uncompiled(self._judged)
            self._handles.append(criterion.register_forward_hook(hook, with_kwargs=True))

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
        self._handles, self._attentions = [], []
        self.discard()
        self._gathering.close()

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """Passes meanwhile leave no trace."""
        before, self._asleep = self._asleep, True
        try:
            yield
        finally:
            self._asleep = before

    def collect(self) -> set[Pass]:
        """Make layers ready for a step with the passes that count, which are returned.

        Raises
        ------
        FloatingPointError, RuntimeError
            If a pass that counts could not be recorded, and why.
        """
        if self._several and not self._told:
            self._told = True
            warnings.warn(
                "criterion was called again on the outputs of one forward pass: K-FAC's curvature "
                "is not that of the sum of such losses. Put them into one call, give K-FAC the "
                "loss module of one of them alone, or none and the empirical Fisher; call under "
                "torch.no_grad() what is only logged",
                stacklevel=4,  # of who called step
            )
        return self._gathering.collect()

    def release(self) -> None:
        """Begin anew, after a step that took over what layers have recorded."""
        self._gathering.discard()
        self.loss = None

    def discard(self) -> None:
        """Forget all passes since the last step."""
        self.release()
        self.current = Pass(whole=False)

    def __deepcopy__(self, memo: Any) -> Watcher:
        return _blind()  # what a copy of the model has of it: hooks that do nothing

    def __reduce__(self) -> Any:
        return _blind, ()

    # ---- the model's forward pass ----------------------------------------------------------

    @said_later
    def _begin(self, module: torch.nn.Module, args: Any) -> None:
        self.current = Pass(whole=True)
        if self._free and self._records():
            for layer in self._free:
                if layer.intact and layer.module.training and layer.parameters[0].requires_grad:
                    self._gathering.expect(layer)

    def _records(self) -> bool:
        """Whether passes leave a trace now."""
        return not self._asleep and torch.is_grad_enabled() and self._due()

    @said_later
    def _finish(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        self.current.finish(output)

    @said_later
    def _used(
        self, layer: Layer, module: torch.nn.Module, args: Any, kwargs: Any, output: torch.Tensor
    ) -> None:
        if module.training:
            inputs = args[0] if args else next(iter(kwargs.values()))
            self._enter(layer, module, inputs, output)

    @said_later
    def _projected(
        self, parts: Mapping[str, Layer], part: str, inputs: torch.Tensor, output: torch.Tensor
    ) -> None:
        layer = parts.get(part)
        if layer is not None:
            self._enter(layer, layer.module, inputs, output)

    def _enter(
        self, layer: Layer, module: torch.nn.Module, inputs: torch.Tensor, output: torch.Tensor
    ) -> None:
        if not (output.requires_grad and self._records()):
            return
        if inputs.is_nested or torch._C._functorch.is_functorch_wrapped_tensor(output):
            return
        if not layer.intact or not layer.parameters[0].requires_grad:  # changed or frozen since
            return
        if self._is_over(layer):
            self.current = Pass(whole=False)
        self.current.used = True
        prepared = layer.prepare(module, inputs)
        use = Use(layer, module, prepared, len(output), self.current, output.output_nr)
        mark(output, self._mark, use)
        self._gathering.expect(layer)
        if self.vectors is None:
            output.register_hook(partial(self._came_back, use))  # type: ignore[no-untyped-call]

    def _due(self) -> bool:
        try:
            return self.due()
        except Exception:  # a schedule that is wrong: the step asks it again, and says so
            return True

    def _is_over(self, layer: Layer) -> bool:
        """Whether a layer that is used now is called alone, after the pass known last."""
        here = self.current
        if layer in here.seen:  # its backward pass has been
            return True
        recomputed = torch._C._current_graph_task_id() != -1  # inside a backward pass
        return here.judged and not here.running and not recomputed

    # ---- the loss --------------------------------------------------------------------------

    @said_later
    def _judged(self, module: torch.nn.Module, args: Any, kwargs: Any, loss: torch.Tensor) -> None:
        """The loss module's forward hook."""
        if self.closed or self._asleep or not (torch.is_grad_enabled() and loss.requires_grad):
            return
        passes = passes_of(loss, self._mark)
        if not passes:
            if self.current.judged or self.current.used:  # the loss of another model
                return
            passes = {self.current}  # nothing is recorded now, or all of it is checkpointed
        self._several |= any(here.judged for here in passes)
        self.loss = loss.detach()
        for here in passes:
            here.judged = True
        hook: Callable[[torch.Tensor], None] = partial(self._scaled, passes)
        if self.curvature is not None:
            call = None
            try:
                with undisturbed():
                    outputs, target = self.curvature.arguments(args, kwargs)
                    total = self.curvature.total(outputs.detach(), target)
                call = outputs, target, total
            except Exception as error:
                blame(passes, "the loss", error)
            for here in passes if call is not None else ():
                here.terms, here.part = total, 1.0 / len(passes)
            if self.vectors is not None:
                hook = partial(self._send_back, passes, call)
        loss.register_hook(hook)  # type: ignore[no-untyped-call]

    def _scaled(self, passes: set[Pass], gradient: torch.Tensor) -> None:
        """The loss's hook in the backward pass, for the empirical Fisher."""
        for here in passes:
            here.scale = float(gradient) or 1.0

    def _send_back(
        self,
        passes: set[Pass],
        call: tuple[torch.Tensor, Any, float] | None,
        gradient: torch.Tensor,
    ) -> None:
        """The same for "mc" and "ggn": layers get what there is to record."""
        if self._asleep or self.closed:
            return
        gathering = self._gathering
        gathering.begin()
        if call is not None:
            assert self.vectors is not None
            outputs, target, total = call
            try:
                uses = uses_of(outputs, self._mark)
                for _, use in uses:  # before it is counted whose terms are known already
                    gathering.of[use.layer].drop_if_thrown_away()
                with self.asleep():  # checkpointed parts run forward again
                    free = [layer for layer in self._free if layer in gathering.of and layer.intact]
                    brought = self.vectors.send(outputs, target, total, uses, free)
            except Exception as error:
                blame(passes, "the loss's curvature", error)
            else:
                for layer, (sums, own) in brought.items():
                    gathering.wait(layer, partial(self._take_over, layer, sums, own))
        if any(here.trouble is not None for here in passes):
            gathering.backward.failed |= passes

    # ---- gradients -------------------------------------------------------------------------

    def _came_back(self, use: Use, gradient: torch.Tensor) -> None:
        """The hook of a layer's output, for the empirical Fisher."""
        if self._asleep or self.closed:
            return
        here = use.here
        terms = here.terms if here.terms is not None else float(len(gradient))
        scale = (terms if self.mean else 1.0) / here.scale
        # half precision would not hold the gradient of the sum
        own = full_precision(gradient.detach()) * scale
        self._gathering.begin()
        self._gathering.backward.terms[here] = terms
        self._gathering.wait(use.layer, partial(self._record, use, own, terms))

    def _record(self, use: Use, gradient: torch.Tensor, terms: float) -> None:
        here, layer = use.here, use.layer
        terms = here.share(layer, terms)
        self._gathering.of[layer].enter(here)
        try:
            layer.record(use.module, use.prepared, gradient, terms, reduce=self.reduce, again=False)
        except Exception as error:
            blame([here], f"layer {layer.name or '(model)'!r}", error)

    def _take_over(self, layer: Layer, sums: Sums, passes: set[Pass]) -> None:
        for here in passes:
            self._gathering.of[layer].enter(here)
        layer.put(sums)


def _blind() -> Watcher:
    """A watcher that watches nothing."""
    watcher = object.__new__(Watcher)
    watcher._handles, watcher._asleep, watcher.current = [], True, Pass(whole=False)
    watcher._free = []
    return watcher
