"""Layers of libraries that many use, known by name, so that nobody needs to have them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from thermokron.host.kfac.curvature.layers.linear import LinearLayer
from thermokron.host.kfac.curvature.layers.norm import NormLayer

__all__ = ["ChannelNormLayer", "Conv1DLayer"]


class Conv1DLayer(LinearLayer):
    """`transformers.pytorch_utils.Conv1D`, as GPT-2 has it: a linear layer y = x W + b.

    Its weight is that of `torch.nn.Linear` transposed, (in, out).
    """

    transposed = True

    @property
    def sizes(self) -> tuple[int, int]:
        return self.weight.shape[0] + self.has_bias, self.weight.shape[1]

    def stacked(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat([tensors[0].T, *(bias[:, None] for bias in tensors[1:])], dim=1)

    def set_gradient(self, value: torch.Tensor) -> None:
        inputs = len(self.weight)
        for parameter, part in zip(
            self.parameters, (value[:, :inputs].T, value[:, inputs:]), strict=False
        ):
            assert parameter.grad is not None
            parameter.grad.copy_(part.reshape(parameter.shape))


class ChannelNormLayer(NormLayer):
    """`timm.layers.LayerNorm2d`: a `LayerNorm` over the channels of (N, C, H, W), at each place."""

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
        prepared, gradient = (t.movedim(1, -1) for t in (prepared, gradient))
        super().record(module, prepared, gradient, terms, reduce=reduce, again=again)
