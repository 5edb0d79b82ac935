"""The control plane in Amaranth, its register map, and its Verilog."""

from typing import TYPE_CHECKING, Any

from thermokron.rtl.limits import MAX_CELLS
from thermokron.rtl.regmap import RegisterMap, read_spec, register_map
from thermokron.rtl.rtlil import Port, ports
from thermokron.rtl.verilog import UnitFiles, generate_verilog, write_unit

if TYPE_CHECKING:
    from thermokron.rtl.regmap import FaultReason, Phase
    from thermokron.rtl.unit import ThermodynamicUnit

__all__ = [
    "MAX_CELLS",
    "FaultReason",
    "Phase",
    "Port",
    "RegisterMap",
    "ThermodynamicUnit",
    "UnitFiles",
    "generate_verilog",
    "ports",
    "read_spec",
    "register_map",
    "write_unit",
]


def __getattr__(name: str) -> Any:
    # what loads Amaranth or reads the register map waits until it is asked for
    if name == "ThermodynamicUnit":
        from thermokron.rtl.unit import ThermodynamicUnit

        return ThermodynamicUnit
    if name in ("FaultReason", "Phase"):
        from thermokron.rtl import regmap

        return getattr(regmap, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
