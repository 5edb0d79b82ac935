"""What training would cost on hardware that exists, and on hardware that does not."""

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
    "optimizer",
    "pays",
    "technology",
    "tornado",
]
