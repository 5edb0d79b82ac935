"""Tables and heat maps of the study of bits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from thermokron.host.studies.runs import Outcome
from thermokron.host.tables import markdown, median, number, write

__all__ = ["Findings", "write_report"]

Outcomes = list[Outcome]
Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What came out, by the points of the grids; each list has an outcome per seed.

    Attributes
    ----------
    title : str
        Of the study.
    target, keeps : float
        As of the plan.
    fixed_adc_bits : int
        Bits of the ADC in all grids but the first.
    exact, rival : str
        What the unit is compared with, and over whom K-FAC leads.
    references : dict
        By these two names.
    bits : dict
        By variant, coupling bits and ADC bits.
    samples : dict
        By coupling bits and samples per run.
    damping : dict
        By coupling bits, or None for exact inverses, damping and learning rate.
    """

    title: str
    target: float
    keeps: float
    fixed_adc_bits: int
    exact: str
    rival: str
    references: dict[str, Outcomes]
    bits: dict[tuple[str, int, int], Outcomes]
    samples: dict[tuple[int, int], Outcomes]
    damping: dict[tuple[int | None, float, float], Outcomes]

    @cached_property
    def variants(self) -> list[str]:
        """Variants of the first grid."""
        return _each(variant for variant, _, _ in self.bits)

    @cached_property
    def coupling_bits(self) -> list[int]:
        """Coupling bits of the first grid."""
        return _each(couplings for _, couplings, _ in self.bits)

    @cached_property
    def adc_bits(self) -> list[int]:
        """ADC bits of the first grid."""
        return _each(adc for _, _, adc in self.bits)

    def epochs(self, outcomes: Outcomes) -> float:
        """Median epochs to the target."""
        return median(outcome.epochs_to(self.target) for outcome in outcomes)

    def unit_seconds(self, outcomes: Outcomes) -> float:
        """Median time on the unit to the target, in seconds."""
        return median(
            o.hardware_seconds * o.epochs_to(self.target) / (len(o.train_loss) - 1)
            for o in outcomes
        )

    @property
    def limit(self) -> float:
        """Epochs to the target with which K-FAC's advantage still counts as kept."""
        return self.keeps * self.epochs(self.references[self.exact])

    def keeps_lead(self, outcomes: Outcomes) -> bool:
        """Whether K-FAC's advantage counts as kept: in time, and no run ended badly."""
        well = all(outcome.end == "finished" for outcome in outcomes)
        return well and math.isfinite(self.limit) and self.epochs(outcomes) <= self.limit


def write_report(
    found: Findings, folder: Path, *, abreast: int, made_from: str, versions: str
) -> list[Path]:
    """Write `tables.md` and `bits.png`; their paths.

    Parameters
    ----------
    found : Findings
        What came out.
    folder : Path
        Where they go.
    abreast : int
        Heat maps in a row of the plot.
    made_from, versions : str
        Sentences on which runs these are, and on what made them.
    """
    parts = [
        f"## {found.title}",
        _references(found),
        *_grid(found),
        *_fewest_bits(found),
        *_samples(found),
        *_damping(found),
    ]
    plot = _heat_maps(found, folder / "bits.png", abreast, made_from)
    return [write(folder / "tables.md", *parts, made_from, versions), plot]


def _each(values: Iterable[Value]) -> list[Value]:
    """Each value once, in the order of their first appearance."""
    return list(dict.fromkeys(values))


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


def _references(found: Findings) -> str:
    rows = [
        [name, number(found.epochs(done)), number(final_loss(done), 2)]
        for name, done in found.references.items()
    ]
    return markdown(["", f"epochs to {found.target:g}", "final loss"], rows)


def _grid(found: Findings) -> list[str]:
    parts = []
    head = ["coupling bits \\ ADC bits", *map(str, found.adc_bits)]
    values = {f"Epochs to {found.target:g}": found.epochs, "Final loss": final_loss}
    for variant in found.variants:
        for what, value in values.items():
            rows = []
            for c in found.coupling_bits:
                line = [found.bits[variant, c, a] for a in found.adc_bits]
                rows.append([f"**{c}**", *(told(done, value(done)) for done in line)])
            parts += [f"### {what}, {variant}", markdown(head, rows)]
    return parts


def _fewest_bits(found: Findings) -> list[str]:
    def fewest(variant: str, adc: int) -> str:
        enough = [c for c in found.coupling_bits if found.keeps_lead(found.bits[variant, c, adc])]
        return str(min(enough)) if enough else "none of these"

    rows = [
        [variant, *(fewest(variant, adc) for adc in found.adc_bits)] for variant in found.variants
    ]
    return [
        f"### The fewest coupling bits with {_kept(found)}",
        markdown(["ADC bits", *map(str, found.adc_bits)], rows),
    ]


def _kept(found: Findings) -> str:
    limit = number(found.limit)
    return f"at most {found.keeps:g} times exact K-FAC's epochs, {limit}, for all seeds"


def _samples(found: Findings) -> list[str]:
    if not found.samples:
        return []
    counts = _each(count for _, count in found.samples)
    rows = []
    for couplings in _each(couplings for couplings, _ in found.samples):
        line = {count: found.samples[couplings, count] for count in counts}
        fewest = next((n for n in sorted(line) if found.keeps_lead(line[n])), None)
        rows.append(
            [
                f"**{couplings}**",
                *(told(done, found.epochs(done)) for done in line.values()),
                "none of these" if fewest is None else f"{fewest:,}",
                "" if fewest is None else number(1e3 * found.unit_seconds(line[fewest])),
            ]
        )
    head = ["coupling bits \\ samples", *(f"{n:,}" for n in counts)]
    head += ["fewest samples", f"ms on the unit to {found.target:g}"]
    return [
        f"### Epochs to {found.target:g} by samples per run, {found.fixed_adc_bits}-bit ADC; the "
        f"fewest with {_kept(found)}",
        markdown(head, rows),
    ]


def _damping(found: Findings) -> list[str]:
    if not found.damping:
        return []
    parts = []
    bits = _each(bits for bits, _, _ in found.damping)
    head = ["", *("exact" if c is None else f"{c} bits" for c in bits)]
    values = {f"Epochs to {found.target:g}": found.epochs, "Final loss": final_loss}
    for what, value in values.items():
        rows = []
        for damping, lr in _each((damping, lr) for _, damping, lr in found.damping):
            line = [found.damping[c, damping, lr] for c in bits]
            label = f"damping {damping:g}, lr {lr:g}"
            rows.append([label, *(told(done, value(done)) for done in line)])
        parts += [
            f"### {what} by damping, {found.fixed_adc_bits}-bit ADC",
            markdown(head, rows),
        ]
    return parts


# ---- heat maps --------------------------------------------------------------------------------


def _heat_maps(found: Findings, path: Path, abreast: int, about: str) -> Path:
    """A panel per variant, those of one scaling abreast, first epochs and then losses."""
    from thermokron.host.studies.plots import HeatMap, plot_heat_maps

    def loss(outcomes: Outcomes) -> float:
        return 1e3 * final_loss(outcomes)

    measures: tuple[tuple[str, Callable[[Outcomes], float]], ...] = (
        (f"epochs to {found.target:g}", found.epochs),
        ("final loss, thousandths", loss),
    )
    maps = []
    for quantity, value in measures:
        # with Adam's on the scale, what is noise between neighbours does not look like an effect
        all_values = [value(done) for done in (*found.references.values(), *found.bits.values())]
        finite = [v for v in all_values if math.isfinite(v)] or [1.0]
        limits = min(finite), max(*finite, 1.01 * min(finite))
        for variant in found.variants:
            table = [
                [found.bits[variant, c, a] for a in found.adc_bits] for c in found.coupling_bits
            ]
            maps.append(
                HeatMap(
                    title=f"{quantity}\n{variant}",
                    values=[[value(done) for done in line] for line in table],
                    texts=[[_short(done, value(done)) for done in line] for line in table],
                    failed=[[bool(bad_end(done)) for done in line] for line in table],
                    limits=limits,
                )
            )
    exact, rival = found.references[found.exact], found.references[found.rival]
    notes = [
        f"exact K-FAC: {number(found.epochs(exact), 2)} epochs, "
        f"{number(loss(exact), 2)} thousandths; "
        f"Adam: {number(found.epochs(rival), 2)}, {number(loss(rival), 2)}",
        "-  not reached     x  refused: not positive definite on the unit     !  diverged     "
        "*  in one seed or more",
    ]
    return plot_heat_maps(
        maps,
        path,
        title=found.title,
        about=about,
        across=abreast,
        rows=("coupling bits", found.coupling_bits),
        columns=("ADC bits", found.adc_bits),
        notes=notes,
    )


def _short(outcomes: Outcomes, value: float) -> str:
    marks = {"never": "-", "refused": "x", "diverged": "!"}
    text = told(outcomes, value)
    return marks.get(text, text)
