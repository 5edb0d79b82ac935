"""`thermokron calibrate`: what a unit really is, into a file."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np

from thermokron.host.calibration import Calibration, Check, calibrate
from thermokron.host.cli.physics_file import physics_from
from thermokron.host.cli.spec_options import add_spec_options, spec_from_args
from thermokron.host.engines import ENGINES, open_unit
from thermokron.host.tables import number
from thermokron.model import BaseUnit
from thermokron.model.files import check_writable

__all__ = ["add_parser", "run"]

DESCRIPTION = """\
Measure a unit's offsets, gains, noise, time constants and effective couplings by running known
programs on it, and write them as JSON, with standard errors, beside the unit's fingerprint and the
date. In Python, linalg.program, inv and solve take the file's content as calibration=.

With --check the file is read instead, a few readings are compared with what they should be by it,
and the status is 1 if it is time to calibrate again.
"""

EPILOG = """\
examples:
  thermokron calibrate --cells 8                       a simulated unit without flaws
  thermokron calibrate --cells 8 --physics board.json -o board-7.json --name "board 7"
                                                       one with fields of ArrayPhysics as JSON
  thermokron calibrate --cells 8 --physics board.json --check board-7.json
                                                       does the calibration still hold?
  thermokron calibrate --cells 8 --engine cosim        through the Verilog, in a simulator
"""


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "calibrate",
        help="measure what a unit really is, for linear algebra to correct by",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--engine", choices=ENGINES, default="numeric", help="[numeric]")
    parser.add_argument(
        "--physics",
        type=Path,
        metavar="FILE",
        help="fields of ArrayPhysics as JSON; those left out are ideal [ideal]",
    )
    parser.add_argument(
        "--noise-seed", type=int, default=0, metavar="N", help="of the simulated noise [0]"
    )
    parser.add_argument(
        "--samples",
        type=int,
        metavar="N",
        help="readings of each coupling, 64 to 1048576 [16384]; with --check, 16 and more [4096]",
    )
    parser.add_argument("--name", default="unit", metavar="TEXT", help="which unit it is [unit]")
    parser.add_argument(
        "--max-age",
        type=float,
        default=24.0,
        metavar="HOURS",
        help="after which the calibration is refused [24]",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("calibration.json"),
        metavar="FILE",
        help="the file to write [calibration.json]",
    )
    parser.add_argument("--check", type=Path, metavar="FILE", help="check a calibration instead")
    add_spec_options(parser)


def run(args: argparse.Namespace) -> int:
    """Calibrate or check, and show what was found."""
    spec, physics = spec_from_args(args), physics_from(args.physics)
    known = None if args.check is None else Calibration.load(args.check)
    if known is None:
        check_writable(args.output)
    with open_unit(args.engine, spec, physics, seed=args.noise_seed) as unit:
        if known is not None:
            return _checked(known, unit, args.samples or 4096)
        found = _calibrated(unit, args)
    found.save(args.output)
    _show(found)
    print(f"  {args.output}")
    return 0


def _calibrated(unit: BaseUnit, args: argparse.Namespace) -> Calibration:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("calibrating", total=1.0)
        return calibrate(
            unit,
            samples=args.samples or 16384,
            name=args.name,
            max_age_s=3600.0 * args.max_age,
            progress=lambda done, what: bar.update(task, completed=done, description=what),
        )


def _checked(known: Calibration, unit: BaseUnit, samples: int) -> int:
    found: Check = known.check(unit, samples=samples)
    print(f"{known.name}: {found}")
    return int(found.stale)


def _rms(values: Any) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _show(found: Calibration) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    values, spec = found.values, found.spec
    upper = np.triu_indices(spec.cells)
    rows = (
        ("couplings", values.couplings[upper] - 1.0, values.couplings_error[upper], "of nominal"),
        ("ADC gains", values.gains - 1.0, values.gains_error, "of their mean"),
        ("ADC offsets", values.adc_offsets, values.adc_offsets_error, "of full scale"),
        ("cell offsets", values.cell_offsets, values.cell_offsets_error, "of full scale"),
        ("noise power", values.noise - 1.0, values.noise_error, "of nominal"),
        ("time constants", values.taus - 1.0, values.taus_error, "of nominal"),
    )
    table = Table(box=SIMPLE_HEAD)
    for head in ("", "spread, rms", "standard error", ""):
        table.add_column(head, justify="right" if head else "left")
    for name, deviations, error, unit in rows:
        spread = _rms(deviations - np.mean(deviations) * (name == "couplings"))
        known = math.isfinite(_rms(error))
        table.add_row(
            name,
            f"{100.0 * spread:.3g} %" if known else "not seen",
            f"{100.0 * _rms(error):.2g} %" if known else "",
            unit,
        )
    console = Console(highlight=False)
    console.print(
        f"{found.name}: {spec.cells} cells, {spec.fingerprint:#010x}, {found.date:%Y-%m-%d %H:%M} "
        f"UTC; {found.runs} runs, {number(found.seconds)} s of the unit",
        soft_wrap=True,
        markup=False,
    )
    console.print(table)
