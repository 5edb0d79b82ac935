"""What other tools need beside a unit's Verilog: constraints, a core file, a test bench."""

from thermokron.rtl.flows.constraints import sdc, xdc
from thermokron.rtl.flows.core import core_file, smoke_bench
from thermokron.rtl.flows.files import FlowFiles, write_flows
from thermokron.rtl.flows.pins import PIN_CLASSES, by_class, pin_class

__all__ = [
    "PIN_CLASSES",
    "FlowFiles",
    "by_class",
    "core_file",
    "pin_class",
    "sdc",
    "smoke_bench",
    "write_flows",
    "xdc",
]
