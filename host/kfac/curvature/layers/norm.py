"""Scales and shifts of normalisation layers: diagonal curvature."""

from __future__ import annotations

import torch

from thermokron.host.kfac.curvature.layers.base import full_precision
from thermokron.host.kfac.curvature.layers.diagonal import DiagonalLayer

__all__ = ["NormLayer"]

F = torch.nn.functional
BATCH_NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)


class NormLayer(DiagonalLayer):
    """The diagonal curvature of y = w·x̂ + b, with x̂ the normalised input.

    Every parameter gets its own entry of the Fisher's diagonal, from each example's own gradient
    d_n with respect to it, over R loss terms: h = 1/R Σ_n d_n². For w, d_n = Σ_s g x̂ over the
    positions s of the example that share it, for b, d_n = Σ_s g. The update is v/(h + λ).

    The first dimension counts the examples.

    Attributes
    ----------
    sequence_first : frozenset of torch.nn.Module
        Those of its modules whose inputs (S, N, entries) have the examples second.
    """

    sequence_first: frozenset[torch.nn.Module] = frozenset()

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

    def _by_example(self, module: torch.nn.Module, values: torch.Tensor) -> torch.Tensor:
        """Sums over the positions of every example: (N, parameters)."""
        if isinstance(module, torch.nn.LayerNorm | torch.nn.RMSNorm):
            rows = values.flatten(values.ndim - len(module.normalized_shape))
            if rows.ndim > 2 and module in self.sequence_first:
                rows = rows.movedim(1, 0)
            examples = rows[None] if rows.ndim == 1 else rows
            return examples[:, None].flatten(1, -2).sum(dim=1)
        return values[..., None].flatten(2).sum(dim=2)
