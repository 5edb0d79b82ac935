"""`torch.nn.Embedding`: a linear layer whose inputs are one-hot."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from thermokron.host.kfac.curvature.layers.base import full_precision
from thermokron.host.kfac.curvature.layers.kronecker import KroneckerLayer

__all__ = ["OPTIONS", "EmbeddingLayer"]

#: Options with which the gradient is another one, or sparse.
OPTIONS = ("sparse", "scale_grad_by_freq", "max_norm")


class EmbeddingLayer(KroneckerLayer):
    """The factors of a `torch.nn.Embedding`.

    A is exactly diagonal, with the relative frequencies of the indices, so that its inverse needs
    neither a unit nor O(n³). Positions are always spread out ("expand"): the mean of one-hot
    vectors would fill A. Indices that equal `padding_idx` are examples of input zero.
    """

    transposed = True
    diagonal_inputs = True

    @property
    def sizes(self) -> tuple[int, int]:
        return len(self.weight), self.weight.shape[1]

    @classmethod
    def fits(cls, module: torch.nn.Module) -> bool:
        # sparse gradients cannot be preconditioned in place; the other two options make the
        # gradient another one than that of a product with a one-hot vector
        return super().fits(module) and not any(getattr(module, option) for option in OPTIONS)

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
        assert isinstance(module, torch.nn.Embedding)
        if not again:
            indices = prepared.reshape(-1)
            counts = torch.bincount(indices, minlength=module.num_embeddings)
            counts = counts.to(full_precision(self.weight).dtype)
            if module.padding_idx is not None:
                counts[module.padding_idx] = 0.0
            self.input_factor.add(counts, len(indices))
        g = self.output_rows(module, full_precision(gradient)).flatten(0, 1)
        self.output_factor.add(self.output_factor.moments(g), terms)

    def input_rows(self, module: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("one-hot rows are never made")

    def output_rows(self, module: torch.nn.Module, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.reshape(1, -1, gradient.shape[-1])

    def stacked(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """The weight has the inputs in front: transposed, so that A stands to the right."""
        return tensors[0].T

    def set_gradient(self, value: torch.Tensor) -> None:
        assert self.weight.grad is not None
        self.weight.grad.copy_(value.T)
