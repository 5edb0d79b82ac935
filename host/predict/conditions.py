"""What of a step's cost depends on the data, and how many steps training takes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from thermokron.host.predict.quantity import Quantity

__all__ = ["CONDITIONS", "ELSEWHERE", "TARGETS", "Conditions", "Target"]


@dataclass(frozen=True)
class Conditions:
    """What of a step depends on the data.

    Attributes
    ----------
    kappa : Quantity
        1/λ_min of the damped factors, scaled to unit diagonal: their mean eigenvalue, 1, over their
        least, which is what settling and sampling take, in τ. A lower bound on the condition
        number.
    reruns : Quantity
        Part of the columns that run again: they left the converter's range, or used too little.
    restarts : Quantity
        Starts that this takes, per solve: such columns come together.
    passes : Quantity
        Times that a column of P⁻¹Q is solved for, where factors go through blocks.
    samples_per_row : Quantity
        Samples of an inverse, per row of the factor: its relative error is √(n/N).
    """

    kappa: Quantity
    reruns: Quantity
    restarts: Quantity
    passes: Quantity
    samples_per_row: Quantity


_TRAININGS = "our trainings of four networks, docs/predict.md"
CONDITIONS = Conditions(
    kappa=Quantity("condition, 1/λ_min", 2.0, 8.0, 40.0, "1", _TRAININGS),
    reruns=Quantity("columns that run again", 0.0005, 0.01, 0.07, "1", _TRAININGS),
    restarts=Quantity("starts that reruns take", 0.1, 0.2, 0.7, "1", _TRAININGS),
    passes=Quantity(
        "passes of elimination", 1.0, 1.2, 2.0, "1", "docs/asymptotics.md: 1 to 2 with 8 bits"
    ),
    samples_per_row=Quantity(
        "samples per row",
        16.0,
        32.0,
        64.0,
        "1",
        "docs/first-order.md: 8,192 at width 256 train like exact K-FAC; a factor of 2 assumed",
    ),
)


@dataclass(frozen=True)
class Target:
    """How many steps training takes until it is where it should be.

    Attributes
    ----------
    what : str
        Where that is.
    steps : Quantity
        Of the first-order optimiser that stands for Adam.
    ratio : Quantity
        Steps of K-FAC over these, whatever inverts and however often.
    batch : int or None
        Examples a step, of all devices: with others steps are not these. None of any.
    published : str
        What is published of such a step; "" if nothing.
    """

    what: str
    steps: Quantity
    ratio: Quantity
    batch: int | None = None
    published: str = ""


_ALGOPERF = "AlgoPerf logs, mlcommons/submissions_algorithms @12c8e4e"
_RATIO = Quantity(
    "steps of K-FAC over first-order",
    0.5,
    0.62,
    0.75,
    "1",
    "arXiv 2311.00636: 50% to 75% on these two",
)


def _ours(what: str, steps: float, ratio: float, batch: int = 144) -> Target:
    """Of our studies: medians over five seeds, which scatter by a fifth or so."""
    source = "docs/experiments.md, medians of five seeds; range assumed"

    def about(name: str, value: float) -> Quantity:
        return Quantity(name, 0.8 * value, value, 1.25 * value, "1", source)

    return Target(
        what,
        about("first-order steps", steps),
        about("steps of K-FAC over first-order", ratio),
        batch=batch,
    )


#: Of workloads that are not known; its steps are to be replaced.
ELSEWHERE = Target(
    "the target",
    Quantity("first-order steps", 1.0, 1.0, 1.0, "1", "unknown"),
    replace(_RATIO, source="assumed: as arXiv 2311.00636 has it of two other networks"),
)
#: By workload.
TARGETS: dict[str, Target] = {
    "vit-s16": Target(
        "validation accuracy 0.77309 on ImageNet",
        Quantity(
            "first-order steps",
            108.6e3,
            151e3,
            155e3,
            "1",
            f"{_ALGOPERF}: NadamW 151 to 155 thousand, Schedule-free AdamW 109",
        ),
        _RATIO,
        batch=1024,
        published="402 to 502 ms a first-order step on 8 V100",
    ),
    "ogbg-gnn": Target(
        "mean average precision 0.28098 on OGBG-molpcba",
        Quantity(
            "first-order steps",
            13.8e3,
            24e3,
            29.2e3,
            "1",
            f"{_ALGOPERF}: NadamW 20 to 29 thousand, Schedule-free AdamW 14",
        ),
        _RATIO,
        batch=512,
        published="208 to 334 ms a first-order step on 8 V100",
    ),
    "digits": _ours("a training loss of 0.01", 84.0, 0.35),
    "cnn": _ours("a training loss of 0.01", 114.0, 0.29),
    "vit": _ours("a training loss of 0.03", 143.0, 0.53),
    "graph": _ours("a training loss of 0.1", 223.0, 0.21, 50),
}
