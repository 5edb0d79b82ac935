"""Training: tasks, networks, optimisers, results and plots."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thermokron.host.train.config import TrainConfig
    from thermokron.host.train.data import Digits
    from thermokron.host.train.results import RunResult, write_result
    from thermokron.host.train.tasks import Task
    from thermokron.host.train.training import Progress, train

__all__ = ["Digits", "Progress", "RunResult", "Task", "TrainConfig", "train", "write_result"]

_MODULES = {
    "Digits": "data",
    "Progress": "training",
    "RunResult": "results",
    "Task": "tasks",
    "TrainConfig": "config",
    "train": "training",
    "write_result": "results",
}


def __getattr__(name: str) -> Any:
    # what loads torch waits until it is asked for: `--help` asks only for defaults
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    check_packages()
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def check_packages() -> None:
    """`ModuleNotFoundError` that says what to install, if what training needs is missing."""
    try:
        for package in ("matplotlib", "sklearn", "torch"):
            import_module(package)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"thermokron.host.train needs {error.name}; install it with: "
            "pip install 'thermokron[train]'",
            name=error.name,
        ) from None
