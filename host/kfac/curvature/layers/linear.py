"""`torch.nn.Linear`, on inputs with any leading dimensions."""

from __future__ import annotations

import torch

from thermokron.host.kfac.curvature.layers.kronecker import KroneckerLayer

__all__ = ["LinearLayer"]


class LinearLayer(KroneckerLayer):
    """The factors of a `torch.nn.Linear`.

    The first leading dimension of its input counts the examples, the others are positions at
    which it is used.

    Attributes
    ----------
    sequence_first : frozenset of torch.nn.Module
        Those of its modules whose inputs of three dimensions or more have the examples second.
    """

    sequence_first: frozenset[torch.nn.Module] = frozenset()

    def input_examples(
        self, module: torch.nn.Module, inputs: torch.Tensor, reduce: bool
    ) -> torch.Tensor:
        # without positions rows are examples already, as they are in most networks
        return inputs if inputs.ndim == 2 else super().input_examples(module, inputs, reduce)

    def output_examples(
        self, module: torch.nn.Module, gradient: torch.Tensor, reduce: bool
    ) -> torch.Tensor:
        return gradient if gradient.ndim == 2 else super().output_examples(module, gradient, reduce)

    def input_rows(self, module: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        return self._rows(module, inputs)

    def output_rows(self, module: torch.nn.Module, gradient: torch.Tensor) -> torch.Tensor:
        return self._rows(module, gradient)

    def _rows(self, module: torch.nn.Module, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim == 1:  # a single example
            return tensor[None, None]
        if tensor.ndim > 2 and module in self.sequence_first:
            tensor = tensor.movedim(1, 0)
        positions = tensor.shape[1:-1].numel()  # -1 is ambiguous where there are no examples
        return tensor.reshape(len(tensor), positions, tensor.shape[-1])
