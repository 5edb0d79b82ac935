"""The register file: an AXI4-Lite subordinate and decoder made from the register map."""

from __future__ import annotations

from functools import reduce
from operator import or_

from amaranth import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from thermokron.model import UnitSpec
from thermokron.rtl.axi import AxiLiteReader, AxiLiteSignature, AxiLiteWriter
from thermokron.rtl.regmap import MapField, Register, Window, register_map

__all__ = ["MemoryPort", "RegisterFile"]


class MemoryPort(wiring.Signature):
    """A memory window's port, seen from the register file.

    Parameters
    ----------
    address_width : int
        Bits of a word address.

    Members
    -------
    address : Out(address_width)
        Address of a 32-bit word within the window, valid with `write` and with `read`.
    write : Out(1), write_data : Out(32)
        Write the word at this clock edge.
    read : Out(1), read_data : In(32)
        Read the word; the data is taken exactly two cycles after `read`. Never in the same
        cycle as `write`.
    locked : In(1)
        The window is in use: refuse writes. (No window is read while a run is on.)
    """

    def __init__(self, address_width: int) -> None:
        self.address_width = address_width
        super().__init__(
            {
                "address": Out(address_width),
                "write": Out(1),
                "write_data": Out(32),
                "read": Out(1),
                "read_data": In(32),
                "locked": In(1),
            }
        )


class RegisterFile(wiring.Component):
    """Registers and memory windows of `unit.rdl` behind AXI4-Lite.

    Parameters
    ----------
    spec : UnitSpec
        What the read-only registers state, and what sizes the windows.

    Members
    -------
    axi : In(AxiLiteSignature(map.address_bits))
        The bus. One write per two cycles and one read per six at best;
        reads and writes go on side by side, except that a read waits for one cycle when a
        write takes place in it.
    start_refused : In(1)
        Combinational: a START would be refused now. The pulse `control_start` is sent all the
        same, and the response is SLVERR.
    <register>_<field>, or <register> where the field is called `value`
        A port per field: Out for what software writes (levels, or pulses of one cycle for
        the bits of `control`), In for what hardware reports. Constants have none.
    couplings0, couplings1, biases_mem, clipped, products, sums : Out(MemoryPort)
        A port per window.

    Writes and reads are refused (SLVERR) as `unit.rdl` says. `status_busy` locks registers and
    the reading of windows, each port's `locked` the writing of its own. `status_busy` must
    follow an accepted `control_start` at the next clock edge; the next write comes one cycle
    later at the earliest.
    """

    def __init__(self, spec: UnitSpec) -> None:
        self._map = register_map(spec)
        super().__init__(
            {
                "axi": In(AxiLiteSignature(self._map.address_bits)),
                "start_refused": In(1),
                **{
                    name: (In if field.access == "status" else Out)(field.width)
                    for name, field in self._map.fields.items()
                    if field.access != "constant"
                },
                **{
                    name: Out(MemoryPort(window.address_width))
                    for name, window in self._map.windows.items()
                },
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.writer = writer = AxiLiteWriter(self._map.address_bits)
        m.submodules.reader = reader = AxiLiteReader(self._map.address_bits)
        for half in (writer, reader):
            for name, member in half.signature.members.items():
                if name in self.axi.signature.members:
                    bus, port = getattr(self.axi, name), getattr(half, name)
                    m.d.comb += port.eq(bus) if member.flow == In else bus.eq(port)

        write_error = Signal(init=1)  # what no case below accepts is refused
        # a write of no byte has nothing that could be refused, wherever it goes
        m.d.comb += writer.error.eq(Mux(writer.strobe.all(), write_error, writer.strobe.any()))
        with m.Switch(writer.address):
            for register in self._map.registers.values():
                if register.writable:
                    with m.Case(register.address >> 2):
                        self._write_register(m, register, writer, write_error)

        # Which register is asked for, what it holds, and the answer, a cycle each: there are many
        # registers, and all of them are far from the bus.
        read_error = Signal(init=1)
        register_data = Signal(32)
        m.d.comb += [reader.stall.eq(writer.execute), reader.error.eq(read_error)]
        asked: list[Value] = []
        for register in self._map.registers.values():
            content = self._content(register)
            for word in range(register.words):
                hit = Signal(name=f"asks_{register.name}{word or ''}")
                here = reader.address == (register.address >> 2) + word
                m.d.sync += hit.eq(here)
                with m.If(here):
                    m.d.comb += read_error.eq(0)
                asked.append(Mux(hit, content[32 * word : 32 * (word + 1)], 0))
        m.d.sync += register_data.eq(reduce(or_, asked))
        answers: list[Value] = [register_data]
        for window in self._map.windows.values():
            answers.append(self._connect_window(m, window, writer, write_error, reader, read_error))
        m.d.comb += reader.data.eq(reduce(or_, answers))
        return m

    def _write_register(
        self, m: Module, register: Register, writer: AxiLiteWriter, error: Signal
    ) -> None:
        """Within the case of a register's address: decide on the write, and do it."""
        mine = [f for f in register.fields.values() if f.access in ("config", "pulse")]
        ports = {f.name: getattr(self, f.port) for f in mine}
        bits = {f.name: writer.data[f.lsb : f.lsb + f.width] for f in mine}
        if register.name == "control":
            # one pulse at a time, so that no order among them needs to be defined
            several = (
                (bits["start"] & bits["abort"])
                | (bits["start"] & bits["clear"])
                | (bits["abort"] & bits["clear"])
            )
            refused = several | (self.status_busy & (bits["start"] | bits["clear"]))
            m.d.comb += error.eq(refused | (bits["start"] & self.start_refused))
        else:
            refused = self.status_busy
            m.d.comb += error.eq(refused)
        with m.If(writer.execute & writer.strobe.all() & ~refused):
            for field in mine:
                domain = m.d.comb if field.access == "pulse" else m.d.sync
                domain += ports[field.name].eq(bits[field.name])

    def _content(self, register: Register) -> Cat:
        """What a register reads as, all its words."""

        def value(field: MapField) -> Const | Signal:
            if field.access == "constant":
                return Const(field.reset, field.width)
            if field.access == "pulse":
                return Const(0, field.width)
            return getattr(self, field.port)

        parts, end = [], 0
        for field in sorted(register.fields.values(), key=lambda f: f.lsb):
            parts += [Const(0, field.lsb - end), value(field)]
            end = field.lsb + field.width
        return Cat(*parts, Const(0, 32 * register.words - end))

    def _connect_window(
        self,
        m: Module,
        window: Window,
        writer: AxiLiteWriter,
        write_error: Signal,
        reader: AxiLiteReader,
        read_error: Signal,
    ) -> Value:
        """Returns what is read there, three cycles after the reader's start; else 0."""
        port = getattr(self, window.name)
        width, base = window.address_width, window.address >> 2
        assert base % (1 << width) == 0, "a window stands at a multiple of its size"

        def within(address: Signal) -> Signal:
            hit = address[width:] == base >> width
            return hit & (address[:width] < window.words)

        # Requests are registers: what decides on them is far from the memories. They come a cycle
        # after the answer to a write, which is before the next write can take effect.
        m.d.sync += [
            port.address.eq(Mux(writer.execute, writer.address[:width], reader.address[:width])),
            port.read.eq(0),
        ]
        if window.writable:
            m.d.sync += [port.write.eq(0), port.write_data.eq(writer.data)]
            with m.If(within(writer.address)):
                m.d.comb += write_error.eq(port.locked)
                with m.If(writer.execute & writer.strobe.all() & ~port.locked):
                    m.d.sync += port.write.eq(1)

        asked = Signal(name=f"asks_{window.name}")
        m.d.sync += asked.eq(within(reader.address))
        with m.If(within(reader.address)):
            # during a run the blocks behind the windows need their memories' read ports
            m.d.comb += read_error.eq(self.status_busy)
            with m.If(reader.start & ~self.status_busy):
                m.d.sync += port.read.eq(1)
        return Mux(asked, port.read_data, 0)
