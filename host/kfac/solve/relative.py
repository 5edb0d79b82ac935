"""Damping in units of the curvature itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from thermokron.host.kfac.curvature.layers import Layer

__all__ = ["Relative", "dampings"]

#: Of the network's mean curvature: what a layer's is taken to be at least.
LEAST = 0.01


@dataclass(frozen=True)
class Relative:
    """A damping that is a part of each layer's own mean curvature.

    λ = ρ · mean diag A · mean diag G, or ρ times the mean of a diagonal. Inputs or a loss in other
    units then leave the damped block what it was but for a factor: factored damping becomes
    (A + √ρ ā I) ⊗ (G + √ρ ḡ I), with condition numbers that ρ and the sizes alone bound. Averages
    are those over loss terms, so that batch sizes do not matter either. A layer whose mean is below
    a hundredth of that of all parameters, as behind a scale that begins near zero, counts as having
    that: its steps would be out of all proportion.

    Parameters
    ----------
    part : float or callable
        ρ, or a function of the step.
    """

    part: float | Callable[[int], float]


def dampings(layers: Iterable[Layer], damping: float, *, relative: bool) -> dict[Layer, float]:
    """λ of layers with averages; 1 stands for curvature where there is none at all."""
    if not relative:
        return dict.fromkeys(layers, damping)
    means = {layer: layer.mean_curvature() for layer in layers}
    sizes = {layer: sum(p.numel() for p in layer.parameters) for layer in means}
    total = sum(mean * sizes[layer] for layer, mean in means.items())
    least = LEAST * total / max(sum(sizes.values()), 1) or 1.0
    return {layer: damping * max(mean, least) for layer, mean in means.items()}
