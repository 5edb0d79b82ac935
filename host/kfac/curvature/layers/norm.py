"""Scales and shifts of normalisation layers: diagonal curvature."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from thermokron.host.kfac.curvature.factors import Factor
from thermokron.host.kfac.curvature.layers.base import Layer, full_precision

__all__ = ["NormLayer"]

F = torch.nn.functional
BATCH_NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)


class NormLayer(Layer):
    """The diagonal curvature of y = w·x̂ + b, with x̂ the normalised input.

    Every parameter gets its own entry of the Fisher's diagonal, from each example's own gradient
    d_n with respect to it, over R loss terms: h = 1/R Σ_n d_n². For w, d_n = Σ_s g x̂ over the
    positions s of the example that share it, for b, d_n = Σ_s g. The update is v/(h + λ).

    The first dimension counts the examples.

    Attributes
    ----------
    sequence_first : frozenset of torch.nn.Module
        Those of its modules whose inputs (S, N, entries) have the examples second.
    curvature : Factor
        Running average of h, (2, parameters) for w and b, fewer rows where one is missing.
    """

    sequence_first: frozenset[torch.nn.Module] = frozenset()

    def __init__(self, name: str, modules: Sequence[torch.nn.Module]) -> None:
        super().__init__(name, modules)
        self._trained = list(self._shapes)
        shape = len(self._trained), self.parameters[0].numel()
        self.curvature = Factor(shape, diagonal=True)

    @classmethod
    def fits(cls, module: torch.nn.Module) -> bool:
        return any(p is not None and p.requires_grad for p in module._parameters.values())

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return [self.module._parameters[key] for key in self._trained]  # type: ignore[misc]

    @property
    def factors(self) -> dict[str, Factor]:
        return {"curvature": self.curvature}

    # ---- gathering ----------------------------------------------------------------------

    def prepare(self, module: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.detach()

    def record(
        self,
        module: torch.nn.Module,
        prepared: torch.Tensor,
        gradient: torch.Tensor,
        terms: float,
        *,
        reduce: bool,
        again: bool = False,
    ) -> None:
        gradient = full_precision(gradient)
        products = {"bias": gradient}
        if "weight" in self._trained:
            products["weight"] = gradient * self.normalised(module, full_precision(prepared))
        each = torch.stack(
            [self._by_example(module, products[key]) for key in self._trained], dim=1
        )
        self.curvature.add((each**2).sum(dim=0), terms)

    def normalised(self, module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        """x̂, worked out again: y does not give it back where w is 0."""
        if isinstance(module, torch.nn.LayerNorm):
            return F.layer_norm(x, module.normalized_shape, eps=module.eps)
        if isinstance(module, torch.nn.RMSNorm):
            return F.rms_norm(x, module.normalized_shape, eps=module.eps)
        if isinstance(module, torch.nn.GroupNorm):
            return F.group_norm(x, module.num_groups, eps=module.eps)
        assert isinstance(module, BATCH_NORMS)
        return F.batch_norm(x, None, None, training=True, eps=module.eps)

    def pass_over(self, terms: float) -> None:
        self.curvature.add(torch.zeros(()), terms)

    def _by_example(self, module: torch.nn.Module, values: torch.Tensor) -> torch.Tensor:
        """Sums over the positions of every example: (N, parameters)."""
        if isinstance(module, torch.nn.LayerNorm | torch.nn.RMSNorm):
            rows = values.flatten(values.ndim - len(module.normalized_shape))
            if rows.ndim > 2 and module in self.sequence_first:
                rows = rows.movedim(1, 0)
            examples = rows[None] if rows.ndim == 1 else rows
            return examples[:, None].flatten(1, -2).sum(dim=1)
        return values[..., None].flatten(2).sum(dim=2)

    # ---- the gradient --------------------------------------------------------------------

    def gradient(self) -> torch.Tensor | None:
        """(2, parameters): of w and of b; fewer rows where one is missing."""
        gradients = [p.grad for p in self.parameters]
        present = [full_precision(g) for g in gradients if g is not None]
        return self.stacked(present) if len(present) == len(gradients) else None

    def stacked(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.stack([t.reshape(-1) for t in tensors])

    def set_gradient(self, value: torch.Tensor) -> None:
        for parameter, row in zip(self.parameters, value, strict=True):
            assert parameter.grad is not None
            parameter.grad.copy_(row.reshape(parameter.shape))

    def precondition(self, gradient: torch.Tensor, damping: float) -> torch.Tensor:
        """v/(h + λ)."""
        return gradient / (self.curvature.value + damping)

    def describe(self) -> str:
        return f"diagonal {sum(p.numel() for p in self.parameters)}"
