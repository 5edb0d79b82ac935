"""`thermokron study`: experiments from declarative plans."""

from __future__ import annotations

import argparse
from pathlib import Path

from thermokron.host.cli.train_options import add_cluster, add_timeout

__all__ = ["add_parser", "run"]

DESCRIPTION = """\
Run an experiment of many training runs from a plan, and write its tables and plots.

Every training run leaves a JSON file in DIR/runs when it ends. Interrupt a study at any time: the
same command goes on where it was, and runs only what has no result yet. Results do not depend on
how many processes share the work, here or on a Dask cluster. A run that diverges, or whose matrices
the unit refuses, ends with that as its result. A plan is checked whole before its first run;
docs/studies.md says what it holds. A folder DIR is of one study. A plan whose network is
"module:function" imports that module from here and runs it: look at a plan that is not yours first,
with --show.
"""

EPILOG = """\
examples:
  thermokron study --list                     the plans that come with the package
  thermokron study comparison                 into runs/comparison, on one process
  thermokron study quantisation --jobs 2      two processes, one thread each
  thermokron study quantisation --cluster tcp://10.0.0.1:8786
                                              on the machines of a Dask cluster
  thermokron study my-plan.toml -o runs/mine  a plan of your own; to begin with:
  thermokron study comparison --show > my-plan.toml
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare `study`."""
    parser = subparsers.add_parser(
        "study",
        help="run an experiment from a plan: tables and plots",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("plan", nargs="?", metavar="NAME", help="a plan that comes with the package, or FILE.toml")
    add("--list", action="store_true", help="name the plans that come with the package")
    add("--show", action="store_true", help="print the plan and run nothing")
    add("--jobs", type=int, default=1, metavar="N", help="processes, of one thread each [1]")
    add_cluster(parser)
    add_timeout(parser)
    add(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="where results are kept and reports go [runs/NAME]",
    )


def run(args: argparse.Namespace) -> int:
    """Run a study to its end; 0."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from thermokron.host.studies import load_study, plan_names, plan_text, run_study

    if args.list:
        for name in plan_names():
            print(f"{name:18} {load_study(name).title}")
        return 0
    if args.plan is None:
        raise ValueError(f"NAME is missing; legal: {', '.join(plan_names())}, or FILE.toml")
    if args.show:
        print(plan_text(args.plan), end="")
        return 0
    study = load_study(args.plan)
    folder = args.output or Path("runs") / study.name
    console = Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[remark]}"),
    )
    console.print(f"{study.title}; results in {folder}", soft_wrap=True)
    if study.tasks:
        code = ", ".join(study.tasks)
        console.print(f"the plan runs code of yours or its author's: {code}", soft_wrap=True)
    with Progress(*columns, console=console) as bars:
        tasks = {}

        def listen(stage: str, done: int, total: int, remark: str) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, remark=remark)
            bars.update(tasks[stage], completed=done, total=total, remark=remark)

        written = run_study(
            study,
            folder,
            jobs=args.jobs,
            cluster=args.cluster,
            timeout_s=getattr(args, "timeout", None),
            listen=listen,
        )
    console.print("wrote " + " and ".join(map(str, written)), soft_wrap=True)
    return 0
