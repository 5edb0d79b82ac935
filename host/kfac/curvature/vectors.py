"""What "mc" and "ggn" send back through the network from its outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from thermokron.host.kfac.curvature.compiled import keeping_buffers
from thermokron.host.kfac.curvature.context import leaving_no_trace, undisturbed
from thermokron.host.kfac.curvature.factors import all_finite
from thermokron.host.kfac.curvature.layers import FreeLayer, Layer, full_precision
from thermokron.host.kfac.curvature.layers.base import Sums
from thermokron.host.kfac.curvature.losses import LossCurvature
from thermokron.host.kfac.curvature.passes import Pass, Use

__all__ = ["Vectors"]

Edges = list[tuple[torch.autograd.graph.GradientEdge, Use]]


class Vectors:
    """The square root of the loss's Hessian, or draws from it, sent back one at a time.

    Parameters
    ----------
    curvature : LossCurvature
        Of the loss.
    fisher : "mc" or "ggn"
        Draws, or all columns.
    samples : int
        Draws per pass for "mc".
    reduce : bool
        Weight sharing, see `KroneckerLayer`.
    generator : torch.Generator
        Draws, and signs of loss terms for "ggn".
    """

    def __init__(
        self,
        curvature: LossCurvature,
        fisher: str,
        *,
        samples: int,
        reduce: bool,
        generator: torch.Generator,
    ) -> None:
        self.curvature, self.fisher, self.samples = curvature, fisher, samples
        self.reduce, self.generator = reduce, generator

    def send(
        self,
        outputs: torch.Tensor,
        target: torch.Tensor,
        total: float,
        uses: Edges,
        free: Sequence[FreeLayer],
    ) -> dict[Layer, tuple[Sums, set[Pass]]]:
        """What layers record of all vectors together, as if they had recorded nothing before.

        With the passes that it is of.

        Parameters
        ----------
        outputs : tensor
            What the loss was given, with its graph, which is kept.
        target : tensor
            Of the loss.
        total : float
            Loss terms.
        uses : list of (GradientEdge, Use)
            Where to.
        free : sequence of FreeLayer
            Parameters to which vectors are sent beside.

        Raises
        ------
        FloatingPointError
            If outputs are NaN or inf.
        """
        with undisturbed(), keeping_buffers():
            return self._sent(outputs, target, total, uses, free)

    def _sent(
        self,
        outputs: torch.Tensor,
        target: torch.Tensor,
        total: float,
        uses: Edges,
        free: Sequence[FreeLayer],
    ) -> dict[Layer, tuple[Sums, set[Pass]]]:
        if outputs.numel() == 0:  # a batch without rows
            return {}
        fixed = full_precision(outputs.detach())
        if not all_finite(fixed):
            raise FloatingPointError(
                "the outputs that the loss was given hold NaN or inf: training has diverged "
                "(lower lr, or raise damping), or the data held some"
            )
        layers: list[Layer] = [use.layer for _, use in uses]
        before = {layer: layer.take() for layer in (*layers, *free)}
        ends: list[Any] = [*(edge for edge, _ in uses), *(layer.parameters[0] for layer in free)]
        count = self._count(fixed)
        passes = {use.here for _, use in uses}
        parts = [terms / count for terms in _shares(uses, total)]
        reached: dict[Layer, set[Pass]] = {}
        vectors = self._vectors(fixed, target, uses, free=bool(free))
        try:
            with leaving_no_trace([fixed.device]):
                for column, vector in enumerate(vectors):
                    own = vector.to(outputs.dtype)
                    gradients = torch.autograd.grad(
                        outputs, ends, own, retain_graph=True, allow_unused=True
                    )
                    for one, gradient in zip(free, gradients[len(uses) :], strict=True):
                        if gradient is not None:
                            reached.setdefault(one, passes)
                            one.add(gradient, total / count)
                    for (_, use), terms, gradient in zip(uses, parts, gradients, strict=False):
                        if gradient is None:
                            continue
                        reached.setdefault(use.layer, set()).add(use.here)
                        use.layer.record(
                            use.module,
                            use.prepared,
                            full_precision(gradient),
                            terms,
                            reduce=self.reduce,
                            again=column > 0,
                        )
            return {layer: (layer.take(), passes) for layer, passes in reached.items()}
        finally:
            for layer, sums in before.items():
                layer.discard()
                layer.put(sums)

    def _count(self, outputs: torch.Tensor) -> int:
        if self.fisher == "mc":
            return self.samples
        return outputs.numel() // max(self.curvature.term_shape(outputs).numel(), 1)

    def _vectors(
        self, outputs: torch.Tensor, target: torch.Tensor, uses: Edges, *, free: bool
    ) -> Iterator[torch.Tensor]:
        curvature, generator = self.curvature, self.generator
        if self.fisher == "mc":
            for _ in range(self.samples):
                drawn = curvature.sample(outputs, target, generator)
                yield drawn if self.samples == 1 else drawn * self.samples**-0.5
            return
        terms = curvature.term_shape(outputs).numel()
        fewest = min((use.examples for _, use in uses), default=terms)
        # an example with several loss terms is taken together by "reduce"
        alone = not free and (fewest >= terms or self.reduce)
        for column in curvature.columns(outputs, target):
            # else the network may mix them, or what is free does
            yield column if alone else column * curvature.signs(outputs, generator)


def _shares(uses: Edges, total: float) -> list[float]:
    """Loss terms that every use counts: none where its layer was used in the same pass before."""
    counted: set[tuple[Layer, Pass]] = set()
    shares = []
    for _, use in uses:
        key = use.layer, use.here
        shares.append(0.0 if key in counted else use.here.share(use.layer, total))
        counted.add(key)
    return shares
