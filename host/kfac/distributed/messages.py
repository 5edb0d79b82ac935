"""Messages between processes: trees of tensors and plain values as bytes."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

__all__ = ["packed", "padded", "unpacked"]

#: Where parts of a message begin, in bytes.
ALIGNMENT = 8


class Form(NamedTuple):
    """What a receiver has to know of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Place(NamedTuple):
    """Where a tensor was."""

    number: int


def packed(value: Any) -> torch.Tensor:
    """A message as bytes: those of tensors as they are, after all the rest."""
    tensors: list[torch.Tensor] = []
    tree = _without_tensors(value, tensors)
    forms = [Form(tuple(t.shape), t.dtype, t.device.type) for t in tensors]
    text = torch.frombuffer(bytearray(pickle.dumps((tree, forms))), dtype=torch.uint8)
    parts = [torch.tensor([len(text)]).view(torch.uint8), text]
    parts += [t.detach().cpu().reshape(-1).view(torch.uint8) for t in tensors]
    return torch.cat([padded(part, _rounded(len(part))) for part in parts])


def unpacked(message: torch.Tensor) -> Any:
    """What `packed` was made of, every tensor in memory of its own."""
    start, length = ALIGNMENT, int(message[:8].view(torch.int64))
    tree, forms = pickle.loads(message[start : start + length].numpy().tobytes())
    start += _rounded(length)
    tensors = []
    for form in forms:
        flat = message[start : start + form.nbytes].to(form.device, copy=True)
        tensors.append(flat.view(form.dtype).reshape(form.shape))
        start += _rounded(form.nbytes)
    return _with_tensors(tree, tensors)


def _rounded(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT


def padded(flat: torch.Tensor, length: int) -> torch.Tensor:
    """A vector with zeros after it, up to that length."""
    return torch.nn.functional.pad(flat, (0, length - len(flat)))


def _without_tensors(tree: Any, tensors: list[torch.Tensor]) -> Any:
    """The same with places for tensors, which are taken out."""
    if isinstance(tree, torch.Tensor):
        tensors.append(tree)
        return Place(len(tensors) - 1)
    if isinstance(tree, dict):
        return {key: _without_tensors(value, tensors) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(_without_tensors(value, tensors) for value in tree)
    return tree


def _with_tensors(tree: Any, tensors: Sequence[torch.Tensor]) -> Any:
    """What `_without_tensors` was made of."""
    if isinstance(tree, Place):
        return tensors[tree.number]
    if isinstance(tree, dict):
        return {key: _with_tensors(value, tensors) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(_with_tensors(value, tensors) for value in tree)
    return tree
