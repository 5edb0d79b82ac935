"""Forecasts in words, tables and JSON; all of the same figures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

from thermokron.host.predict.prediction import PARTS
from thermokron.host.predict.predictions import Prediction, Predictions, Spread
from thermokron.host.predict.quantity import Quantity, Values
from thermokron.host.predict.sensitivity import BreakEven, Swing
from thermokron.host.predict.units import scaled, with_unit
from thermokron.host.tables import markdown, number

__all__ = [
    "as_dict",
    "as_json",
    "assumptions",
    "break_even_table",
    "explain",
    "in_words",
    "parts_table",
    "sources",
    "speedup_table",
    "step_table",
    "swing_table",
    "target_table",
]

#: A head, and rows.
Table = tuple[Sequence[str], Sequence[Sequence[str]]]

HOUR, KWH = 3600.0, 3.6e6


def spread(value: Spread | None, scale: float = 1.0, *, brief: bool = False) -> str:
    """Nominal, and in brackets between what nine of ten draws lie; "" of what is not known."""
    if value is None:
        return ""
    if brief:
        return number(value.nominal * scale)
    nominal = number(value.nominal * scale)
    ends = (value.low * scale, value.high * scale)
    low, high = (number(end, 3 if end >= 1.0 else 2) for end in ends)
    certain = value.high <= value.low * (1.0 + 1e-6)
    return nominal if certain else f"{nominal} ({low}–{high})"


def step_table(forecast: Predictions) -> Table:
    """A step of every optimiser."""
    rows = []
    for each in forecast.predictions:
        limit = each.nominal.limit
        share = float(each.nominal.seconds[limit]) / float(each.nominal.total_seconds)
        rows.append(
            (
                each.optimizer.name,
                spread(each.seconds_per_step, 1e3),
                spread(each.joules_per_step),
                f"{limit.replace(' and ', ', ')} {share:.0%}",
            )
        )
    return ("optimizer", "ms a step", "J a step", "limited by"), rows


def speedup_table(forecast: Predictions, *, brief: bool = False) -> Table:
    """Steps in the time of one of exact K-FAC's, or of Adam's, and what Amdahl allows.

    In brief, as of the others, limits have no brackets.
    """
    adam, rows = forecast.find("adam"), []
    for each in forecast.predictions:
        digital = forecast.digital(each) if each.optimizer.on_unit else None
        if digital is None and adam is None:
            continue
        rows.append(
            (
                each.optimizer.name,
                "" if digital is None else spread(each.speedup(digital)),
                "" if digital is None else spread(digital.for_free().speedup(digital), brief=brief),
                "" if adam is None else spread(each.speedup(adam)),
                "" if adam is None else spread(each.for_free().speedup(adam), brief=brief),
            )
        )
    head = ("speedup a step", "over exact", "limit", "over Adam", "limit")
    return head, rows


def target_table(forecast: Predictions, *, brief: bool = False) -> Table:
    """Training to the target, no rows if its steps are not known; in brief they are not told."""
    adam, rows = forecast.find("adam"), []
    for each in forecast.predictions:
        if each.steps is None:
            continue
        row = (
            each.optimizer.name,
            spread(Spread.of(*each.steps), 1e-3),
            spread(each.seconds_to_target, 1 / HOUR),
            spread(each.joules_to_target, 1 / KWH, brief=brief),
            "" if adam is None else spread(each.speedup_to_target(adam)),
            "" if adam is None else spread(each.for_free().speedup_to_target(adam), brief=brief),
        )
        rows.append((row[0], *row[2:]) if brief else row)
    head = ("to the target", "1,000 steps", "hours", "kWh", "speedup over Adam", "limit")
    return ((head[0], *head[2:]) if brief else head), rows


def parts_table(forecast: Predictions, *, brief: bool = False) -> Table:
    """Nominal milliseconds of every part; in brief a list of each, the longest first."""
    rows: list[tuple[str, ...]] = []
    used = [part for part in PARTS if any(part in p.seconds for p in forecast.predictions)]
    for each in forecast.predictions:
        times = {part: 1e3 * float(time) for part, time in each.nominal.seconds.items()}
        if brief:
            longest = sorted(times, key=times.__getitem__, reverse=True)
            told = ", ".join(f"{part} {number(times[part])}" for part in longest)
            rows.append((each.optimizer.name, told))
            continue
        shown = (number(times[part]) if part in times else "" for part in used)
        rows.append((each.optimizer.name, *shown, number(sum(times.values()))))
    if brief:
        return ("ms a step", "parts"), rows
    return ("ms a step", *used, "all"), rows


def swing_table(swings: Sequence[Swing], *, brief: bool = False, most: int = 12) -> Table:
    """What a speedup hangs on; in brief without sources."""
    rows = []
    for swing in swings[:most]:
        q = swing.quantity
        ends = (with_unit(q.unit, q.low), with_unit(q.unit, q.high))
        gains = (number(swing.at_low), number(swing.at_high))
        rows.append((q.name, *ends, *gains, *([] if brief else [q.source])))
    head = ("what moves", "low", "high", "at low", "at high", "source")
    return head[: 5 if brief else 6], rows


def break_even_table(found: Sequence[BreakEven]) -> Table:
    """Where one is the shorter."""
    return ("what moves", "where"), [(each.name, each.told()) for each in found]


def quantities(forecast: Predictions) -> list[Quantity]:
    """Every number that the predictions used."""
    used: dict[str, Quantity] = {}
    for each in forecast.predictions:
        values = Values()
        each.question.evaluate(values)
        used |= values.used
    target = forecast.target
    return [*used.values(), *([] if target is None else (target.steps, target.ratio))]


def assumptions(forecast: Predictions, *, brief: bool = False) -> Table:
    """The same, each with its range and source."""
    rows: list[tuple[str, ...]] = []
    for q in quantities(forecast):
        if brief:
            rows.append((q.name, with_unit(q.unit, q.nominal, q.low, q.high), q.source))
            continue
        factor, unit = scaled(q.unit, q.nominal)
        numbers = (number(factor * value) for value in (q.low, q.nominal, q.high))
        rows.append((q.name, *numbers, unit, q.source))
    if brief:
        return ("quantity", "nominal (range)", "source"), rows
    return ("quantity", "low", "nominal", "high", "unit", "source"), rows


def sources(forecast: Predictions) -> Table:
    """Where shapes, rates and prices come from."""
    question, technology = forecast.question, forecast.technology
    rows = [(each.name, each.source) for each in (question.workload, question.machine)]
    if technology is not None:
        rows.append((technology.name, technology.source))
    return ("what", "source"), rows


def explain(forecast: Predictions) -> str:
    """Which optimiser is the quickest, what limits it, and what would have to be true."""
    question = forecast.question
    told = [
        f"{question.workload.name}, batch {question.workload.batch:,} on "
        f"{question.devices} x {question.machine.name}."
        if question.devices > 1
        else f"{question.workload.name}, batch {question.workload.batch:,} on "
        f"{question.machine.name}."
    ]
    on_unit = [p for p in forecast.predictions if p.optimizer.on_unit]
    first = [p for p in forecast.predictions if not p.optimizer.kfac]
    digital = [p for p in forecast.predictions if p.optimizer.kind == "kfac-exact"]
    if first:
        last = first[-1]
        told.append(f"{last.optimizer} takes {_ms(last)} a step.")
    for each in _ends(digital):
        told.append(
            f"{each.optimizer} takes {_ms(each)}, most of it for {each.nominal.limit}; inverting "
            f"and applying for free would make it {number(_limit(each))} times as fast."
        )
    if on_unit:
        twins = [(each, twin) for each in on_unit if (twin := forecast.digital(each))]
        best, same = max(
            twins,
            key=lambda pair: pair[0].speedup(pair[1]).nominal,
            default=(min(on_unit, key=_seconds), None),
        )
        built = best.question.built
        assert built is not None
        area = float(built.area(Values())) * 1e6
        told.append(
            f"Of units of technology {built.name} ({built.spec.cells:,} cells, {number(area)} mm2) "
            f"{best.optimizer} gains most: {_ms(best)}, most of it for {best.nominal.limit}."
        )
        if same is not None:
            gain = best.speedup(same)
            pays = "pays" if gain.low > 1 else "does not pay" if gain.high < 1 else "may pay or not"
            told.append(
                f"Against exact K-FAC that renews as often it {pays}: {spread(gain)} times as "
                f"fast, of {number(_limit(same))} that are possible."
            )
        rival = min(digital, key=_seconds, default=None)
        if rival is not None and rival is not same:
            told.append(
                f"Against {rival.optimizer}, the quickest of exact ones, it is "
                f"{spread(best.speedup(rival))} times as fast."
            )
    trained = [p for p in forecast.predictions if p.steps is not None]
    if trained and forecast.target is not None:
        best = min(trained, key=lambda p: p.seconds_to_target.nominal)  # type: ignore[union-attr]
        told.append(
            f"To {forecast.target.what} the quickest is {best.optimizer}, in "
            f"{spread(best.seconds_to_target, 1 / HOUR)} hours and "
            f"{spread(best.joules_to_target, 1 / KWH)} kWh."
        )
    if forecast.remark:
        told.append(forecast.remark)
    if forecast.target is not None and forecast.target.published:
        told.append(f"Published: {forecast.target.published}.")
    told.append(
        f"In brackets is where nine of ten of {forecast.draws:,} draws from all ranges lie."
    )
    return " ".join(told)


def _seconds(prediction: Prediction) -> float:
    return float(prediction.nominal.total_seconds)


def _ms(prediction: Prediction) -> str:
    return f"{spread(prediction.seconds_per_step, 1e3)} ms"


def _limit(prediction: Prediction) -> float:
    return prediction.for_free().speedup(prediction).nominal


def _ends(predictions: Sequence[Prediction]) -> Iterable[Prediction]:
    """The first and the last, or the only one."""
    return predictions if len(predictions) < 2 else (predictions[0], predictions[-1])


def in_words(forecast: Predictions) -> str:
    """The paragraph, and the tables in Markdown."""
    tables = (step_table(forecast), speedup_table(forecast), target_table(forecast))
    told = [markdown(*table).rstrip() for table in tables if table[1]]
    return "\n\n".join([explain(forecast), *told])


def as_dict(forecast: Predictions) -> dict[str, Any]:
    """All figures, units in the names; spreads as nominal, low and high."""
    question = forecast.question
    technology = forecast.technology
    return {
        "version": version("thermokron"),
        "workload": question.workload.name,
        "batch": question.workload.batch,
        "devices": question.devices,
        "machine": question.machine.name,
        "technology": None if technology is None else technology.name,
        "sources": {
            "workload": question.workload.source,
            "machine": question.machine.source,
            "technology": None if technology is None else technology.source,
        },
        "units_per_device": None if technology is None else technology.units,
        "spec": _spec(forecast),
        "draws": forecast.draws,
        "seed": forecast.seed,
        "target": None if forecast.target is None else forecast.target.what,
        "predictions": [_record(forecast, each) for each in forecast.predictions],
        "assumptions": [vars(quantity) for quantity in quantities(forecast)],
    }


def _spec(forecast: Predictions) -> Any:
    built = [p.question.built for p in forecast.predictions if p.question.built is not None]
    return json.loads(built[0].spec.to_json()) if built else None


def _record(forecast: Predictions, each: Prediction) -> dict[str, Any]:
    def plain(value: Spread | None) -> Any:
        return None if value is None else vars(value)

    digital = forecast.digital(each)
    adam = forecast.find("adam")
    return {
        "optimizer": each.optimizer.name,
        "seconds_per_step": plain(each.seconds_per_step),
        "joules_per_step": plain(each.joules_per_step),
        "seconds_by_part": {part: vars(value) for part, value in each.seconds.items()},
        "joules_by_part": {part: vars(value) for part, value in each.joules.items()},
        "limiting_part": each.nominal.limit,
        "steps_to_target": None if each.steps is None else plain(Spread.of(*each.steps)),
        "seconds_to_target": plain(each.seconds_to_target),
        "joules_to_target": plain(each.joules_to_target),
        "speedup_over_exact": None if digital is None else plain(each.speedup(digital)),
        "amdahl_limit_over_exact": None
        if digital is None
        else plain(digital.for_free().speedup(digital)),
        "speedup_over_adam": None if adam is None else plain(each.speedup(adam)),
        "speedup_over_adam_to_target": None
        if adam is None
        else plain(each.speedup_to_target(adam)),
    }


def as_json(forecast: Predictions) -> str:
    """`as_dict` as text."""
    return json.dumps(as_dict(forecast), indent=1, allow_nan=False) + "\n"
