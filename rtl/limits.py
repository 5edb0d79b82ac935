"""What the control plane can be built for, which is less than a specification may ask for."""

from __future__ import annotations

from dataclasses import fields

from thermokron.model import UnitSpec

__all__ = ["MAX_CELLS", "check_buildable"]

#: Most cells that the control plane is built and simulated with; lanes follow, for they divide it.
#: Translated and compiled for Verilator, 256 cells take one to two minutes. With 512, two lanes
#: take two to three times the time and memory, and 512 lanes nest too deep for Amaranth.
MAX_CELLS = 256

#: What `UnitSpec` allows for `cells`.
LEAST, MOST = next(f.metadata["range"] for f in fields(UnitSpec) if f.name == "cells")


def check_buildable(spec: UnitSpec) -> None:
    """Refuse a unit that the control plane cannot be built for.

    Everything that is made from a specification here asks first, and so does every engine that
    runs what is made: this takes no time, translating and compiling a large unit takes minutes.

    Raises
    ------
    ValueError
        Naming the field, its value, the legal range, and the engine that takes it.
    """
    if spec.cells > MAX_CELLS:
        raise ValueError(
            f"cells = {spec.cells} is out of range for the control plane (Verilog, engine "
            f"'cosim'); legal: {LEAST} to {MAX_CELLS}; engine 'numeric' takes up to {MOST}"
        )
