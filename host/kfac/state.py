"""What of a K-FAC is saved, in types that `torch.load(weights_only=True)` accepts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from thermokron.host.kfac.hyperparameters import check_count
from thermokron.host.kfac.solve.prepared import restore
from thermokron.host.kfac.solve.refresh import Blocks

if TYPE_CHECKING:
    from thermokron.host.kfac.preconditioner import KFAC

__all__ = ["load_state", "save_state"]

#: Choices that decide what the saved blocks are.
FIXED = ("method", "damping_mode")


def save_state(kfac: KFAC) -> dict[str, Any]:
    """`KFAC.state_dict`."""
    blocks = kfac.blocks
    state: dict[str, Any] = {
        "steps": kfac.steps,
        "choices": {name: kfac.choices[name] for name in FIXED},
        "layers": {layer.name: layer.state_dict() for layer in kfac.layers},
        "blocks": {layer.name: block.state_dict() for layer, block in blocks.prepared.items()},
        "made_of": {layer.name: pair for layer, pair in blocks.made_of.items()},
        "current": {layer.name: damping for layer, damping in blocks.current.items()},
        "generator": kfac.generator.get_state(),
    }
    if kfac.marquardt is not None:
        state["damping"] = kfac.marquardt.value
    if kfac.unit is not None:
        state["unit"] = {"seed": kfac.unit.seed, "stream": kfac.unit.stream}
    return state


def load_state(kfac: KFAC, state: dict[str, Any]) -> None:
    """`KFAC.load_state_dict`; all of a state is taken over, or nothing."""
    layers = {layer.name: layer for layer in kfac.layers}
    if set(state["layers"]) != set(layers):
        raise ValueError(f"state holds the layers {sorted(state['layers'])}, not {list(layers)}")
    for name in FIXED:
        # what was left open suits what inverts, here and where the state was saved
        fixed = name != "method" or kfac.method_given
        if fixed and state["choices"][name] != kfac.choices[name]:
            raise ValueError(
                f"state was saved with {name} = {state['choices'][name]!r}, "
                f"this KFAC has {kfac.choices[name]!r}"
            )
    stream = state["unit"]["stream"] if kfac.unit is not None and "unit" in state else None
    if kfac.unit is not None and stream is not None and state["unit"]["seed"] != kfac.unit.seed:
        raise ValueError(
            f"state was saved with a unit of seed {state['unit']['seed']}, this unit has seed "
            f"{kfac.unit.seed}; open it with the saved one"
        )
    steps = check_count("steps", state["steps"], low=0)
    blocks = Blocks()
    blocks.prepared = {
        layers[name]: restore(block, kfac.inverse) for name, block in state["blocks"].items()
    }
    blocks.made_of = {layers[name]: tuple(pair) for name, pair in state["made_of"].items()}
    blocks.current = {layers[name]: float(at) for name, at in state["current"].items()}
    damping = float(state["damping"]) if "damping" in state else None
    before = {name: layer.state_dict() for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            layer.load_state_dict(state["layers"][name])
        kfac.generator.set_state(state["generator"].cpu())
    except Exception:
        for name, layer in layers.items():
            layer.load_state_dict(before[name])
        raise
    kfac.steps, kfac.blocks = steps, blocks
    if kfac.unit is not None and stream is not None:
        kfac.unit.stream = stream
    if kfac.marquardt is not None and damping is not None:
        kfac.marquardt.value = damping
