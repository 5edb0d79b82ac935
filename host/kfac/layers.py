"""Kronecker factors of one layer: how they are gathered, averaged and damped."""

from __future__ import annotations

import math
from typing import Any

import torch

__all__ = ["LAYERS", "LinearLayer"]


class _MovingAverage:
    """Exponential moving average without the bias towards its start.

    m ← β m + (1-β) C and w ← β w + (1-β), both from 0; the average is m / w. With a constant β
    that is Adam's correction (Kingma & Ba 2015, arXiv 1412.6980, section 3), and it stays exact
    when β follows a schedule.
    """

    def __init__(self) -> None:
        self.moment: torch.Tensor | None = None
        self.weight = 0.0

    def update(self, value: torch.Tensor, decay: float) -> None:
        old = torch.zeros_like(value) if self.moment is None else self.moment
        self.moment = decay * old + (1.0 - decay) * value
        self.weight = decay * self.weight + (1.0 - decay)

    @property
    def value(self) -> torch.Tensor:
        assert self.moment is not None
        return self.moment / self.weight


class LinearLayer:
    """The factors of a `torch.nn.Linear`, whose input may have any leading dimensions.

    With a the input row, extended by a 1 if there is a bias, and g the gradient of one row's
    loss with respect to the layer's output row, the layer's block of the curvature is
    approximated by A ⊗ G, with A = E[a aᵀ] and G = E[g gᵀ] (Martens & Grosse 2015, arXiv
    1503.05671, section 3). Each row of each leading dimension counts as one example.

    Attributes
    ----------
    input_factor, output_factor : moving averages of A and G
    input_inverse, output_inverse : (n, n) tensors or None
        Inverses of the damped factors, A_inv and G_inv.
    """

    def __init__(self, name: str, module: torch.nn.Linear) -> None:
        self.name = name
        self.module = module
        self.has_bias = module.bias is not None and module.bias.requires_grad
        self.input_factor = _MovingAverage()
        self.output_factor = _MovingAverage()
        self.input_inverse: torch.Tensor | None = None
        self.output_inverse: torch.Tensor | None = None
        self._rows = 0
        self._input_sum: torch.Tensor | float = 0.0
        self._output_sum: torch.Tensor | float = 0.0

    @classmethod
    def covers(cls, module: torch.nn.Module) -> bool:
        """Whether this class knows the module, and it has a weight to train."""
        # subclasses may bypass forward, as torch.nn.MultiheadAttention's projection does
        return type(module) is torch.nn.Linear and module.weight.requires_grad

    @property
    def parameters(self) -> list[torch.Tensor]:
        """The parameters whose gradients this layer preconditions."""
        weight, bias = self.module.weight, self.module.bias
        return [weight, bias] if self.has_bias else [weight]

    # ---- gathering ----------------------------------------------------------------------

    def record(self, inputs: torch.Tensor, gradient: torch.Tensor, scale: float) -> None:
        """Add one backward pass.

        Parameters
        ----------
        inputs : (..., in) tensor
            What the layer was given.
        gradient : (..., out) tensor
            Gradient of the loss with respect to what it returned.
        scale : float
            Factor that turns a row of `gradient` into the gradient of that row's own loss.
        """
        a = inputs.reshape(-1, self.module.in_features)
        if self.has_bias:
            a = torch.cat([a, a.new_ones(len(a), 1)], dim=1)
        g = gradient.reshape(-1, self.module.out_features) * scale
        self._rows += len(a)
        self._input_sum = self._input_sum + a.T @ a
        self._output_sum = self._output_sum + g.T @ g

    def discard(self) -> None:
        """Forget what was recorded since the last update."""
        self._rows = 0
        self._input_sum = self._output_sum = 0.0

    def update_factors(self, decay: float) -> None:
        """Move the averages towards what was recorded, if anything was.

        Raises
        ------
        FloatingPointError
            If an activation or a gradient was NaN or inf; the averages are left as they were.
        """
        if self._rows == 0:
            return
        a, g = self._input_sum / self._rows, self._output_sum / self._rows
        self.discard()
        assert isinstance(a, torch.Tensor)
        assert isinstance(g, torch.Tensor)
        for what, factor in (("activations", a), ("gradients", g)):
            if not torch.isfinite(factor).all():
                raise FloatingPointError(
                    f"{what} of layer {self.name!r} hold NaN or inf; training has diverged "
                    "(lower lr, or raise damping)"
                )
        self.input_factor.update(a, decay)
        self.output_factor.update(g, decay)

    @property
    def has_factors(self) -> bool:
        """Whether any data has reached this layer."""
        return self.input_factor.moment is not None

    # ---- damping and preconditioning -------------------------------------------------------

    def damped_factors(self, damping: float) -> tuple[tuple[torch.Tensor, float], ...]:
        """(A + π√λ I, π√λ) and (G + √λ/π I, √λ/π), in float64.

        Factored Tikhonov damping with π² = mean(diag A) / mean(diag G), so that the damping's
        share in both factors is alike (Martens & Grosse 2015, section 6.3). The second
        number of each pair is a lower bound on the factor's eigenvalues.
        """
        a, g = self.input_factor.value.double(), self.output_factor.value.double()
        a, g = (a + a.T) / 2, (g + g.T) / 2  # a BLAS product is symmetric only up to rounding
        mean_a, mean_g = a.diagonal().mean().item(), g.diagonal().mean().item()
        # a factor that is zero, such as G behind dead units, has no scale to balance
        pi = math.sqrt(mean_a / mean_g) if mean_a > 0.0 and mean_g > 0.0 else 1.0
        root = math.sqrt(damping)
        return (
            (a + pi * root * torch.eye(len(a), dtype=a.dtype, device=a.device), pi * root),
            (g + root / pi * torch.eye(len(g), dtype=g.dtype, device=g.device), root / pi),
        )

    def gradient(self) -> torch.Tensor | None:
        """[∂W, ∂b], shape (out, in) or (out, in + 1); None while any of it is missing."""
        gradients = [p.grad for p in self.parameters]
        columns = [g.reshape(len(g), -1) for g in gradients if g is not None]
        return torch.cat(columns, dim=1) if len(columns) == len(gradients) else None

    def set_gradient(self, value: torch.Tensor) -> None:
        """Write back what `gradient` returned, preconditioned."""
        parts = (value[:, : self.module.in_features], value[:, self.module.in_features :])
        for parameter, part in zip(self.parameters, parts, strict=False):
            assert parameter.grad is not None
            parameter.grad.copy_(part.reshape(parameter.shape))

    def precondition(self, gradient: torch.Tensor) -> torch.Tensor:
        """G⁻¹ · gradient · A⁻¹ with the inverses of the damped factors."""
        assert self.input_inverse is not None
        assert self.output_inverse is not None
        return self.output_inverse @ gradient @ self.input_inverse

    # ---- state ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Averages and inverses, to be saved."""
        return {
            "input_moment": self.input_factor.moment,
            "output_moment": self.output_factor.moment,
            "weight": self.input_factor.weight,
            "input_inverse": self.input_inverse,
            "output_inverse": self.output_inverse,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        for average, key in ((self.input_factor, "input"), (self.output_factor, "output")):
            average.moment = state[f"{key}_moment"]
            average.weight = state["weight"]
        self.input_inverse = state["input_inverse"]
        self.output_inverse = state["output_inverse"]
        self.discard()


#: What K-FAC covers; a class for another kind of layer offers what `LinearLayer` offers.
LAYERS = (LinearLayer,)
