"""Tables and heat maps of the study of bits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from thermokron.host.studies.runs import Outcome, Run, Store
from thermokron.host.tables import markdown, median, number, write

if TYPE_CHECKING:
    from thermokron.host.studies.quantisation import Point, Quantisation, Variant

__all__ = ["write_report"]

Key = TypeVar("Key")
Outcomes = list[Outcome]


def write_report(study: Quantisation, store: Store, folder: Path) -> list[Path]:
    """`tables.md` and `bits.png`; all outcomes must be in the store."""

    def done(grid: Iterable[tuple[Key, list[Run]]]) -> dict[Key, Outcomes]:
        return {point: [store[run] for run in runs] for point, runs in grid}

    references, grid = done(study.references()), done(study.grid())
    parts = [
        f"## {study.title}",
        _references(study, references),
        *_grid(study, grid),
        *_fewest_bits(study, references, grid),
        *_samples(study, references, done(study.samples_grid())),
        *_damping(study, done(study.damping_grid())),
    ]
    plot = _heat_maps(study, references, grid, folder / "bits.png", store.told_runs())
    return [write(folder / "tables.md", *parts, store.told_runs(), store.told_versions()), plot]


def final_loss(outcomes: Outcomes) -> float:
    """Median loss after the last epoch."""
    return median(outcome.final_loss for outcome in outcomes)


def bad_end(outcomes: Outcomes) -> str:
    """How the runs ended, if most of them did not end well; "" otherwise."""
    end, count = Counter(outcome.end for outcome in outcomes).most_common(1)[0]
    return end if end != "finished" and 2 * count > len(outcomes) else ""


def told(outcomes: Outcomes, value: float) -> str:
    """A median in a few digits; an asterisk where some of its runs did not end well."""
    if not math.isfinite(value):
        return bad_end(outcomes) or "never"
    return number(value, 2) + "*" * any(o.end != "finished" for o in outcomes)


# ---- tables -----------------------------------------------------------------------------------


def _references(study: Quantisation, references: dict[str, Outcomes]) -> str:
    rows = [
        [name, number(study.epochs(done)), number(final_loss(done), 2)]
        for name, done in references.items()
    ]
    return markdown(["", f"epochs to {study.target:g}", "final loss"], rows)


def _grid(study: Quantisation, grid: dict[Point, Outcomes]) -> list[str]:
    parts = []
    head = ["coupling bits \\ ADC bits", *map(str, study.adc_bits)]
    values = {f"Epochs to {study.target:g}": study.epochs, "Final loss": final_loss}
    for variant in study.variants:
        for what, value in values.items():
            rows = []
            for c in study.coupling_bits:
                line = [grid[variant, c, a] for a in study.adc_bits]
                rows.append([f"**{c}**", *(told(done, value(done)) for done in line)])
            parts += [f"### {what}, {variant}", markdown(head, rows)]
    return parts


def _fewest_bits(
    study: Quantisation, references: dict[str, Outcomes], grid: dict[Point, Outcomes]
) -> list[str]:
    exact = references[study.exact]

    def fewest(variant: Variant, adc: int) -> str:
        enough = [c for c in study.coupling_bits if study.keeps_lead(grid[variant, c, adc], exact)]
        return str(min(enough)) if enough else "none of these"

    rows = [
        [str(variant), *(fewest(variant, adc) for adc in study.adc_bits)]
        for variant in study.variants
    ]
    return [
        f"### The fewest coupling bits with {_kept(study, exact)}",
        markdown(["ADC bits", *map(str, study.adc_bits)], rows),
    ]


def _kept(study: Quantisation, exact: Outcomes) -> str:
    limit = number(study.keeps * study.epochs(exact))
    return f"at most {study.keeps:g} times exact K-FAC's epochs, {limit}, for all seeds"


def _samples(
    study: Quantisation,
    references: dict[str, Outcomes],
    grid: dict[tuple[int, int], Outcomes],
) -> list[str]:
    exact = references[study.exact]
    rows = []
    for couplings in study.samples_coupling_bits:
        line = {count: grid[couplings, count] for count in study.samples}
        fewest = next((n for n in sorted(line) if study.keeps_lead(line[n], exact)), None)
        rows.append(
            [
                f"**{couplings}**",
                *(told(done, study.epochs(done)) for done in line.values()),
                "none of these" if fewest is None else f"{fewest:,}",
                "" if fewest is None else number(1e3 * study.unit_seconds(line[fewest])),
            ]
        )
    if not rows:
        return []
    head = ["coupling bits \\ samples", *(f"{n:,}" for n in study.samples)]
    head += ["fewest samples", f"ms on the unit to {study.target:g}"]
    return [
        f"### Epochs to {study.target:g} by samples per run, {study.fixed_adc_bits}-bit ADC; the "
        f"fewest with {_kept(study, exact)}",
        markdown(head, rows),
    ]


def _damping(study: Quantisation, grid: dict[tuple[int | None, float], Outcomes]) -> list[str]:
    if not grid:
        return []
    parts = []
    head = ["", "exact", *(f"{c} bits" for c in study.damping_coupling_bits)]
    values = {f"Epochs to {study.target:g}": study.epochs, "Final loss": final_loss}
    for what, value in values.items():
        rows = []
        for settings in study.damped:
            damping = settings["damping"]
            line = [grid[bits, damping] for bits in (None, *study.damping_coupling_bits)]
            label = f"damping {damping:g}, lr {settings['lr']:g}"
            rows.append([label, *(told(done, value(done)) for done in line)])
        parts += [
            f"### {what} by damping, {study.fixed_adc_bits}-bit ADC",
            markdown(head, rows),
        ]
    return parts


# ---- heat maps --------------------------------------------------------------------------------


def _heat_maps(
    study: Quantisation,
    references: dict[str, Outcomes],
    grid: dict[Point, Outcomes],
    path: Path,
    about: str,
) -> Path:
    """A panel per variant, those of one scaling abreast, first epochs and then losses."""
    from thermokron.host.studies.plots import HeatMap, plot_heat_maps

    def loss(outcomes: Outcomes) -> float:
        return 1e3 * final_loss(outcomes)

    measures: tuple[tuple[str, Callable[[Outcomes], float]], ...] = (
        (f"epochs to {study.target:g}", study.epochs),
        ("final loss, thousandths", loss),
    )
    maps = []
    for quantity, value in measures:
        # with Adam's on the scale, what is noise between neighbours does not look like an effect
        found = [value(done) for done in (*references.values(), *grid.values())]
        finite = [v for v in found if math.isfinite(v)] or [1.0]
        limits = min(finite), max(*finite, 1.01 * min(finite))
        for variant in study.variants:
            table = [[grid[variant, c, a] for a in study.adc_bits] for c in study.coupling_bits]
            maps.append(
                HeatMap(
                    title=f"{quantity}\n{variant}",
                    values=[[value(done) for done in line] for line in table],
                    texts=[[_short(done, value(done)) for done in line] for line in table],
                    failed=[[bool(bad_end(done)) for done in line] for line in table],
                    limits=limits,
                )
            )
    notes = [
        f"exact K-FAC: {number(study.epochs(references[study.exact]), 2)} epochs, "
        f"{number(loss(references[study.exact]), 2)} thousandths; "
        f"Adam: {number(study.epochs(references[study.rival_name]), 2)}, "
        f"{number(loss(references[study.rival_name]), 2)}",
        "-  not reached     x  refused: not positive definite on the unit     !  diverged     "
        "*  in one seed or more",
    ]
    return plot_heat_maps(
        maps,
        path,
        title=study.title,
        about=about,
        across=len(study.guards),
        rows=("coupling bits", study.coupling_bits),
        columns=("ADC bits", study.adc_bits),
        notes=notes,
    )


def _short(outcomes: Outcomes, value: float) -> str:
    marks = {"never": "-", "refused": "x", "diverged": "!"}
    text = told(outcomes, value)
    return marks.get(text, text)
