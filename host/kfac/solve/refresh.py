"""The prepared block of every layer, and when it is to be renewed."""

from __future__ import annotations

import torch

from thermokron.host.kfac.curvature.layers import KroneckerLayer, Layer
from thermokron.host.kfac.solve.cost import Cost
from thermokron.host.kfac.solve.prepared import Prepared

__all__ = ["Blocks"]


class Blocks:
    """Prepared blocks by layer.

    Attributes
    ----------
    prepared : dict of Layer to Prepared
        As `thermokron.host.kfac.solve.methods.prepare` made them.
    made_of : dict of Layer to (tensor, tensor)
        The undamped A and G that they were made of, kept where a threshold asks for it.
    current : dict of Layer to float
        The damping of blocks whose factors have not changed since.
    """

    def __init__(self) -> None:
        self.prepared: dict[Layer, Prepared] = {}
        self.made_of: dict[Layer, tuple[torch.Tensor, torch.Tensor]] = {}
        self.current: dict[Layer, float] = {}

    def copy(self) -> Blocks:
        """The same blocks, to be gone back to."""
        other = Blocks()
        other.prepared, other.made_of = dict(self.prepared), dict(self.made_of)
        other.current = dict(self.current)
        return other

    def __getitem__(self, layer: Layer) -> Prepared:
        return self.prepared[layer]

    @property
    def kappa(self) -> float:
        """The worst condition number of all."""
        return max((block.kappa for block in self.prepared.values()), default=1.0)

    def stale(
        self,
        layer: KroneckerLayer,
        damping: float,
        *,
        due: bool,
        threshold: float | None,
        cost: Cost,
    ) -> bool:
        """Whether a block is to be renewed.

        It is where there is none, where its interval has passed, and where a factor has moved by
        more than `threshold` of its Frobenius norm since the block was made; but not if it would
        be made of the same again.
        """
        if layer not in self.prepared:
            return True
        if self.current.get(layer) == damping:
            return False
        if due:
            return True
        if threshold is None:
            return False
        then = self.made_of.get(layer)
        if then is None:
            return True
        for factor, old in zip((layer.input_factor, layer.output_factor), then, strict=True):
            moved = torch.linalg.vector_norm(factor.value - old)
            cost.flops(6 * old.numel())
            if moved > threshold * torch.linalg.vector_norm(old):
                return True
        return False

    def renew(self, layer: KroneckerLayer, block: Prepared, damping: float, *, keep: bool) -> None:
        """Take over a new block; `keep` what it was made of."""
        self.prepared[layer] = block
        self.current[layer] = damping
        if keep:
            self.made_of[layer] = (layer.input_factor.value, layer.output_factor.value)

    def outdate(self, layer: Layer) -> None:
        """Note that a layer's factors have changed."""
        self.current.pop(layer, None)
