"""Measured times of K-FAC on a V100, to calibrate a machine by, and to judge it by.

PipeFisher's repository has the parts of a step of one transformer layer, in float32, for four
layers and several batches. Of width 768 are those that calibrate, of width 1024 those that judge.

The layers are BERT's and OPT's as Hugging Face has them; their factors have no bias's row, and
query, key and value do not share the moments of their inputs. No gradient of the layer's input is
asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from thermokron.host.predict.machines.digital import (
    apply_operations,
    curvature_operations,
    inversion_operations,
)
from thermokron.host.predict.machines.machine import Curve, Machine
from thermokron.host.predict.quantity import Quantity, Values
from thermokron.host.predict.workloads.workload import Block, Operation

__all__ = ["PARTS", "Row", "calibrated", "predicted", "rows"]

TABLE = Path(__file__).with_name("data") / "pipefisher.tsv"
PARTS = ("forward", "backward", "factors", "inversion", "apply")
SOURCE = "kazukiosawa/pipe-fisher@753fdf0 prof/*_time_memory_v100.csv"


@dataclass(frozen=True)
class Row:
    """A layer, its batch, and what was measured.

    Attributes
    ----------
    layer : str
    width, hidden, heads, sequence, batch : int
    seconds : dict of str to float
        By `PARTS`.
    """

    layer: str
    width: int
    hidden: int
    heads: int
    sequence: int
    batch: int
    seconds: dict[str, float]


@cache
def rows() -> tuple[Row, ...]:
    """All that were measured."""
    lines = [
        line.split("\t")
        for line in TABLE.read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    ]
    found = []
    for layer, *line in lines[1:]:
        width, hidden, heads, sequence, batch = map(int, line[:5])
        seconds = {part: 1e-3 * float(ms) for part, ms in zip(PARTS, line[5:], strict=True)}
        found.append(Row(layer, width, hidden, heads, sequence, batch, seconds))
    return tuple(found)


def predicted(row: Row, machine: Machine) -> dict[str, float]:
    """Seconds by `PARTS`, nominal."""
    values = Values()
    operations = _operations(row.layer, row.width, row.hidden, row.heads, row.sequence, row.batch)
    return {part: float(machine.seconds(operations[part], values)) for part in PARTS}


def calibrated(machine: Machine, known: Sequence[Row]) -> Machine:
    """A machine with the rates of products and inverses, bandwidth and launch that fit best.

    Least squares of the logarithms of predicted over measured seconds, within the ranges that the
    machine's quantities have; of errors beyond a tenth no more than their size counts, as the
    smallest batches are limited by launches, of which there is one figure for all.

    Parameters
    ----------
    machine : Machine
        Of the shape of whose curves nothing changes.
    known : sequence of Row
        What was measured, at least one.
    """
    from scipy.optimize import least_squares

    def errors(logs: np.ndarray) -> list[float]:
        trial = _scaled(machine, *np.exp(logs))
        found = []
        for row in known:
            ours = predicted(row, trial)
            found += [float(np.log(ours[part] / row.seconds[part])) for part in PARTS]
        return found

    free = machine.gemm_trust, machine.inverse_trust, machine.bandwidth, machine.launch
    low, high = (
        np.log([getattr(each, end) / each.nominal for each in free]) for end in ("low", "high")
    )
    # steps that are large enough to be felt where a maximum hides a change
    best = least_squares(
        errors,
        np.zeros(4),
        diff_step=0.02,
        bounds=(low - 1e-6, high + 1e-6),
        loss="soft_l1",
        f_scale=0.1,
    )
    return _scaled(machine, *np.exp(best.x))


def _scaled(
    machine: Machine, products: float, inverses: float, bandwidth: float, launch: float
) -> Machine:
    return replace(
        machine,
        gemm=_times(machine.gemm, products),
        inverse=_times(machine.inverse, inverses),
        bandwidth=_moved(machine.bandwidth, bandwidth),
        launch=_moved(machine.launch, launch),
    )


def _times(curve: Curve, factor: float) -> Curve:
    return replace(curve, rates=tuple(factor * rate for rate in curve.rates))


def _moved(quantity: Quantity, factor: float) -> Quantity:
    return replace(
        quantity,
        low=factor * quantity.low,
        nominal=factor * quantity.nominal,
        high=factor * quantity.high,
    )


@cache
def _operations(
    layer: str, width: int, hidden: int, heads: int, sequence: int, batch: int
) -> dict[str, tuple[Operation, ...]]:
    import torch

    from thermokron.host.predict.workloads.architectures import TransformerLayer
    from thermokron.host.predict.workloads.tracing import trace

    opt = layer.startswith("opt")
    with torch.device("meta"):
        module = TransformerLayer(
            width,
            heads,
            hidden,
            first=layer == "opt-125m",
            activation=torch.nn.functional.relu if opt else torch.nn.functional.gelu,
            causal=True,  # there was a mask
            dropout=0.1,
            forgetting=0.0 if opt else 0.1,
            finite=opt,
        )
        inputs = torch.empty(batch, sequence, width)
    workload = trace(module, inputs, name=layer, source=SOURCE)
    blocks = [_without_bias(block) for block in workload.blocks]
    return {
        **{
            phase: tuple(each for each in workload.operations if each.phase == phase)
            for phase in ("forward", "backward")
        },
        "factors": curvature_operations(blocks),
        "inversion": _all(inversion_operations(block) for block in blocks),
        "apply": _all(_products_alone(block) for block in blocks),
    }


def _without_bias(block: Block) -> Block:
    return replace(block, inputs=block.inputs - 1, bias=False, shared="")


def _products_alone(block: Block) -> tuple[Operation, ...]:
    """Of what our apply does beside its products, theirs brings gradients there and back alone."""
    products = [each for each in apply_operations(block) if each.kind == "gemm"]
    moved = 8 * block.inputs * block.outputs
    return (*products, Operation("memory", "apply", bytes=moved, count=2))


def _all(parts: Iterable[tuple[Operation, ...]]) -> tuple[Operation, ...]:
    return tuple(each for part in parts for each in part)
