"""What "mc" and "ggn" send back through the network from its outputs."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from thermokron.host.kfac.curvature.context import keeping_buffers, leaving_no_trace, undisturbed
from thermokron.host.kfac.curvature.factors import all_finite
from thermokron.host.kfac.curvature.layers import Layer, full_precision
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
        self, outputs: torch.Tensor, target: torch.Tensor, total: float, uses: Edges
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

        Raises
        ------
        FloatingPointError
            If outputs are NaN or inf.
        """
        with undisturbed(), keeping_buffers():
            return self._sent(outputs, target, total, uses)

    def _sent(
        self, outputs: torch.Tensor, target: torch.Tensor, total: float, uses: Edges
    ) -> dict[Layer, tuple[Sums, set[Pass]]]:
        fixed = full_precision(outputs.detach())
        if not all_finite(fixed):
            raise FloatingPointError(
                "the outputs that the loss was given hold NaN or inf: training has diverged "
                "(lower lr, or raise damping), or the data held some"
            )
        before = {use.layer: use.layer.take() for _, use in uses}
        edges = [edge for edge, _ in uses]
        count = self._count(fixed)
        parts = [terms / count for terms in _shares(uses, total)]
        reached: dict[Layer, set[Pass]] = {}
        vectors = self._vectors(fixed, target, uses)
        try:
            with leaving_no_trace([fixed.device]):
                for column, vector in enumerate(vectors):
                    own = vector.to(outputs.dtype)
                    gradients = torch.autograd.grad(
                        outputs, edges, own, retain_graph=True, allow_unused=True
                    )
                    for (_, use), terms, gradient in zip(uses, parts, gradients, strict=True):
                        if gradient is None:
                            continue
                        reached.setdefault(use.layer, set()).add(use.here)
                        use.layer.record(
                            use.module,
                            use.given,
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
        self, outputs: torch.Tensor, target: torch.Tensor, uses: Edges
    ) -> Iterator[torch.Tensor]:
        curvature, generator = self.curvature, self.generator
        if self.fisher == "mc":
            for _ in range(self.samples):
                drawn = curvature.sample(outputs, target, generator)
                yield drawn if self.samples == 1 else drawn * self.samples**-0.5
            return
        terms = curvature.term_shape(outputs).numel()
        alone = min((use.examples for _, use in uses), default=terms) >= terms
        for column in curvature.columns(outputs, target):
            if alone or self.reduce:  # "reduce" takes all of an example together
                yield column
            else:  # an example has several loss terms, which the network may mix
                yield column * curvature.signs(outputs, generator)


def _shares(uses: Edges, total: float) -> list[float]:
    """Loss terms that every use counts: none where its layer was used in the same pass before."""
    counted: set[tuple[Layer, Pass]] = set()
    shares = []
    for _, use in uses:
        key = use.layer, use.here
        shares.append(0.0 if key in counted else use.here.share(use.layer, total))
        counted.add(key)
    return shares
