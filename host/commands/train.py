"""`thermokron train`: train on bundled data, and the demo."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from thermokron.host.spec_options import add_spec_options, spec_from_args
from thermokron.model import ArrayPhysics

if TYPE_CHECKING:
    from rich.table import Table

    from thermokron.host.train.demo import Listener
    from thermokron.host.train.results import RunResult

__all__ = ["add_parser", "run"]

EPILOG = """\
examples:
  thermokron train digits                     train on the numeric engine, in seconds
  thermokron train demo                       the comparison of `make demo`

Each has its own help: thermokron train digits --help
"""

DIGITS = """\
Train a tanh network on scikit-learn's handwritten digits (8 x 8 pixels, 1,437 for training).

K-FAC inverts its Kronecker factors at every step: on a thermodynamic unit, in numbers
(--engine numeric) or in the Verilog that runs in a simulator (--engine cosim); exactly on the
host (--engine exact); or by their diagonals alone (--engine diagonal), as a control.
"""

DIGITS_EPILOG = """\
examples:
  thermokron train digits                     K-FAC on the numeric engine
  thermokron train digits --engine cosim      the same integers, from the generated Verilog
  thermokron train digits --optimizer adam --lr 0.05
  thermokron train digits --coupling-bits 4 --samples 200 -o runs/coarse
                                              a cheaper unit, to see what it costs
  thermokron train digits --cells 32 --lanes 8 --hidden 64 32 --seed 3
  thermokron train digits --physics flaws.json
                                              a flawed array: {"coupling_mismatch": 0.01, ...},
                                              every field of ArrayPhysics, null for ideal
"""

DEMO = """\
K-FAC whose inverses all come from a co-simulated unit, renewed at every step, beside K-FAC with
exact inverses, Adam and SGD at learning rates tuned on other seeds, and a control that replaces
every inverse by the inverse of the diagonal. Writes result.json and loss.png.
"""

DEMO_EPILOG = """\
examples:
  thermokron train demo                       a few minutes; results in runs/demo
  thermokron train demo --engine numeric      the same losses without a simulator
  thermokron train demo -o runs/talk
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare `train` with its two kinds of training."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = subparsers.add_parser(
        "train",
        help="train a network, with K-FAC's inverses from a unit",
        description="Train a network, with K-FAC's inverses from a thermodynamic unit.",
        epilog=EPILOG,
        formatter_class=raw,
    )
    kinds = parser.add_subparsers(dest="kind", metavar="WHAT", required=True)

    digits = kinds.add_parser(
        "digits",
        help="handwritten digits, your choice of everything",
        description=DIGITS,
        epilog=DIGITS_EPILOG,
        formatter_class=raw,
    )
    add = digits.add_argument
    add("--optimizer", choices=("kfac", "adam", "sgd"), default="kfac", help="what trains [kfac]")
    add(
        "--engine",
        choices=("numeric", "cosim", "exact", "diagonal"),
        help="what inverts K-FAC's factors [numeric]",
    )
    add(
        "--simulator",
        "--sim",
        choices=("verilator", "icarus"),
        default="verilator",
        help="what runs the Verilog, for --engine cosim [verilator]",
    )
    add("--epochs", type=int, default=10, metavar="N", help="passes over the images [10]")
    add("--batch-size", type=int, default=144, metavar="N", help="images per step [144]")
    add("--lr", type=float, metavar="X", help="learning rate [one that suits the optimizer]")
    add("--momentum", type=float, default=0.9, metavar="X", help="of SGD, K-FAC's too [0.9]")
    add("--damping", type=float, default=0.03, metavar="X", help="of K-FAC [0.03]")
    add("--samples", type=int, default=1000, metavar="N", help="per run of the unit [1000]")
    add("--hidden", type=int, nargs="+", default=[32], metavar="N", help="widths of layers [32]")
    add("--seed", type=int, default=0, metavar="N", help="of data, weights and noise [0]")
    add("--physics", type=Path, metavar="FILE", help="ArrayPhysics as JSON [ideal]")
    add(
        "-o",
        "--output",
        type=Path,
        default=Path("runs/digits"),
        metavar="DIR",
        help="where results go [%(default)s]",
    )
    add_spec_options(digits)

    demo = kinds.add_parser(
        "demo",
        help="the comparison that `make demo` shows",
        description=DEMO,
        epilog=DEMO_EPILOG,
        formatter_class=raw,
    )
    demo.add_argument(
        "--engine", choices=("cosim", "numeric"), default="cosim", help="of the unit [cosim]"
    )
    demo.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("runs/demo"),
        metavar="DIR",
        help="where results go [%(default)s]",
    )


def run(args: argparse.Namespace) -> int:
    """Train as asked; 0, or 1 if the demo did not show what it claims to show."""
    return _demo(args) if args.kind == "demo" else _digits(args)


# ---- one run -------------------------------------------------------------------------------


def _digits(args: argparse.Namespace) -> int:
    from rich.console import Console

    from thermokron.host.train import Progress, TrainConfig, train, write_result
    from thermokron.host.train.plots import plot_losses

    names = {f.name for f in fields(TrainConfig)}
    settings = {name: value for name, value in vars(args).items() if name in names}
    if args.engine is None and args.optimizer == "kfac":
        settings["engine"] = "numeric"
    config = TrainConfig(**settings | {"hidden": tuple(args.hidden)})
    on_unit = config.samples if config.engine in ("numeric", "cosim") else None
    spec = spec_from_args(args) if on_unit else None
    physics = None
    if args.physics is not None:
        if not on_unit:
            raise ValueError(f"physics = {args.physics} has no effect: {config.label} uses no unit")
        try:
            physics = ArrayPhysics.from_json(args.physics.read_text())
        except (TypeError, ValueError) as error:
            raise ValueError(f"{args.physics}: {error}") from error
    elif on_unit:
        physics = ArrayPhysics.ideal()
    console = Console()
    with _progress(console) as listen:

        def follow(now: Progress) -> None:
            listen(config.label, now.step, now.steps, f"loss {now.loss:.4f}")

        listen(config.label, 0, 1, "starting")
        try:
            result = train(
                config, spec=spec, physics=physics, simulator=args.simulator, progress=follow
            )
        except FloatingPointError as error:
            raise ValueError(str(error)) from error
    console.print(_table([[result]]))
    files = [
        write_result(args.output / "result.json", [result], spec=spec, physics=physics),
        plot_losses(
            [result],
            args.output / "loss.png",
            title="Training loss on handwritten digits",
            subtitle=f"{_network(result)}, learning rate {result.lr:g}, seed {result.seed}",
        ),
    ]
    console.print("wrote " + " and ".join(str(path) for path in files), soft_wrap=True)
    return 0


# ---- the demo ------------------------------------------------------------------------------


def _demo(args: argparse.Namespace) -> int:
    from rich.console import Console

    from thermokron.host.train.demo import DemoPlan, run_demo
    from thermokron.host.train.plots import plot_losses
    from thermokron.host.train.results import write_result

    plan = DemoPlan(unit_engine=args.engine)
    spec = plan.spec
    console = Console()
    unit = (
        f"{spec.cells} cells, {spec.coupling_bits}-bit couplings, {spec.adc_bits}-bit ADC, "
        f"{spec.clock_hz / 1e6:g} MHz, tau {spec.tau_s * 1e9:g} ns"
    )
    console.print(f"Training on handwritten digits; the unit: {unit}", soft_wrap=True)
    with _progress(console) as listen:
        outcome = run_demo(plan, listen)
    kinds: dict[str, list[RunResult]] = {}
    for result in outcome.runs:
        kinds.setdefault(result.label, []).append(result)
    console.print(_table(list(kinds.values())))
    for claim in outcome.claims:
        mark = "[green]yes[/]" if claim.holds else "[red]NO [/]"
        console.print(f"{mark}  {claim.text}", soft_wrap=True)
    sample = outcome.runs[0]
    files = [
        write_result(
            args.output / "result.json",
            outcome.runs,
            spec=spec,
            physics=ArrayPhysics.ideal(),
            tuning=outcome.tuning,
            claims=[vars(claim) for claim in outcome.claims],
            wall_seconds=outcome.wall_seconds,
        ),
        plot_losses(
            outcome.runs,
            args.output / "loss.png",
            title="A network trained by sampling a noisy array",
            subtitle=f"{_network(sample)} on handwritten digits, medians of "
            f"{len(plan.seeds)} seeds\n"
            f"every K-FAC inverse from a unit of {spec.cells} cells, {spec.coupling_bits}-bit "
            f"couplings, {spec.adc_bits}-bit ADC, {sample.samples:,} samples",
        ),
    ]
    console.print(
        f"trained in {outcome.wall_seconds:.0f} s; wrote " + " and ".join(map(str, files)),
        soft_wrap=True,
    )
    return 0 if all(claim.holds for claim in outcome.claims) else 1


# ---- what both print -----------------------------------------------------------------------


def _network(result: RunResult) -> str:
    return "-".join(str(n) for n in (64, *result.hidden, 10)) + " tanh network"


def _table(kinds: Sequence[Sequence[RunResult]]) -> Table:
    """One row per kind of run, each entry the median over its seeds."""
    from rich import box
    from rich.table import Table

    from thermokron.host.train.demo import MARKS, median_loss

    epochs = min(result.epochs for runs in kinds for result in runs)
    marks = [mark for mark in MARKS if mark < epochs] + [epochs]
    seeds = len(kinds[0])
    note = f"medians over {seeds} seeds" if seeds > 1 else None
    # fits 80 columns
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
        caption=note,
        caption_justify="left",
    )
    table.add_column("\noptimizer", no_wrap=True)
    losses = [f"{'loss' if mark == marks[0] else ''}\nep. {mark}" for mark in marks]
    for heading in ("\nlr", *losses, "test\nacc.", "inver-\nsions", "hard-\nware", "\nwall"):
        table.add_column(heading, justify="right", no_wrap=True)
    for runs in kinds:
        first = runs[0]
        hardware = statistics.median(r.hardware_seconds for r in runs)
        wall = statistics.median(r.wall_seconds for r in runs)
        table.add_row(
            first.label,
            f"{first.lr:g}",
            *(
                f"{loss:.4f}" if (loss := median_loss(runs, m)) < 10 else f"{loss:.0e}"
                for m in marks
            ),
            f"{statistics.median(r.test_accuracy or 0.0 for r in runs):.3f}",
            str(first.inversions or "-"),
            f"{hardware * 1e3:.0f} ms" if hardware else "-",
            f"{wall:.1f} s",
        )
    return table


@contextmanager
def _progress(console: object) -> Iterator[Listener]:
    """A bar per job, made when the job is first heard of."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    assert isinstance(console, Console)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[remark]}"),
    )
    with Progress(*columns, console=console) as bars:
        tasks = {}

        def listen(name: str, done: int, total: int, remark: str) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total, remark=remark)
            bars.update(tasks[name], completed=done, total=total, remark=remark)

        yield listen
