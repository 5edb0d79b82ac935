"""The one spec, the array's physics, its converters, and the bit-true numeric engine."""

from thermokron.model.array import NoiseArray
from thermokron.model.discretisation import van_loan
from thermokron.model.job import Job
from thermokron.model.numeric import NumericUnit
from thermokron.model.physics import ArrayPhysics
from thermokron.model.presets import PRESETS, preset
from thermokron.model.sampling import BLOCKS, SampleBlocks, sample_blocks
from thermokron.model.spec import PHASES, UnitSpec
from thermokron.model.theory import (
    covariance_error,
    covariance_settling,
    mean_error,
    mean_settling,
)
from thermokron.model.unit import BaseUnit, Readout, Unit, UnitFault

__all__ = [
    "BLOCKS",
    "PHASES",
    "PRESETS",
    "ArrayPhysics",
    "BaseUnit",
    "Job",
    "NoiseArray",
    "NumericUnit",
    "Readout",
    "SampleBlocks",
    "Unit",
    "UnitFault",
    "UnitSpec",
    "covariance_error",
    "covariance_settling",
    "mean_error",
    "mean_settling",
    "preset",
    "sample_blocks",
    "van_loan",
]
