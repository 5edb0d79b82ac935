"""`thermokron synth`: area, memory and clock of a unit on a device."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thermokron.host.cli.spec_options import add_spec_options, spec_from_args
from thermokron.model.files import check_writable, claimed, write_whole
from thermokron.rtl.names import UNIT_NAME, check_name

if TYPE_CHECKING:
    from thermokron.sim.synthesis import Synthesis

__all__ = ["add_parser", "run"]

DESCRIPTION = """\
Synthesise a unit's control plane with Yosys, place and route it with nextpnr, and say what it
takes and how fast it runs: LUTs, flip-flops, multipliers, memories, the highest clock frequency,
and the path that limits it.

targets:
  ecp5      Lattice LFE5U-85F, speed 6: placed and routed
  ice40     Lattice iCE40HX8K: placed and routed; for 2 to 4 cells
  xilinx    7 series: resources, without a clock
  generic   logic gates, flip-flops and memory bits, for a first look at a chip
"""

EPILOG = """\
examples:
  thermokron synth --target generic                the default unit in gates: some seconds
  thermokron synth --target ecp5 --cells 8 --lanes 8
                                                   resources and clock: some minutes
  thermokron synth --target ecp5 --cells 8 --lanes 8 --seed 2
                                                   again from another beginning: clocks differ by
                                                   several percent from seed to seed
  thermokron synth --target xilinx --cells 64 --lanes 8 --json unit.json -o build/xilinx
                                                   with the report, the netlist and the logs

Tools are those that pip installs: pip install 'thermokron[synth]'. Their first run compiles them,
for minutes. Results are kept in the cache (~/.cache/thermokron, or $THERMOKRON_CACHE) and come at
once the next time. The unit stands as in a larger design: all pins but clock and reset are left
open, so that none is too many for the package, and no path to a pin is counted.
"""

#: What a resource is called in a table.
LABELS = {
    "gates": "logic gates",
    "luts": "LUTs",
    "flip_flops": "flip-flops",
    "multipliers": "multipliers",
    "block_rams": "block RAMs",
    "distributed_rams": "distributed RAMs",
}
TARGET_NAMES = ("ecp5", "ice40", "xilinx", "generic")


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "synth",
        help="synthesise the control plane: area, memory and clock",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--target", choices=TARGET_NAMES, default="ecp5", help="what for, see above [ecp5]"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FOLDER",
        help="copy Verilog, netlist, logs and reports there [they stay in the cache]",
    )
    parser.add_argument(
        "--name", default=UNIT_NAME, metavar="NAME", help=f"of the top module [{UNIT_NAME}]"
    )
    parser.add_argument(
        "--seed", type=int, default=1, metavar="N", help="what nextpnr begins from [1]"
    )
    parser.add_argument(
        "--aim-mhz",
        type=float,
        default=100.0,
        metavar="X",
        help="clock that placement and routing work towards [100]",
    )
    add_spec_options(parser)


def run(args: argparse.Namespace) -> int:
    """Synthesise, and show what was found."""
    from rich.console import Console
    from rich.markup import escape

    from thermokron.sim.synthesis import require, synthesise

    spec = spec_from_args(args)
    check_name(args.name)
    require(args.target)
    if args.json:
        check_writable(args.json)  # before minutes of work
    if args.output:
        check_writable(args.output / "synthesis.json")
    console = Console(stderr=True)
    about = f"{spec.cells} cells in {spec.lanes} lanes for {args.target}"
    with console.status(about) as status:
        found, folder = synthesise(
            spec,
            args.target,
            name=args.name,
            seed=args.seed,
            aim_mhz=args.aim_mhz,
            say=lambda text: status.update(escape(f"{about}: {text[:60]}")),
        )
    _show(found)
    if args.json:
        write_whole(args.json, found.to_json())
        print(f"  {args.json}")
    if args.output:
        with claimed(args.output):
            for path in sorted(folder.iterdir()):
                if path.name != "manifest.json":
                    shutil.copyfile(path, args.output / path.name)
        print(f"  {args.output}")
    return 0


def _show(found: Synthesis) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    spec = found.spec
    table = Table(box=SIMPLE_HEAD)
    table.add_column("")
    table.add_column("used", justify="right")
    table.add_column("of", justify="right")
    for name, count in found.resources.items():
        have = found.available.get(name)
        table.add_row(LABELS[name], f"{count:,}", "" if have is None else f"{have:,}")
    table.add_row("memory bits", f"{found.memory_bits:,}", "")
    if found.fmax_mhz is not None:
        table.add_row("clock, MHz", f"{found.fmax_mhz:.1f}", "")
    console = Console(highlight=False)
    about = f"{found.name}: {spec.cells} cells, {spec.lanes} lanes, {found.fingerprint}"
    console.print(f"{about}\n{found.device}", soft_wrap=True)
    console.print(table)
    if found.fmax_mhz is not None and (path := found.critical_path):
        verdict = "reaches" if 1e6 * found.fmax_mhz >= spec.clock_hz else "MISSES"
        console.print(f"It {verdict} the {spec.clock_hz / 1e6:g} MHz of the specification.")
        console.print(
            f"The slowest path takes {path.logic_ns:.1f} ns in cells and {path.routing_ns:.1f} ns "
            f"between them:\n  from  {escape(path.start)}"
        )
        for net in path.through:
            console.print(f"        {escape(net)}")
        console.print(f"  to    {escape(path.end)}")
    times = ", ".join(f"{tool} {seconds:g} s" for tool, seconds in found.seconds.items())
    tools = ", ".join(f"{tool} {version}" for tool, version in found.versions.items())
    console.print(f"Took {times}, seed {found.seed}; {tools}", soft_wrap=True)
