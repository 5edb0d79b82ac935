"""`thermokron verilog`: the control plane as Verilog, with its register map."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from thermokron.host.cli.spec_options import add_spec_options, spec_from_args

__all__ = ["add_parser", "run"]

DESCRIPTION = """\
Write the Verilog of a unit's control plane, and beside it what a chip, a driver and their
makers need: ports and specification as JSON, the register map in SystemRDL, as a C header and
as a web page, timing constraints for chips (SDC) and for Vivado (XDC), and a core file for FuseSoC
with targets lint, sim and synth. Units of different names fit into one design and one firmware:
modules, the address map, C types and macros all begin with the unit's name.

Each block is one module, with its docstring above it and its ports explained; memories are modules
of their own (NAME_memory_<words>x<bits>), which a chip's RAM macros can take the place of.
"""

EPILOG = """\
examples:
  thermokron verilog                                   the default unit, in build/unit.v
  thermokron verilog --cells 64 --lanes 8 -o chip/unit.v
                                                       64 cells that share 8 multipliers
  thermokron verilog --cells 15 --adc-bits 10 --clock-hz 100e6
  thermokron verilog --cells 8 -o chip/east.v          module thermokron_east, east.h with the
                                                       type thermokron_east_t
  thermokron verilog --cells 8 -o chip/east.v --name east_array
                                                       module east_array, type east_array_t

The Verilog passes Verilator's lint with the few waivers that the command names, Icarus and
Yosys' check; its ports are timed as docs/converter-port.md draws them.
"""


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "verilog",
        help="write the control plane and its register map",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("build/unit.v"),
        metavar="FILE",
        help="the Verilog file; the others go beside it [build/unit.v]",
    )
    parser.add_argument(
        "--name",
        metavar="NAME",
        help="what the unit is called in all files: letters, digits and single underscores, a "
        "letter first, no keyword [thermokron_ and the file's stem]",
    )
    parser.add_argument(
        "--source",
        action="store_true",
        help="say in src attributes which line of the Amaranth source everything comes from",
    )
    add_spec_options(parser)


def run(args: argparse.Namespace) -> int:
    """Write the files, and say where they are."""
    from rich.console import Console

    from thermokron.rtl.verilog import write_unit

    spec = spec_from_args(args)
    with Console(stderr=True).status(f"translating {spec.cells} cells in {spec.lanes} lanes"):
        files = write_unit(spec, args.output, name=args.name, source=args.source)
    kilobytes = files.verilog.stat().st_size / 1000
    print(f"{files.name}: {spec.cells} cells, {spec.lanes} lanes, {spec.fingerprint:#010x}")
    written = (
        (files.verilog, f"Verilog, {kilobytes:.0f} kB"),
        (files.sidecar, "ports, specification, versions"),
        (files.rdl, "register map in SystemRDL"),
        (files.header, "register map for C"),
        (files.html / "index.html", "register map for people"),
        (files.flows.sdc, "timing constraints"),
        (files.flows.xdc, "timing constraints for Vivado"),
        (files.flows.core, "core file: fusesoc run --target lint, sim or synth"),
        (files.flows.bench, "test bench of the target sim"),
        (files.flows.waivers, "waivers for verilator --lint-only -Wall"),
    )
    width = max(len(str(path)) for path, _ in written)
    for path, what in written:
        print(f"  {path!s:{width}}  {what}")
    return 0
