"""AXI4-Stream (Arm IHI 0051): bulk data in, to a store of codes, and results out."""

from __future__ import annotations

from amaranth import Array, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from thermokron.model import UnitSpec
from thermokron.model.timing import item_bytes
from thermokron.rtl.codes import write_signature
from thermokron.rtl.layout import span

__all__ = ["AxiStreamSignature", "PacketWriter"]


class AxiStreamSignature(wiring.Signature):
    """An AXI4-Stream of whole beats, seen from its source: no TKEEP, for every byte counts.

    Parameters
    ----------
    bits : int
        Of TDATA.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        super().__init__({"tdata": Out(bits), "tvalid": Out(1), "tready": In(1), "tlast": Out(1)})


class PacketWriter(wiring.Component):
    """Takes a packet of rows of codes from a stream, and writes it to a store.

    A row begins with a whole beat, and with a whole word of `lanes` codes in the store. A beat with
    more codes than a word takes a cycle per word. The last beat of the last row has to have TLAST,
    and no other. A packet that ends early is over with that; of one that ends late everything is
    dropped up to TLAST.

    Parameters
    ----------
    spec : UnitSpec
        Of a unit with streams.
    bits : int
        Of a code.
    address_bits : int
        Of the store.
    row_codes : int
    rows : int
        Most rows of a packet.
    row_stride : int
        Words from one row to the next in the store.

    Members
    -------
    axis : In(AxiStreamSignature)
    allow : In(1)
        Take a packet now; one that has begun is taken to its end.
    rows : In
        Rows of the packet, less one; stable while it is taken.
    base : In
        Address of its first row, sampled with its first beat.
    cancel : In(1)
        Drop what is left of the packet that has begun; with `owed`, one that has not, too, if it
        begins before `forget`.
    owed : In(1)
    write : Out
        To the store.
    open : Out(1)
        A packet has begun, and its last word is not in the store yet.
    begun : Out(1)
        The first beat of a packet is taken in this cycle.
    complete : Out(1)
        The last word of a packet is in the store; high for one cycle.
    arrived : Out
        Rows of this packet that are in the store whole. 0 from `begun` on, and after `forget`.
    forget : In(1)
        What has arrived, and what is owed, is of no use any more.
    early, late : Out(1)
        TLAST stood in the wrong place; high for one cycle.
    """

    def __init__(
        self,
        spec: UnitSpec,
        bits: int,
        address_bits: int,
        *,
        row_codes: int,
        rows: int = 1,
        row_stride: int = 0,
    ) -> None:
        assert spec.stream_bits is not None
        stream_bits, item_bits, lanes = spec.stream_bits, 8 * item_bytes(bits), spec.dac_lanes
        self._item_bits, self._lanes = item_bits, lanes
        self._row_words, self._rows, self._stride = -(-row_codes // lanes), rows, row_stride
        self._codes = stream_bits // item_bits  # per beat
        self._beats = -(-row_codes // self._codes)
        super().__init__(
            {
                "axis": In(AxiStreamSignature(stream_bits)),
                "allow": In(1),
                "rows": In(span(rows)),
                "base": In(address_bits),
                "cancel": In(1),
                "owed": In(1),
                "forget": In(1),
                "write": Out(write_signature(address_bits, item_bits, lanes)),
                "open": Out(1),
                "begun": Out(1),
                "complete": Out(1),
                "arrived": Out(range(rows + 1)),
                "early": Out(1),
                "late": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        lanes, codes, beats = self._lanes, self._codes, self._beats
        words = max(1, codes // lanes)  # words of a beat; or a beat is a part of one
        parts = max(1, lanes // codes)

        # ---- beats: where in the packet the next one stands -------------------------------
        beat = Signal(span(beats))
        row = Signal(span(self._rows))
        # within a packet
        taking = Signal()
        dropping = Signal()
        owed = Signal()  # nothing has been dropped yet of what is to be
        # of the beat that is kept
        full = Signal()
        ends = Signal()
        row_ends = Signal()
        kept = Signal(data.ArrayLayout(signed(self._item_bits), codes))
        word_done = Signal()
        accept = Signal()
        last_beat = Signal()
        last_row = Signal()
        m.d.comb += [
            self.axis.tready.eq(dropping | ((taking | self.allow & ~full) & (~full | word_done))),
            accept.eq(self.axis.tvalid & self.axis.tready & ~dropping),
            self.begun.eq(accept & ~taking),
            last_beat.eq(beat == beats - 1),
            last_row.eq(row == self.rows),
        ]
        final = last_beat & last_row
        m.d.sync += [self.early.eq(0), self.late.eq(0), self.complete.eq(0)]
        with m.If(word_done):
            m.d.sync += full.eq(0)
        with m.If(accept):
            m.d.sync += [
                full.eq(1),
                kept.eq(self.axis.tdata),
                ends.eq(final & self.axis.tlast),
                row_ends.eq(last_beat),
                beat.eq(Mux(last_beat, 0, beat + 1)),
                row.eq(row + last_beat),
                taking.eq(~final & ~self.axis.tlast),
                self.early.eq(self.axis.tlast & ~final),
                self.late.eq(~self.axis.tlast & final),
                dropping.eq(~self.axis.tlast & final),
            ]
            with m.If(final | self.axis.tlast):
                m.d.sync += [beat.eq(0), row.eq(0)]
        ended = self.axis.tvalid & self.axis.tready & self.axis.tlast
        with m.If(dropping & ended):
            m.d.sync += dropping.eq(0)

        # ---- words: what is written of the beat that is kept -------------------------------
        chunk = Signal(span(words))
        part = Signal(span(parts))
        word = Signal(span(self._row_words + 1))
        row_base = Signal.like(self.base)
        beyond = Signal()  # word = row_words: the rest of a beat is padding
        within = ~beyond
        m.d.comb += [
            self.write.enable.eq(full & within),
            self.write.address.eq(row_base + word),
            word_done.eq(full & (chunk == words - 1) & (self.write.ready | ~within)),
            self.open.eq(taking | full | (dropping & ~owed)),
        ]
        if words > 1:
            chosen: Value = Array(
                Cat(kept[i * lanes + lane] for lane in range(lanes)) for i in range(words)
            )[chunk]
            m.d.comb += [self.write.items.eq(chosen), self.write.mask.eq((1 << lanes) - 1)]
        else:
            m.d.comb += [
                *(self.write.items[lane].eq(kept[lane % codes]) for lane in range(lanes)),
                self.write.mask.eq(((1 << min(lanes, codes)) - 1) << (part * codes)),
            ]
        with m.If(full & (self.write.ready | ~within)):
            m.d.sync += chunk.eq(Mux(chunk == words - 1, 0, chunk + 1))
            with m.If((part == parts - 1) & within):
                m.d.sync += [word.eq(word + 1), beyond.eq(word == self._row_words - 1)]
            m.d.sync += part.eq(Mux(part == parts - 1, 0, part + 1))
        with m.If(word_done & row_ends):
            m.d.sync += [
                word.eq(0),
                beyond.eq(0),
                part.eq(0),
                row_base.eq(row_base + self._stride),
                self.arrived.eq(self.arrived + 1),
                self.complete.eq(ends),
            ]
        with m.If(self.begun):
            m.d.sync += [
                row_base.eq(self.base),
                word.eq(0),
                beyond.eq(0),
                part.eq(0),
                self.arrived.eq(0),
            ]
        with m.If(dropping & self.axis.tvalid):
            m.d.sync += owed.eq(0)
        with m.If(self.forget):
            m.d.sync += self.arrived.eq(0)
            with m.If(owed & ~self.axis.tvalid):
                m.d.sync += [owed.eq(0), dropping.eq(0)]

        with m.If(self.cancel):
            m.d.sync += [
                full.eq(0),
                taking.eq(0),
                chunk.eq(0),
                beat.eq(0),
                row.eq(0),
                self.complete.eq(0),
                dropping.eq((taking | accept | dropping | self.owed) & ~ended),
                owed.eq(self.owed & ~accept),
            ]
        return m
