"""Damping that watches how well the quadratic model foretells the loss."""

from __future__ import annotations

from collections.abc import Callable

import torch

from thermokron.host.kfac.distributed import Ranks
from thermokron.host.kfac.solve.quadratic import LocalModel
from thermokron.model.checks import check_integer, check_real

__all__ = ["LevenbergMarquardt", "Trial"]


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
    batch, not with K-FAC's blocks, see `LocalModel`.

    Parameters
    ----------
    model : torch.nn.Module
        The network.
    criterion : torch.nn.Module or None
        The loss module.
    ranks : Ranks, optional
        The processes that train together.

    Raises
    ------
    ValueError
        If there is no criterion.
    """

    def __init__(
        self, model: torch.nn.Module, criterion: torch.nn.Module | None, ranks: Ranks | None = None
    ) -> None:
        if criterion is None:
            raise ValueError(
                "damping = LevenbergMarquardt(...) needs criterion, the loss module that is "
                "called in training"
            )
        self.local = LocalModel(model, criterion, ranks)
        self._before: dict[str, torch.Tensor] | None = None

    def begin(self) -> None:
        """Remember the parameters as they are before a step."""
        self._before = {
            name: p.detach().clone()
            for name, p in self.local.model.named_parameters()
            if p.requires_grad
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
        parameters = dict(self.local.model.named_parameters())
        after = {name: parameters[name].detach() for name in before}
        steps = {name: after[name] - old for name, old in before.items()}
        reached = self.local.loss(closure, after)
        found = self.local.expand(closure, before, [steps])
        return reached - found.loss, found.model(torch.ones(1, dtype=torch.float64), damping)
