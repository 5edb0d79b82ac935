"""The exact quadratic model of a batch: its loss, gradient and generalised Gauss-Newton matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from thermokron.host.kfac.curvature.context import leaving_no_trace
from thermokron.host.kfac.curvature.layers import full_precision
from thermokron.host.kfac.distributed import Ranks

__all__ = ["Closure", "Expansion", "LocalModel"]

# torch says nothing of their types
make_dual: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = forward_ad.make_dual
unpack_dual: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]
unpack_dual = forward_ad.unpack_dual

Closure = Callable[[], torch.Tensor]
Values = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Expansion:
    """A batch's loss along directions δ_i, to the second order.

    Attributes
    ----------
    loss : float
        L(θ).
    slopes : (k,) float64 tensor
        ∇Lᵀδ_i.
    bends : (k, k) float64 tensor
        δ_iᵀ C δ_j, C the generalised Gauss-Newton matrix.
    squares : (k, k) float64 tensor
        δ_iᵀ δ_j.
    """

    loss: float
    slopes: torch.Tensor
    bends: torch.Tensor
    squares: torch.Tensor

    def model(self, along: torch.Tensor, damping: float) -> float:
        """M(δ) = ∇Lᵀδ + ½ δᵀ(C + λI)δ of δ = Σ x_i δ_i."""
        curved = self.bends + damping * self.squares
        return float(self.slopes @ along + 0.5 * along @ curved @ along)


class LocalModel:
    """Looks at a batch with other parameters, and along directions.

    δᵀCδ = uᵀ(∂²L/∂f²)u, where u = Jδ is how the outputs f that the criterion was given change with
    δ. u comes from one forward pass with forward-mode differentiation, the rest from the criterion
    alone.

    The model is left as it was: passes work on copies of its buffers, such as the averages of
    batch normalisation, and what they draw from generators is drawn again by the next: all passes
    have the same dropout masks.

    Parameters
    ----------
    model, criterion : torch.nn.Module
        The network, and the loss module that closures call.
    ranks : Ranks, optional
        The processes that train together. Each has a part of the batch, whose loss is the mean
        of theirs, by the `weight` of closures that have one.
    """

    def __init__(
        self, model: torch.nn.Module, criterion: torch.nn.Module, ranks: Ranks | None = None
    ) -> None:
        self.model, self.criterion = model, criterion
        self.ranks = ranks or Ranks()

    def loss(self, closure: Closure, values: Values) -> float:
        """The loss with these parameters in the model."""
        # it may hold derivatives of outputs
        with self.ranks.exchange("the batch's loss") as said, torch.enable_grad():
            said.own = _weight(closure), [self._loss(closure, values).item()]
        (loss,) = _mean(said.all)
        return float(loss)

    def expand(self, closure: Closure, values: Values, directions: Sequence[Values]) -> Expansion:
        """The batch along directions, from the parameters `values`.

        Raises
        ------
        RuntimeError
            If the closure did not call the criterion, or calls what torch cannot differentiate in
            forward mode.
        """
        with self.ranks.exchange("the batch's quadratic model") as said, torch.enable_grad():
            own = self._expanded(closure, values, directions)
            said.own = _weight(closure), [own.loss, own.slopes, own.bends, own.squares]
        loss, slopes, bends, squares = _mean(said.all)
        return Expansion(float(loss), slopes, bends, squares)

    def _expanded(
        self, closure: Closure, values: Values, directions: Sequence[Values]
    ) -> Expansion:
        """This process's part of the batch."""
        fixed: tuple[torch.Tensor, ...] = ()
        loss, beyond, changes = torch.zeros(()), [], []
        for direction in directions:
            loss, slope, outputs = self._along(closure, values, direction)
            fixed = tuple(value for value, _ in outputs)
            changes.append([full_precision(change) for _, change in outputs])
            # of what the closure may add without the criterion, such as a penalty on weights
            beyond.append(0.0 if slope is None else slope.item())
        gradients = torch.autograd.grad(loss, fixed, create_graph=True)
        slopes, bends = [], []
        for change in changes:
            along = _inner(gradients, change)
            slopes.append(along.item())
            if along.requires_grad:  # else the criterion is linear in the outputs
                turned = torch.autograd.grad(
                    along, fixed, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                bends.append([_inner(turned, other).item() for other in changes])
            else:
                bends.append([0.0 for _ in changes])
        squares = [
            [
                sum(_inner([one[n]], [full_precision(other[n])]).item() for n in one)
                for other in directions
            ]
            for one in directions
        ]
        bent = torch.tensor(bends, dtype=torch.float64)
        return Expansion(
            loss.item(),
            torch.tensor(slopes, dtype=torch.float64) + torch.tensor(beyond, dtype=torch.float64),
            (bent + bent.T) / 2,
            torch.tensor(squares, dtype=torch.float64),
        )

    def _along(
        self, closure: Closure, values: Values, direction: Values
    ) -> tuple[torch.Tensor, torch.Tensor | None, list[tuple[torch.Tensor, torch.Tensor]]]:
        """The loss, its change past the criterion, and the criterion's outputs with theirs."""
        outputs: list[tuple[torch.Tensor, torch.Tensor]] = []

        def cut(module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
            """Gives the criterion outputs that know nothing of the parameters."""
            # whatever depends on them is an output, in whichever order it was given
            return tuple(map(detached, args)), {key: detached(v) for key, v in kwargs.items()}

        def detached(given: Any) -> Any:
            if not isinstance(given, torch.Tensor):
                return given
            value, change = unpack_dual(given)
            if change is None:
                return given
            value = value.detach().requires_grad_()
            outputs.append((value, change.detach()))
            return value

        handle = self.criterion.register_forward_pre_hook(cut, with_kwargs=True)
        try:
            # forward mode knows no fused attention
            with torch.enable_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
                duals = {name: make_dual(v, direction[name]) for name, v in values.items()}
                loss, slope = unpack_dual(self._loss(closure, duals))
        finally:
            handle.remove()
        if not outputs:
            raise RuntimeError("the closure did not call criterion on the model's output")
        return loss, slope, outputs

    def _loss(self, closure: Closure, values: Values) -> torch.Tensor:
        """The loss with these parameters in the model."""
        devices = {value.device for value in values.values()}
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        with leaving_no_trace(devices):
            loss: torch.Tensor = torch.func.functional_call(
                _Closure(self.model, closure),
                {f"model.{name}": v for name, v in (dict(values) | buffers).items()},
                (),
            )
        return loss


def _weight(closure: Closure) -> float:
    return float(getattr(closure, "weight", 1.0))


def _mean(said: Sequence[tuple[float, Sequence[Any]]]) -> list[Any]:
    """The mean of what processes found, each with its weight."""
    if len(said) == 1:
        return list(said[0][1])
    total = sum(weight for weight, _ in said)
    parts = [[value * (weight / total) for value in found] for weight, found in said]
    return [sum(each[1:], each[0]) for each in zip(*parts, strict=True)]


def _inner(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> torch.Tensor:
    """Σ uᵀv, in double precision."""
    return torch.stack([(u * v).double().sum() for u, v in zip(left, right, strict=True)]).sum()


class _Closure(torch.nn.Module):
    """A closure over a model, as a module that has the model in it."""

    def __init__(self, model: torch.nn.Module, closure: Closure) -> None:
        super().__init__()
        self.model, self.closure = model, closure

    def forward(self) -> torch.Tensor:
        return self.closure()
