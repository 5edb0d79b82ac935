"""A FuseSoC core file for a unit, and the test bench in Verilog that its `sim` target runs."""

from __future__ import annotations

import re
from importlib.metadata import version

from thermokron.model import UnitSpec
from thermokron.rtl.names import LICENSE_LINE
from thermokron.rtl.regmap import register_map
from thermokron.rtl.rtlil import ports

__all__ = ["core_file", "smoke_bench"]

#: Outputs of a unit that nobody has started, and their level.
_AT_REST = (
    ("discharge", 1, "high"),
    ("convst|irq|bias_load|(dac|bias)_valid|m_axis_.*_tvalid", 0, "low"),
)


def core_file(spec: UnitSpec, name: str, stem: str) -> str:
    """The core file `<stem>.core`, CAPI2, of a unit whose files have this stem.

    Targets: `lint` in Verilator, `sim` in Icarus, `synth` for ECP5 in Yosys; `default` is what a
    design that depends on the core gets.
    """
    release = re.match(r"\d+(\.\d+)*", version("thermokron"))
    assert release is not None
    about = f"Control plane of a thermodynamic unit of {spec.cells} cells, {spec.fingerprint:#010x}"
    return f"""\
CAPI=2:
# {LICENSE_LINE}
name: thermokron:unit:{name}:{release[0]}
description: {about}

filesets:
  rtl:
    files:
      - {stem}.v: {{file_type: verilogSource-2005}}
  waivers:
    files:
      - {stem}.vlt: {{file_type: vlt}}
  bench:
    files:
      - {stem}_smoke.v: {{file_type: verilogSource-2005}}
  constraints:
    files:
      - {stem}.sdc: {{file_type: SDC}}
      - {stem}.xdc: {{file_type: xdc}}

targets:
  default: &default
    filesets: [rtl]
    toplevel: {name}
  lint:
    <<: *default
    description: Verilator's lint with all warnings, but for the few that the waivers name
    filesets_append: [waivers]
    flow: lint
    flow_options:
      tool: verilator
      verilator_options: [-Wall]
  sim:
    <<: *default
    description: the registers answer, and the pins are quiet, in Icarus
    filesets_append: [bench]
    toplevel: {name}_smoke
    flow: sim
    flow_options:
      tool: icarus
  synth:
    <<: *default
    description: the netlist for ECP5, from Yosys
    filesets_append: [constraints]
    flow: generic
    flow_options:
      tool: yosys
      arch: ecp5
      output_format: json
"""


def smoke_bench(spec: UnitSpec, name: str) -> str:
    """A test bench in plain Verilog that ends with PASS, or with an error and status 1.

    The pins are quiet in reset and after it, and constant registers read as the map says, over
    AXI4-Lite: a look at whether a unit has arrived in one piece, not a verification.
    """
    regmap = register_map(spec)
    declarations, connections = [], []
    for port in ports(spec):
        kind = "reg " if port.direction == "input" else "wire"
        span = f"[{port.width - 1}:0] " if port.width > 1 else ""
        zero = " = 0" if port.direction == "input" else ""
        declarations.append(f"    {kind} {span}{port.name}{zero};")
        connections.append(f"        .{port.name}({port.name})")
    rest = [
        f'            check({port.name} === 1\'b{level}, "{port.name} is not {word}");'
        for port in ports(spec)
        for pattern, level, word in _AT_REST
        if port.direction == "output" and re.fullmatch(pattern, port.name)
    ]
    reads = []
    for entry in ("id", "version", "fingerprint", "array"):
        register = regmap.registers[entry]
        values = {f.name: f.reset for f in register.fields.values()}
        word = register.pack(**values) & 0xFFFFFFFF
        reads.append(
            f"        expect_read({register.address}, 32'h{word:08x}); // {register.title}"
        )
    address = f"[{regmap.address_bits - 1}:0]"
    period_ps = max(2, 2 * round(0.5e12 * spec.clock_s))
    newline = "\n"
    return f"""\
// {LICENSE_LINE}
// Smoke test of {name}: quiet pins, and the registers that say what it is.
`timescale 1ps/1ps

module {name}_smoke;
{newline.join(declarations)}

    {name} unit(
{("," + newline).join(connections)}
    );

    always #{period_ps // 2} clk = ~clk;

    task check(input passed, input [511:0] what);
        if (!passed) begin
            $display("FAIL: %0s, at %0d ps", what, $time);
            $fatal;
        end
    endtask

    task quiet;
        begin
{newline.join(rest)}
        end
    endtask

    // inputs change at the falling edge, so that no simulator has a race to decide
    task expect_read(input {address} address, input [31:0] expected);
        integer cycles;
        begin
            s_axi_araddr = address;
            s_axi_arvalid = 1;
            s_axi_rready = 1;
            cycles = 0;
            while (s_axi_arready !== 1'b1 && cycles < 100) begin
                @(negedge clk) cycles = cycles + 1;
            end
            check(s_axi_arready === 1'b1, "no arready within 100 cycles");
            @(negedge clk) s_axi_arvalid = 0;
            while (s_axi_rvalid !== 1'b1 && cycles < 200) begin
                @(negedge clk) cycles = cycles + 1;
            end
            check(s_axi_rvalid === 1'b1, "no rvalid within 100 cycles");
            check(s_axi_rresp === 2'b00, "rresp is not OKAY");
            check(s_axi_rdata === expected, "a register reads wrong");
            @(negedge clk) s_axi_rready = 0;
        end
    endtask

    initial begin
        rst = 1;
        repeat (4) @(negedge clk);
        quiet;
        rst = 0;
        repeat (4) @(negedge clk) quiet;
{newline.join(reads)}
        quiet;
        $display("PASS: {name}");
        $finish;
    end
endmodule
"""
