"""The files that other tools get with a unit's Verilog, side by side with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from thermokron.model import UnitSpec
from thermokron.model.files import write_whole
from thermokron.rtl.flows.constraints import sdc, xdc
from thermokron.rtl.flows.core import core_file, smoke_bench
from thermokron.rtl.names import LICENSE_LINE

__all__ = ["FlowFiles", "write_flows"]


@dataclass(frozen=True)
class FlowFiles:
    """Constraints for chips and for Vivado, the core file, and what its targets take."""

    sdc: Path
    xdc: Path
    core: Path
    bench: Path
    waivers: Path

    @classmethod
    def beside(cls, verilog: Path) -> FlowFiles:
        """Where they are for a unit's Verilog file."""
        return cls(
            sdc=verilog.with_suffix(".sdc"),
            xdc=verilog.with_suffix(".xdc"),
            core=verilog.with_suffix(".core"),
            bench=verilog.with_name(f"{verilog.stem}_smoke.v"),
            waivers=verilog.with_suffix(".vlt"),
        )


def write_flows(files: FlowFiles, spec: UnitSpec, name: str, waivers: str) -> None:
    """Write them for the unit of this name; `waivers` is the text of Verilator's.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    write_whole(files.sdc, sdc(spec, name))
    write_whole(files.xdc, xdc(spec, name))
    write_whole(files.core, core_file(spec, name, files.core.stem))
    write_whole(files.bench, smoke_bench(spec, name))
    write_whole(files.waivers, f"// {LICENSE_LINE}\n{waivers}")
