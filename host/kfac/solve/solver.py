"""From gradients to updates: blocks are renewed as they are due, and applied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from thermokron.host.kfac.curvature.factors import all_finite, in_type
from thermokron.host.kfac.curvature.layers import KroneckerLayer, Layer
from thermokron.host.kfac.hyperparameters import Hyperparameters
from thermokron.host.kfac.solve.cost import Cost, work_out
from thermokron.host.kfac.solve.division import Division
from thermokron.host.kfac.solve.inverses import Inverter, Thermodynamic
from thermokron.host.kfac.solve.methods import prepare
from thermokron.host.kfac.solve.prepared import EIGEN, Kept, Prepared, Programs, held
from thermokron.host.kfac.solve.refresh import Blocks
from thermokron.host.kfac.solve.relative import dampings
from thermokron.model import Unit

__all__ = ["Part", "Solver", "check_updates", "gradients_of"]

#: `Part.told`: for names of layers states of blocks, updates, norms of gradients, gains.
Told = Mapping[str, Mapping[str, Any]]
#: Relative difference of norms that rounding on unlike machines may make.
SAME = 1e-3


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
    division : Division
        Which layers this process works for.
    """

    def __init__(
        self,
        inverse: Inverter,
        choices: Mapping[str, Any],
        hyperparameters: Hyperparameters,
        *,
        own: Unit | None,
        division: Division,
        relative: bool = False,
    ) -> None:
        self.inverse, self.hyperparameters, self.own = inverse, hyperparameters, own
        self.division, self.relative = division, relative
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
    ) -> Part:
        """This process's part of the preconditioned gradients.

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
        own = [layer for layer in ready if self.division.is_own(layer)]
        kronecker = [layer for layer in own if isinstance(layer, KroneckerLayer)]
        made = self._renew(blocks, kronecker, step, damping, cost)
        unit = None  # the host's products are made one after the other
        if self.method == "solve" and isinstance(self.inverse, Thermodynamic):
            unit = self.inverse.unit
        present = [layer for layer in own if layer in gradients]
        pieces = [partial(self._update, blocks, la, gradients[la]) for la in present]
        return Part(made, dict(zip(present, work_out(unit, pieces, cost), strict=True)))

    def joined(
        self,
        blocks: Blocks,
        gradients: Mapping[Layer, torch.Tensor],
        own: Part,
        told: Sequence[Told],
        step: int,
        damping: float,
    ) -> list[torch.Tensor]:
        """Preconditioned gradients, of which every process has told its part, by rank.

        All processes take the same bits, and hold all blocks, so that each may save them.

        Raises
        ------
        RuntimeError
            If processes have not the same gradients.
        """
        if len(told) == 1:
            return [own.updates[layer] for layer in gradients]
        check_same([each["norms"] for each in told])
        by_name = {layer.name: layer for layer in self.division.owner}
        keep = self.hyperparameters.at("refresh_threshold", step) is not None
        for part in told:
            for name, state in part["blocks"].items():
                layer = by_name[name]
                assert isinstance(layer, KroneckerLayer)
                mine = own.made.get(layer)
                block = mine if isinstance(mine, Programs) else held(state, self.inverse)
                blocks.renew(layer, block, damping, keep=keep)
            for name, gains in part["gains"].items():
                kept = blocks.prepared[by_name[name]]
                if isinstance(kept, Kept):
                    blocks.prepared[by_name[name]] = kept.with_gains(gains)
        updates = {name: update for part in told for name, update in part["updates"].items()}
        return [updates[layer.name] for layer in gradients]

    def _renew(
        self,
        blocks: Blocks,
        layers: Sequence[KroneckerLayer],
        step: int,
        damping: float,
        cost: Cost,
    ) -> dict[KroneckerLayer, Prepared]:
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
        return made

    def _update(
        self, blocks: Blocks, layer: Layer, gradient: torch.Tensor, cost: Cost
    ) -> torch.Tensor:
        if isinstance(layer, KroneckerLayer):
            return blocks[layer].apply(gradient, self.inverse, cost)
        cost.flops(2 * gradient.numel())
        return layer.precondition(gradient, self.each[layer])


@dataclass(frozen=True)
class Part:
    """What a process contributed to a step.

    Attributes
    ----------
    made : dict of Layer to Prepared
        Blocks that it renewed.
    updates : dict of Layer to tensor
        Preconditioned gradients.
    """

    made: Mapping[KroneckerLayer, Prepared]
    updates: Mapping[Layer, torch.Tensor]

    def told(self, gradients: Mapping[Layer, torch.Tensor], blocks: Blocks) -> Told:
        """The same for other processes, with the norms by which they know `gradients`."""
        used = {layer.name: blocks.prepared.get(layer) for layer in self.updates}
        return {
            "gains": {name: b.gains() for name, b in used.items() if isinstance(b, Programs)},
            "blocks": {layer.name: block.state_dict() for layer, block in self.made.items()},
            "updates": {layer.name: update for layer, update in self.updates.items()},
            "norms": {
                layer.name: torch.linalg.vector_norm(gradient).item()
                for layer, gradient in gradients.items()
            },
        }


def check_same(norms: Sequence[Mapping[str, float]]) -> None:
    """`RuntimeError` if the processes, by rank, do not have gradients of the same norms."""
    for rank, others in enumerate(norms):
        for name in norms[0].keys() | others.keys():
            first, other = (each.get(name, -1.0) for each in (norms[0], others))
            if not abs(first - other) <= SAME * max(first, other):
                raise RuntimeError(
                    f"the gradient of layer {name or '(model)'!r} is not the same on rank 0 and "
                    f"rank {rank}: average gradients before step(), as DistributedDataParallel "
                    "does outside of no_sync(); or give KFAC process_group=False, so that "
                    "every process has a curvature of its own"
                )


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
