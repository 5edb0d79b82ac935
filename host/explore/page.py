"""The page of a search: one file that needs nothing beside, with or without scripts."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Sequence
from html import escape
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from thermokron.host.explore.candidate import BITS
from thermokron.host.explore.charts import anchor, legend, scatter
from thermokron.host.explore.numbers import between, si
from thermokron.host.explore.results import DRAWS, OBJECTIVES, PERCENTILES, Evaluated, Found
from thermokron.host.predict.quantity import Quantity
from thermokron.host.studies.runs import Store
from thermokron.host.tables import number
from thermokron.model.files import write_whole

__all__ = ["json_of", "python_of", "write_page"]

UNITS = tuple(OBJECTIVES.values())
#: Headings of what a training lost.
LOSSES = ("loss over exact", "on other seeds", "holds")
#: Headings of columns of words.
TEXTS = ("", "state", "holds", "largest part", "source")
#: What a mouse over a heading tells.
HINTS = {
    "loss over exact": "training loss at the end over exact K-FAC's, medians over seeds",
    "on other seeds": "the median over seeds that the search has not seen of the training loss at "
    "the end over exact K-FAC's from the same seed",
    "holds": "whether it is good enough on those, too",
    "largest part": "the part that takes most of a step's time, and of its energy",
}


def write_page(found: Found, store: Store, folder: Path) -> Path:
    """Write `index.html`; its path."""
    plan = found.plan
    body = [
        f"<h1>{escape(plan.title)}</h1>",
        *_summary(found),
        "<h2>What the best gain</h2>",
        *_gains(found),
        "<h2>All candidates by their costs</h2>",
        legend(),
        '<div class="charts">',
        *(f"<figure>{scatter(found, 0, y)}</figure>" for y in (1, 2)),
        "</div>",
        '<p class="quiet">Dashed: the front of the two alone. A mark leads to its spec.</p>',
        "<h2>The front</h2>",
        *_front(found),
        "<h2>All candidates</h2>",
        *_all(found),
        "<h2>Specs</h2>",
        "<p>To build, to train on, to search further from. The front comes first.</p>",
        *_specs(found),
        "<h2>How it was searched</h2>",
        *_settings(found, store),
        "<h2>Prices</h2>",
        *_prices(found),
    ]
    own = files("thermokron.host.explore")
    style, script = ((own / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(plan.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + f"\n<script>\n{script}</script>\n</body>\n</html>\n"
    )
    return write_whole(folder / "index.html", page)


def _summary(found: Found) -> Iterable[str]:
    plan, distinct = found.plan, found.distinct
    feasible = sum(one.feasible for one in distinct)
    badly = sum(one.end != "finished" for one in distinct)
    yield (
        f"<p>{len(found.trials):,} candidates were proposed, {len(distinct):,} of them distinct, "
        f"and each trained from {len(plan.seeds)} seed{'s' * (len(plan.seeds) != 1)} on the "
        f"<code>{plan.engine}</code> engine. <b>{feasible:,}</b> end with a training loss of at "
        f"most {1 + plan.within:.4g} times exact K-FAC&#x27;s {found.exact:.4g}; "
        f"<b>{len(found.front):,}</b> of them are on the front of time, energy and area. "
        f"<b>{len(found.holding):,}</b> of those hold: from {len(plan.check_seeds)} other seeds, "
        "too, the median of their losses over exact K-FAC&#x27;s from the same seed is at most "
        "that." + (f" {badly:,} diverged, or were refused by the unit." if badly else "") + "</p>"
    )
    if not found.front:
        yield "<p><b>No candidate is good enough</b>: give the space more bits or samples.</p>"
    elif not found.holding:
        yield "<p><b>None of the front holds</b>: search from more seeds, or with more trials.</p>"


def _gains(found: Found) -> Iterable[str]:
    rows = []
    base = found.baselines[0]
    for name, one in [*((b.name, b) for b in found.baselines), *found.chosen.items()]:
        label = escape(name)
        if one not in found.baselines:
            label += f" <small>{_link(one)}</small>"
        cells = [f'<td class="text">{label}</td>']
        for mine, its, unit in zip(one.objectives, base.objectives, UNITS, strict=True):
            cells.append(f"<td>{si(mine, unit)}{'' if one is base else _factor(mine, its)}</td>")
        cells += _losses(found, one)
        best = ' class="best"' if name == "balanced" else ""
        rows.append(f"<tr{best}>{''.join(cells)}</tr>")
    heads = ["", "time of a step", "energy of a step", "area", *LOSSES]
    yield _table(heads, rows, "gains")
    yield (
        '<p class="quiet">Of a step only what the unit does: transport, load, settle, sample, '
        "read. The best are those of the front that hold; balanced is the least product of time, "
        "energy and area. What stands before × is the part of the default unit&#x27;s, whose "
        "clock is 25 MHz; the second row has this search&#x27;s clock, and says how much the clock "
        "alone brings.</p>"
    )


def _factor(mine: float, its: float) -> str:
    if not 0.0 < mine < float("inf") or its == float("inf"):
        return ""
    return f" <small>{number(mine / its, 2)} ×</small>"


def _losses(found: Found, one: Evaluated) -> Iterable[str]:
    """Cells of `LOSSES`."""
    for each in (one, found.again[one.name]):
        yield f'<td data-value="{_number(each.ratio)}">{_ratio(each)}</td>'
    yield f'<td class="text">{"holds" if found.holds(one) else "no"}</td>'


def _front(found: Found) -> Iterable[str]:
    rows = []
    for one in found.front:
        cells = [f"<td>{_link(one)}</td>"]
        for value, (low, high), unit in zip(one.objectives, one.spreads, UNITS, strict=True):
            spread = f"<small>{between(low, high, unit)}</small>"
            cells.append(f'<td data-value="{value!r}">{si(value, unit)} {spread}</td>')
        cells += [*_losses(found, one), _limit(one)]
        cells += _searched(found, one)
        rows.append(f"<tr>{''.join(cells)}</tr>")
    heads = ["", *OBJECTIVES, *LOSSES, "largest part", *_names(found)]
    yield _table(heads, rows, "front", sortable=True)
    low, high = PERCENTILES
    yield (
        f'<p class="quiet">Below values: between what percentiles {low:g} and {high:g} of '
        f"{DRAWS:,} draws of all prices lie; τ and clock are the candidate&#x27;s. What all "
        f"candidates have in common: {escape(_common(found))}.</p>"
    )


def _limit(one: Evaluated) -> str:
    if one.nominal is None:
        return '<td class="text"></td>'
    longest, dearest = (
        max(parts, key=lambda part: float(parts[part]))
        for parts in (one.nominal.seconds, one.nominal.joules)
    )
    return f'<td class="text">time: {longest}<br>energy: {dearest}</td>'


def _names(found: Found) -> list[str]:
    """What differs between candidates."""
    tables = [one.candidate.table for one in found.distinct]
    return [name for name in tables[0] if len({str(table[name]) for table in tables}) > 1]


def _common(found: Found) -> str:
    table, names = found.trials[0].candidate.table, _names(found)
    told = [f"{name} {value}" for name, value in table.items() if name not in names]
    return ", ".join([*told, f"words of {found.plan.word_bits} bits on the link"])


def _searched(found: Found, one: Evaluated) -> Iterable[str]:
    table = one.candidate.table
    for name in _names(found):
        value = ""
        if name == BITS:  # by which it is sorted
            value = f' data-value="{"".join(f"{int(bits):02}" for bits in table[name].split("/"))}"'
        yield f"<td{value}>{escape(str(table[name]))}</td>"


def _all(found: Found) -> Iterable[str]:
    front = set(map(id, found.front))
    rows = []
    for one in [*found.baselines, *found.distinct]:
        state = "front" if id(one) in front else "good enough" if one.feasible else "beyond"
        state = state if one.end == "finished" else one.end
        cells = [f"<td>{_link(one)}</td>", f'<td class="text">{state}</td>']
        cells.append(f'<td data-value="{_number(one.ratio)}">{_ratio(one)}</td>')
        for value, unit in zip(one.objectives, UNITS, strict=True):
            cells.append(f'<td data-value="{_number(value)}">{si(value, unit)}</td>')
        cells += _searched(found, one)
        rows.append(f"<tr>{''.join(cells)}</tr>")
    heads = ["", "state", LOSSES[0], *OBJECTIVES, *_names(found)]
    yield _table(heads, rows, "all", sortable=True, tall=True)


def _ratio(one: Evaluated) -> str:
    return f"{one.ratio:.3f}" if one.ratio < float("inf") else "–"


def _number(value: float) -> str:
    return "Infinity" if value == float("inf") else repr(value)  # as JavaScript reads it


def _link(one: Evaluated) -> str:
    return f'<a href="#{anchor(one)}">{escape(one.name)}</a>'


def _table(
    heads: Sequence[str],
    rows: Sequence[str],
    name: str,
    *,
    sortable: bool = False,
    tall: bool = False,
) -> str:
    told = "".join(map(_head, heads))
    kind = ' class="sortable"' if sortable else ""
    return (
        f'<div class="scroll{" tall" * tall}"><table id="{name}"{kind}><thead><tr>{told}</tr>'
        f"</thead><tbody>\n{chr(10).join(rows)}\n</tbody></table></div>"
    )


def _head(name: str) -> str:
    kind = ' class="text"' if name in TEXTS else ""
    hint = f' title="{escape(HINTS[name])}"' if name in HINTS else ""
    return f"<th{kind}{hint}>{escape(name)}</th>"


# ---- specs ------------------------------------------------------------------------------------


def json_of(one: Evaluated) -> str:
    """Its `UnitSpec`, as `UnitSpec.from_json` reads it."""
    return json.dumps(json.loads(one.candidate.spec.to_json()), indent=1)


def python_of(found: Found, one: Evaluated) -> str:
    """A program that trains on it."""
    config = {
        **found.plan.config,
        "engine": found.plan.engine,
        **one.candidate.settings,
        "seed": found.plan.seeds[0],
    }
    config = {name: None if value == "none" else value for name, value in config.items()}
    if isinstance(config.get("hidden"), list):
        config["hidden"] = tuple(config["hidden"])
    fields = json.loads(one.candidate.spec.to_json())
    return "\n".join(
        [
            "from thermokron.host.train import TrainConfig, train",
            "from thermokron.model import UnitSpec",
            "",
            "spec = UnitSpec(",
            *(f"    {name}={value!r}," for name, value in fields.items()),
            ")",
            "config = TrainConfig(",
            *(f"    {name}={value!r}," for name, value in config.items()),
            ")",
            "print(train(config, spec=spec).train_loss)",
        ]
    )


def _specs(found: Found) -> Iterable[str]:
    front = set(map(id, found.front))
    rest = [one for one in found.distinct if id(one) not in front]
    yield from (_spec(found, one) for one in [*found.front, *found.baselines])
    if rest:
        yield f'<details><summary>{len(rest):,} others</summary><div class="inner">'
        yield from (_spec(found, one) for one in rest)
        yield "</div></details>"


def _spec(found: Found, one: Evaluated) -> str:
    table = one.candidate.table
    told = f"{table['cells']} cells, {one.candidate.spec.coupling_bits}-bit couplings"
    for value, unit in zip(one.objectives, UNITS, strict=True):
        told += f", {si(value, unit)}"
    return (
        f'<details id="{anchor(one)}"><summary><b>{escape(one.name)}</b> {escape(told)}</summary>'
        f'<div class="codes">{_code("UnitSpec as JSON", json_of(one))}'
        f"{_code('Python that trains on it', python_of(found, one))}</div>"
        f'<p class="quiet codes">Beside the spec: ports = {table["ports"]}, units = '
        f"{table['units']}.</p></details>"
    )


def _code(name: str, text: str) -> str:
    button = '<button type="button" class="copy">copy</button>'
    return f"<div><small>{name}</small> {button}<pre>{escape(text)}</pre></div>"


# ---- how --------------------------------------------------------------------------------------


def _settings(found: Found, store: Store) -> Iterable[str]:
    plan = found.plan
    searched = {name: str(each) for name, each in plan.axes.items() if not each.fixed}
    unit = ", ".join(f"{name} = {value:g}" for name, value in plan.unit.items())
    versions = [f"{name} {version(name)}" for name in ("thermokron", "optuna", "torch", "numpy")]
    told = {
        "searched": "; ".join(f"{name}: {values}" for name, values in searched.items()),
        "training": ", ".join(f"{name} = {value!r}" for name, value in plan.config.items()),
        "the unit beside": unit,
        "seeds of the search": ", ".join(map(str, plan.seeds)),
        "other seeds": ", ".join(map(str, plan.check_seeds)),
        "search": f"Optuna's TPE with constraints, seed {plan.search_seed}, generations of "
        f"{plan.generation}",
        "plan": f"{plan.name}, digest {plan.digest}",
        "made with": ", ".join([*versions, f"Python {platform.python_version()}"]),
        "runs": " ".join(filter(None, (store.told_runs(), store.told_versions()))),
    }
    rows = [
        f'<tr><td class="text">{escape(name)}</td><td class="text wrap">{escape(text)}</td></tr>'
        for name, text in told.items()
    ]
    yield _table(["", ""], rows, "settings")
    yield (
        "<p>A step&#x27;s cost is what its training asked of the unit: runs, codes, conversions, "
        "products and cycles, counted where they happen and priced by "
        "<code>thermokron.host.predict</code>. More ports than one shorten loading as "
        "<code>UnitSpec.cycles_of(dac_lanes=…)</code> says; the control plane has up to 16. "
        "Of several units each takes the next layer when it is free; their time is Graham&#x27;s "
        "bound on that, and all have their static power for as long as one works.</p>"
    )


def _prices(found: Found) -> Iterable[str]:
    one = found.chosen.get("balanced", found.trials[0])
    rows = [
        f'<tr><td class="text">{escape(each.name)}</td>'
        + "".join(f"<td>{si(x, each.unit)}</td>" for x in _ends(each))
        + f'<td class="text wrap">{escape(each.source)}</td></tr>'
        for each in one.candidate.technology.quantities()
    ]
    yield (
        f"<p>Those of {escape(one.name)}; bits, τ and rate of another change some of them. "
        "Intervals are of draws from low to high of all but τ and clock.</p>"
    )
    yield _table(["", "low", "nominal", "high", "source"], rows, "prices")


def _ends(each: Quantity) -> tuple[float, float, float]:
    return each.low, each.nominal, each.high
