"""`thermokron explore`: search for the unit worth building."""

from __future__ import annotations

import argparse
import shlex
import webbrowser
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from thermokron.host.cli.train_options import add_cluster

if TYPE_CHECKING:
    from thermokron.host.explore import Found

__all__ = ["add_parser", "run"]

DESCRIPTION = """\
Search for the unit worth building: cells, lanes, bits, τ, samples, settling, ports and units.

A plan says which network trains, what may vary, and how much worse than exact K-FAC's the trained
loss may be. Every candidate is trained for real, on the numeric or the statistical engine, from
every seed; what its steps asked of the unit, counted, is priced in a 28 nm process: time, energy
and area. Optuna proposes the next candidates. The result is the front of those that are good
enough: of each, no other is better in everything. It trains once more from seeds that the search
has not seen, as whoever is chosen for a loss had luck with it: a candidate holds if it is good
enough on those, too.

A page, DIR/index.html, has plots, tables, prices with their sources, and every candidate's spec to
copy; it needs no network. Interrupt a search at any time: the same command goes on where it was,
and with more --trials a finished one goes on, too. What is found depends on the plan alone, not on
who trains what when. docs/explore.md says what a plan holds. A plan whose network is
"module:function" imports that module from here and runs it: look at a plan that is not yours
first, with --show.
"""

EPILOG = """\
examples:
  thermokron explore --list                   the plans that come with the package
  thermokron explore digits-mlp --jobs 2      into runs/digits-mlp, two processes
  thermokron explore digits-mlp --trials 640  go on from there
  thermokron explore digits-mlp --cluster tcp://10.0.0.1:8786
                                              on the machines of a Dask cluster
  thermokron explore my-plan.toml --open      a plan of your own; to begin with:
  thermokron explore digits-mlp --show > my-plan.toml
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare `explore`."""
    parser = subparsers.add_parser(
        "explore",
        help="search for the unit worth building: time, energy, area",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("plan", nargs="?", metavar="PLAN", help="one that comes with the package, or FILE.toml")
    add("--list", action="store_true", help="name the plans that come with the package")
    add("--show", action="store_true", help="print the plan and run nothing")
    add(
        "--trials",
        type=int,
        metavar="N",
        help="candidates, rounded up to whole generations [what the plan says]",
    )
    add("--jobs", type=int, default=1, metavar="N", help="processes, of one thread each [1]")
    add_cluster(parser)
    add("-o", "--output", type=Path, metavar="DIR", help="where results go [runs/PLAN]")
    add("--open", action="store_true", help="open the page in a browser at the end")


def run(args: argparse.Namespace) -> int:
    """Search to the end of the plan; 0, or 1 if no candidate is good enough, and holds."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.table import Column

    from thermokron.host.explore import explore, load_plan, plan_names, plan_text

    if args.list:
        for name in plan_names():
            print(f"{name:20} {load_plan(name).title}")
        return 0
    if args.plan is None:
        raise ValueError(f"PLAN is missing; legal: {', '.join(plan_names())}, or FILE.toml")
    if args.show:
        print(plan_text(args.plan), end="")
        return 0
    plan = load_plan(args.plan)
    folder = args.output or Path("runs") / plan.name
    console = Console()
    room = max(console.width - 53, 10)  # beside what must not be cut
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[remark]}", table_column=Column(no_wrap=True, max_width=room)),
    )
    bars = Progress(*columns, console=console)
    with ExitStack() as shown:
        tasks: dict[str, TaskID] = {}

        def listen(stage: str, done: int, total: int, remark: str) -> None:
            if not tasks:  # nothing has been refused, and nothing has been run
                console.print(f"{plan.title}; results in {folder}", soft_wrap=True)
                if plan.tasks:
                    code = f"code of yours or its author's: {', '.join(plan.tasks)}"
                    console.print(f"the plan runs {code}", soft_wrap=True)
                shown.enter_context(bars)
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, remark=remark)
            bars.update(tasks[stage], completed=done, total=total, remark=remark)

        found, page = explore(
            plan,
            folder,
            trials=args.trials,
            jobs=args.jobs,
            cluster=args.cluster,
            listen=listen,
        )
    _tell(found, console)
    console.print(f"wrote {page}; to look at it: {_opening(page)}", soft_wrap=True)
    if args.open:
        webbrowser.open(page.resolve().as_uri())
    return 0 if found.holding else 1


def _opening(page: Path) -> str:
    """The command that opens it, wherever Python is."""
    return f"python3 -m webbrowser {shlex.quote(page.resolve().as_uri())}"


def _tell(found: Found, console: object) -> None:
    from rich.console import Console
    from rich.table import Table

    from thermokron.host.explore.numbers import si
    from thermokron.host.tables import number

    assert isinstance(console, Console)
    allowed = f"{1 + found.plan.within:.4g} times exact K-FAC's {found.exact:.4g}"
    if not found.front:
        console.print(f"no candidate ends with a loss of at most {allowed}", soft_wrap=True)
        return
    heads = (
        *("", "time", "energy", "mm²", "loss/\nexact", "other\nseeds", "cells"),
        *("coupling\n/bias\n/ADC\nbits", "τ/ns", "ports\nunits"),
    )
    table = Table(*heads, box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.columns[0].no_wrap = True
    titles = {id(one): name for name, one in reversed(found.chosen.items())}
    for one in [*found.front, *found.baselines]:
        time, energy, area = one.objectives
        spec, use, again = one.candidate.spec, one.candidate, found.again[one.name]
        name = f"{one.name} {titles[id(one)]}" if id(one) in titles else one.name
        table.add_row(
            name.removeprefix("the "),
            *(si(time, "s"), si(energy, "J"), f"{1e6 * area:.3g}", f"{one.ratio:.2f}"),
            f"{again.ratio:.2f} {'yes' if again.feasible else 'no '}",
            f"{spec.cells}",
            f"{spec.coupling_bits}/{spec.bias_bits}/{spec.adc_bits}",
            *(number(1e9 * spec.tau_s), f"{use.ports}/{use.units}"),
        )
    console.print(
        f"{len(found.front)} candidates on the front, with a loss of at most {allowed}; "
        f"{len(found.holding)} hold: from {len(found.plan.check_seeds)} other seeds, too, the "
        "median of ratios to exact K-FAC's from the same seed is at most that:",
        soft_wrap=True,
    )
    console.print(table)
