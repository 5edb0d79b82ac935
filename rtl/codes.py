"""DAC codes: memory that software writes code by code or a stream fills, and its loader."""

from __future__ import annotations

from amaranth import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from thermokron.rtl.layout import span
from thermokron.rtl.registers import MemoryPort

__all__ = ["CodeLoader", "CodeStore", "code_row", "read_signature", "write_signature"]


def code_row(bits: int, lanes: int) -> data.ArrayLayout:
    """A word of the memory: codes, each with whether it was beyond its range."""
    return data.ArrayLayout(data.StructLayout({"code": signed(bits), "bad": 1}), lanes)


def read_signature(address_bits: int, bits: int, lanes: int) -> wiring.Signature:
    """A loader's access to its store: `row` follows two cycles of `enable`, and holds without.

    The memory's output is a register of its own (block RAM without one is slow to answer), so a
    pipeline of two stages that move together.
    """
    return wiring.Signature(
        {
            "address": Out(address_bits),
            "enable": Out(1),
            "row": In(code_row(bits, lanes)),
        }
    )


def write_signature(address_bits: int, item_bits: int, lanes: int) -> wiring.Signature:
    """A stream's access to a store: items as they came, for those lanes whose `mask` bit is set.

    A write takes place in a cycle in which `enable` and `ready` are high.
    """
    return wiring.Signature(
        {
            "address": Out(address_bits),
            "enable": Out(1),
            "ready": In(1),
            "mask": Out(lanes),
            "items": Out(data.ArrayLayout(signed(item_bits), lanes)),
        }
    )


class CodeStore(wiring.Component):
    """Memory of signed codes in words of `lanes`, behind one or more host windows.

    Windows follow each other in the memory. It keeps one bit more than a code has: whether the
    word or item that was written was beyond ±(2^(bits-1) - 1). A loader that meets such an entry
    reports it, so that a bad program is refused wherever in it the bad code stands.

    Parameters
    ----------
    depth : int
        Words per window.
    bits, lanes : int
        Of a code; codes per word.
    windows : int
    item_bits : int or None
        Of what a stream writes, 8 or 16; None for a store without.

    Members
    -------
    window0, window1, … : In(MemoryPort)
        The host's side, one code per 32-bit word. Its reads share the one read port; the register
        file refuses them during a run.
    locked : In
        A bit per window: in use, the host must not write.
    read : In
        The loader's side; addresses count over all windows.
    write : In
        The stream's side, likewise; the host's writes go first.
    """

    def __init__(
        self, depth: int, bits: int, lanes: int, *, windows: int = 1, item_bits: int | None = None
    ) -> None:
        self._depth, self._bits, self._lanes, self._windows = depth, bits, lanes, windows
        window = MemoryPort(ceil_log2(depth * lanes))
        address_bits = ceil_log2(len(span(depth * windows)))
        self._streamed = item_bits is not None
        super().__init__(
            {
                **{f"window{w}": In(window) for w in range(windows)},
                "locked": In(windows),
                "read": In(read_signature(address_bits, bits, lanes)),
                **(
                    {"write": In(write_signature(address_bits, item_bits, lanes))}
                    if item_bits is not None
                    else {}
                ),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        lanes = self._lanes
        lane_bits = ceil_log2(lanes)
        row = code_row(self._bits, lanes)
        m.submodules.memory = memory = Memory(
            shape=row, depth=len(span(self._depth * self._windows)), init=[]
        )
        write, read = memory.write_port(granularity=1), memory.read_port()
        m.d.comb += [read.addr.eq(self.read.address), read.en.eq(self.read.enable)]
        # the second of the two cycles, of a loader and of a window
        moves = Signal()
        lane = Signal(max(lane_bits, 1))
        chosen = Signal(max(lane_bits, 1))
        with m.If(self.read.enable | moves):
            m.d.sync += self.read.row.eq(read.data)
        m.d.sync += chosen.eq(lane)
        if self._streamed:
            m.d.comb += [
                self.write.ready.eq(1),
                write.addr.eq(self.write.address),
                write.en.eq(self.write.mask & self.write.enable.replicate(lanes)),
                *(self._keep(write.data[index], self.write.items[index]) for index in range(lanes)),
            ]
        m.d.sync += moves.eq(0)
        for index in range(self._windows):
            port = getattr(self, f"window{index}")
            base = index * self._depth
            word = port.write_data.as_signed()
            with m.If(port.write):
                m.d.comb += [
                    write.addr.eq(port.address[lane_bits:] + base),
                    write.en.eq(1 << port.address[:lane_bits] if lane_bits else 1),
                    *(self._keep(write.data[index], word) for index in range(lanes)),
                ]
                if self._streamed:
                    m.d.comb += self.write.ready.eq(0)
            with m.If(port.read):
                m.d.comb += [read.addr.eq(port.address[lane_bits:] + base), read.en.eq(1)]
                m.d.sync += [moves.eq(1), lane.eq(port.address[:lane_bits])]
            m.d.comb += [
                port.read_data.eq(self.read.row[chosen].code),
                port.locked.eq(self.locked[index]),
            ]
        return m

    def _keep(self, entry: data.View, word: Signal) -> list[object]:
        """What is kept of a word as it came."""
        limit = (1 << (self._bits - 1)) - 1
        return [
            entry.code.eq(word[: self._bits].as_signed()),
            entry.bad.eq((word > limit) | (word < -limit)),
        ]


class CodeLoader(wiring.Component):
    """Sends a vector, or the upper triangle of a matrix row by row, from a `CodeStore` to DACs.

    One word of `lanes` codes per cycle while the receiver is ready; a DAC that has to settle
    stalls the stream by its `ready`. Words are tagged with the cell of their first code, or with
    the row and the column of it; `enable` has a bit for each code that has a DAC.

    Members
    -------
    start : In(1)
        Begin at `base`; ignored while busy.
    available : In(1)
        The codes are in the store; until then a load that was started waits.
    cancel : In(1)
        Drop what is left.
    base : In
        Address of the first word, sampled with `start`.
    busy : Out(1)
        From the cycle after `start` until the cycle after the last word was taken.
    bad_code : Out(1)
        A code of the word at the head is out of range; the word is not sent.
    timeout : Out(1)
        The receiver has not been ready for the patience that it is given.
    read : Out
        To the store.
    codes : Out(stream)
        `row` and `column`, or `cell`; `enable`, and `codes`.
    """

    def __init__(
        self,
        cells: int,
        bits: int,
        lanes: int,
        address_bits: int,
        patience: int,
        *,
        triangle: bool,
    ) -> None:
        self._cells, self._lanes, self._triangle = cells, lanes, triangle
        self._patience = patience
        index = ceil_log2(cells)
        tags = {"row": index, "column": index} if triangle else {"cell": index}
        payload = data.StructLayout(
            {**tags, "enable": lanes, "codes": data.ArrayLayout(signed(bits), lanes)}
        )
        super().__init__(
            {
                "start": In(1),
                "available": In(1, init=1),
                "cancel": In(1),
                "base": In(address_bits),
                "busy": Out(1),
                "bad_code": Out(1),
                "timeout": Out(1),
                "read": Out(read_signature(address_bits, bits, lanes)),
                "codes": Out(stream.Signature(payload)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        cells, lanes = self._cells, self._lanes
        lane_bits = ceil_log2(lanes)
        last_row, last_block = cells - 1, (cells - 1) // lanes
        row = Signal(range(cells))
        block = Signal(span(last_block + 1))
        reading = Signal()
        moves = Signal()
        read_valid = Signal()
        valid = Signal()
        payload = self.codes.payload

        # ---- where the word to be read belongs, and what is there for it --------------------
        first = block << lane_bits
        tags = data.StructLayout({k: v for k, v in payload.shape().members.items() if k != "codes"})
        here = Signal(tags)
        read_tags = Signal(tags)
        if self._triangle:
            m.d.comb += [here.row.eq(row), here.column.eq(first)]
        else:
            m.d.comb += here.cell.eq(first)
        for lane in range(lanes):
            exists = (block != last_block) | (last_block * lanes + lane < cells)
            if self._triangle:  # the columns before the row's own are of the lower triangle
                diagonal = block == row[lane_bits:]
                exists = exists & ~(diagonal & (lane < row[:lane_bits]))
            m.d.comb += here.enable[lane].eq(exists)

        # ---- two stages, as the store has them, that move together ---------------------------
        m.d.comb += [
            moves.eq(~valid | (self.codes.ready & self.codes.valid)),
            self.read.enable.eq(moves & (reading & self.available | read_valid)),
            self.busy.eq(reading | read_valid | valid),
        ]
        with m.If(moves):
            m.d.sync += [
                read_valid.eq(reading & self.available),
                read_tags.eq(here),
                valid.eq(read_valid),
                *(payload[name].eq(read_tags[name]) for name in tags.members),
            ]
        with m.If(moves & reading & self.available):
            m.d.sync += [self.read.address.eq(self.read.address + 1), block.eq(block + 1)]
            with m.If(block == last_block):
                following = row + 1
                m.d.sync += [row.eq(following), block.eq(following[lane_bits:])]
                with m.If((row == last_row) if self._triangle else True):
                    m.d.sync += reading.eq(0)
        with m.If(~self.busy):  # where it would begin: `start` comes late in its cycle
            m.d.sync += [
                self.read.address.eq(self.base),
                row.eq(0),
                block.eq(0),
                reading.eq(self.start),
            ]

        # ---- what goes out, and what must not ------------------------------------------------
        bad = Signal()
        waited = Signal(range(self._patience))
        m.d.comb += [
            bad.eq(
                Cat(e.bad & on for e, on in zip(self.read.row, payload.enable, strict=True)).any()
            ),
            self.codes.valid.eq(valid & ~bad),
            *(payload.codes[lane].eq(self.read.row[lane].code) for lane in range(lanes)),
        ]
        # faults are registers, for they end a run, and so reach far
        stalled = self.codes.valid & ~self.codes.ready
        m.d.sync += [
            self.bad_code.eq(valid & bad),
            self.timeout.eq(stalled & (waited == self._patience - 1)),
            waited.eq(Mux(stalled, waited + 1, 0)),
        ]
        with m.If(self.cancel):
            m.d.sync += [
                reading.eq(0),
                read_valid.eq(0),
                valid.eq(0),
                self.bad_code.eq(0),
                self.timeout.eq(0),
                waited.eq(0),
            ]
        return m
