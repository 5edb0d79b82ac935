"""Synthesis, placement and routing of a unit, by Yosys and nextpnr as pip installs them."""

from thermokron.sim.synthesis.flow import synthesise
from thermokron.sim.synthesis.report import CriticalPath, Synthesis
from thermokron.sim.synthesis.targets import TARGETS, Target
from thermokron.sim.synthesis.tools import (
    SynthesisFailure,
    ToolMissing,
    UnitTooBig,
    missing,
    require,
)

__all__ = [
    "TARGETS",
    "CriticalPath",
    "Synthesis",
    "SynthesisFailure",
    "Target",
    "ToolMissing",
    "UnitTooBig",
    "missing",
    "require",
    "synthesise",
]
