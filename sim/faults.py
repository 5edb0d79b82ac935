"""What can go wrong with a unit whose RTL is simulated."""

from __future__ import annotations

from thermokron.model import UnitFault

__all__ = ["AccessRefused", "SimulationError", "SimulatorDied", "SimulatorSilent"]


class AccessRefused(UnitFault):
    """A unit answered a read or a write with SLVERR."""


class SimulationError(UnitFault):
    """Something went wrong inside the simulation, such as a CONVST off the sampling grid."""


class SimulatorDied(SimulationError, ConnectionError):
    """The simulator's process is gone; the message ends with the tail of its log."""


class SimulatorSilent(SimulationError, TimeoutError):
    """The simulator's process is there, and has not answered in time."""
