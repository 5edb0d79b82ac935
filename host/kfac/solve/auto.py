"""Rate and momentum from the exact quadratic model of the batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from thermokron.host.kfac.solve.damping import LevenbergMarquardt
from thermokron.host.kfac.solve.quadratic import Closure, Expansion, LocalModel

__all__ = ["AutomaticStep", "Chosen"]

Values = dict[str, torch.Tensor]

#: Bounds on α, whose 1 is the step of K-FAC's own model, and μ. A batch knows little beside its
#: own examples: where it is small, and its loss near zero, its minimum may be anywhere.
LARGEST = (1.0, 0.95)


@dataclass(frozen=True)
class Chosen:
    """A step δ = αΔ + μδ₀.

    Attributes
    ----------
    step : dict of str to tensor
        δ by parameter.
    rate, momentum : float
        α and μ.
    reduction : float or None
        By how much the loss on the batch falls with it, where that was looked at.
    ratio : float or None
        The same over what the quadratic model foretold.
    """

    step: Values
    rate: float
    momentum: float
    reduction: float | None
    ratio: float | None


class AutomaticStep:
    """Chooses the length of steps, and how much of the one before they go on with.

    With Δ the preconditioned negative gradient and δ₀ the last step, δ = αΔ + μδ₀ minimises
    M(δ) = ∇Lᵀδ + ½ δᵀ(C + λI)δ, C the batch's exact generalised Gauss-Newton matrix (Martens &
    Grosse 2015, arXiv 1503.05671, sections 6.4 and 7), within 0 ≤ α ≤ 1 and 0 ≤ μ ≤ 0.95. λ follows
    the reduction ratio of the same batch (section 6.5).

    Parameters
    ----------
    local : LocalModel
        Looks at the batch.
    marquardt : LevenbergMarquardt or None
        The damping, if it adapts.

    Attributes
    ----------
    last : dict of str to tensor
        δ₀ by parameter.
    """

    def __init__(self, local: LocalModel, marquardt: LevenbergMarquardt | None) -> None:
        self.local, self.marquardt = local, marquardt
        self.last: Values = {}

    def check_last(self, last: Mapping[str, torch.Tensor]) -> None:
        """`ValueError` if a saved step is not one of this model's."""
        shapes = {name: p.shape for name, p in self.local.model.named_parameters()}
        for name, value in last.items():
            if shapes.get(name) != value.shape:
                raise ValueError(
                    f"the last step of {name} is {tuple(value.shape)} in the state, which the "
                    "model's parameter is not"
                )

    def choose(self, closure: Closure, proposal: Values, damping: float, step: int) -> Chosen:
        """δ for a proposal Δ; `last` and the damping are then those of the next step.

        Parameters
        ----------
        closure : callable
            The batch's loss.
        proposal : dict of str to tensor
            Δ by parameter.
        damping : float
            λ.
        step : int
            Which step it is.

        Raises
        ------
        FloatingPointError
            If the batch's loss, or its model, is NaN or inf.
        RuntimeError
            If torch cannot differentiate the network in forward mode.
        """
        values = {
            name: p.detach() for name, p in self.local.model.named_parameters() if name in proposal
        }
        directions = [proposal]
        if self.last.keys() == proposal.keys() and any(v.any() for v in self.last.values()):
            directions.append(self.last)
        found = self.local.expand(closure, values, directions)
        along = _minimum(found, damping)
        rate, momentum = float(along[0]), float(along[1]) if len(along) > 1 else 0.0
        chosen = {name: rate * delta for name, delta in proposal.items()}
        if len(directions) > 1:
            for name, delta in chosen.items():
                delta.add_(self.last[name], alpha=momentum)
        reduction = ratio = None
        lm = self.marquardt
        if lm is not None and step % lm.interval == 0:
            after = {name: value + chosen[name] for name, value in values.items()}
            reduction = found.loss - self.local.loss(closure, after)
            foretold = -found.model(along, damping)
            ratio = reduction / foretold if foretold > 0.0 else None
            lm.adapt(-math.inf if ratio is None else ratio)
        self.last = chosen
        return Chosen(chosen, rate, momentum, reduction, ratio)


def _minimum(found: Expansion, damping: float) -> torch.Tensor:
    """The x of least M with 0 ≤ x_i ≤ `LARGEST`."""
    if not (math.isfinite(found.loss) and bool(torch.isfinite(found.bends).all())):
        raise FloatingPointError(
            "the batch's loss, or its quadratic model, is NaN or inf: training has diverged, or "
            "the data held some"
        )
    slopes, curved = found.slopes.tolist(), (found.bends + damping * found.squares).tolist()
    if len(slopes) == 1:
        return torch.tensor([_along(slopes[0], curved[0][0], LARGEST[0])], dtype=torch.float64)
    (a, b), (_, c) = curved
    # inside, or else on one of the edges: M is convex
    points = []
    if a * c - b * b > 1e-12 * a * c:
        x = (b * slopes[1] - c * slopes[0]) / (a * c - b * b)
        y = (b * slopes[0] - a * slopes[1]) / (a * c - b * b)
        if 0.0 <= x <= LARGEST[0] and 0.0 <= y <= LARGEST[1]:
            points.append((x, y))
    for x in (0.0, LARGEST[0]):
        points.append((x, _along(slopes[1] + b * x, c, LARGEST[1])))
    for y in (0.0, LARGEST[1]):
        points.append((_along(slopes[0] + b * y, a, LARGEST[0]), y))
    each = [torch.tensor(point, dtype=torch.float64) for point in points]
    return min(each, key=lambda along: found.model(along, damping))


def _along(slope: float, bend: float, largest: float) -> float:
    """The minimum on one axis, between 0 and a bound."""
    return min(max(-slope / bend, 0.0), largest) if bend > 0.0 else 0.0
