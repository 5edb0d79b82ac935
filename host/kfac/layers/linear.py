"""`torch.nn.Linear`, on inputs with any leading dimensions."""

from __future__ import annotations

import torch

from thermokron.host.kfac.layers.base import KroneckerLayer

__all__ = ["LinearLayer"]


class LinearLayer(KroneckerLayer):
    """The factors of a `torch.nn.Linear`.

    The first leading dimension of its input counts the examples, the others are positions at
    which it is used; `batch_axis` says where a model puts the examples elsewhere.
    """

    #: the dimension that counts the examples, where there are three or more
    batch_axis = 0

    @classmethod
    def covers(cls, module: torch.nn.Module) -> bool:
        # a subclass may bypass forward, and a parametrized weight is no parameter
        return (
            type(module).forward is torch.nn.Linear.forward
            and "weight" in module._parameters
            and not isinstance(module.weight, torch.nn.UninitializedParameter)
            and bool(module.weight.requires_grad)
        )

    def input_rows(self, inputs: torch.Tensor) -> torch.Tensor:
        return _rows(inputs, self.batch_axis)

    def output_rows(self, gradient: torch.Tensor) -> torch.Tensor:
        return _rows(gradient, self.batch_axis)


def _rows(tensor: torch.Tensor, batch_axis: int) -> torch.Tensor:
    if tensor.ndim == 1:  # a single example
        return tensor[None, None]
    if tensor.ndim > 2 and batch_axis:
        tensor = tensor.movedim(batch_axis, 0)
    return tensor.reshape(len(tensor), -1, tensor.shape[-1])
