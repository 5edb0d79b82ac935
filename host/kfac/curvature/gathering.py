"""From the hooks of layers' outputs to those of their weights, in one backward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from thermokron.host.kfac.curvature.context import undisturbed
from thermokron.host.kfac.curvature.gathered import Arriving, Backward, Gathered, collect
from thermokron.host.kfac.curvature.layers import FreeLayer, Layer
from thermokron.host.kfac.curvature.passes import Pass

__all__ = ["Gathering"]


class Gathering:
    """What backward passes bring to layers, which waits until they reach the layers' weights.

    Parameters
    ----------
    hold_free : bool
        Whether the gradients of free parameters themselves are recorded.
    mean : bool
        Whether the loss is a mean over its terms.

    Attributes
    ----------
    of : dict of Layer to Gathered
        What counts so far.
    backward : Backward
        The backward pass that is running.
    """

    def __init__(self, *, hold_free: bool, mean: bool) -> None:
        self.hold_free, self.mean = hold_free, mean
        self.of: dict[Layer, Gathered] = {}
        self.backward = Backward()
        self._waiting: dict[Layer, list[tuple[int, Callable[[], None]]]] = {}
        self._task = -1
        self._gates: dict[Layer, tuple[torch.Tensor, list[Any]]] = {}

    def close(self) -> None:
        """Take the hooks off."""
        for _, gates in self._gates.values():
            for gate in gates:
                gate.remove()
        self._gates = {}

    def collect(self) -> set[Pass]:
        """Make layers ready for a step with the passes that count, which are returned."""
        return collect(self.of.values())

    def discard(self) -> None:
        """Forget everything."""
        for gathered in self.of.values():
            gathered.discard()
        self._waiting = {}

    def expect(self, layer: Layer) -> None:
        """Have a backward pass seen that gets to a layer's weight."""
        weight = layer.parameters[0]
        known, gates = self._gates.get(layer, (None, ()))
        if known is not weight:  # at its first use, or the parameter was replaced
            for gate in gates:
                gate.remove()
            gathered = self.of.setdefault(layer, Gathered(layer))
            gathered.weight = weight
            before = weight.register_hook(partial(self._reached, gathered))  # type: ignore[no-untyped-call]
            after = weight.register_post_accumulate_grad_hook(partial(self._left, gathered))  # type: ignore[no-untyped-call]
            self._gates[layer] = weight, [before, after]

    def begin(self) -> None:
        """Note the backward pass that is running, if it is another one; it has an end."""
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self._task = task
            engine = torch.autograd.Variable._execution_engine
            engine.queue_callback(partial(self._ends, task))

    def wait(self, layer: Layer, record: Callable[[], None]) -> None:
        """Have something recorded once this backward pass gets to a layer's weight."""
        self._waiting.setdefault(layer, []).append((self._task, record))

    def _reached(self, gathered: Gathered, gradient: torch.Tensor) -> None:
        """The hook of a weight's gradient, which is about to be accumulated, or returned."""
        task = torch._C._current_graph_task_id()
        # others are of a pass that did not get here
        records = [record for of, record in self._waiting.pop(gathered.layer, ()) if of == task]
        free = self.hold_free and isinstance(gathered.layer, FreeLayer)
        if records or free or self.backward.failed:
            self.begin()
            gathered.drop_if_thrown_away()
            gathered.arriving = Arriving(records, gradient.detach())

    def _left(self, gathered: Gathered, weight: torch.Tensor) -> None:
        """The hook of a weight whose gradient was accumulated."""
        gathered.note_gradient(weight)
        arriving, gathered.arriving = gathered.arriving, None
        if arriving is None:
            return
        for here in self.backward.failed:
            gathered.enter(here)
        if self.hold_free and isinstance(gathered.layer, FreeLayer):
            # it may come first of all: the pass is known at its end
            self.backward.held.append((gathered, arriving.gradient))
        with undisturbed():
            for record in arriving.records:
                record()

    def _ends(self, task: int) -> None:
        """The end of a backward pass; what it brought in vain is let go."""
        for gathered in self.of.values():  # after what DDP has queued meanwhile
            torch.autograd.Variable._execution_engine.queue_callback(gathered.note_end)
        with undisturbed():
            for gathered in self.of.values():
                gathered.ask()
            self.backward.finish(mean=self.mean)
        self.backward, self._task = Backward(), -1
        for layer, entries in list(self._waiting.items()):
            self._waiting[layer] = [entry for entry in entries if entry[0] != task]
