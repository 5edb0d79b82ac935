"""What training would cost on hardware that exists, and on hardware that does not."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from thermokron.host.predict.conditions import Conditions, Target
from thermokron.host.predict.forecast import Forecast, forecast
from thermokron.host.predict.hardware.technologies import as_built, built_at_28nm, technology
from thermokron.host.predict.hardware.technology import Technology
from thermokron.host.predict.machines.cards import machine
from thermokron.host.predict.machines.machine import Machine
from thermokron.host.predict.optimizers import Optimizer, optimizer
from thermokron.host.predict.pays import pays
from thermokron.host.predict.prediction import Question
from thermokron.host.predict.predictions import Prediction, Spread
from thermokron.host.predict.quantity import Quantity, Values
from thermokron.host.predict.sensitivity import BreakEven, Swing, tornado
from thermokron.host.predict.workloads.networks import network
from thermokron.host.predict.workloads.workload import Block, Operation, Workload

if TYPE_CHECKING:
    from thermokron.host.predict.observations import observed
    from thermokron.host.predict.workloads.tracing import trace

__all__ = [
    "Block",
    "BreakEven",
    "Conditions",
    "Forecast",
    "Machine",
    "Operation",
    "Optimizer",
    "Prediction",
    "Quantity",
    "Question",
    "Spread",
    "Swing",
    "Target",
    "Technology",
    "Values",
    "Workload",
    "as_built",
    "built_at_28nm",
    "forecast",
    "machine",
    "network",
    "observed",
    "optimizer",
    "pays",
    "technology",
    "tornado",
    "trace",
]

#: What loads torch, which waits until it is asked for.
_MODULES = {"observed": "observations", "trace": "workloads.tracing"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
