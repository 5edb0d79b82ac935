"""What of a step depends on the data, as steps that were taken tell it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from thermokron.host.kfac import StepMetrics
from thermokron.host.predict.conditions import Conditions
from thermokron.host.predict.prediction import Question
from thermokron.host.predict.quantity import exactly

__all__ = ["observed"]

SOURCE = "observed"


def observed(question: Question, metrics: Sequence[StepMetrics]) -> Conditions:
    """The conditions of steps of "kfac-solve" on a unit of the question's own spec.

    Whatever else is asked about the same training, such as other bits, cells, clocks or links, may
    then be predicted from them. Steps at the beginning are unlike those that follow: nothing is
    known yet of how strongly columns can be driven.

    Parameters
    ----------
    question : Question
        Whose steps they are: workload, optimiser and technology.
    metrics : sequence of StepMetrics
        Steps whose factors went through the array whole.

    Raises
    ------
    ValueError
        If there are none, or they are of another kind.
    """
    how, built = question.optimizer, question.built
    if how.kind != "kfac-solve" or built is None or isinstance(how.settle, str):
        raise ValueError(
            f"optimizer = {how.name!r} with settle = {how.settle!r}; legal: kfac-solve, and the "
            "part left undone"
        )
    if not metrics or not all(each.activity.vectors for each in metrics):
        raise ValueError("metrics holds no steps on a unit; legal: one or more")
    spec = built.spec
    solves = [
        (rows, columns)
        for block in question.workload.blocks
        for rows, columns in block.dense * block.blocks
    ]
    steps = len(metrics)
    vectors, runs = sum(m.activity.vectors for m in metrics), sum(m.runs for m in metrics)
    least = steps * sum(columns for _, columns in solves)
    starts = steps * sum(-(-columns // spec.rhs_depth) for _, columns in solves)
    settled = sum(m.settle_seconds for m in metrics) * spec.clock_hz / vectors
    slowest = settled / (math.log(1.0 / how.settle) * spec.tau_s * spec.clock_hz)
    known = question.conditions
    # what did not happen may not be 0, which has no logarithm
    return replace(
        known,
        kappa=exactly(known.kappa.name, max(slowest, 1.0), "1", SOURCE),
        reruns=exactly(known.reruns.name, max(vectors / least - 1.0, 1e-9), "1", SOURCE),
        restarts=exactly(
            known.restarts.name, max((runs - starts) / (steps * len(solves)), 1e-9), "1", SOURCE
        ),
    )
