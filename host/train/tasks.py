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

import importlib
import sys
import threading
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, TensorDataset, default_collate

from thermokron.host.train.config import TrainConfig
from thermokron.model import UnitFault

__all__ = ["Task", "batch_of", "make_task", "naming"]

# torch has one generator for all threads
_GENERATOR = threading.RLock()


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


@contextmanager
def make_task(config: TrainConfig, generator: torch.Generator) -> Iterator[Task]:
    """The task that a configuration names, for as long as it is trained.

    Parameters
    ----------
    config : TrainConfig
        Its network, seed and widths count.
    generator : torch.Generator
        Draws the weights of the MLP; of the others torch's own does, seeded.

    Raises
    ------
    ValueError
        If there is no such network, or a function of the user's returned something else.
    """
    from thermokron.host.train.networks import BUILDERS

    if config.network in BUILDERS:
        with _seeded(config.seed):
            task = BUILDERS[config.network](config.seed, config.hidden, generator)
        yield task
        return
    if ":" not in config.network:
        legal = ", ".join([*BUILDERS, "module:function"])
        raise ValueError(f"network = {config.network!r} is unknown; legal: {legal}")
    if config.hidden is not None:
        raise ValueError(f"hidden = {config.hidden} has no effect: {config.network} has its own")
    with naming(config.network, "importing it", passing=(_NoSuchTask,)):
        function = _find(config.network)
    # dropout and the like may draw during training, too
    with _seeded(config.seed):
        yield _called(config.network, function, config.seed)


class _NoSuchTask(ValueError):
    """There is no such function."""


@contextmanager
def naming(name: str, doing: str, *, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """What code of the user's raises becomes a `ValueError` that says whose it is.

    Parameters
    ----------
    name : str
        The network, as the configuration names it.
    doing : str
        What was being done.
    passing : tuple of exception types
        What is left as it is, beside `FloatingPointError` and `UnitFault`.
    """
    try:
        yield
    except (Exception, SystemExit) as error:  # a script without a guard exits when imported
        if isinstance(error, (FloatingPointError, UnitFault, *passing)):
            raise
        reason = " ".join(str(error).split())  # torch's has several lines
        raise ValueError(
            f"network = {name!r}: {doing} raised {type(error).__name__}: {reason}; "
            "`thermokron --traceback train ...` shows where"
        ) from error


def _find(name: str) -> Callable[[int], object]:
    module_name, _, function_name = name.partition(":")
    parts = [*module_name.split("."), function_name]
    if not all(part.isidentifier() for part in parts):
        raise _NoSuchTask(f"network = {name!r} names no function; legal: package.module:function")
    here = str(Path.cwd())
    sys.path.insert(0, here)  # as `python -m` has it
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise _NoSuchTask(
                f"network = {name!r}: there is no module {error.name!r} in {here} or on the "
                "Python path"
            ) from None
        raise
    finally:
        sys.path.remove(here)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise _NoSuchTask(f"network = {name!r}: {module_name} has no function {function_name!r}")
    return function  # type: ignore[no-any-return]


def _called(name: str, function: Callable[[int], object], seed: int) -> Task:
    with naming(name, f"calling it with the seed {seed}"):
        made = function(seed)
    if not isinstance(made, Task):
        raise ValueError(
            f"network = {name!r}: the function returned {type(made).__name__}; "
            "legal: thermokron.host.train.Task(model=..., train=..., loss=...)"
        )
    return made


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Torch's generator, seeded, and given back as it was."""
    with _GENERATOR, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
