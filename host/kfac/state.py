"""What of a K-FAC changes with training: kept together, saved, and put back if a step fails."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from thermokron.host.kfac.curvature.factors import all_finite
from thermokron.host.kfac.curvature.layers import Layer, full_precision
from thermokron.host.kfac.distributed import Ranks
from thermokron.host.kfac.hyperparameters import check_count
from thermokron.host.kfac.solve.auto import AutomaticStep
from thermokron.host.kfac.solve.damping import LevenbergMarquardt
from thermokron.host.kfac.solve.division import Division
from thermokron.host.kfac.solve.inverses import Inverter
from thermokron.host.kfac.solve.prepared import held, restore, shapes_of
from thermokron.host.kfac.solve.refresh import Blocks
from thermokron.host.kfac.solve.trust import TrustRegion
from thermokron.model import Unit

__all__ = ["TrainingState"]

#: What every state has.
KEYS = ("steps", "choices", "layers", "blocks", "made_of", "current", "generator")


class TrainingState:
    """Everything that the coming steps depend on, and that steps change.

    Parameters
    ----------
    layers : sequence of Layer
        With their averages.
    generator : torch.Generator
        Of "mc" and "ggn".
    marquardt : LevenbergMarquardt or None
        The damping, if it adapts.
    unit : Unit or None
        What is solved on.
    ranks : Ranks
        The processes that train together.
    division : Division
        Which of them works for which layer.
    seeds : sequence of int or None
        The seeds of their units, by rank.
    trust : TrustRegion or None
        The KL clip, if it adapts.

    Attributes
    ----------
    automatic : AutomaticStep or None
        What chooses rate and momentum, with the last step.
    steps : int
        Steps taken.
    blocks : Blocks
        Prepared blocks of layers.
    drawing : torch.Generator
        What "mc" and "ggn" draw from here: `generator` itself in a single process. Of several,
        each has its own, seeded anew at every step by the rank and by `generator`, which is the
        same on all.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        generator: torch.Generator,
        marquardt: LevenbergMarquardt | None,
        unit: Unit | None,
        *,
        ranks: Ranks,
        division: Division,
        seeds: Sequence[int | None],
        trust: TrustRegion | None = None,
    ) -> None:
        self.layers, self.generator = layers, generator
        self.marquardt, self.unit, self.trust = marquardt, unit, trust
        self.ranks, self.division, self.seeds = ranks, division, seeds
        self._stream = 0
        self.drawing = generator if ranks.size == 1 else torch.Generator()
        self._part_ways()
        self.automatic: AutomaticStep | None = None
        self.steps = 0
        self.blocks = Blocks()

    def advance(self, streams: Sequence[int | None]) -> None:
        """Note that a step was taken, on processes whose units have got to these streams.

        All units go on at the same, so that one number says where.
        """
        self.steps += 1
        if self._on_units:
            self._go_on_at(max(stream for stream in streams if stream is not None))
        if self.drawing is not self.generator:
            torch.rand((), generator=self.generator)
            self._part_ways()

    @property
    def _on_units(self) -> bool:
        """Whether any of the processes has one."""
        return any(seed is not None for seed in self.seeds)

    def _go_on_at(self, stream: int) -> None:
        self._stream = stream
        if self.unit is not None:
            self.unit.stream = stream

    def _part_ways(self) -> None:
        if self.drawing is not self.generator:
            common = torch.randint(2**31, (), generator=self.generator.clone_state())
            self.drawing.manual_seed(int(common) + self.ranks.rank)

    @contextmanager
    def unless_it_fails(self) -> Iterator[None]:
        """What is done meanwhile counts only if it ends without an exception."""
        steps, blocks = self.steps, self.blocks.copy()
        trust = None if self.trust is None else self.trust.state_dict()
        damping = None if self.marquardt is None else self.marquardt.value
        last = None if self.automatic is None else self.automatic.last
        averages = [layer.state_dict() for layer in self.layers]
        try:
            yield
        except BaseException:
            self.steps, self.blocks = steps, blocks
            if self.marquardt is not None and damping is not None:
                self.marquardt.value = damping
            if self.automatic is not None and last is not None:
                self.automatic.last = last
            for layer, before in zip(self.layers, averages, strict=True):
                layer.load_state_dict(before)
            if self.trust is not None:
                self.trust.load_state_dict(trust)
            raise

    def save(self, choices: Mapping[str, Any]) -> dict[str, Any]:
        """All of it, and the choices that decide what it means.

        In types that `torch.load(weights_only=True)` accepts.
        """
        blocks = self.blocks
        state: dict[str, Any] = {
            "steps": self.steps,
            "choices": dict(choices),
            "layers": {layer.name: layer.state_dict() for layer in self.layers},
            "blocks": {layer.name: block.state_dict() for layer, block in blocks.prepared.items()},
            "made_of": {layer.name: pair for layer, pair in blocks.made_of.items()},
            "current": {layer.name: damping for layer, damping in blocks.current.items()},
            "generator": self.generator.get_state(),
        }
        if self.marquardt is not None:
            state["damping"] = self.marquardt.value
        if self.trust is not None:
            state["trust"] = self.trust.state_dict()
        if self.automatic is not None:
            state["last"] = dict(self.automatic.last)
        if self._on_units:
            stream = self._stream if self.unit is None else self.unit.stream
            state["unit"] = {"seeds": list(self.seeds), "stream": stream}
        return state

    def load(self, state: dict[str, Any], choices: Mapping[str, Any], inverse: Inverter) -> None:
        """Take over what `save` returned; all of it is checked first.

        Raises
        ------
        ValueError
            If layers, their shapes or types, choices or the unit are others.
        """
        if not isinstance(state, dict) or not state.keys() >= set(KEYS):
            raise ValueError(f"state is not one of KFAC.state_dict, which has {', '.join(KEYS)}")
        try:
            steps, blocks, stream = self._checked(state, choices, inverse)
        except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
            raise ValueError(f"state is damaged: {error!r}") from error
        self.generator.set_state(state["generator"].cpu())
        self._part_ways()
        for layer in self.layers:
            layer.discard()
            layer.load_state_dict(state["layers"][layer.name])
        self.steps, self.blocks = steps, blocks
        if stream is not None:
            self._go_on_at(stream)
        if self.automatic is not None:
            self.automatic.last = dict(state.get("last", {}))
        if self.marquardt is not None and "damping" in state:
            self.marquardt.value = float(state["damping"])
        if self.trust is not None and "trust" in state:
            self.trust.load_state_dict(state["trust"])

    def _checked(
        self, state: dict[str, Any], choices: Mapping[str, Any], inverse: Inverter
    ) -> tuple[int, Blocks, int | None]:
        """Steps, blocks and the unit's stream of a state, all of which is looked at."""
        layers = {layer.name: layer for layer in self.layers}
        if set(state["layers"]) != set(layers):
            raise ValueError(
                f"state holds the layers {sorted(state['layers'])}, not {list(layers)}"
            )
        for name, choice in choices.items():
            saved = state["choices"].get(name)
            if saved != choice:
                raise ValueError(
                    f"state was saved with {name} = {saved!r}, this KFAC has {choice!r}"
                )
        for name, layer in layers.items():
            layer.check_state(state["layers"][name])
        stream = None
        if self._on_units and "unit" in state:
            stream = check_count("stream", state["unit"]["stream"], low=0)
            saved = dict(enumerate(state["unit"]["seeds"])).get(self.ranks.rank)
            if self.unit is not None and saved not in (None, self.unit.seed):
                raise ValueError(
                    f"state was saved with a unit of seed {saved}, this unit has seed "
                    f"{self.unit.seed}; open it with the saved one"
                )
        blocks = Blocks()
        for name, saved in state["blocks"].items():
            layer = layers[name]
            wanted = [factor.shape for factor in layer.factors.values()]
            if shapes_of(saved) != wanted:
                raise ValueError(
                    f"the block of layer {name!r} is made of {shapes_of(saved)} in the state; "
                    f"here it is {wanted}"
                )
            check_numbers(f"the block of layer {name!r}", saved, dtypes_of(layer))
            here = self.division.is_own(layer) or not self._on_units
            blocks.prepared[layer] = restore(saved, inverse) if here else held(saved, inverse)
        for name, (a, g) in state["made_of"].items():
            wanted = [factor.shape for factor in layers[name].factors.values()]
            if [tuple(a.shape), tuple(g.shape)] != wanted:
                raise ValueError(f"made_of of layer {name!r} is of other shapes in the state")
            blocks.made_of[layers[name]] = (a, g)
        for name, at in state["current"].items():
            if not (name in state["blocks"] and math.isfinite(float(at))):
                raise ValueError(f"the state has no block of layer {name!r}, or of no damping")
            blocks.current[layers[name]] = float(at)
        float(state.get("damping", 0.0))
        if self.trust is not None and "trust" in state:
            self.trust.check_state(state["trust"], layers)
        if self.automatic is not None:
            self.automatic.check_last(state.get("last", {}))
        torch.Generator().set_state(state["generator"].cpu())  # which raises if it is none
        return check_count("steps", state["steps"], low=0), blocks, stream


def dtypes_of(layer: Layer) -> set[torch.dtype]:
    """The types that a block's parts may have: that of the averages, or double precision."""
    return {full_precision(layer.parameters[0]).dtype, torch.float64}


def check_numbers(what: str, saved: Any, dtypes: set[torch.dtype]) -> None:
    """`ValueError`, which says `what` it is, if nested tensors hold NaN or inf, or other types."""
    if isinstance(saved, torch.Tensor) and saved.is_floating_point():
        if saved.dtype not in dtypes:
            raise ValueError(f"{what} is {saved.dtype} in the state; legal: {dtypes}")
        if not all_finite(saved):
            raise ValueError(f"{what} holds NaN or inf in the state")
    elif isinstance(saved, dict | list | tuple):
        for each in saved.values() if isinstance(saved, dict) else saved:
            check_numbers(what, each, dtypes)
