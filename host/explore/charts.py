"""Scatter plots of what a search found, as SVG that needs nothing beside."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from thermokron.host.explore.numbers import si
from thermokron.host.explore.results import OBJECTIVES, Evaluated, Found

__all__ = ["LEGEND", "anchor", "legend", "scatter"]

WIDTH, HEIGHT = 560, 400
LEFT, RIGHT, TOP, BOTTOM = 88, 16, 14, 52
#: Class of a mark, and what it is.
LEGEND = {
    "front": "on the front, and good enough from other seeds",
    "fails": "on the front, but not good enough from other seeds",
    "feasible": "good enough, but another is better in everything",
    "beyond": "loss beyond what is allowed",
    "default": "what is to be beaten",
}


def anchor(one: Evaluated) -> str:
    """Of the place on the page that has its spec."""
    return "c-" + "".join(c if c.isalnum() else "-" for c in one.name.removeprefix("#"))


def legend() -> str:
    """What the marks mean."""
    items = "".join(
        f'<li><svg viewBox="-7 -7 14 14" aria-hidden="true">{_mark(kind, 0, 0)}</svg>{text}</li>'
        for kind, text in LEGEND.items()
    )
    return f'<ul class="legend">{items}</ul>'


def scatter(found: Found, x: int, y: int) -> str:
    """One objective against another, both on logarithmic axes; indices into `OBJECTIVES`."""
    names, units = list(OBJECTIVES), list(OBJECTIVES.values())
    kinds = {id(one): "front" if found.holds(one) else "fails" for one in found.front}
    marked: list[tuple[str, Evaluated]] = []
    for one in found.distinct:
        kind = "feasible" if one.feasible else "beyond"
        marked.append((kinds.get(id(one), kind), one))
    marked += [("default", one) for one in found.baselines]
    marked = [(k, one) for k, one in marked if all(map(math.isfinite, one.objectives))]
    order = list(LEGEND)
    marked.sort(key=lambda pair: -order.index(pair[0]) if pair[0] != "default" else -len(order))
    if not marked:
        return ""
    across = _Scale([one.objectives[x] for _, one in marked], LEFT, WIDTH - RIGHT)
    up = _Scale([one.objectives[y] for _, one in marked], HEIGHT - BOTTOM, TOP)
    parts = [*_axes(across, up, units[x], units[y])]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(_text(middle, HEIGHT - 8, f"{names[x]} of a step", "label", "middle"))
    what = names[y] if names[y] == "area" else f"{names[y]} of a step"
    parts.append(
        f'<text class="label" text-anchor="middle" transform="translate(14 '
        f'{(TOP + HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)">{what}</text>'
    )
    parts.append(_steps(found.front, x, y, across, up))
    for kind, one in marked:
        told = f"{one.name}: " + ", ".join(
            f"{name} {si(value, unit)}"
            for name, value, unit in zip(names, one.objectives, units, strict=True)
        )
        told += f", loss {one.ratio:.3g} of exact K-FAC's"
        mark = _mark(kind, across(one.objectives[x]), up(one.objectives[y]))
        parts.append(f'<a href="#{anchor(one)}"><title>{escape(told)}</title>{mark}</a>')
    title = f"{names[y]} against {names[x]}, logarithmic axes"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        + "".join(parts)
        + "</svg>"
    )


def _mark(kind: str, x: float, y: float) -> str:
    if kind == "default":
        return f'<path class="{kind}" d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z"/>'
    radius = {"front": 5.5, "fails": 5, "feasible": 4, "beyond": 3.5}[kind]
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>'


def _steps(front: Sequence[Evaluated], x: int, y: int, across: _Scale, up: _Scale) -> str:
    """The front of these two alone."""
    best, path = math.inf, ""
    for one in sorted(front, key=lambda each: (each.objectives[x], each.objectives[y])):
        if one.objectives[y] >= best:
            continue
        here, height = across(one.objectives[x]), up(one.objectives[y])
        path += f"H{here:.1f}V{height:.1f}" if path else f"M{here:.1f} {height:.1f}"
        best = one.objectives[y]
    return f'<path class="steps" d="{path}"/>' if path else ""


class _Scale:
    """From values to places, logarithmically, with some room at the ends."""

    def __init__(self, values: Iterable[float], begin: float, end: float) -> None:
        logs = [math.log10(value) for value in values]
        room = max(0.06 * (max(logs) - min(logs)), 0.05)
        self.low, self.high = min(logs) - room, max(logs) + room
        self.begin, self.end = begin, end

    def __call__(self, value: float) -> float:
        part = (math.log10(value) - self.low) / (self.high - self.low)
        return self.begin + part * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Round values, a handful."""
        for steps in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
            found = [
                step * 10.0**decade
                for decade in range(math.floor(self.low), math.ceil(self.high) + 1)
                for step in steps
                if self.low <= math.log10(step * 10.0**decade) <= self.high
            ]
            if len(found) <= 6:
                return found
        return found[:: -(-len(found) // 6)]


def _axes(across: _Scale, up: _Scale, x_unit: str, y_unit: str) -> Iterable[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for value in across.ticks():
        x = across(value)
        yield f'<path class="grid" d="M{x:.1f} {TOP}V{bottom}"/>'
        yield _text(x, bottom + 18, si(value, x_unit, 1), "", "middle")
    for value in up.ticks():
        y = up(value)
        yield f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>'
        yield _text(LEFT - 6, y + 4, si(value, y_unit, 1), "", "end")
    yield f'<path class="axis" fill="none" d="M{LEFT} {TOP}V{bottom}H{right}"/>'


def _text(x: float, y: float, text: str, kind: str, where: str) -> str:
    name = f' class="{kind}"' if kind else ""
    return f'<text{name} x="{x:.1f}" y="{y:.1f}" text-anchor="{where}">{escape(text)}</text>'
