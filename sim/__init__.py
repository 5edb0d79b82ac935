"""Co-simulation: the generated Verilog in a simulator, and the analog front end at its pins."""

from thermokron.sim.compiled import CompiledLink
from thermokron.sim.faults import AccessRefused, SimulationError, SimulatorDied, SimulatorSilent
from thermokron.sim.flaws import FrontEndFlaws
from thermokron.sim.link import SimulatorLink
from thermokron.sim.runner import BenchFailure, BenchResult, run_bench
from thermokron.sim.simulators import SIMULATORS, BuildFailure, SimulatorMissing, missing

__all__ = [
    "SIMULATORS",
    "AccessRefused",
    "BenchFailure",
    "BenchResult",
    "BuildFailure",
    "CompiledLink",
    "FrontEndFlaws",
    "SimulationError",
    "SimulatorDied",
    "SimulatorLink",
    "SimulatorMissing",
    "SimulatorSilent",
    "missing",
    "run_bench",
]
