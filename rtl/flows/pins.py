"""What every port of a unit is to timing: the class decides how it is constrained."""

from __future__ import annotations

import re

from thermokron.model import UnitSpec
from thermokron.rtl.rtlil import Port, ports

__all__ = ["PIN_CLASSES", "by_class", "pin_class"]

#: Classes with the names of their ports; a port is in the first class that it matches.
PIN_CLASSES = {
    "clock": r"clk",
    "reset": r"rst",
    "asynchronous": r"drdy",  # to two flip-flops
    "held": r"adc_data",  # stable while it is captured, whenever it came
    "host": r"s_axi_.*|[sm]_axis_.*|irq",
    "converter": r"(dac|bias)_.*|temperature|discharge|convst",
}


def pin_class(name: str) -> str:
    """The class of a port; `ValueError` if it is in none, and would be left unconstrained."""
    for kind, names in PIN_CLASSES.items():
        if re.fullmatch(names, name):
            return kind
    raise ValueError(f"port {name} is in no class; known: {', '.join(PIN_CLASSES)}")


def by_class(spec: UnitSpec) -> dict[str, list[Port]]:
    """The ports of a unit by class, in the module's order; every class has an entry."""
    found: dict[str, list[Port]] = {kind: [] for kind in PIN_CLASSES}
    for port in ports(spec):
        found[pin_class(port.name)].append(port)
    return found
