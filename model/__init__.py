"""The one spec, the array's physics, its converters, and the bit-true numeric engine."""

from thermokron.model.spec import PHASES, UnitSpec
from thermokron.model.unit import BaseUnit, Job, Readout, Unit, UnitFault

__all__ = ["PHASES", "BaseUnit", "Job", "Readout", "Unit", "UnitFault", "UnitSpec"]
