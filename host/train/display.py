"""What `thermokron train` shows while it trains, and in the end."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from thermokron.host.train.demo import MARKS, Listener, median_loss
from thermokron.host.train.results import RunResult

__all__ = ["network_name", "progress_bars", "results_table"]


def network_name(result: RunResult) -> str:
    """What was trained, in a few words."""
    if result.network == "mlp":
        return "-".join(str(n) for n in (64, *result.hidden, 10)) + " tanh network"
    return " ".join([result.network, "-".join(str(n) for n in result.hidden)]).strip()


def results_table(kinds: Sequence[Sequence[RunResult]]) -> Table:
    """One row per kind of run, each entry the median over its seeds."""
    epochs = min(len(result.train_loss) for runs in kinds for result in runs)
    marks = [mark for mark in MARKS if mark < epochs] + [epochs]
    seeds = len(kinds[0])
    note = f"medians over {seeds} seeds" if seeds > 1 else None
    accurate = all(result.test_accuracy is not None for runs in kinds for result in runs)
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
    for heading in (
        "\nlr",
        *losses,
        "test\nacc." if accurate else "test\nloss",
        "inver-\nsions",
        "hard-\nware",
        "\nports",
        "\nwall",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for runs in kinds:
        first = runs[0]
        hardware = statistics.median(r.hardware_seconds for r in runs)
        ports = statistics.median(r.port_seconds for r in runs)
        wall = statistics.median(r.wall_seconds for r in runs)
        table.add_row(
            first.label,
            f"{first.lr:g}",
            *(
                f"{loss:.4f}" if (loss := median_loss(runs, m)) < 10 else f"{loss:.0e}"
                for m in marks
            ),
            _median([r.test_accuracy if accurate else r.test_loss for r in runs]),
            str(first.inversions or "-"),
            *(f"{s * 1e3:.0f} ms" if s else "-" for s in (hardware, ports)),
            f"{wall:.1f} s",
        )
    return table


@contextmanager
def progress_bars(console: Console) -> Iterator[Listener]:
    """A bar per job, made when the job is first heard of."""
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


def _median(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):.3f}" if known else "-"
