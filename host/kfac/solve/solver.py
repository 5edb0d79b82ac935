"""From gradients to updates: blocks are renewed as they are due, and applied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from thermokron.host.kfac.curvature.factors import all_finite, in_type
from thermokron.host.kfac.curvature.layers import KroneckerLayer, Layer
from thermokron.host.kfac.hyperparameters import Hyperparameters
from thermokron.host.kfac.solve.cost import Cost, work_out
from thermokron.host.kfac.solve.inverses import Inverter, Thermodynamic
from thermokron.host.kfac.solve.methods import prepare
from thermokron.host.kfac.solve.prepared import EIGEN
from thermokron.host.kfac.solve.refresh import Blocks
from thermokron.host.kfac.solve.relative import dampings
from thermokron.model import Unit

__all__ = ["Solver", "check_updates", "gradients_of"]


class Solver:
    """Preconditions gradients by damped blocks.

    Parameters
    ----------
    inverse : Inverter
        What inverts, or solves.
    choices : mapping
        Options by name: "method" and "damping_mode" count.
    hyperparameters : Hyperparameters
        When, and how exactly.
    relative : bool
        Whether dampings are parts of the layers' own curvature, see `Relative`.
    own : Unit or None
        A unit that `KFAC` was given, on which samples and settling follow the hyperparameters.
    """

    def __init__(
        self,
        inverse: Inverter,
        choices: Mapping[str, Any],
        hyperparameters: Hyperparameters,
        *,
        own: Unit | None,
        relative: bool = False,
    ) -> None:
        self.inverse, self.hyperparameters, self.own = inverse, hyperparameters, own
        self.relative = relative
        self.each: dict[Layer, float] = {}
        exactly = choices["damping_mode"] == "exact"
        self.method = EIGEN if exactly else choices["method"]

    def updates(
        self,
        blocks: Blocks,
        ready: Sequence[Layer],
        gradients: Mapping[Layer, torch.Tensor],
        step: int,
        damping: float,
        cost: Cost,
    ) -> list[torch.Tensor]:
        """Preconditioned gradients.

        Parameters
        ----------
        blocks : Blocks
            Renewed where they are due.
        ready : sequence of Layer
            Those with averages.
        gradients : mapping of Layer to tensor
            What is preconditioned.
        step : int
            Which step it is.
        damping : float
            λ.
        cost : Cost
            Gets what it costs.
        """
        if self.own is not None:
            samples, settle = (self.hyperparameters.at(n, step) for n in ("samples", "settle"))
            self.inverse = Thermodynamic(self.own, samples, settle)
        self.each = dampings(ready, damping, relative=self.relative)
        kronecker = [layer for layer in ready if isinstance(layer, KroneckerLayer)]
        self._renew(blocks, kronecker, step, damping, cost)
        unit = None  # the host's products are made one after the other
        if self.method == "solve" and isinstance(self.inverse, Thermodynamic):
            unit = self.inverse.unit
        pieces = [partial(self._update, blocks, layer, g) for layer, g in gradients.items()]
        return work_out(unit, pieces, cost)

    def _renew(
        self,
        blocks: Blocks,
        layers: Sequence[KroneckerLayer],
        step: int,
        damping: float,
        cost: Cost,
    ) -> None:
        threshold = self.hyperparameters.at("refresh_threshold", step)
        due = step % self.hyperparameters.at("inverse_interval", step) == 0
        stale = [
            layer
            for layer in layers
            if blocks.stale(layer, damping, due=due, threshold=threshold, cost=cost)
        ]
        made = prepare(
            stale,
            damping,
            method=self.method,
            inverse=self.inverse,
            cost=cost,
            before=blocks.prepared,
            each=self.each,
        )
        for layer, block in made.items():
            blocks.renew(layer, block, damping, keep=threshold is not None)

    def _update(
        self, blocks: Blocks, layer: Layer, gradient: torch.Tensor, cost: Cost
    ) -> torch.Tensor:
        if isinstance(layer, KroneckerLayer):
            return blocks[layer].apply(gradient, self.inverse, cost)
        cost.flops(2 * gradient.numel())
        return layer.precondition(gradient, self.each[layer])


def gradients_of(layers: Iterable[Layer]) -> dict[Layer, torch.Tensor]:
    """Those that there are.

    Raises
    ------
    FloatingPointError
        If one holds NaN or inf.
    """
    gradients = {}
    for layer in layers:
        gradient = layer.gradient()
        if gradient is None:
            continue
        if not all_finite(gradient):
            raise FloatingPointError(
                f"the gradient of layer {layer.name or '(model)'!r} holds NaN or inf: training "
                "has diverged (lower lr, or raise damping), or the data held some"
            )
        gradients[layer] = gradient
    return gradients


def check_updates(layers: Iterable[Layer], updates: Iterable[torch.Tensor]) -> None:
    """`FloatingPointError` if an update would not be finite where its gradient is."""
    for layer, update in zip(layers, updates, strict=True):
        dtype = layer.parameters[0].dtype
        if not all_finite(in_type(update, dtype)):
            raise FloatingPointError(
                f"the update of layer {layer.name or '(model)'!r} is too large for {dtype}: "
                "lower lr, or raise damping"
            )
