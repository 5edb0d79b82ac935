"""Which process inverts, and applies, the block of which layer."""

from __future__ import annotations

from collections.abc import Sequence

from thermokron.host.kfac.curvature.layers import KroneckerLayer, Layer

__all__ = ["Division", "work"]


class Division:
    """Layers divided among the processes of a group, each to one owner.

    The largest first, each to the owner that has the least to do so far, as in KAISA (Pauloski et
    al. 2021, arXiv 2107.01739). What inverts a block applies it, too: an update is then as many
    numbers to send as a gradient, and has the same bits everywhere.

    Parameters
    ----------
    layers : sequence of Layer
        All.
    rank : int
        This process.
    owners : sequence of int
        The processes that may own layers.

    Attributes
    ----------
    owner : dict of Layer to int
        Of every layer.
    """

    def __init__(self, layers: Sequence[Layer], rank: int, owners: Sequence[int]) -> None:
        self.rank = rank
        self.owner: dict[Layer, int] = {}
        load = dict.fromkeys(owners, 0.0)
        for layer in sorted(layers, key=work, reverse=True):
            least = min(load, key=lambda owner: load[owner])
            self.owner[layer] = least
            load[least] += work(layer)

    def is_own(self, layer: Layer) -> bool:
        """Whether this process works for a layer."""
        return self.owner[layer] == self.rank


def work(layer: Layer) -> float:
    """Operations that a block takes: n³ for each factor, and 2mn(m+n) for its apply."""
    if not isinstance(layer, KroneckerLayer):
        return float(sum(p.numel() for p in layer.parameters))
    n, m = layer.sizes
    blocks = layer.blocks or 1
    inversions = sum(f.size if f.diagonal else f.size**3 for f in layer.factors.values())
    return blocks * (inversions + 2.0 * m * n * (m + n))
