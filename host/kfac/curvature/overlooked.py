"""From what passes brought to factors, and who was left without."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from thermokron.host.kfac.curvature.factors import all_finite
from thermokron.host.kfac.curvature.layers import Layer

__all__ = ["Overlooked", "update_factors"]


def update_factors(
    layers: Sequence[Layer], decay: float
) -> tuple[list[Layer], dict[Layer, torch.Tensor]]:
    """Move the averages of all layers that saw data; those layers, and the gradients by layer.

    Gradients are those of layers with averages, where there are any.

    Raises
    ------
    FloatingPointError
        If data or gradients were NaN or inf. The averages of all layers are then as they were, and
        the data forgotten, so that the next step may do better, as where a loss was scaled too far
        for half precision.
    """
    before = [layer.state_dict() for layer in layers]
    try:
        moved = [layer for layer in layers if layer.update_factors(decay)]
        found = ((layer, layer.gradient()) for layer in layers if layer.has_factors)
        gradients = {layer: gradient for layer, gradient in found if gradient is not None}
        for layer, gradient in gradients.items():
            if not all_finite(gradient):
                raise FloatingPointError(
                    f"the gradient of layer {layer.name or '(model)'!r} holds NaN or inf: training "
                    "has diverged (lower lr, or raise damping), or the data held some"
                )
    except FloatingPointError:
        for layer, state in zip(layers, before, strict=True):
            layer.load_state_dict(state)  # which discards the data
        raise
    return moved, gradients


class Overlooked:
    """Warns, once of each, of parameters that keep their plain gradient for what happens to them.

    They were frozen when K-FAC was made, and are trained now; or they belong to a layer that got a
    gradient though K-FAC saw none of its data: its module was in eval mode, say, its weight was
    used by hand, or it is in a region under reentrant checkpointing, which `fisher` "mc" and "ggn"
    cannot look into.

    Parameters
    ----------
    model : torch.nn.Module
        As it is when K-FAC is made.
    fisher : str
        Which curvature is gathered.
    """

    def __init__(self, model: torch.nn.Module, fisher: str) -> None:
        self._frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
        self._fisher = fisher
        self._told: set[str] = set()

    def ready(self, layers: Sequence[Layer]) -> list[Layer]:
        """Those that have factors; called after the backward pass.

        Raises
        ------
        RuntimeError
            If there are none.
        """
        ready = [layer for layer in layers if layer.has_factors]
        if not ready:
            before = (
                "loss.backward()"
                if self._fisher == "empirical"
                else "loss = criterion(model(inputs), targets), with the criterion given to KFAC"
            )
            raise RuntimeError(
                f"no layer has seen a backward pass in training mode; call step() after {before}"
            )
        found = [
            f"{name} (frozen when KFAC was made)"
            for name, p in self._frozen.items()
            if p.requires_grad and p.grad is not None
        ]
        found += [
            f"{layer.name or '(model)'} (K-FAC saw none of its data)"
            for layer in layers
            if not layer.has_factors and layer.gradient() is not None
        ]
        new = [label for label in found if label not in self._told]
        if new:
            self._told.update(new)
            warnings.warn(
                f"K-FAC has no curvature for {', '.join(new)}: plain gradients there",
                stacklevel=4,  # of the caller of KFAC.step
            )
        return ready
