"""Damping that watches how well the quadratic model foretells the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from thermokron.host.kfac.layers import Layer
from thermokron.model.checks import check_integer, check_real

__all__ = ["LevenbergMarquardt", "Snapshot"]


class LevenbergMarquardt:
    """Adapts λ so that the quadratic model is trusted as far as it is right.

    The reduction ratio ρ = (L(θ+δ) - L(θ)) / M(δ) compares what the loss did with what the model
    M(δ) = ∇Lᵀδ + ½ δᵀ(C + λI)δ foretold, C being K-FAC's own blocks. λ falls by `factor^interval`
    where ρ > 3/4, and rises by its inverse where ρ < 1/4 (Martens & Grosse 2015, arXiv 1503.05671,
    section 6.5).

    Parameters
    ----------
    initial : float
        λ at the start.
    interval : int
        Steps between adaptations, each of which needs the loss once more.
    factor : float
        ω in (0, 1): λ changes by ω^interval.
    minimum, maximum : float
        Bounds on λ.

    Attributes
    ----------
    value : float
        λ now.
    """

    def __init__(
        self,
        initial: float,
        *,
        interval: int = 5,
        factor: float = 0.95,
        minimum: float = 1e-8,
        maximum: float = 1e4,
    ) -> None:
        self.minimum = check_real("minimum", minimum, 1e-12, 1e12)
        self.maximum = check_real("maximum", maximum, self.minimum, 1e12)
        self.value = check_real("initial", initial, self.minimum, self.maximum)
        self.interval = check_integer("interval", interval, 1, 10**9)
        self.factor = check_real("factor", factor, 1e-3, 0.999999)

    def adapt(self, ratio: float) -> None:
        """Change λ as ρ says; a ratio that is NaN counts as a failure."""
        change = self.factor**self.interval
        if ratio > 0.75:
            self.value = max(self.value * change, self.minimum)
        elif not ratio >= 0.25:
            self.value = min(self.value / change, self.maximum)

    def __repr__(self) -> str:
        return (
            f"LevenbergMarquardt({self.value:.4g}, interval={self.interval}, factor={self.factor})"
        )


class Snapshot:
    """Parameters and gradients before a step, to see afterwards what the step was.

    Parameters
    ----------
    parameters : sequence of torch.nn.Parameter
        All that are trained; those without a gradient are left out.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self._before = [
            (p, p.detach().clone(), p.grad.clone()) for p in parameters if p.grad is not None
        ]

    def predicted(self, layers: Sequence[Layer], damping: float) -> float:
        """M(δ) for the step δ that was taken since.

        Parameters that no layer covers enter with their gradient alone.
        """
        steps: Mapping[int, torch.Tensor] = {id(p): p - old for p, old, _ in self._before}
        total = math.fsum((steps[id(p)] * gradient).sum().item() for p, _, gradient in self._before)
        for layer in layers:
            own = [steps.get(id(p)) for p in layer.parameters]
            present = [step for step in own if step is not None]
            if not layer.has_factors or len(present) < len(own):
                continue
            step = layer.stacked(present)
            bent = layer.curvature_product(step) + damping * step
            total += 0.5 * (step * bent).sum().item()
        return total
