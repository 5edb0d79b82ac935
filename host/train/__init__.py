"""Training: tasks, networks, optimisers, results and plots."""

try:
    import matplotlib as _matplotlib  # noqa: F401
    import sklearn as _sklearn  # noqa: F401
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"thermokron.host.train needs {error.name}; install it with: "
        "pip install 'thermokron[train]'",
        name=error.name,
    ) from None

from thermokron.host.train.config import TrainConfig
from thermokron.host.train.data import Digits
from thermokron.host.train.results import RunResult, write_result
from thermokron.host.train.tasks import Task
from thermokron.host.train.training import Progress, train

__all__ = ["Digits", "Progress", "RunResult", "Task", "TrainConfig", "train", "write_result"]
