"""Forecasts in words, tables and JSON; all of the same figures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

from thermokron.host.predict.forecast import Forecast, Prediction, Spread
from thermokron.host.predict.prediction import PARTS
from thermokron.host.predict.quantity import Quantity, Values
from thermokron.host.predict.sensitivity import Swing
from thermokron.host.tables import number

__all__ = [
    "as_dict",
    "as_json",
    "assumptions",
    "explain",
    "parts_table",
    "step_table",
    "swing_table",
    "target_table",
]

#: A head, and rows.
Table = tuple[Sequence[str], Sequence[Sequence[str]]]

HOUR, KWH = 3600.0, 3.6e6


def spread(value: Spread | None, scale: float = 1.0) -> str:
    """Nominal, and in brackets between what nine of ten draws lie; "" of what is not known."""
    if value is None:
        return ""
    nominal, low, high = (number(each * scale) for each in (value.nominal, value.low, value.high))
    return nominal if low == high else f"{nominal} ({low} to {high})"


def step_table(forecast: Forecast) -> Table:
    """A step of every optimiser."""
    head = (
        "a step",
        "ms",
        "J",
        "most of it",
        "speedup over exact, as often renewed",
        "its limit (Amdahl)",
        "speedup over Adam",
    )
    rows = []
    adam = forecast.find("adam")
    for each in forecast.predictions:
        digital = forecast.digital(each) if each.optimizer.on_unit else None
        limit = each.nominal.limit
        share = float(each.nominal.seconds[limit]) / float(each.nominal.total_seconds)
        rows.append(
            (
                str(each.optimizer),
                spread(each.seconds_per_step, 1e3),
                spread(each.joules_per_step),
                f"{limit}, {share:.0%}",
                "" if digital is None else spread(each.speedup(digital)),
                "" if digital is None else spread(digital.for_free().speedup(digital)),
                "" if adam is None else spread(each.speedup(adam)),
            )
        )
    return head, rows


def target_table(forecast: Forecast) -> Table:
    """Training to the target; no rows where its steps are not known."""
    head = (
        "to the target",
        "thousand steps",
        "hours",
        "kWh",
        "speedup over Adam",
        "its limit (Amdahl)",
    )
    rows = []
    adam = forecast.find("adam")
    for each in forecast.predictions:
        if each.steps is None:
            continue
        steps = Spread.of(*each.steps)
        free = each.for_free()
        rows.append(
            (
                str(each.optimizer),
                spread(steps, 1e-3),
                spread(each.seconds_to_target, 1 / HOUR),
                spread(each.joules_to_target, 1 / KWH),
                "" if adam is None else spread(each.speedup_to_target(adam)),
                "" if adam is None else spread(free.speedup_to_target(adam)),
            )
        )
    return head, rows


def parts_table(forecast: Forecast) -> Table:
    """Nominal milliseconds of every part."""
    used = [part for part in PARTS if any(part in p.seconds for p in forecast.predictions)]
    rows = []
    for each in forecast.predictions:
        times = [each.nominal.seconds.get(part) for part in used]
        told = ("" if time is None else number(1e3 * float(time)) for time in times)
        rows.append((str(each.optimizer), *told, number(1e3 * float(each.nominal.total_seconds))))
    return ("ms", *used, "all"), rows


def swing_table(swings: Sequence[Swing], most: int = 12) -> Table:
    """What a speedup hangs on."""
    head = ("what moves", "from", "to", "unit", "speedup at low", "speedup at high", "source")
    rows = []
    for swing in swings[:most]:
        q = swing.quantity
        ends = (number(q.low), number(q.high), q.unit)
        rows.append((q.name, *ends, number(swing.at_low), number(swing.at_high), q.source))
    return head, rows


def assumptions(forecast: Forecast) -> Table:
    """Every number that the predictions used, with its range and source."""
    used: dict[str, Quantity] = {}
    for each in forecast.predictions:
        values = Values()
        each.question.evaluate(values)
        used |= values.used
    if forecast.target is not None:
        for quantity in (forecast.target.steps, forecast.target.ratio):
            used[quantity.name] = quantity
    head = ("quantity", "low", "nominal", "high", "unit", "source")
    rows = [
        (q.name, number(q.low), number(q.nominal), number(q.high), q.unit, q.source)
        for q in used.values()
    ]
    return head, rows


def explain(forecast: Forecast) -> str:
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
        best = min(on_unit, key=_seconds)
        built = best.question.built
        assert built is not None
        values = Values()
        area = float(built.area(values)) * 1e6
        told.append(
            f"With a unit of technology {built.name} ({built.spec.cells:,} cells, "
            f"{number(area)} mm2) the quickest is {best.optimizer}, {_ms(best)}, most of it for "
            f"{best.nominal.limit}."
        )
        same = forecast.digital(best)
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


def as_dict(forecast: Forecast) -> dict[str, Any]:
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
        "units_per_device": None if technology is None else technology.units,
        "spec": _spec(forecast),
        "draws": forecast.draws,
        "seed": forecast.seed,
        "target": None if forecast.target is None else forecast.target.what,
        "predictions": [_record(forecast, each) for each in forecast.predictions],
        "assumptions": [
            dict(zip(("name", "low", "nominal", "high", "unit", "source"), row, strict=True))
            for row in assumptions(forecast)[1]
        ],
    }


def _spec(forecast: Forecast) -> Any:
    built = [p.question.built for p in forecast.predictions if p.question.built is not None]
    return json.loads(built[0].spec.to_json()) if built else None


def _record(forecast: Forecast, each: Prediction) -> dict[str, Any]:
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


def as_json(forecast: Forecast) -> str:
    """`as_dict` as text."""
    return json.dumps(as_dict(forecast), indent=1, allow_nan=False) + "\n"
