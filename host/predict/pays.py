"""Where a unit begins to pay: break-even of width, condition, τ, link and refresh interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from thermokron.host.predict.prediction import Question
from thermokron.host.predict.predictions import Prediction
from thermokron.host.predict.quantity import Quantity, Values
from thermokron.host.predict.sensitivity import BreakEven, break_even, speedup
from thermokron.host.predict.workloads.workload import Block, Operation, Workload

__all__ = ["pays", "rival", "square_layers"]

#: Widths, steps between renewals, and how far other things are moved beside their nominal values.
WIDTHS, REFRESHES, FACTOR = (32.0, 4095.0), (1.0, 1000.0), 100.0


def square_layers(width: int, rows: int, layers: int = 4) -> Workload:
    """An MLP of equal layers, with so many vectors a step, as widths are compared with."""
    passes = [
        Operation.product("forward", rows, width, width, count=layers, name="aten.addmm"),
        Operation.product("backward", rows, width, width, count=layers, name="aten.mm"),
        Operation.product("backward", width, rows, width, count=layers, name="aten.mm"),
        Operation("memory", "forward", bytes=8 * rows * width, count=layers),
        Operation("memory", "backward", bytes=12 * rows * width, count=layers),
    ]
    blocks = tuple(Block(f"layer {i}", width + 1, width, rows) for i in range(layers))
    return Workload(
        f"{layers} layers of width {width}",
        rows,
        layers * width * (width + 1),
        tuple(passes),
        blocks,
        "layers of equal width",
    )


def pays(one: Question, other: Question) -> list[BreakEven]:
    """Where a step of `one`, with a unit, is shorter than one of `other`, each thing by itself.

    Widths are those of equal layers with as many vectors a step as the workload has examples; all
    others are moved on the workload itself.

    Raises
    ------
    ValueError
        If `one` has no unit.
    """
    built = one.built
    if built is None:
        raise ValueError(
            f"one is {one.optimizer.name}, which has no unit; legal: kfac-solve, kfac-inverse"
        )

    def moved(quantity: Quantity) -> Callable[[float], float]:
        def ratio(value: float) -> float:
            return speedup(one, other, Values(fixed={quantity.name: value}))

        return ratio

    def width(value: float) -> float:
        load = square_layers(round(value), one.workload.batch)
        mine, others = (replace(each, workload=load) for each in (one, other))
        return speedup(mine, others, Values())

    def refresh(value: float) -> float:
        mine, others = (
            replace(each, optimizer=replace(each.optimizer, refresh=round(value)))
            for each in (one, other)
        )
        return speedup(mine, others, Values())

    found = [
        break_even("width", "1", width, *WIDTHS, integers=True),
        break_even("steps between renewals", "1", refresh, *REFRESHES, integers=True),
    ]
    for quantity in (one.conditions.kappa, built.tau, built.link_bandwidth):
        low, high = quantity.nominal / FACTOR, quantity.nominal * FACTOR
        if quantity is one.conditions.kappa:
            low = 1.0
        found.append(break_even(quantity.name, quantity.unit, moved(quantity), low, high))
    return found


def rival(prediction: Prediction, others: list[Prediction]) -> Prediction:
    """Exact K-FAC that renews as often, else the quickest of the others."""
    same = replace(prediction.optimizer, kind="kfac-exact").name
    twins = [each for each in others if each.optimizer.name == same]
    return (twins or sorted(others, key=lambda p: float(p.nominal.total_seconds)))[0]
