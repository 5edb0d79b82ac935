"""A programmed matrix from its saved state."""

from __future__ import annotations

from typing import Any

from thermokron.host.linalg.arrays import Kind, unchecked
from thermokron.host.linalg.blocks import Eliminated
from thermokron.host.linalg.dithered import Dithered
from thermokron.host.linalg.programmed import Programmed
from thermokron.model import Unit

__all__ = ["load"]


def load(unit: Unit, state: dict[str, Any]) -> Programmed | Eliminated | Dithered:
    """What `state_dict()` of a programmed matrix was made of, on a unit of the same spec.

    Its results are NumPy arrays, or of the kind of the right-hand sides.
    """
    first = state["members"][0] if "members" in state else state
    kind = Kind(unchecked(first["matrix"])[1], check=False)
    if "members" in state:
        return Dithered.load(unit, state, kind)
    return (Eliminated if "pivots" in state else Programmed).load(unit, state, kind)
