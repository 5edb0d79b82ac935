"""`thermokron predict`: what training would cost on hardware, built or not."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from thermokron.host.cli.spec_options import SPEC_OPTIONS, add_spec_options
from thermokron.model.checks import check_real

if TYPE_CHECKING:
    from thermokron.host.predict.conditions import Conditions, Target
    from thermokron.host.predict.forecast import Forecast
    from thermokron.host.predict.hardware.technology import Technology
    from thermokron.host.predict.predictions import Prediction
    from thermokron.host.predict.report import Table

__all__ = ["add_parser", "run"]

DESCRIPTION = """\
Predict time and energy of a training step, part by part, and of training to its target: SGD, Adam,
exact K-FAC and K-FAC on a thermodynamic unit, whose inverses serve one step, ten or a hundred.

Every figure has a range, and a source or the word "assumed": --assumptions lists them. Beside every
speedup stands Amdahl's limit, which no unit can pass: a step in which inverting and applying take
no time. In brackets is where nine of ten draws from all ranges lie.
"""

EPILOG = """\
examples:
  thermokron predict --list                       networks, machines, technologies
  thermokron predict vit-s16 --machine v100 --devices 8 --batch 128
  thermokron predict mlp:1024x3 --technology tngd --settle 50tau
  thermokron predict bert-base --break-even --tornado -o runs/bert
  thermokron predict mytask:task --batch 64       a network of yours, see thermokron train --help
  thermokron predict gpt2-small --json | jq .predictions[0].seconds_by_part
  thermokron predict --measure                    a minute; then: --machine this
"""

#: Where nothing else is asked for.
MACHINE, TECHNOLOGY = "a100", "cmos28"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare `predict`."""
    parser = subparsers.add_parser(
        "predict",
        help="what training would cost on hardware, built or not",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "network",
        nargs="?",
        metavar="NETWORK",
        help="a preset, mlp:WIDTHxDEPTH, or module:function",
    )
    add("--list", action="store_true", help="list networks, machines and technologies")
    add("--measure", action="store_true", help="measure this computer, for --machine this")
    what = parser.add_argument_group("what is predicted")
    add = what.add_argument
    add("--machine", default=MACHINE, metavar="NAME", help=f"the digital computer [{MACHINE}]")
    add("--devices", type=int, default=1, metavar="N", help="of these side by side [1]")
    add("--batch", type=int, metavar="N", help="examples a step on each [the preset's]")
    add(
        "--optimizer",
        action="append",
        metavar="NAME",
        help="such as adam, kfac-solve@10 (inverses of ten steps) or kfac-exact@10/10 (factors, "
        "too); may be given several times [all]",
    )
    add("--steps", type=float, metavar="N", help="of a first-order optimiser to the target")
    add(
        "--ratio",
        type=float,
        metavar="X",
        help="steps of K-FAC over these [0.5 to 0.75, arXiv 2311.00636]",
    )
    add("--kappa", type=float, metavar="X", help="1/λ_min of damped factors, scaled [2 to 40]")
    unit = parser.add_argument_group("technology of the unit")
    add = unit.add_argument
    add("--technology", default=TECHNOLOGY, metavar="NAME", help=f"or none [{TECHNOLOGY}]")
    add("--units", type=int, metavar="N", help="side by side, of each device [1]")
    add("--ports", type=int, metavar="N", help="codes a clock cycle into the DACs")
    add("--settle", metavar="X", help='part left undone, or a time such as "50tau" [0.1]')
    add(
        "--samples",
        type=int,
        metavar="N",
        help="of an inverse [32 a row], readings of a solution [1]",
    )
    add(
        "--as-built",
        action="store_true",
        help="the control plane as it is: all couplings loaded, one code a cycle, words of 32 bits",
    )
    shown = parser.add_argument_group("what is shown")
    add = shown.add_argument
    add("--parts", action="store_true", help="milliseconds of every part")
    add("--break-even", action="store_true", help="where a unit begins to pay")
    add("--tornado", action="store_true", help="what its speedup hangs on")
    add("--assumptions", action="store_true", help="every figure with its range and source")
    add("--json", action="store_true", help="all figures, as JSON, on standard output")
    add("-o", "--output", type=Path, metavar="DIR", help="write JSON, tables and pictures there")
    add("--draws", type=int, default=10_000, metavar="N", help="of the intervals [10,000]")
    add("--seed", type=int, default=0, metavar="N", help="of the draws [0]")
    add_spec_options(parser)


def run(args: argparse.Namespace) -> int:
    """Predict, and show it; 0."""
    if args.list:
        return _list()
    if args.measure:
        return _measure()
    if args.network is None:
        raise ValueError("NETWORK is missing; thermokron predict --list names them")
    from thermokron.host.predict.forecast import forecast
    from thermokron.host.predict.machines.cards import machine
    from thermokron.host.predict.optimizers import OPTIMIZERS, optimizer
    from thermokron.host.predict.workloads.networks import network

    options = {"samples": args.samples, "settle": _settle(args.settle)}
    options = {name: value for name, value in options.items() if value is not None}
    chosen = [optimizer(name, **options) for name in args.optimizer or OPTIMIZERS]
    if options and not any(each.on_unit for each in chosen):
        name = min(options)
        raise ValueError(f"{name} = {options[name]} has no effect: no optimizer has a unit")
    technology = _technology(args)
    asked = args.optimizer and [each for each in chosen if each.on_unit]
    if technology is None and asked:
        raise ValueError(f"technology = 'none', and {asked[0].name} needs one")
    predicted = forecast(
        network(args.network, args.batch),
        machine=machine(args.machine),
        technology=technology,
        optimizers=chosen,
        conditions=_conditions(args),
        devices=args.devices,
        target=_target(args),
        draws=args.draws,
        seed=args.seed,
    )
    _show(args, predicted)
    return 0


# ---- what is asked -----------------------------------------------------------------------------


def _list() -> int:
    from thermokron.host.predict.hardware.technologies import TECHNOLOGIES
    from thermokron.host.predict.machines.cards import MACHINES
    from thermokron.host.predict.workloads.networks import NETWORKS

    print("networks:", ", ".join(NETWORKS), "and module:function")
    print("machines:", ", ".join(MACHINES), "and this, once measured")
    print("technologies:", ", ".join(TECHNOLOGIES))
    return 0


def _measure() -> int:
    from rich.progress import Progress

    from thermokron.host.predict.machines import measured
    from thermokron.host.predict.machines.measure import about, measure

    with Progress(transient=True) as bars:
        bar = bars.add_task("measuring this computer", total=1.0)
        machine = measure(lambda done, what: bars.update(bar, description=what, completed=done))
    path = measured.save(machine, about())
    print(f"wrote {path}; use it with: thermokron predict NETWORK --machine this")
    return 0


def _technology(args: argparse.Namespace) -> Technology | None:
    from thermokron.host.predict.hardware.technologies import built_at_28nm, technology

    given = {name: value for name, value in vars(args).items() if name in SPEC_OPTIONS}
    changes = {name: getattr(args, name) for name in ("units", "ports")}
    changes = {name: value for name, value in changes.items() if value is not None}
    if args.technology == "none":
        if given or changes or args.as_built:
            raise ValueError("technology = 'none' has no unit whose options could be given")
        return None
    made = technology(args.technology)
    if given:
        if made.name != "cmos28":
            raise ValueError(
                f"{min(given)} = {given[min(given)]} has no effect on technology {made.name!r}, "
                "whose figures are fixed; legal with: cmos28"
            )
        if "cells" in given:
            given.setdefault("lanes", None)
        spec = replace(made.spec, **given)
        made = built_at_28nm(spec, word_bits=made.word_bits, ports=made.ports)
    if args.as_built:
        spec = replace(made.spec, stream_bits=given.get("stream_bits", 64))
        made = replace(made, spec=spec, fitted=False, ports=None, word_bits=None)
    return replace(made, **changes)


def _conditions(args: argparse.Namespace) -> Conditions:
    from thermokron.host.predict.conditions import CONDITIONS
    from thermokron.host.predict.quantity import exactly

    if args.kappa is None:
        return CONDITIONS
    kappa = check_real("kappa", args.kappa, 1.0, 1e9)
    return replace(CONDITIONS, kappa=exactly(CONDITIONS.kappa.name, kappa, "1", "given"))


def _target(args: argparse.Namespace) -> Target | None:
    """What the options make of the target known for the network; None if they say nothing."""
    from thermokron.host.predict.conditions import ELSEWHERE, TARGETS
    from thermokron.host.predict.quantity import exactly

    target = TARGETS.get(args.network, ELSEWHERE)
    if args.ratio is not None:
        ratio = check_real("ratio", args.ratio, 1e-6, 1e6)
        if args.steps is None and target is ELSEWHERE:
            raise ValueError(f"ratio = {ratio:g} has no effect on {args.network!r} without --steps")
        target = replace(target, ratio=exactly(target.ratio.name, ratio, "1", "given"))
    if args.steps is not None:  # of whatever batch is given
        steps = exactly(target.steps.name, check_real("steps", args.steps, 1.0, 1e15), "1", "given")
        target = replace(target, steps=steps, batch=None, published="")
    return None if args.steps is None and args.ratio is None else target


def _settle(text: str | None) -> float | str | None:
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return text


# ---- what is shown -----------------------------------------------------------------------------


def _show(args: argparse.Namespace, predicted: Forecast) -> None:

    pair = _pair(predicted)
    if pair is None and (args.tornado or args.break_even):
        raise ValueError("--tornado and --break-even need an optimizer with a unit, and another")
    if args.json:
        print(_as_json(args, predicted, pair))
    else:
        print(predicted.explain(), end="\n\n")
        for title, table in _tables(args, predicted, pair, brief=True):
            _print(title, table)
    if args.output is not None:
        for path in _write(args, predicted, pair):
            if not args.json:
                print(f"wrote {path}")


def _as_json(
    args: argparse.Namespace, predicted: Forecast, pair: tuple[Prediction, Prediction] | None
) -> str:
    from thermokron.host.predict.pays import pays
    from thermokron.host.predict.sensitivity import tornado

    record = predicted.as_dict()
    if pair is not None:
        record["compared"] = [each.optimizer.name for each in pair]
        questions = pair[0].question, pair[1].question
        if args.break_even:
            record["break_even"] = [asdict(each) for each in pays(*questions)]
        if args.tornado:
            record["tornado"] = [asdict(each) for each in tornado(*questions)]
    return json.dumps(record, indent=1, allow_nan=False)


def _tables(
    args: argparse.Namespace,
    predicted: Forecast,
    pair: tuple[Prediction, Prediction] | None,
    *,
    brief: bool,
) -> list[tuple[str, Table]]:
    """Titles and tables: those asked for, or all if not in brief."""
    from thermokron.host.predict import report
    from thermokron.host.predict.pays import pays
    from thermokron.host.predict.sensitivity import tornado

    tables = [
        ("", report.step_table(predicted)),
        ("", report.speedup_table(predicted, brief=brief)),
        ("", report.target_table(predicted, brief=brief)),
    ]
    if args.parts or not brief:
        tables.append(("Parts", report.parts_table(predicted, brief=brief)))
    if pair is not None:
        against = f"{pair[0].optimizer.name} against {pair[1].optimizer.name}"
        questions = pair[0].question, pair[1].question
        if args.break_even or not brief:
            found = report.break_even_table(pays(*questions))
            tables.append((f"{against}: where its step is the shorter", found))
        if args.tornado or not brief:
            swings = report.swing_table(tornado(*questions), brief=brief)
            tables.append((f"{against}: what the speedup hangs on", swings))
    if args.assumptions or not brief:
        tables.append(("Sources", report.sources(predicted)))
        tables.append(("Assumptions", report.assumptions(predicted, brief=brief)))
    return tables


def _pair(predicted: Forecast) -> tuple[Prediction, Prediction] | None:
    """Who gains most by a unit, and what it is held against."""
    from thermokron.host.predict.pays import rival

    on_unit = [p for p in predicted.predictions if p.optimizer.on_unit]
    others = [p for p in predicted.predictions if not p.optimizer.on_unit]
    if not on_unit or not others:
        return None
    pairs = [(each, rival(each, others)) for each in on_unit]
    return max(pairs, key=lambda pair: pair[0].speedup(pair[1]).nominal)


def _print(title: str, table: Table) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable

    head, rows = table
    if not rows:
        return
    shown = RichTable(
        box=box.SIMPLE_HEAD,
        title=title or None,
        title_justify="left",
        padding=(0, 0, 0, 1),
        pad_edge=False,
    )
    for place, name in enumerate(head):
        long = name in ("source", "parts")
        plain = not place or long or name in ("limited by", "where")
        shown.add_column(
            name, justify="left" if plain else "right", no_wrap=not long, overflow="fold"
        )
    for row in rows:
        shown.add_row(*row)
    Console().print(shown)


def _write(
    args: argparse.Namespace, predicted: Forecast, pair: tuple[Prediction, Prediction] | None
) -> list[Path]:
    from thermokron.host.predict import plots
    from thermokron.host.predict.pays import pays
    from thermokron.host.predict.quantity import Values
    from thermokron.host.predict.sensitivity import speedup, tornado
    from thermokron.host.tables import markdown, write
    from thermokron.model.files import write_whole

    folder: Path = args.output
    made = [write_whole(folder / "prediction.json", predicted.as_json())]
    paragraphs = [predicted.explain()]
    for title, table in _tables(args, predicted, pair, brief=False):
        if table[1]:
            paragraphs += [f"## {title}" if title else "", markdown(*table)]
    made.append(write(folder / "prediction.md", *paragraphs))
    made.append(plots.plot_parts(predicted, folder / "parts.png"))
    if pair is not None:
        best, other = pair
        title = f"{best.optimizer.name} against {other.optimizer.name}, {args.network}"
        questions = best.question, other.question
        swings, now = tornado(*questions), speedup(*questions, Values())
        made.append(plots.plot_tornado(swings, now, title, folder / "tornado.png"))
        found = pays(*questions)
        made.append(plots.plot_break_even(found, title, folder / "break-even.png"))
    return made
