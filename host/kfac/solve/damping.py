"""Damping that watches how well the quadratic model foretells the loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from thermokron.model.checks import check_integer, check_real

__all__ = ["LevenbergMarquardt", "Trial"]

# torch says nothing of their types
make_dual: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = forward_ad.make_dual
unpack_dual: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]
unpack_dual = forward_ad.unpack_dual


class LevenbergMarquardt:
    """Adapts λ so that the quadratic model is trusted as far as it is right.

    The reduction ratio ρ = (L(θ+δ) - L(θ)) / M(δ) compares what the loss did with what the model
    M(δ) = ∇Lᵀδ + ½ δᵀ(C + λI)δ foretold, C being the batch's exact generalised Gauss-Newton
    matrix. λ falls by `factor^interval` where ρ > 3/4, and rises by its inverse where ρ < 1/4
    (Martens & Grosse 2015, arXiv 1503.05671, section 6.5).

    Parameters
    ----------
    initial : float
        λ at the start.
    interval : int
        Steps between adaptations, each of which costs two passes, one of them differentiated.
    factor : float
        ω in (0, 1): λ changes by ω^interval.
    minimum, maximum : float
        Bounds on λ.

    Attributes
    ----------
    value : float
        λ now.
    """

    def __init__(
        self,
        initial: float,
        *,
        interval: int = 5,
        factor: float = 0.95,
        minimum: float = 1e-8,
        maximum: float = 1e4,
    ) -> None:
        self.minimum = check_real("minimum", minimum, 1e-12, 1e12)
        self.maximum = check_real("maximum", maximum, self.minimum, 1e12)
        self.value = check_real("initial", initial, self.minimum, self.maximum)
        self.interval = check_integer("interval", interval, 1, 10**9)
        self.factor = check_real("factor", factor, 1e-3, 0.999999)

    def adapt(self, ratio: float) -> None:
        """Change λ as ρ says; a ratio that is NaN counts as a failure."""
        change = self.factor**self.interval
        if ratio > 0.75:
            self.value = max(self.value * change, self.minimum)
        elif not ratio >= 0.25:
            self.value = min(self.value / change, self.maximum)

    def __repr__(self) -> str:
        return (
            f"LevenbergMarquardt({self.value:.4g}, interval={self.interval}, factor={self.factor})"
        )


class Trial:
    """Takes a step again, to see what it did to the loss, and what was to be expected of it.

    The expectation is the quadratic model with the exact generalised Gauss-Newton matrix of the
    batch, not with K-FAC's blocks: M(δ) = ∇Lᵀδ + ½ δᵀ(C + λI)δ, δᵀCδ = uᵀ(∂²L/∂f²)u, where u = Jδ
    is how the outputs f that the criterion was given change with δ. u comes from one forward pass
    with forward-mode differentiation, the rest from the criterion alone.

    The model is left as it was: passes work on copies of its buffers, such as the averages of
    batch normalisation, and draw from copies of torch's generators. Both passes draw the same
    dropout masks.

    Parameters
    ----------
    model : torch.nn.Module
        The network.
    criterion : torch.nn.Module or None
        The loss module.

    Raises
    ------
    ValueError
        If there is no criterion.
    """

    def __init__(self, model: torch.nn.Module, criterion: torch.nn.Module | None) -> None:
        if criterion is None:
            raise ValueError(
                "damping = LevenbergMarquardt(...) needs criterion, the loss module that is "
                "called in training"
            )
        self.model, self.criterion = model, criterion
        self._before: dict[str, torch.Tensor] | None = None

    def begin(self) -> None:
        """Remember the parameters as they are before a step."""
        self._before = {
            name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad
        }

    def expire(self) -> None:
        """Forget a step that another has followed: their changes could not be told apart."""
        self._before = None

    @property
    def begun(self) -> bool:
        """Whether there is a step to look at."""
        return self._before is not None

    def end(self, closure: Callable[[], torch.Tensor], damping: float) -> tuple[float, float]:
        """L(θ+δ) - L(θ) and M(δ) for the step δ since `begin`; `closure` gives the loss.

        Raises
        ------
        RuntimeError
            If the closure did not call the criterion, or calls what torch cannot differentiate in
            forward mode.
        """
        assert self._before is not None
        before, self._before = self._before, None
        parameters = dict(self.model.named_parameters())
        after = {name: parameters[name].detach() for name in before}
        steps = {name: after[name] - old for name, old in before.items()}
        with torch.enable_grad():  # the loss may hold derivatives of outputs
            reached = self._loss(closure, after).item()
        loss, slope, bend = self._expand(closure, before, steps)
        length = math.fsum((step * step).sum().item() for step in steps.values())
        return reached - loss, slope + 0.5 * (bend + damping * length)

    def _expand(
        self,
        closure: Callable[[], torch.Tensor],
        values: dict[str, torch.Tensor],
        steps: dict[str, torch.Tensor],
    ) -> tuple[float, float, float]:
        """L, ∇Lᵀδ and δᵀCδ at `values`."""
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
                duals = {name: make_dual(v, steps[name]) for name, v in values.items()}
                # of what the closure may add without the criterion, such as a penalty on weights
                loss, slope = unpack_dual(self._loss(closure, duals))
        finally:
            handle.remove()
        if not outputs:
            raise RuntimeError(
                "the closure of adapt() did not call criterion on the model's output"
            )
        fixed, changes = zip(*outputs, strict=True)
        gradients = torch.autograd.grad(loss, fixed, create_graph=True)
        along = torch.stack([(g * u).sum() for g, u in zip(gradients, changes, strict=True)]).sum()
        bend = 0.0
        if along.requires_grad:  # else the criterion is linear in the outputs
            bends = torch.autograd.grad(along, fixed, allow_unused=True, materialize_grads=True)
            bend = math.fsum((b * u).sum().item() for b, u in zip(bends, changes, strict=True))
        return loss.item(), along.item() + (0.0 if slope is None else slope.item()), bend

    def _loss(
        self, closure: Callable[[], torch.Tensor], values: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """The loss with these parameters in the model."""
        values = values | {name: b.clone() for name, b in self.model.named_buffers()}
        devices = {value.device for value in values.values() if value.is_cuda}
        with torch.random.fork_rng(devices=devices):
            loss: torch.Tensor = torch.func.functional_call(
                _Closure(self.model, closure),
                {f"model.{name}": v for name, v in values.items()},
                (),
            )
        return loss


class _Closure(torch.nn.Module):
    """A closure over a model, as a module that has the model in it."""

    def __init__(self, model: torch.nn.Module, closure: Callable[[], torch.Tensor]) -> None:
        super().__init__()
        self.model, self.closure = model, closure

    def forward(self) -> torch.Tensor:
        return self.closure()
