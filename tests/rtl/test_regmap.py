"""The register map: addresses that software is built on, and its agreement with the spec."""

from __future__ import annotations

import re
import struct
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
from systemrdl import RDLCompiler

from thermokron.host import open_unit
from thermokron.model import PHASES, UnitSpec
from thermokron.rtl import (
    MAX_CELLS,
    FaultReason,
    Phase,
    generate_verilog,
    read_spec,
    register_map,
    write_unit,
)
from thermokron.rtl.layout import bias_stride, coupling_index, product_index, sum_index
from thermokron.rtl.regmap import RDL_PATH, RegisterMap, bound_rdl

DOCS = Path(__file__).parents[2] / "docs" / "registers.md"

# Software that was built yesterday relies on these: a change here needs a new major version.
ADDRESSES = {
    "id": 0x000, "version": 0x004, "fingerprint": 0x008, "array": 0x010, "widths": 0x014,
    "adc": 0x018, "timing": 0x01C, "clock_hz": 0x020, "tau_s": 0x028,
    "temperature_full_scale": 0x030, "depth": 0x038, "ports": 0x03C, "dac": 0x040,
    "control": 0x100, "status": 0x104,
    "fault": 0x108, "irq_enable": 0x10C, "mode": 0x110, "biases": 0x114, "temperature": 0x118,
    "settle": 0x11C, "interval": 0x120, "samples": 0x124, "progress_vector": 0x128,
    "progress_sample": 0x12C, "streams": 0x130, "cycles_load": 0x140, "cycles_discharge": 0x148,
    "cycles_settle": 0x150, "cycles_sample": 0x158, "cycles_results": 0x160,
}  # fmt: skip
BITS = {
    "control_start": (0, 1), "control_abort": (1, 1), "control_clear": (2, 1),
    "status_busy": (0, 1), "status_done": (1, 1), "status_fault": (2, 1), "status_phase": (4, 3),
    "fault_reason": (0, 4), "irq_enable_done": (0, 1), "irq_enable_fault": (1, 1),
    "mode_second_moments": (0, 1), "mode_bank": (1, 1),
    "mode_stream_biases": (2, 1), "mode_stream_results": (3, 1),
    "ports_stream_bits": (0, 8), "ports_dac_lanes": (8, 8), "ports_second_moments": (16, 1),
    "dac_dac_timeout_cycles": (0, 16), "streams_packets": (0, 16),
    "streams_couplings_open": (16, 1), "streams_biases_open": (17, 1),
    "streams_results_open": (18, 1), "streams_spoiled": (20, 2),
    "array_cells": (0, 16), "array_lanes": (16, 16), "depth_rhs_depth": (0, 16),
    "widths_coupling_bits": (0, 8), "widths_bias_bits": (8, 8), "widths_adc_bits": (16, 8),
    "widths_temperature_bits": (24, 8), "adc_adc_cycles": (0, 16),
    "adc_adc_timeout_cycles": (16, 16), "timing_discharge_cycles": (0, 16),
    "version_minor": (0, 16), "version_major": (16, 16),
}  # fmt: skip
# Of the default unit; where others have them follows from their sizes.
WINDOWS = {
    "couplings0": (0x0400, 1), "couplings1": (0x0800, 1), "biases_mem": (0x1000, 1),
    "clipped": (0x2000, 1), "products": (0x3000, 2), "sums": (0x4000, 2),
}  # fmt: skip
REASONS = {
    "none": 0, "adc_timeout": 1, "adc_stuck": 2, "aborted": 3, "illegal_code": 4,
    "stream_early": 5, "stream_late": 6, "dac_timeout": 7,
    "illegal_biases": 8, "illegal_temperature": 9, "illegal_settle": 10, "illegal_interval": 11,
    "illegal_samples": 12, "illegal_mode": 13, "illegal_bank": 14,
}  # fmt: skip

SPECS = [
    UnitSpec(),
    UnitSpec(cells=2, rhs_depth=1, coupling_bits=3, bias_bits=4, adc_bits=3, temperature_bits=6),
    UnitSpec(cells=15, lanes=5, rhs_depth=7, clock_hz=123.456e6, tau_s=1.7e-9),
    UnitSpec(cells=127, lanes=1, rhs_depth=256, adc_timeout_cycles=65535, adc_cycles=65535),
    UnitSpec(cells=256, lanes=256, rhs_depth=256, coupling_bits=16, discharge_cycles=65535),
    UnitSpec(cells=256, lanes=1, rhs_depth=1, stream_bits=None),
    UnitSpec(cells=13, dac_lanes=8, stream_bits=128, second_moments=False),
    UnitSpec(cells=2, dac_lanes=16, stream_bits=32, rhs_depth=1),
    UnitSpec(cells=256, lanes=2, rhs_depth=256),
]


def test_addresses_and_bits_are_what_software_relies_on() -> None:
    regmap = register_map(UnitSpec())
    assert {name: r.address for name, r in regmap.registers.items()} == ADDRESSES
    assert {n: (w.address, w.entry_words) for n, w in regmap.windows.items()} == WINDOWS
    whole = {n: (0, 32 * regmap.registers[n].words) for n in regmap.fields if n in ADDRESSES}
    assert {n: (f.lsb, f.width) for n, f in regmap.fields.items()} == {**whole, **BITS}
    assert {reason.name: reason.value for reason in FaultReason} == REASONS
    assert [phase.name for phase in Phase] == ["idle", *PHASES]
    assert all(member.doc for member in (*FaultReason, *Phase))


def _beyond(spec: UnitSpec) -> int:
    """Codes that fill the last word of the couplings."""
    return -spec.cells % spec.dac_lanes


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.cells}/{s.lanes}")
def test_windows_hold_all_entries_and_do_not_meet(spec: UnitSpec) -> None:
    regmap = register_map(spec)
    windows = regmap.windows
    assert windows["couplings0"].entries == windows["couplings1"].entries
    assert coupling_index(spec).max() == windows["couplings0"].entries - 1 - _beyond(spec)
    assert windows["biases_mem"].entries == spec.rhs_depth * bias_stride(spec)
    assert bias_stride(spec) >= spec.cells
    assert sum_index(spec, spec.rhs_depth).max() < windows["sums"].entries
    assert windows["clipped"].entries == windows["sums"].entries
    if spec.second_moments:
        assert product_index(spec).max() < windows["products"].entries
    assert max(ADDRESSES.values()) + 8 <= 0x400
    end = 0x400
    for window in windows.values():
        assert window.address >= end, window.name
        assert window.address % (4 << window.address_width) == 0, "the decoder masks"
        assert all((window.doc, window.title))
        end = window.address + 4 * window.words
    assert 1 << (regmap.address_bits - 1) < end <= 1 << regmap.address_bits


def test_largest_windows_fit_whatever_the_lanes() -> None:
    for cells in (127, 240, 256):
        for lanes in (d for d in range(1, cells + 1) if cells % d == 0):
            test_windows_hold_all_entries_and_do_not_meet(
                UnitSpec(cells=cells, lanes=lanes, rhs_depth=256)
            )


def test_what_does_not_depend_on_the_spec_is_the_same_in_every_unit() -> None:
    """So that software can read the specification before it knows it."""
    for spec in SPECS:
        regmap = register_map(spec)
        assert {name: r.address for name, r in regmap.registers.items()} == ADDRESSES
        assert list(regmap.windows) == list(WINDOWS)
    assert register_map(UnitSpec(cells=2, rhs_depth=1)).address_bits == 11


@pytest.mark.parametrize("cells", [MAX_CELLS + 1, 300, 4096])
def test_more_cells_than_can_be_built_are_refused(cells: int, tmp_path: Path) -> None:
    spec = UnitSpec(cells=cells, lanes=1)
    message = (
        rf"cells = {cells} is out of range for the control plane \(Verilog, engine 'cosim'\); "
        rf"legal: 2 to {MAX_CELLS}; engine 'numeric' takes up to 4096"
    )
    begin = time.monotonic()
    for make in (
        lambda: register_map(spec),
        lambda: generate_verilog(spec),
        lambda: write_unit(spec, tmp_path / "unit.v"),
        lambda: open_unit("cosim", spec),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    assert time.monotonic() - begin < 5.0
    assert not list(tmp_path.iterdir())
    open_unit("numeric", spec).close()


def _words(regmap: RegisterMap) -> dict[int, int]:
    """What a unit's constant registers read as."""
    words = {}
    for register in regmap.registers.values():
        content = register.pack(**{n: f.reset for n, f in register.fields.items()})
        for word in range(register.words):
            words[register.address + 4 * word] = content >> (32 * word) & 0xFFFF_FFFF
    return words


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.cells}/{s.lanes}")
def test_a_unit_states_its_spec(spec: UnitSpec) -> None:
    assert read_spec(_words(register_map(spec)).__getitem__) == spec


def test_every_field_of_the_spec_is_stated() -> None:
    stated = {f.name if f.name != "value" else f.register for f in
              register_map(UnitSpec()).fields.values() if f.access == "constant"}  # fmt: skip
    assert stated - {"id", "minor", "major", "fingerprint"} == {f.name for f in fields(UnitSpec)}


@pytest.mark.parametrize(
    ("address", "word", "message"),
    [
        (0x000, 0xFFFF_FFFF, "ID reads 0xffffffff, not 0x544b524e"),
        (0x004, 0x0001_0000, "version 1; this software knows 3"),
        (0x008, 0x0000_0000, "fingerprint 0x00000000 is not that"),
        (0x010, 0x0010_0001, "cells = 1 is out of range; legal: 2 to 4096"),
    ],
)
def test_what_is_not_a_unit_is_refused(address: int, word: int, message: str) -> None:
    words = {**_words(register_map(UnitSpec())), address: word}
    with pytest.raises(ValueError, match=re.escape(message)):
        read_spec(words.__getitem__)


def test_the_same_words_with_other_numbers_are_another_unit() -> None:
    words = _words(register_map(UnitSpec()))
    low, high = struct.unpack("<II", struct.pack("<d", 50e6))
    words |= {0x020: low, 0x024: high}
    with pytest.raises(ValueError, match="fingerprint"):
        read_spec(words.__getitem__)
    words[0x008] = replace(UnitSpec(), clock_hz=50e6).fingerprint
    assert read_spec(words.__getitem__).clock_hz == 50e6


def test_fields_pack_and_unpack() -> None:
    register = register_map(UnitSpec()).registers["status"]
    word = register.pack(busy=1, fault=1, phase=Phase.settle)
    assert word == 0b011_0101
    assert register.unpack(word) == {"busy": 1, "done": 0, "fault": 1, "phase": 3}
    with pytest.raises(ValueError, match=r"status_phase = 8 is out of range; legal: 0 to 7"):
        register.pack(phase=8)


def test_defaults_of_the_rdl_are_those_of_the_spec() -> None:
    compiler = RDLCompiler()
    compiler.compile_file(str(RDL_PATH))
    root = compiler.elaborate()
    windows = register_map(UnitSpec()).windows
    constants = {n: f for n, f in register_map(UnitSpec()).fields.items() if n != "fingerprint"}
    for node in root.top.children():
        if node.inst_name in windows:
            assert node.get_property("mementries") == windows[node.inst_name].entries
            assert node.absolute_address == windows[node.inst_name].address
            continue
        for field in node.fields():
            name = node.inst_name + ("" if field.inst_name == "value" else f"_{field.inst_name}")
            if name in constants:
                assert field.get_property("reset", default=0) == constants[name].reset, name


def test_the_bound_rdl_stands_alone(tmp_path: Path) -> None:
    spec = SPECS[2]
    path = tmp_path / "unit.rdl"
    path.write_text(bound_rdl(spec))
    compiler = RDLCompiler()
    compiler.compile_file(str(path))
    top = compiler.elaborate().top
    expected = register_map(spec)
    for name, window in expected.windows.items():
        assert top.get_child_by_name(name).get_property("mementries") == window.entries
        assert top.get_child_by_name(name).absolute_address == window.address
    got = {f.get_path(): f.get_property("reset") for r in top.registers() for f in r.fields()}
    assert got["thermokron_unit.array.cells"] == 15
    assert got["thermokron_unit.fingerprint.value"] == spec.fingerprint


def _table() -> str:
    """The map as docs/registers.md shows it."""
    regmap = register_map(UnitSpec())
    lines = ["| address | register | fields | access | |", "|---|---|---|---|---|"]
    access = {"constant": "read", "status": "read", "config": "read, write", "pulse": "write 1"}
    for register in regmap.registers.values():
        names = ", ".join(
            f"`{f.name}`[{f.lsb + f.width - 1}:{f.lsb}]" for f in register.fields.values()
        )
        first = next(iter(register.fields.values()))
        lines.append(
            f"| {register.address:#05x} | `{register.name}` | {names} "
            f"| {access[first.access]} | {register.title} |"
        )
    lines += ["", "| address | window | words per entry | access | |", "|---|---|---|---|---|"]
    for window in regmap.windows.values():
        lines.append(
            f"| {window.address:#08x} | `{window.name}` | {window.entry_words} "
            f"| {'read, write' if window.writable else 'read'} | {window.title} |"
        )
    lines += ["", "| reason | name | |", "|---|---|---|"]
    lines += [f"| {r.value} | `{r.name}` | {r.doc} |" for r in FaultReason]
    return "\n".join(lines)


def test_the_page_shows_the_map() -> None:
    table = _table()
    assert table in DOCS.read_text(), f"docs/registers.md should have these tables:\n{table}"
