"""What backward passes brought, as long as the gradient that they made is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from thermokron.host.kfac.curvature.layers import FreeLayer, Layer, full_precision
from thermokron.host.kfac.curvature.layers.base import Sums
from thermokron.host.kfac.curvature.passes import Pass

__all__ = ["Arriving", "Backward", "Gathered", "collect"]


class Arriving(NamedTuple):
    """What a backward pass brought to a weight."""

    records: list[Callable[[], None]]
    gradient: torch.Tensor


class Aside(NamedTuple):
    """What was recorded, and of which passes."""

    sums: Sums
    passes: set[Pass]
    left_out: set[Pass]


class Gathered:
    """What a layer has recorded since the last step.

    It counts for as long as the gradient of the layer's weight has the same passes in it. Where
    that is None or all zeros again, as after `zero_grad`, whoever called it threw the passes away:
    the first of SAM's two, a generator's through its discriminator, a batch whose loss was odd.

    Parameters
    ----------
    layer : Layer
        What records.

    Attributes
    ----------
    passes : set of Pass
        Those that the records are of.
    left_out : set of Pass
        Those that made no use of the layer, and whose loss terms it has counted.
    weight : tensor or None
        Whose gradient it is.
    arriving : Arriving or None
        What is to be recorded if the gradient that is there now is accumulated.
    """

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.passes: set[Pass] = set()
        self.left_out: set[Pass] = set()
        self.weight: torch.Tensor | None = None
        self.arriving: Arriving | None = None
        self._asked: tuple[Aside, torch.Tensor] | None = None
        self._left: tuple[int, int] | None = None
        self._task = -1

    def enter(self, here: Pass) -> None:
        """Note a pass that something was recorded of."""
        self.passes.add(here)
        here.seen.add(self.layer)
        here.counted.add(self.layer)

    def ask(self) -> None:
        """Keep apart what arrived of a gradient that was not accumulated.

        `torch.autograd.grad` returns it, and it counts if it is what the step finds.
        """
        arriving, self.arriving = self.arriving, None
        if arriving is not None and arriving.records:
            before = self._set_aside()
            for record in arriving.records:
                record()
            self._asked = self._set_aside(), arriving.gradient
            self._put_back(before)

    def take_asked(self) -> None:
        """Count what was kept apart, and nothing else, if its gradient was put in place."""
        gradient = None if self.weight is None else self.weight.grad
        asked, self._asked = self._asked, None
        if asked is not None and gradient is not None:
            aside, own = asked
            if gradient.data_ptr() == own.data_ptr():
                self._set_aside()
                self._put_back(aside)
                assert self.weight is not None
                self.note_gradient(self.weight)

    def _set_aside(self) -> Aside:
        """All that counts, which then counts no longer."""
        found = Aside(self.layer.take(), self.passes, self.left_out)
        for here in self.passes:
            here.counted.discard(self.layer)
        self.passes, self.left_out = set(), set()
        return found

    def _put_back(self, aside: Aside) -> None:
        self.layer.put(aside.sums)
        self.left_out = aside.left_out
        for here in aside.passes:
            self.enter(here)

    def note_gradient(self, weight: torch.Tensor) -> None:
        """Remember the gradient that a backward pass has just left."""
        gradient = weight.grad
        self._left = None if gradient is None else (gradient.data_ptr(), gradient._version)
        self._task = torch._C._current_graph_task_id()

    def note_end(self) -> None:
        """Remember what became of it by the end of that pass: DDP puts the mean in its place."""
        if self.weight is not None and self._task == torch._C._current_graph_task_id():
            self.note_gradient(self.weight)

    def drop_if_thrown_away(self) -> None:
        """Forget everything if the gradient that it made is no longer there."""
        if not self.passes:
            return
        gradient = None if self.weight is None else self.weight.grad
        if gradient is not None:
            if (gradient.data_ptr(), gradient._version) == self._left:
                return
            # it was scaled or clipped perhaps, or set to zero; or it was zero all the time
            if gradient.is_sparse or bool(gradient.any()) or not self.layer.has_gradients:
                return
        self.discard()

    def discard(self) -> None:
        """Forget everything."""
        self._set_aside()
        self.arriving = self._asked = self._left = None


class Backward:
    """The backward pass that is running.

    Attributes
    ----------
    terms : dict of Pass to float
        The forward passes that it came through, and their loss terms.
    failed : set of Pass
        Those that could not be recorded.
    held : list of (Gathered, tensor)
        Gradients of free parameters, which may come before the pass is known.
    """

    def __init__(self) -> None:
        self.terms: dict[Pass, float] = {}
        self.failed: set[Pass] = set()
        self.held: list[tuple[Gathered, torch.Tensor]] = []

    def finish(self, *, mean: bool) -> None:
        """Record what was held; `mean` says whether a loss is one over its terms."""
        if not self.terms:
            return
        own = {here: here.own or terms for here, terms in self.terms.items()}
        # of several losses that were added up, each over its own terms
        scales = [(terms if mean else 1.0) / here.scale for here, terms in own.items()]
        for gathered, gradient in self.held:
            assert isinstance(gathered.layer, FreeLayer)
            total = full_precision(gradient) * (sum(scales) / len(scales))
            gathered.layer.add(total, sum(own.values()))
            for here in own:
                gathered.enter(here)


def collect(found: Iterable[Gathered]) -> set[Pass]:
    """Make what layers recorded ready for a step, once it is known which passes count: those.

    A layer that some passes of the model made no use of, as an expert that was not asked, counts
    their loss terms too: accumulated batches are one batch.

    Raises
    ------
    Exception
        What kept a pass that counts from being recorded.
    """
    live = []
    for gathered in found:
        if not gathered.layer.intact:
            gathered.discard()
        gathered.take_asked()
        gathered.drop_if_thrown_away()
        if gathered.passes:
            live.append(gathered)
    passes = set[Pass]().union(*(gathered.passes for gathered in live))
    for here in passes:
        if here.trouble is not None:
            raise here.trouble
    for gathered in live if len(passes) > 1 else ():
        # once, also where a step that failed is tried again
        others = {h for h in passes - gathered.left_out if h.whole and gathered.layer not in h.seen}
        gathered.left_out |= others
        if others:
            gathered.layer.pass_over(sum(here.own or 0.0 for here in others))
    return passes
