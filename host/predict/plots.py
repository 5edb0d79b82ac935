"""Pictures of forecasts: parts of a step side by side, what a speedup hangs on, where it begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from thermokron.host.predict.prediction import PARTS
from thermokron.host.predict.predictions import Predictions
from thermokron.host.predict.sensitivity import BreakEven, Swing
from thermokron.host.predict.units import with_unit
from thermokron.host.tables import number
from thermokron.host.train.plots import save_figure

__all__ = ["plot_break_even", "plot_parts", "plot_tornado"]

INK, QUIET = "#222222", "#8a8a8a"
#: One colour a part: greys for what no unit touches, blues for the host's, warm for the unit's.
COLOURS = dict(
    zip(
        PARTS,
        (
            *("#c9c9c9", "#9a9a9a", "#003f5c", "#2f7fa8"),
            *("#f4d58d", "#edae49", "#e07a3f", "#d1495b", "#8f2d56"),
            *("#79b4d4", "#e4e4e4"),
        ),
        strict=True,
    )
)
DPI = 110
#: What a picture's file says of itself.
ABOUT = "thermokron predict"


def plot_parts(forecast: Predictions, path: Path) -> Path:
    """Bars of every optimiser's step, by part, and the ranges of the whole."""
    count = len(forecast.predictions)
    figure, axes = _figure(11.0, 1.6 + 0.42 * count)
    names = [each.optimizer.name for each in forecast.predictions]
    for part in PARTS:
        widths = [1e3 * float(p.nominal.seconds.get(part, 0.0)) for p in forecast.predictions]
        lefts = [
            1e3 * sum(float(p.nominal.seconds.get(q, 0.0)) for q in PARTS[: PARTS.index(part)])
            for p in forecast.predictions
        ]
        if any(widths):
            axes.barh(range(count), widths, left=lefts, color=COLOURS[part], label=part, height=0.7)
    for place, each in enumerate(forecast.predictions):
        whole = each.seconds_per_step
        axes.plot(
            [1e3 * whole.low, 1e3 * whole.high],
            [place, place],
            color=INK,
            lw=1,
            solid_capstyle="butt",
        )
    axes.set_yticks(range(count), names)
    axes.invert_yaxis()
    totals = sorted(1e3 * float(p.nominal.total_seconds) for p in forecast.predictions)
    end = min(1.5 * totals[-1], 6.0 * totals[len(totals) // 2])  # else most would be a hair
    axes.set_xlim(0.0, end)
    for place, each in enumerate(forecast.predictions):
        whole = each.seconds_per_step
        if 1e3 * whole.high > end:  # what does not fit is told
            told = f"→ {number(1e3 * whole.high)}"
            if 1e3 * whole.nominal > end:
                told = f"→ {number(1e3 * whole.nominal)}, to {number(1e3 * whole.high)}"
            axes.text(end, place, f" {told} ms", va="center", color=INK, fontsize=9, clip_on=False)
    axes.set_xlabel("ms a step, nominal; lines: nine of ten draws", color=INK)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.4, -0.7 / (1.0 + 0.42 * count)),
        ncols=6,
        frameon=False,
    )
    question = forecast.question
    technology = "" if forecast.technology is None else f", units: {forecast.technology.name}"
    axes.set_title(
        f"{question.workload.name} on {question.devices} x {question.machine.name}{technology}",
        loc="left",
        color=INK,
    )
    return save_figure(figure, path, dpi=DPI, about=ABOUT)


def plot_tornado(swings: Sequence[Swing], nominal: float, title: str, path: Path) -> Path:
    """Bars from the speedup at one end of every quantity's range to that at the other."""
    swings = [swing for swing in swings if swing.width > 1.005][:12]
    figure, axes = _figure(9.0, 1.8 + 0.38 * max(len(swings), 1))
    for place, swing in enumerate(swings):
        low, high = sorted((swing.at_low, swing.at_high))
        axes.barh(place, high - low, left=low, color="#2f7fa8", height=0.65)
        q = swing.quantity
        ends = (with_unit(q.unit, q.low), with_unit(q.unit, q.high))
        if swing.at_low > swing.at_high:
            ends = ends[1], ends[0]
        for at, end, side in ((low, ends[0], "right"), (high, ends[1], "left")):
            axes.text(at, place, f" {end} ", ha=side, va="center", fontsize=9, color=INK)
    names = [swing.quantity.name for swing in swings]
    axes.set_yticks(range(len(swings)), names)
    axes.invert_yaxis()
    axes.axvline(nominal, color=INK, lw=1)
    axes.axvline(1.0, color="#d1495b", lw=1, ls="--")
    reached = [nominal, 1.0]
    for swing in swings:
        reached += [swing.at_low, swing.at_high]
    room = 0.15 * (max(reached) - min(reached)) or 0.01
    axes.set_xlim(min(reached) - room, max(reached) + room)
    axes.set_xlabel("speedup a step; dashed: 1, line: nominal", color=INK)
    axes.set_title(title, loc="left", color=INK)
    return save_figure(figure, path, dpi=DPI, about=ABOUT)


def plot_break_even(found: Sequence[BreakEven], title: str, path: Path) -> Path:
    """A speedup along every quantity that was moved."""
    figure = Figure(figsize=(3.2 * len(found), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", color=INK)
    every = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for axes, each in zip(every, found, strict=True):
        values, speedups = zip(*each.points, strict=True)
        axes.plot(values, speedups, color="#2f7fa8", lw=2)
        axes.axhline(1.0, color="#d1495b", lw=1, ls="--")
        for value, _ in each.crossings:
            axes.plot([value], [1.0], "o", color=INK)
            axes.annotate(each.written(value), (value, 1.0), (4, 6), textcoords="offset points")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(each.name if each.unit == "1" else f"{each.name}, {each.unit}", color=INK)
        _plain_logarithm(axes.yaxis)
        _quiet(axes)
    every[0].set_ylabel("speedup a step", color=INK)
    return save_figure(figure, path, dpi=DPI, about=ABOUT)


def _plain_logarithm(axis: Any) -> None:
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    _quiet(axes)
    return figure, axes


def _quiet(axes: Any) -> None:
    axes.tick_params(which="both", colors=INK, length=0, labelsize=10)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(QUIET)
