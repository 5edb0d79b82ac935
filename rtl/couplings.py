"""Coupling store and loader."""

from __future__ import annotations

from amaranth import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import ceil_log2

from thermokron.model import UnitSpec
from thermokron.model.timing import item_bytes
from thermokron.rtl.codes import CodeLoader, CodeStore
from thermokron.rtl.streams import AxiStreamSignature, PacketWriter

__all__ = ["Couplings"]


class Couplings(wiring.Component):
    """Two banks of packed upper triangles, and the loader that sends one to the DACs.

    While the loader or the array uses one bank, software or a stream may fill the other.

    Members
    -------
    bank0, bank1 : In(MemoryPort)
        The host's windows: packed upper triangle, row by row, one code per word; see
        `thermokron.rtl.layout`.
    locked : In(2)
        A bit per bank: in use, the host must not write.
    axis : In(AxiStreamSignature)
        Packets of couplings, of units with streams. A packet fills the bank that `bank` does not
        name at its first beat.
    start, cancel, busy, bad_code, timeout
        See `CodeLoader`. A load of a bank that a packet fills waits for its end.
    bank : In(1)
        The bank to load, stable from `start` until the end of the load.
    open : Out(1), packets : Out(16)
        A packet is under way; packets that have arrived whole.
    spoiled : Out(2)
        A bit per bank: the last packet to it ended in the wrong place.
    early, late : Out(1)
        It does so now, and the load waits for it.
    dac : Out(stream)
        `row`, `column` of the first code, `enable`, `codes`.
    """

    def __init__(self, spec: UnitSpec) -> None:
        self._depth = depth = spec.coupling_words
        bits, lanes = spec.coupling_bits, spec.dac_lanes
        address_bits = ceil_log2(2 * depth)
        item_bits = None if spec.stream_bits is None else 8 * item_bytes(bits)
        self._store = CodeStore(depth, bits, lanes, windows=2, item_bits=item_bits)
        self._loader = CodeLoader(
            spec.cells, bits, lanes, address_bits, spec.dac_timeout_cycles, triangle=True
        )
        self._writer, axis = None, {}
        if spec.stream_bits is not None:
            self._writer = PacketWriter(spec, bits, address_bits, row_codes=depth * lanes)
            axis = {"axis": In(AxiStreamSignature(spec.stream_bits))}
        super().__init__(
            {
                "bank0": self._store.signature.members["window0"],
                "bank1": self._store.signature.members["window1"],
                "locked": In(2),
                **axis,
                "start": In(1),
                "cancel": In(1),
                "bank": In(1),
                "busy": Out(1),
                "bad_code": Out(1),
                "timeout": Out(1),
                "open": Out(1),
                "packets": Out(16),
                "spoiled": Out(2),
                "early": Out(1),
                "late": Out(1),
                "dac": Out(self._loader.codes.signature),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.store = store = self._store
        m.submodules.loader = loader = self._loader
        connect(m, flipped(self.bank0), store.window0)
        connect(m, flipped(self.bank1), store.window1)
        connect(m, loader.read, store.read)
        connect(m, loader.codes, flipped(self.dac))
        m.d.comb += [
            store.locked.eq(self.locked),
            loader.start.eq(self.start),
            loader.cancel.eq(self.cancel),
            loader.base.eq(Mux(self.bank, self._depth, 0)),
            loader.available.eq(1),
            self.busy.eq(loader.busy),
            self.bad_code.eq(loader.bad_code),
            self.timeout.eq(loader.timeout),
        ]
        if self._writer is None:
            return m

        m.submodules.writer = writer = self._writer
        connect(m, flipped(self.axis), writer.axis)
        connect(m, writer.write, store.write)
        filled = Signal()  # the bank of the packet
        spoiled = Signal(2)
        misplaced = Signal()
        waits = Signal()  # the load, for its end
        m.d.comb += [
            writer.allow.eq(1),
            writer.base.eq(Mux(self.bank, 0, self._depth)),
            self.open.eq(writer.open),
            waits.eq(writer.open & (filled == self.bank)),
            loader.available.eq(~waits),
            self.early.eq(writer.early & loader.busy & (filled == self.bank)),
            self.late.eq(writer.late & loader.busy & (filled == self.bank)),
            store.locked.eq(self.locked | (writer.open << filled)),
            misplaced.eq(writer.early | writer.late),
            # at once: a start in this very cycle has no load yet that would fail
            self.spoiled.eq(spoiled | (misplaced << filled)),
        ]
        with m.If(writer.begun):
            m.d.sync += filled.eq(~self.bank)
        with m.If(writer.complete):
            m.d.sync += [
                self.packets.eq(self.packets + 1),
                spoiled.bit_select(filled, 1).eq(0),
            ]
        with m.If(misplaced):
            m.d.sync += spoiled.bit_select(filled, 1).eq(1)
        for bank, window in enumerate((self.bank0, self.bank1)):
            with m.If(window.write):  # software takes it over
                m.d.sync += spoiled[bank].eq(0)
        return m
