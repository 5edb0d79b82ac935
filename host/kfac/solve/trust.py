"""How far a step may go, learnt from where the last one led."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from thermokron.host.kfac.curvature.layers import Layer, full_precision
from thermokron.model.checks import check_real

__all__ = ["TrustRegion"]


class TrustRegion:
    """Adapts κ of the KL clip so that steps end about where the loss stops to fall along them.

    The gradient of the next batch, g, says how the loss changes along the step δ that led there:
    where gᵀδ < 0 it still falls, and a longer step would have been better, and where gᵀδ > 0 the
    step went past the minimum. The next batch had no part in δ, so that its noise makes the sign
    uncertain, but does not turn it: κ is divided by `factor` in the first case, if it was what
    held the step back, and multiplied by it in the second. That is the sign of the hypergradient
    (Baydin et al. 2018, arXiv 1703.04782), taken for the size of a trust region in place of a
    rate. It needs no pass, and a copy of the parameters.

    Parameters
    ----------
    initial : float
        κ at the start, of the step that momentum makes in the end: η/(1 - momentum) stands for η
        in `thermokron.host.kfac.solve.step_control.shortening`. Where K-FAC was not given the
        optimiser, but a number, momentum is taken to be 0.9.
    factor : float
        In (0, 1): what κ changes by in a step.
    least : float
        Curvature that a direction is taken to have at least, in units of the loss: ‖v‖² times it
        is counted where vᵀg is less. The empirical Fisher goes to zero with the gradients of a fit
        that gets good, and would let steps grow without bounds.
    minimum, maximum : float
        Bounds on κ.

    Attributes
    ----------
    value : float
        κ now.
    """

    def __init__(
        self,
        initial: float = 0.03,
        *,
        factor: float = 0.97,
        least: float = 0.01,
        minimum: float = 1e-6,
        maximum: float = 1.0,
    ) -> None:
        self.minimum = check_real("minimum", minimum, 1e-12, 1e12)
        self.maximum = check_real("maximum", maximum, self.minimum, 1e12)
        self.value = check_real("initial", initial, self.minimum, self.maximum)
        self.least = check_real("least", least, 0.0, 1e12)
        self.factor = check_real("factor", factor, 1e-3, 0.999999)
        self._before: dict[str, dict[str, torch.Tensor]] = {}
        self._held_back = False

    def look_back(self, gradients: Mapping[Layer, torch.Tensor]) -> None:
        """Adapt κ to what gradients say of the step that led to where they were taken."""
        slope = 0.0
        for layer, gradient in gradients.items():
            before = self._before.get(layer.name)
            if before is not None:
                step = [
                    full_precision(p.detach()) - full_precision(old)
                    for p, old in zip(layer.parameters, before.values(), strict=True)
                ]
                slope += (gradient * layer.stacked(step)).sum().item()
        if slope > 0.0 or math.isnan(slope):
            self.value = max(self.value * self.factor, self.minimum)
        elif slope < 0.0 and self._held_back:
            self.value = min(self.value / self.factor, self.maximum)

    def set_out(self, layers: Mapping[Layer, torch.Tensor], *, held_back: bool) -> None:
        """Remember where a step begins, and whether κ made it shorter."""
        self._before = {
            layer.name: {str(i): p.detach().clone() for i, p in enumerate(layer.parameters)}
            for layer in layers
        }
        self._held_back = held_back

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on."""
        return {"value": self.value, "before": self._before, "held_back": self._held_back}

    def check_state(self, state: Any, layers: Mapping[str, Layer]) -> None:
        """`ValueError` if a state does not fit these layers."""
        value = float(state["value"])
        if not 0.0 < value < math.inf:
            raise ValueError(f"kl_clip = {value!r} in the state; legal: above 0")
        for name, before in state["before"].items():
            found = [t.shape for t in before.values()]
            wanted = [p.shape for p in layers[name].parameters]
            if found != wanted:
                raise ValueError(f"parameters of layer {name!r} have other shapes in the state")

    def load_state_dict(self, state: Any) -> None:
        """Take over what `state_dict` returned."""
        self.value, self._held_back = float(state["value"]), bool(state["held_back"])
        self._before = {name: dict(before) for name, before in state["before"].items()}

    def __repr__(self) -> str:
        return f"TrustRegion({self.value:.4g}, factor={self.factor})"
