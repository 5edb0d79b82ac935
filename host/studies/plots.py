"""Plots of studies: losses by step side by side, and heat maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from thermokron.host.train.plots import save_figure

__all__ = ["HeatMap", "plot_curves", "plot_heat_maps", "smoothed"]

INK = "#222222"
QUIET = "#8a8a8a"
#: Fields of a heat map without a result.
FAILED = "#e8a798"
#: Fields of a heat map whose number is not finite.
EMPTY = "#dcdcdc"
#: Colours in the order of contenders; distinct without red against green.
COLOURS = ("#8a8a8a", "#00798c", "#222222", "#d1495b", "#edae49", "#7b4fa3", "#77a345")
DPI = 110
#: Steps over which losses of batches are smoothed; odd.
WINDOW = 9


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.02, ha="left", fontsize=15, fontweight="bold", color=INK)
    return figure


def _quiet(axes: Any) -> None:
    axes.tick_params(which="both", colors=INK, length=0, labelsize=11)
    for spine in axes.spines.values():
        spine.set_visible(False)


def smoothed(losses: Sequence[float]) -> NDArray[np.float64]:
    """The mean over `WINDOW` steps around each; over fewer at the ends.

    The first step keeps its own loss, as losses fall steeply there; the last ones average over what
    is left of their window.
    """
    reach = [min(WINDOW // 2, step) for step in range(len(losses))]
    mean: NDArray[np.float64] = np.array(
        [np.mean(losses[step - r : step + r + 1]) for step, r in enumerate(reach)]
    )
    return mean


def plot_curves(
    curves: Mapping[str, Mapping[str, Sequence[Sequence[float]]]],
    path: Path,
    *,
    title: str,
    about: str,
    targets: Sequence[float] = (),
) -> Path:
    """Loss by step, smoothed, a panel per network, a line per contender.

    Parameters
    ----------
    curves : mapping
        Network to contender to the losses of the batches, one sequence per seed. Each is smoothed
        by `smoothed`; the line is their median, a band spans their extremes.
    path : Path
        Where to; folders are made as needed.
    title : str
        Above all panels.
    about : str
        What the file says of itself.
    targets : sequence of float
        Losses that get a thin line.
    """
    figure = _figure(4.6 * len(curves) + 1.6, 4.6, title)
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    names = list(dict.fromkeys(name for lines in curves.values() for name in lines))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    for axes, (network, lines) in zip(panels, curves.items(), strict=True):
        for name, losses in lines.items():
            shortest = min(len(line) for line in losses)  # a run that diverged ends early
            table = np.array([smoothed(line)[:shortest] for line in losses])
            steps = np.arange(1, shortest + 1)
            axes.plot(
                steps,
                np.median(table, axis=0),
                color=colours[name],
                linewidth=2.2,
                label=name,
                # exact and sampled lie on each other; a dash lets the one below show
                linestyle="-" if names.index(name) < 3 else (0, (4 - names.index(name) % 2, 1.5)),
            )
            axes.fill_between(
                steps, table.min(axis=0), table.max(axis=0), color=colours[name], alpha=0.1, lw=0
            )
        for target in targets:
            axes.axhline(target, color=QUIET, linewidth=0.7, linestyle=":")
        axes.set_yscale("log")
        axes.set_title(network, loc="left", fontsize=12, color=INK)
        axes.set_xlabel("step", fontsize=12, color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        _quiet(axes)
    panels[0].set_ylabel(f"loss of the batch, mean of {WINDOW} steps", fontsize=12, color=INK)
    handles = [
        next(line for axes in panels for line in axes.get_lines() if line.get_label() == name)
        for name in names
    ]
    figure.legend(handles, names, loc="outside right center", frameon=False, fontsize=11)
    return save_figure(figure, path, dpi=DPI, about=about)


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """One panel of `plot_heat_maps`.

    Attributes
    ----------
    title : str
        Above it.
    values : rows of float
        Positive numbers, which become colours; none where one is not finite.
    texts : rows of str
        What is written into each field.
    failed : rows of bool
        Fields that stand out, as no result came.
    limits : (float, float)
        Ends of the colour scale, which is logarithmic.
    """

    title: str
    values: Sequence[Sequence[float]]
    texts: Sequence[Sequence[str]]
    failed: Sequence[Sequence[bool]]
    limits: tuple[float, float]


def plot_heat_maps(
    maps: Sequence[HeatMap],
    path: Path,
    *,
    title: str,
    about: str,
    across: int,
    rows: tuple[str, Sequence[int]],
    columns: tuple[str, Sequence[int]],
    notes: Sequence[str] = (),
) -> Path:
    """Heat maps, `across` of them abreast.

    Parameters
    ----------
    maps : sequence of HeatMap
        Row by row.
    path : Path
        Where to; folders are made as needed.
    title : str
        Above all of them.
    about : str
        What the file says of itself.
    across : int
        Panels abreast.
    rows, columns : (str, sequence of int)
        Names of the axes, and their ticks.
    notes : sequence of str
        Lines below all of them.
    """
    deep = -(-len(maps) // across)
    wide, high = 0.44 * len(columns[1]) + 0.7, 0.27 * len(rows[1]) + 0.9
    figure = _figure(max(across * wide + 0.3, 8.0), deep * high + 0.5 + 0.25 * len(notes), title)
    panels = figure.subplots(deep, across, squeeze=False)
    for axes, each in zip(panels.ravel(), maps, strict=False):
        _heat_map(axes, each)
        axes.set_xticks(range(len(columns[1])), [str(c) for c in columns[1]])
        axes.set_yticks(range(len(rows[1])), [str(r) for r in rows[1]])
        axes.set_title(each.title, loc="left", fontsize=11, color=INK)
        _quiet(axes)
    for axes in panels.ravel()[len(maps) :]:
        axes.set_visible(False)
    for axes in panels[:, 0]:
        axes.set_ylabel(rows[0], fontsize=11, color=INK)
    for axes in panels[-1]:
        axes.set_xlabel(columns[0], fontsize=11, color=INK)
    figure.supxlabel("\n".join(notes), x=0.02, ha="left", fontsize=11, color=INK)
    return save_figure(figure, path, dpi=DPI, about=about)


def _heat_map(axes: Any, each: HeatMap) -> None:
    values, norm = np.array(each.values, dtype=float), LogNorm(*each.limits, clip=True)
    axes.set_facecolor(EMPTY)
    axes.imshow(
        np.ma.masked_invalid(values), cmap="YlGnBu", norm=norm, aspect="auto", origin="lower"
    )
    for i, line in enumerate(each.texts):
        for j, text in enumerate(line):
            if each.failed[i][j]:
                axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=FAILED, linewidth=0))
            dark = np.isfinite(values[i, j]) and norm(values[i, j]) > 0.55
            axes.text(
                j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else INK
            )
