"""Convolutions in one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from thermokron.host.kfac.curvature.layers.kronecker import KroneckerLayer

__all__ = ["ConvLayer", "patches"]

KINDS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


class ConvLayer(KroneckerLayer):
    """The factors of a convolution: a linear layer on patches, at every position of its output
    (Grosse & Martens 2016, arXiv 1602.01407).

    A convolution with groups is as many independent ones: each group has factors of its own.
    """

    def __init__(self, name: str, modules: Sequence[torch.nn.Module]) -> None:
        super().__init__(name, modules)
        assert isinstance(self.module, KINDS)
        groups = self.module.groups
        self.blocks = groups if groups > 1 else None

    def input_rows(self, module: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        assert isinstance(module, KINDS)
        spatial = len(module.kernel_size)
        if inputs.ndim == spatial + 1:  # a single example
            inputs = inputs[None]
        windows = patches(module, inputs)
        if self.blocks is None:
            return windows
        n, s, _ = windows.shape
        return windows.reshape(n, s, self.blocks, -1).permute(2, 0, 1, 3)

    def output_rows(self, module: torch.nn.Module, gradient: torch.Tensor) -> torch.Tensor:
        assert isinstance(module, KINDS)
        if gradient.ndim == len(module.kernel_size) + 1:
            gradient = gradient[None]
        rows = gradient.flatten(2).mT
        if self.blocks is None:
            return rows
        n, s, _ = rows.shape
        return rows.reshape(n, s, self.blocks, -1).permute(2, 0, 1, 3)


def patches(
    module: torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d, inputs: torch.Tensor
) -> torch.Tensor:
    """What each position of a convolution's output sees, flattened in the order of the weight.

    Parameters
    ----------
    module : Conv1d, Conv2d or Conv3d
        Of any stride, dilation, padding and padding mode.
    inputs : (N, C, *size) tensor
        In any memory format.

    Returns
    -------
    (N, S, C * kernel) tensor
        S positions in row-major order.
    """
    pads: list[int] = []
    for kernel, dilation, axis in zip(
        reversed(module.kernel_size),
        reversed(module.dilation),
        reversed(range(len(module.kernel_size))),
        strict=True,
    ):
        if module.padding == "same":
            total = dilation * (kernel - 1)
            pads += [total // 2, total - total // 2]
        else:
            amount = 0 if isinstance(module.padding, str) else module.padding[axis]
            pads += [amount, amount]
    if any(pads):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        inputs = torch.nn.functional.pad(inputs, pads, mode=mode)
    windows = inputs
    for axis, (kernel, stride, dilation) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation, strict=True)
    ):
        # a window spans the dilated kernel, of which every dilation-th entry is seen
        windows = windows.unfold(axis + 2, dilation * (kernel - 1) + 1, stride)
        windows = windows[..., ::dilation]
    spatial = len(module.kernel_size)
    # (N, C, *positions, *kernel) -> (N, *positions, C, *kernel)
    windows = windows.movedim(1, spatial + 1)
    return windows.flatten(1, spatial).flatten(2)
