"""The tables of docs/predict.md that are computed: AlgoPerf's workloads, TNGD's claim, conditions.

    python benchmarks/predict.py algoperf networks pipefisher tngd   # a minute
    python benchmarks/predict.py conditions unit         # a minute

Each part writes its tables into runs/predict; `--into docs/predict.md` replaces those in that page.

    algoperf    ViT-S/16 and the graph network on eight V100 and H100, all optimisers, technologies
    networks    where one A100 with a unit is quicker than alone, and by how much at most
    pipefisher  parts of steps of width 1024 on a V100, calibrated on those of width 768
    tngd        what TNGD's assumptions make of its own step, and of K-FAC's
    conditions  what of a step depends on the data, in trainings of four networks
    unit        the unit's time of whole steps, predicted from another unit's, against the engine's

What was measured on this computer is in benchmarks/predict_this.py.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from step_cost import insert

from thermokron.host.kfac import KFAC, StepMetrics
from thermokron.host.predict import (
    Forecast,
    Prediction,
    Question,
    Values,
    as_built,
    forecast,
    machine,
    network,
    observed,
    optimizer,
    pays,
    technology,
)
from thermokron.host.predict.machines import pipefisher
from thermokron.host.predict.plots import plot_parts
from thermokron.host.predict.report import HOUR, KWH, spread
from thermokron.host.tables import markdown, number, write
from thermokron.host.train import TrainConfig, train
from thermokron.model import UnitSpec

TECHNOLOGIES = ("cmos28", "tngd", "board")
#: Who is told of: the digital ones once, those of a unit with every technology.
OFTEN = ("1", "10", "10/10", "100")
DIGITAL = ("sgd", "adam", *(f"kfac-exact@{each}" for each in OFTEN))
ON_UNIT = tuple(f"{kind}@{each}" for kind in ("kfac-solve", "kfac-inverse") for each in OFTEN)
#: What AlgoPerf's logs have of eight V100, v0.5 and v0.6: ms a step, J a step.
PUBLISHED = {
    "vit-s16": {"first-order": ("402 to 502", ""), "Shampoo, every 100": ("409 and 527", "")},
    "ogbg-gnn": {"first-order": ("208 to 334", ""), "Shampoo, every 100": ("258 and 336", "")},
}
WORKLOADS = {"vit-s16": "ViT-S/16", "ogbg-gnn": "graph network"}
#: Networks of `thermokron train`, as predictions call them, and the rows of their largest factor.
TRAININGS = {"mlp": ("digits", 65), "cnn": ("cnn", 73), "vit": ("vit", 65), "graph": ("graph", 65)}
DRAWS = 10_000
#: Networks and batches on one device; None is the usual batch.
NETWORKS = (
    ("mlp:256x3", None),
    ("mlp:1024x3", None),
    ("mlp:3072x3", None),
    ("resnet-50", None),
    ("bert-base", None),
    ("bert-base", 8),
    ("gpt2-small", 1),
    ("vit-s16", None),
    ("ogbg-gnn", None),
)


def algoperf(folder: Path) -> list[str]:
    """Eight devices, as AlgoPerf has them."""
    texts = []
    for name, title in WORKLOADS.items():
        for card in ("v100", "h100"):
            texts.append(_table(f"{title}, 8 x {card.upper()}", name, card, folder))
    return texts


def _table(title: str, name: str, card: str, folder: Path) -> str:
    load, where = network(name), machine(card)
    rows = []
    every: dict[str, Forecast] = {}
    for built in TECHNOLOGIES:
        # TNGD lets the array run for 50 tau
        settle = "50tau" if built == "tngd" else 0.1
        asked = [optimizer(each) for each in DIGITAL]
        asked += [optimizer(each, settle=settle) for each in ON_UNIT]
        every[built] = forecast(
            load,
            machine=where,
            technology=technology(built),
            optimizers=asked,
            devices=8,
            draws=DRAWS,
        )
    first = every[TECHNOLOGIES[0]]
    adam = first["adam"]
    for built, found in every.items():
        for each in found.predictions:
            how = each.optimizer
            if not how.on_unit and found is not first:
                continue
            digital = found.digital(each) if how.on_unit else None
            limit = each.nominal.limit
            share = float(each.nominal.seconds[limit]) / float(each.nominal.total_seconds)
            free = each.for_free().speedup_to_target(found["adam"]) if each.steps else None
            rows.append(
                (
                    how.name + (f", {built}" if how.on_unit else ""),
                    spread(each.seconds_per_step, 1e3),
                    spread(each.joules_per_step),
                    f"{limit} {share:.0%}",
                    "" if digital is None else spread(each.speedup(digital)),
                    "" if digital is None else number(digital.for_free().speedup(digital).nominal),
                    spread(each.seconds_to_target, 1 / HOUR),
                    spread(each.joules_to_target, 1 / KWH),
                    spread(each.speedup_to_target(adam)) if each.steps else "",
                    "" if free is None else number(free.nominal),
                )
            )
            if how.kind == "adam" and card == "v100":
                published = PUBLISHED[name].items()
                rows += [(f"published: {who}", *told, *[""] * 7) for who, told in published]
    plot_parts(first, folder / f"predict-{name}-{card}.png")
    head = (
        title,
        "ms a step",
        "J a step",
        "most of it",
        "speedup over exact",
        "at most",
        "hours to the target",
        "kWh",
        "speedup over Adam",
        "at most",
    )
    return markdown(head, rows)


def networks(folder: Path) -> list[str]:
    """Inverses of every step and of every tenth, one unit and eight."""
    rows = []
    for name, batch in NETWORKS:
        load, where = network(name, batch), machine("a100")
        asked = ("adam", "kfac-exact@1", "kfac-exact@10/10", "kfac-solve@1")
        one, eight = (
            forecast(
                load,
                machine=where,
                technology=technology("cmos28").with_units(units),
                optimizers=asked,
                draws=DRAWS,
            )
            for units in (1, 8)
        )
        adam, exact, tenth, solve = one.predictions
        breaks = {each.name: each for each in pays(solve.question, exact.question)}
        rows.append(
            (
                f"{name}, {load.batch}",
                *(number(1e3 * each.seconds_per_step.nominal) for each in (adam, exact, tenth)),
                number(exact.for_free().speedup(exact).nominal),
                spread(solve.speedup(exact)),
                spread(_settled(one, 0.03).speedup(exact)),
                spread(eight["kfac-solve@1"].speedup(exact)),
                spread(eight["kfac-solve@1"].speedup(tenth)),
                breaks["tau"].told(),
            )
        )
    head = (
        "network, batch, on an A100",
        "Adam, ms",
        "exact, every step",
        "factors and inverses every 10",
        "at most",
        "a unit that solves, over exact every step",
        "the same, settled to 3%",
        "eight units",
        "eight, over exact every 10",
        "one pays, tau",
    )
    return [markdown(head, rows)]


def _settled(found: Forecast, settle: float) -> Prediction:
    """A unit that solves, with less left undone."""
    before = found["kfac-solve@1"].question
    how = replace(before.optimizer, settle=settle)
    return forecast(
        before.workload,
        machine=before.machine,
        technology=before.technology,
        optimizers=[how],
        draws=DRAWS,
    ).predictions[0]


def published(folder: Path) -> list[str]:
    """PipeFisher's rows: what was measured, and what is predicted of it."""
    every = pipefisher.rows()
    card = pipefisher.calibrated(machine("v100"), [row for row in every if row.width == 768])
    rows = []
    for row in every:
        if row.width == 1024:
            told = pipefisher.predicted(row, card)
            cells = []
            for part in pipefisher.PARTS:
                measured = row.seconds[part]
                cells.append(f"{number(1e3 * measured)}, {told[part] / measured - 1.0:+.0%}")
            rows.append((f"{row.layer}, sequence {row.sequence}, batch {row.batch}", *cells))
    return [markdown(("ms measured, and how much more is predicted", *pipefisher.PARTS), rows)]


def tngd(folder: Path) -> list[str]:
    """b d_z (b d_z + 2N) resistances set, N voltages in and out, 50 tau; and K-FAC's step."""
    built, values = technology("tngd"), Values()
    bandwidth, tau = (values(each) for each in (built.link_bandwidth, built.tau))
    rows = []
    outputs = 64 * 10  # b = 64, d_z = 10: MNIST
    for parameters in (1e3, 1e4, 1e5, 1e6):
        moved = 16 * (outputs * (outputs + 2 * parameters) + 2 * parameters) / bandwidth
        rows.append((f"{parameters:,.0f}", number(1e3 * moved), number(1e3 * 50 * tau)))
    own = markdown(
        ("TNGD's step, parameters", "ms to set and read", "ms of dynamics, 50 tau"), rows
    )
    rows = []
    for name in ("mlp:256x2", "mlp:1024x2", "vit-s16", "bert-base"):
        found = forecast(
            network(name),
            machine=machine("a100"),
            technology=built,
            optimizers=[optimizer("adam"), optimizer("kfac-solve", settle="50tau")],
            draws=DRAWS,
        )
        adam, kfac = found.predictions
        parts = {part: number(1e3 * float(s)) for part, s in kfac.nominal.seconds.items()}
        whole = (adam, kfac)
        rows.append(
            (
                name,
                *(number(1e3 * each.seconds_per_step.nominal) for each in whole),
                parts["transport"],
                parts["settle"],
                parts["read"],
                spread(adam.speedup(kfac)),
            )
        )
    head = (
        "K-FAC with TNGD's assumptions, A100",
        "Adam, ms",
        "K-FAC, ms",
        "transport",
        "settle, 50 tau a column",
        "read",
        "K-FAC's step over Adam's",
    )
    return [own, markdown(head, rows)]


def conditions(folder: Path) -> list[str]:
    """Of trainings at the defaults of `thermokron train`, after the first quarter of the steps."""
    rows = []
    for name, (workload, cells) in TRAININGS.items():
        spec = UnitSpec(cells=cells, adc_bits=8, rhs_depth=256)
        taken, config = _steps(name, spec)
        seen = observed(_question(workload, config, spec), _later(taken))
        rows.append(
            (
                name,
                *(number(round(q.nominal, 6)) for q in (seen.kappa, seen.reruns, seen.restarts)),
            )
        )
    head = ("training", "1/λ_min, scaled", "columns that run again", "starts that takes, a solve")
    return [markdown(head, rows)]


def unit(folder: Path) -> list[str]:
    """What is seen on one unit, predicted for another, beside what the engine took."""
    rows = []
    for name, (workload, cells) in TRAININGS.items():
        one = UnitSpec(cells=cells, adc_bits=8)
        other = UnitSpec(
            cells=cells + 15,
            adc_bits=10,
            adc_cycles=12,
            discharge_cycles=30,
            tau_s=one.tau_s / 2,
            clock_hz=one.clock_hz * 2,
        )
        taken, config = _steps(name, one)
        asked = _question(workload, config, other)
        seen = observed(_question(workload, config, one), _later(taken))
        told = replace(asked, conditions=seen).demand(Values())
        steps = _later(_steps(name, other)[0])
        took = np.mean([metrics.hardware_seconds for metrics in steps])
        blind = asked.demand(Values()).seconds
        ratios = (told.seconds / took, blind / took)
        rows.append((name, number(1e3 * took), number(1e3 * told.seconds), *map(number, ratios)))
    head = ("whole steps", "engine, ms", "predicted, ms", "of it", "of it, conditions not seen")
    return [markdown(head, rows)]


def _question(workload: str, config: TrainConfig, spec: UnitSpec) -> Question:
    load, how = network(workload, config.batch_size), optimizer("kfac-solve")
    return Question(load, machine("v100"), how, as_built(spec))


def _later(metrics: Sequence[StepMetrics]) -> Sequence[StepMetrics]:
    return metrics[len(metrics) // 4 :]


def _steps(name: str, spec: UnitSpec) -> tuple[list[StepMetrics], TrainConfig]:
    taken: list[StepMetrics] = []
    step = KFAC.step

    def noted(self, *args, **options):
        result = step(self, *args, **options)
        taken.append(self.metrics)
        return result

    config = TrainConfig(network=name, engine="numeric", epochs=4, seed=0)
    KFAC.step = noted
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            train(config, spec=spec)
    finally:
        KFAC.step = step
    return taken, config


PARTS = {
    "algoperf": algoperf,
    "networks": networks,
    "pipefisher": published,
    "tngd": tngd,
    "conditions": conditions,
    "unit": unit,
}


def main() -> None:
    """Make the parts asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all, if none is named")
    parser.add_argument("--into", type=Path, nargs="+", default=[], metavar="PAGE")
    args = parser.parse_args()
    folder = Path("runs/predict")
    for part in args.parts or PARTS:
        texts = PARTS[part](folder)
        print(f"wrote {write(folder / f'{part}.md', *texts)}")
        insert(args.into, texts)


if __name__ == "__main__":
    main()
