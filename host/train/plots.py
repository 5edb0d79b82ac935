"""Loss curves, drawn to be read from the last row."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from thermokron.host.train.results import RunResult
from thermokron.model.files import write_whole

__all__ = ["plot_losses", "save_figure"]

INK = "#222222"
QUIET = "#8a8a8a"
#: Colour, width, dash and order of every label; what is exact lies on what is sampled.
STYLES = {
    "K-FAC, co-simulated": ("#d1495b", 5.0, "-", 3),
    "K-FAC, compiled RTL": ("#d1495b", 5.0, "-", 3),
    "K-FAC, statistical": ("#d1495b", 5.0, "-", 3),
    "K-FAC, numeric": ("#d1495b", 5.0, "-", 3),
    "K-FAC, exact": (INK, 1.8, (0, (4, 2)), 4),
    "K-FAC, diagonal": ("#edae49", 2.8, "-", 2),
    "Adam": ("#00798c", 2.8, "-", 2),
    "SGD": (QUIET, 2.8, "-", 1),
}
#: Least distance between two labels at the right edge, as a part of the axis.
LABEL_DISTANCE = 0.062


def plot_losses(
    runs: Sequence[RunResult],
    path: Path,
    *,
    title: str,
    subtitle: str = "",
    quantity: str = "training loss in nats",
) -> Path:
    """Draw the training loss of every kind of run by epoch, and return the path.

    Parameters
    ----------
    runs : sequence of RunResult
        Runs with the same label are one line, their median; a band spans their extremes.
    path : Path
        Where to; the ending names the format. Folders are made as needed.
    title, subtitle : str
        What to write above the axes.
    quantity : str
        What the vertical axis shows, and its unit.
    """
    curves: dict[str, list[list[float]]] = {}
    for run in runs:
        curves.setdefault(run.label, []).append([run.initial_loss, *run.train_loss])
    figure = Figure(figsize=(10, 6), layout=ConstrainedLayoutEngine(w_pad=0.2, h_pad=0.2))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ends: dict[str, float] = {}
    for label, losses in curves.items():
        colour, width, dash, order = STYLES[label]
        table: NDArray[np.float64] = np.array(losses)
        middle = np.median(table, axis=0)
        epochs = np.arange(len(middle))
        axes.plot(
            epochs,
            middle,
            color=colour,
            linewidth=width,
            linestyle=dash,
            zorder=2 + order,
            solid_capstyle="round",
            clip_on=False,
        )
        if len(table) > 1:
            axes.fill_between(
                epochs,
                table.min(axis=0),
                table.max(axis=0),
                color=colour,
                alpha=0.13,
                linewidth=0,
                zorder=1,
            )
        ends[label] = float(middle[-1])
    last = max(len(losses[0]) for losses in curves.values()) - 1
    seen = [loss for table in curves.values() for losses in table for loss in losses]
    if min(seen) > 0.0:
        axes.set_yscale("log")
        if max(seen) < 30.0 * min(seen):  # powers of ten would be too few
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.set_xlim(0, last)
    axes.set_xlabel("epoch", fontsize=14, color=INK)
    axes.set_ylabel(quantity, fontsize=14, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="both", labelsize=13, colors=INK, length=0)
    axes.grid(axis="y", color="#e6e6e6", linewidth=1)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(QUIET)
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = {label: float(to_axes.transform((last, end))[1]) for label, end in ends.items()}
    for label, height in _spread(heights).items():
        axes.annotate(
            label,
            (1.0, height),
            xycoords="axes fraction",
            xytext=(10, 0),
            textcoords="offset points",
            va="center",
            fontsize=14,
            fontweight="bold" if STYLES[label][1] > 4 else "normal",
            color=STYLES[label][0],
            annotation_clip=False,
        )
    axes.set_title(subtitle, loc="left", fontsize=12.5, color=QUIET, pad=12, linespacing=1.4)
    axes.annotate(
        title,
        (0.0, 1.0),
        xycoords="axes fraction",
        xytext=(0, 24 + 18 * (1 + subtitle.count("\n"))),
        textcoords="offset points",
        fontsize=19,
        fontweight="bold",
        color=INK,
        annotation_clip=False,
    )
    return save_figure(figure, path, dpi=200, about="runs " + " ".join(run.run for run in runs))


def save_figure(figure: Figure, path: Path, *, dpi: int, about: str) -> Path:
    """Write a figure, whose file says in itself what made it, and return its path."""
    written, kind = io.BytesIO(), path.suffix.lstrip(".").lower() or "png"
    made = f"thermokron {version('thermokron')}"
    known = {"png": {"Software": made, "Comment": about}, "svg": {"Creator": made, "Source": about}}
    figure.savefig(written, format=kind, dpi=dpi, metadata=known.get(kind))
    return write_whole(path, written.getvalue())


def _spread(heights: dict[str, float]) -> dict[str, float]:
    """Heights moved apart until no two are closer than labels need, order kept."""
    labels = sorted(heights, key=heights.__getitem__)
    wanted = np.array([heights[label] for label in labels])
    offsets = LABEL_DISTANCE * np.arange(len(labels))
    # least squares under a least distance: pool neighbours that would overlap at their mean
    pools: list[list[float]] = []
    for value in wanted - offsets:
        pools.append([float(value)])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            tail = pools.pop()
            pools[-1] += tail
    placed = np.concatenate([np.full(len(pool), np.mean(pool)) for pool in pools]) + offsets
    return dict(zip(labels, placed.tolist(), strict=True))
