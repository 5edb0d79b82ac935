"""Tasks by the names that a configuration gives them: those that come along, and a user's own."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from thermokron.host.train.config import TrainConfig
from thermokron.host.train.networks import BUILDERS
from thermokron.host.train.tasks import Task
from thermokron.model import UnitFault

__all__ = ["make_task", "naming"]

# torch has one generator for all threads
_GENERATOR = threading.RLock()


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
            "`thermokron --traceback COMMAND ...` shows where"
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
