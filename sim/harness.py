"""What a simulated unit is wrapped in: a pin that wakes cocotb, and the array's voltages.

The wrapper has the unit's pins and one more, `wake`, which the player changes when it wants to be
asked. For a run with a waveform it has besides one real signal per cell, `cell_0` …, which the
player writes: the voltage in ADC full scales at each sampling instant, held until the next, 0
during discharge. Simulators dump real signals like any other. A save file for GTKWave is written
beside the waveform, in which they are drawn as analog traces; in Surfer, choose Format › Analog for
them.
"""

from __future__ import annotations

import math
from pathlib import Path

from thermokron.model import UnitSpec
from thermokron.sim.builders import module_ports
from thermokron.sim.simulators import clock_period

__all__ = ["wrapped_verilog", "write_save_file"]

#: Height of an analog trace in GTKWave, in rows.
ANALOG_ROWS = 3
#: What the save file shows besides the cells.
GROUPS = {
    "control": ("clk", "rst", "irq"),
    "streams": tuple(
        f"{stream}_{name}"
        for stream in ("s_axis_couplings", "s_axis_biases", "m_axis_results")
        for name in ("tvalid", "tready", "tlast", "tdata")
    ),
    "DACs": (
        *("dac_valid", "dac_row", "dac_col", "dac_enable", "dac_code"),
        *("bias_valid", "bias_cell", "bias_enable", "bias_code", "bias_load"),
    ),
    "array": ("temperature", "discharge"),
    "converter port": ("convst", "drdy", "adc_data"),
}
#: Groups that are folded at first.
CLOSED = ("streams", "DACs")


def wrapped_verilog(spec: UnitSpec, verilog: str, top: str, *, traced: bool) -> tuple[str, str]:
    """Verilog of a unit in its wrapper, with its cells' voltages if `traced`; its top's name."""
    ports = module_ports(verilog, top)
    declarations = ",\n".join(
        " ".join(filter(None, ("   ", direction, "wire", range_, name)))
        for direction, range_, name in ports
    )
    connections = ", ".join(f".{name}({name})" for _, _, name in ports)
    # Verilator writes only what it is told may be written
    cells = "".join(
        f"  real cell_{i} /*verilator public_flat_rw*/ = 0.0;\n"
        for i in range(spec.cells if traced else 0)
    )
    name = f"{top}_simulated"
    wrapper = f"""
module {name} (
{declarations},
    input wire wake
);
  {top} unit ({connections});
{cells}endmodule
"""
    return verilog + wrapper, name


def write_save_file(spec: UnitSpec, waveform: Path, verilog: str, top: str) -> Path:
    """Write a GTKWave save file beside the waveform of a traced unit, and return its path.

    The arguments after `waveform` are what `wrapped_verilog` returned.
    """
    from vcd.gtkw import GTKWFlag, GTKWSave

    ranges = {name: range_ for _, range_, name in module_ports(verilog, top)}
    path = waveform.with_suffix(".gtkw")
    with open(path, "w", encoding="utf-8") as stream:
        save = GTKWSave(stream)
        save.dumpfile(str(waveform))
        save.size(1400, 900)
        save.sst_expanded(False)
        # a screen of some 600 clock cycles; GTKWave counts pixels in powers of two
        save.zoom_markers(-15.0 - math.log2(clock_period(spec) / 287))
        for group, names in GROUPS.items():
            with save.group(group, closed=group in CLOSED):
                for name in filter(ranges.__contains__, names):  # not each unit has streams
                    vector = name + ranges[name].replace(" ", "")
                    save.trace(f"{top}.{vector}", datafmt="hex" if ranges[name] else "bin")
        with save.group("cell voltages, ADC full scales"):
            for i in range(spec.cells):
                save.trace(f"{top}.cell_{i}", datafmt="real", extraflags=GTKWFlag.analog_step)
                for _ in range(ANALOG_ROWS - 1):
                    save.blank(analog_extend=True)
    return path
