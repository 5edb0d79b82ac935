"""Reset of the pins that an array hangs on, in a simulation whose registers start undefined."""

from __future__ import annotations

import functools
import re
import subprocess
from pathlib import Path

import pytest

from thermokron.model import UnitSpec
from thermokron.rtl import generate_verilog, ports
from thermokron.rtl.names import UNIT_NAME
from thermokron.sim.simulators import missing

SPEC = UnitSpec(cells=3, rhs_depth=2)
#: Payloads, which say nothing while their `valid` is low, and may come from a memory.
PAYLOADS = {"dac_code": "dac_valid", "bias_code": "bias_valid"}

pytestmark = pytest.mark.skipif(bool(missing("icarus")), reason="Icarus is not installed")


@functools.cache
def without_initial_values() -> str:
    """The same registers and memories as silicon has them: undefined when the power comes on."""
    verilog = generate_verilog(SPEC)
    declared = r"^(\s*(?:output )?reg [^=;,]*[^=;, ]) *= [^;,\n]*"
    verilog, registers = re.subn(declared, r"\1", verilog, flags=re.M)
    verilog, memories = re.subn(r"^  initial begin\n(?:    .*\n)*?  end\n", "", verilog, flags=re.M)
    assert registers > 50
    assert memories
    assert not re.search(r"^\s*(output )?reg [^;,]*= ", verilog, re.M)
    return verilog


def simulate(folder: Path, steps: str) -> list[str]:
    """What a bench prints that does these steps with the unit; `show(name)` prints the pins."""
    outputs = [port for port in ports(SPEC) if port.direction == "output"]
    inputs = [port for port in ports(SPEC) if port.direction == "input"]
    defined = " && ".join(
        f"(^{o.name} !== 1'bx || {PAYLOADS[o.name]} === 1'b0)"
        if o.name in PAYLOADS
        else f"^{o.name} !== 1'bx"
        for o in outputs
    )
    idle = [f"{i.name} = 0;" for i in inputs if i.name not in ("clk", "rst")]
    bench = [
        "module bench;",
        *(f"  reg [{i.width - 1}:0] {i.name};" for i in inputs),
        *(f"  wire [{o.width - 1}:0] {o.name};" for o in outputs),
        f"  {UNIT_NAME} dut(.*);",
        f"  wire defined = {defined};",
        "  task show(input [63:0] when_);",
        '    $display("%0s discharge=%b convst=%b defined=%b", when_, discharge, convst, defined);',
        "  endtask",
        "  task cycle; begin #5 clk = 1; #5 clk = 0; end endtask",
        f"  initial begin {' '.join(idle)}",
        f"    {steps}",
        "  end",
        "endmodule",
    ]
    design, text = folder / "unit.v", folder / "bench.sv"
    design.write_text(without_initial_values())
    text.write_text("\n".join(bench) + "\n")
    program = folder / "bench"
    subprocess.run(["iverilog", "-g2012", "-o", program, design, text], check=True)
    ran = subprocess.run(["vvp", "-n", program], check=True, capture_output=True, text=True)
    return ran.stdout.splitlines()


@pytest.mark.parametrize("clock", ["", "clk = 0;", "clk = 1;", "cycle; #3"])
def test_the_cells_are_held_before_the_first_clock_edge(clock: str, tmp_path: Path) -> None:
    """Power on, reset, and no clock at all, or one that has stopped, or one between its edges."""
    lines = simulate(
        tmp_path,
        f"rst = 0; {clock} #10 show(\"on\"); rst = 1; #1 show(\"reset\");"
        " clk = 0; repeat (3) cycle; show(\"clocked\"); rst = 0; #1 show(\"free\");"
        " repeat (40) begin cycle; show(\"after\"); end",
    )  # fmt: skip
    assert lines[0] == "on discharge=x convst=x defined=0"
    assert lines[1].startswith("reset discharge=1 convst=0 ")
    assert lines[2:4] == [f"{when} discharge=1 convst=0 defined=1" for when in ("clocked", "free")]
    assert lines[4:] == ["after discharge=1 convst=0 defined=1"] * 40


def test_reset_is_asserted_between_clock_edges_and_released_with_the_clock(tmp_path: Path) -> None:
    """As if in the midst of a conversion: the pins do not wait for a clock that has stopped."""
    lines = simulate(
        tmp_path,
        "rst = 1; clk = 0; #1 repeat (2) cycle; rst = 0; repeat (5) cycle;"
        " dut.sequencer.discharge = 0; dut.converter.convst = 1; #1 show(\"run\");"
        " rst = 1; #1 show(\"reset\"); rst = 0; #1 show(\"free\");"
        " repeat (4) begin $display(\"held=%b\", dut.pins_rst); cycle; end show(\"after\");",
    )  # fmt: skip
    assert lines == [
        "run discharge=0 convst=1 defined=1",
        "reset discharge=1 convst=0 defined=1",
        "free discharge=1 convst=0 defined=1",
        "held=1", "held=1", "held=0", "held=0",
        "after discharge=1 convst=0 defined=1",
    ]  # fmt: skip
