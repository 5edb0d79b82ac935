"""Damping in units of the curvature itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from thermokron.host.kfac.curvature.layers import Layer

__all__ = ["Relative", "damping_of"]


@dataclass(frozen=True)
class Relative:
    """A damping that is a part of each layer's own mean curvature.

    λ = ρ · mean diag A · mean diag G, or ρ times the mean of a diagonal. Inputs or a loss in other
    units then leave the damped block what it was but for a factor: factored damping becomes
    (A + √ρ ā I) ⊗ (G + √ρ ḡ I), with condition numbers that ρ and the sizes alone bound. Averages
    are those over loss terms, so that batch sizes do not matter either.

    Parameters
    ----------
    part : float or callable
        ρ, or a function of the step.
    """

    part: float | Callable[[int], float]


def damping_of(layer: Layer, damping: float, *, relative: bool) -> float:
    """λ of a layer with averages; a layer without curvature, as behind dead units, has no scale."""
    if not relative:
        return damping
    return damping * (layer.mean_curvature() or 1.0)
