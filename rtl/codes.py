"""DAC codes: memory that the host writes word by word, and the loader that streams them out."""

from __future__ import annotations

from amaranth import Module, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from thermokron.rtl.registers import MemoryPort

__all__ = ["CodeLoader", "CodeStore", "read_signature"]


def read_signature(address_bits: int, bits: int) -> wiring.Signature:
    """A loader's access to its store: `code` and `bad` follow `enable` by one cycle, and hold."""
    return wiring.Signature(
        {
            "address": Out(address_bits),
            "enable": Out(1),
            "code": In(signed(bits)),
            "bad": In(1),
        }
    )


class CodeStore(wiring.Component):
    """Memory of signed codes behind one or more host windows of `depth` words, and a read side.

    Windows follow each other in the memory. It keeps one bit more than a code has: whether the
    word that the host wrote was beyond ±(2^(bits-1) - 1). A loader that meets such an entry
    reports it, so that a bad program is refused wherever in it the bad code stands.

    Members
    -------
    window0, window1, … : In(MemoryPort)
        The host's side. Its reads share the one read port; the register file
        refuses them during a run.
    locked : In
        A bit per window: in use, the host must not write.
    read : In
        The loader's side; addresses count over all windows.
    """

    def __init__(self, depth: int, bits: int, *, windows: int = 1) -> None:
        self._depth, self._bits, self._windows = depth, bits, windows
        window = MemoryPort(ceil_log2(depth))
        super().__init__(
            {
                **{f"window{w}": In(window) for w in range(windows)},
                "locked": In(windows),
                "read": In(read_signature(ceil_log2(depth * windows), bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        limit = (1 << (self._bits - 1)) - 1
        row = data.StructLayout({"code": signed(self._bits), "bad": 1})
        m.submodules.memory = memory = Memory(shape=row, depth=self._depth * self._windows, init=[])
        write, read = memory.write_port(), memory.read_port()
        m.d.comb += [
            read.addr.eq(self.read.address),
            read.en.eq(self.read.enable),
            self.read.code.eq(read.data.code),
            self.read.bad.eq(read.data.bad),
        ]
        read_back = Signal(signed(self._bits))
        m.d.sync += read_back.eq(read.data.code)  # the second of a window's two cycles
        for index in range(self._windows):
            port = getattr(self, f"window{index}")
            word = port.write_data.as_signed()
            with m.If(port.write):
                m.d.comb += [
                    write.addr.eq(port.address + index * self._depth),
                    write.data.code.eq(word[: self._bits].as_signed()),
                    write.data.bad.eq((word > limit) | (word < -limit)),
                    write.en.eq(1),
                ]
            with m.If(port.read):
                m.d.comb += [
                    read.addr.eq(port.address + index * self._depth),
                    read.en.eq(1),
                ]
            m.d.comb += [port.read_data.eq(read_back), port.locked.eq(self.locked[index])]
        return m


class CodeLoader(wiring.Component):
    """Streams a vector, or the upper triangle of a matrix row by row, from a `CodeStore`.

    One code per cycle while the receiver is ready; a DAC that has to settle stalls the stream
    by its `ready`. `vectors` tag the codes with the cell, triangles with row and column.

    Members
    -------
    start : In(1)
        Begin at `base`; ignored while busy.
    cancel : In(1)
        Drop what is left.
    base : In
        Address of the first code, sampled with `start`.
    busy : Out(1)
        From the cycle after `start` until the cycle after the last code was taken.
    bad_code : Out(1)
        The entry at the head is out of range; it is not sent.
    read : Out
        To the store.
    codes : Out(stream)
        `row` and `column`, or `cell`, and `code`.
    """

    def __init__(self, cells: int, bits: int, address_bits: int, *, triangle: bool) -> None:
        self._cells, self._triangle = cells, triangle
        index = ceil_log2(cells)
        tags = {"row": index, "column": index} if triangle else {"cell": index}
        super().__init__(
            {
                "start": In(1),
                "cancel": In(1),
                "base": In(address_bits),
                "busy": Out(1),
                "bad_code": Out(1),
                "read": Out(read_signature(address_bits, bits)),
                "codes": Out(stream.Signature(data.StructLayout({**tags, "code": signed(bits)}))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        last = self._cells - 1
        row, column = Signal(range(self._cells)), Signal(range(self._cells))
        reading, valid, advance = Signal(), Signal(), Signal()
        payload = self.codes.payload
        m.d.comb += [
            advance.eq(~valid | (self.codes.ready & self.codes.valid)),
            self.read.enable.eq(reading & advance),
            self.busy.eq(reading | valid),
            self.bad_code.eq(valid & self.read.bad),
            self.codes.valid.eq(valid & ~self.read.bad),
            payload.code.eq(self.read.code),
        ]
        with m.If(advance):
            m.d.sync += valid.eq(reading)
        with m.If(self.read.enable):
            m.d.sync += [self.read.address.eq(self.read.address + 1), column.eq(column + 1)]
            if self._triangle:
                m.d.sync += [payload.row.eq(row), payload.column.eq(column)]
            else:
                m.d.sync += payload.cell.eq(column)
            with m.If(column == last):
                m.d.sync += [row.eq(row + 1), column.eq(row + 1)]
                with m.If((row == last) if self._triangle else True):
                    m.d.sync += reading.eq(0)
        with m.If(self.start & ~self.busy):
            m.d.sync += [
                self.read.address.eq(self.base),
                row.eq(0),
                column.eq(0),
                reading.eq(1),
            ]
        with m.If(self.cancel):
            m.d.sync += [reading.eq(0), valid.eq(0)]
        return m
