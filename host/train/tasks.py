"""Tasks: a network, the data to train it on, and the loss.

A task of one's own is a function of a seed, named on the command line as `module:function`:

    # mytask.py
    import torch
    from thermokron.host.train import Task

    def task(seed):
        inputs, targets = ...
        train = torch.utils.data.TensorDataset(inputs, targets)
        return Task(model=MyNetwork(), train=train, loss=torch.nn.CrossEntropyLoss())

    $ thermokron train mytask:task --engine exact

`train` and `test` are datasets of tuples (input, target), or (input, input, ..., target) for a
model of several inputs. The loss is a module, called as `loss(model(*inputs), target)`, that
takes the mean over its terms. Torch's generator is seeded before the function is called, and is
given back as it was when training has ended.
"""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset, TensorDataset, default_collate

__all__ = ["Task", "batch_of"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A network, the data to train it on, and the loss.

    Attributes
    ----------
    model : torch.nn.Module
        The network.
    train : torch.utils.data.Dataset
        Training examples, tuples that end in the target, with a length.
    loss : torch.nn.Module
        Called as `loss(output, target)`; a mean over its terms.
    test : torch.utils.data.Dataset, optional
        Test examples, likewise.
    name : str
        What to call it.
    hidden : tuple of int
        Widths of its hidden layers, where it was built from such.

    Raises
    ------
    ValueError
        If a part is not what it should be; the message says which.
    """

    model: torch.nn.Module
    train: Dataset[Any]
    loss: torch.nn.Module
    test: Dataset[Any] | None = None
    name: str = "task"
    hidden: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for part in ("model", "loss"):
            value = getattr(self, part)
            if not isinstance(value, torch.nn.Module):
                raise ValueError(f"{self.name}: {part} = {_shown(value)} is not a torch.nn.Module")
        if next(self.model.parameters(), None) is None:
            raise ValueError(f"{self.name}: model has no parameters; legal: 1 or more")
        reduction = getattr(self.loss, "reduction", "mean")
        if reduction != "mean":
            raise ValueError(f"{self.name}: loss.reduction = {reduction!r}; legal: 'mean'")
        for part in ("train", "test"):
            self._check_data(part, getattr(self, part))

    def _check_data(self, part: str, data: Any) -> None:
        if data is None and part == "test":
            return
        if not isinstance(data, Dataset) or not isinstance(data, Sized):
            raise ValueError(
                f"{self.name}: {part} = {_shown(data)} is not a torch.utils.data.Dataset with a "
                "length, such as TensorDataset(inputs, targets)"
            )
        if not len(data):
            raise ValueError(f"{self.name}: {part} holds no examples; legal: 1 or more")
        example = data[0]
        is_tuple = isinstance(example, tuple | list)
        if not is_tuple or len(example) < 2:
            entries = f" of {len(example)} entries" if is_tuple else ""
            raise ValueError(
                f"{self.name}: {part}[0] is a {type(example).__name__}{entries}; legal: a tuple of "
                "2 or more, (input, target) or (input, ..., target)"
            )


def _shown(value: object) -> str:
    """What stands in a message for a value: without its address, and without all its entries."""
    if value is None or isinstance(value, str | int | float):
        return repr(value)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = getattr(value, "__name__", None)
    kind = type(value).__name__
    return f"a {kind}" if name is None else f"the {kind} {name!r}"


def batch_of(data: Dataset[Any], chosen: torch.Tensor) -> tuple[tuple[Any, ...], Any]:
    """Inputs and targets of some examples.

    Parameters
    ----------
    data : Dataset
        As of `Task`.
    chosen : (k,) int64 tensor
        Their indices.
    """
    if isinstance(data, TensorDataset):
        *inputs, targets = data[chosen]
    else:
        *inputs, targets = default_collate([data[i] for i in chosen.tolist()])
    return tuple(inputs), targets
