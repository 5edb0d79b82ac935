"""Results on their way out: codes as they are captured, or what has been accumulated."""

from __future__ import annotations

from amaranth import Cat, Module, Mux, ResetInserter, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from thermokron.model import UnitSpec
from thermokron.model.timing import item_bytes, vector_beats
from thermokron.rtl.converter import sample_layout
from thermokron.rtl.layout import result_depth, span
from thermokron.rtl.streams import AxiStreamSignature

__all__ = ["ResultReader", "ResultStream"]

#: Reads under way and words that wait for the stream: what it takes for a word in every cycle.
WORDS_WAITING = 5


class ResultReader(wiring.Signature):
    """Access to the accumulator's words, seen from who reads them.

    Members
    -------
    sums, products : Out(1)
        Read a word: a sum with its clip count, or a product.
    address : Out
        The lane in the upper bits, the lane's word in the lower ones.
    word : In(signed(64))
        The word, two cycles later.
    """

    def __init__(self, spec: UnitSpec) -> None:
        lane_bits = ceil_log2(spec.lanes)
        self.word_bits = [ceil_log2(depth) for depth in result_depth(spec)]
        super().__init__(
            {
                "sums": Out(1),
                "products": Out(1),
                "address": Out(max(1, lane_bits + max(self.word_bits))),
                "word": In(signed(64)),
            }
        )


class ResultStream(wiring.Component):
    """Sends the results of a run as one packet.

    With `narrow` results these are codes, which leave while the array is at the next vector: a
    sample is taken over as it is captured, and goes out in whole beats. Otherwise they are words of
    64 bits, which are read of the accumulator after the last vector, a word in every cycle at best.

    A packet that was begun ends with TLAST, whatever happens: after `cancel` by one more beat.

    Members
    -------
    samples : In(stream)
        Codes of one sample, cell 0 at the least significant end; taken with `narrow` only.
    narrow : In(1)
        Results are codes; stable during a run.
    last : In(1)
        With a sample: it is the run's last.
    start : In(1)
        Begin with the words.
    vectors : In
        Vectors of the run, less one; stable during a run.
    second_moments : In(1)
        There are products; stable during a run.
    cancel : In(1)
        Drop what is left.
    reader : Out(ResultReader)
        To the accumulator.
    axis : Out(AxiStreamSignature)
    busy : Out(1)
        Something is on its way.
    """

    def __init__(self, spec: UnitSpec) -> None:
        assert spec.stream_bits is not None
        self._spec, self._bits = spec, spec.stream_bits
        super().__init__(
            {
                "samples": In(stream.Signature(sample_layout(spec))),
                "narrow": In(1),
                "last": In(1),
                "start": In(1),
                "vectors": In(span(spec.rhs_depth)),
                "second_moments": In(1),
                "cancel": In(1),
                "reader": Out(ResultReader(spec)),
                "axis": Out(AxiStreamSignature(self._bits)),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        axis = self.axis
        free = Signal()
        push = Signal()
        narrow_push = Signal()
        wide_push = Signal()
        # a packet's end is owed; a packet has no end yet
        closing = Signal()
        begun = Signal()
        # no `cancel` here, which comes late in its cycle, and what is free is asked by the memories
        m.d.comb += free.eq((~axis.tvalid | axis.tready) & ~closing)
        codes, codes_valid, codes_end = self._codes(m, narrow_push)
        words, words_valid, words_end, words_busy = self._words(m, wide_push)
        m.d.comb += [
            narrow_push.eq(codes_valid & free),
            wide_push.eq(words_valid & free),
            push.eq(narrow_push | wide_push),
            self.busy.eq(codes_valid | words_busy | closing | axis.tvalid),
        ]
        ended = Mux(codes_valid, codes_end, words_end)
        with m.If(axis.tready):
            m.d.sync += axis.tvalid.eq(0)
        with m.If(push):
            m.d.sync += [
                axis.tvalid.eq(1),
                axis.tdata.eq(Mux(codes_valid, codes, words)),
                axis.tlast.eq(ended),
                begun.eq(~ended),
            ]
        with m.If(self.cancel):
            m.d.sync += closing.eq(Mux(push, ~ended, begun))
        with m.If(closing & (~axis.tvalid | axis.tready)):
            m.d.sync += [
                axis.tvalid.eq(1),
                axis.tdata.eq(0),
                axis.tlast.eq(1),
                begun.eq(0),
                closing.eq(0),
            ]
        return m

    def _codes(self, m: Module, push: Value) -> tuple[Value, Value, Value]:
        """The beat at the head of the sample taken over; whether it is one, and the last."""
        spec, item_bits = self._spec, 8 * item_bytes(self._spec.adc_bits)
        beats, per_beat = vector_beats(spec, spec.adc_bits), self._bits // item_bits
        held = Signal(data.ArrayLayout(signed(spec.adc_bits), beats * per_beat), reset_less=True)
        left = Signal(range(beats + 1))
        ends = Signal()
        valid = left.any()
        m.d.comb += self.samples.ready.eq(~valid | (push & (left == 1)))
        with m.If(push):
            # the last beat's place keeps what it holds: nobody sends it again
            whole, beat_bits = Value.cast(held), per_beat * spec.adc_bits
            m.d.sync += [whole[:-beat_bits].eq(whole[beat_bits:]), left.eq(left - 1)]
        with m.If(self.samples.valid & self.samples.ready & self.narrow):
            m.d.sync += [held.eq(self.samples.payload), left.eq(beats), ends.eq(self.last)]
        with m.If(self.cancel):
            m.d.sync += left.eq(0)
        extended = [Signal(signed(item_bits), name=f"item{i}") for i in range(per_beat)]
        m.d.comb += [item.eq(held[i]) for i, item in enumerate(extended)]
        return Cat(*extended), valid, ends & (left == 1)

    def _words(self, m: Module, push: Value) -> tuple[Value, Value, Value, Value]:
        """The same of what was accumulated; and whether there is more on its way."""
        spec, reader = self._spec, self.reader
        sum_bits, product_bits = reader.signature.word_bits

        # ---- which words: every vector's sums, lane by lane, then every lane's products -------
        # what is being read
        sums = Signal()
        products = Signal()
        vector = Signal.like(self.vectors)
        lane = Signal(span(spec.lanes))
        fold = Signal(span(spec.folds))
        base = Signal(span(1 << sum_bits))
        word = Signal(span(spec.folds * spec.diagonals))
        lane_end = Signal()
        sums_end = Signal()
        issue = Signal()
        end = Signal()
        lane_ends = Mux(sums, fold == spec.folds - 1, word == spec.folds * spec.diagonals - 1)
        m.d.comb += [
            lane_end.eq(lane_ends & (lane == spec.lanes - 1)),
            sums_end.eq(sums & lane_end & (vector == self.vectors)),
            end.eq(Mux(self.second_moments, products & lane_end, sums_end)),
        ]
        # what decides on a read is far from the memories
        m.d.sync += [
            reader.sums.eq(issue & sums),
            reader.products.eq(issue & products),
        ]
        with m.If(issue):
            m.d.sync += reader.address.eq(
                Mux(
                    sums,
                    (base + fold)[:sum_bits] | (lane << sum_bits),
                    word[:product_bits] | (lane << product_bits),
                )
            )
            m.d.sync += [fold.eq(fold + 1), word.eq(word + 1)]
            with m.If(lane_ends):
                m.d.sync += [fold.eq(0), word.eq(0), lane.eq(Mux(lane_end, 0, lane + 1))]
            with m.If(sums & lane_end):
                m.d.sync += [base.eq(base + spec.folds), vector.eq(vector + 1)]
            with m.If(sums_end):
                m.d.sync += [sums.eq(0), products.eq(self.second_moments)]
            with m.If(products & lane_end):
                m.d.sync += products.eq(0)
        with m.If(self.start):
            m.d.sync += [x.eq(0) for x in (vector, lane, fold, base, word)]
            m.d.sync += sums.eq(1)

        # ---- three cycles later: they wait for the stream --------------------------------------
        waiting = SyncFIFO(width=65, depth=WORDS_WAITING)
        m.submodules.waiting = ResetInserter(self.cancel)(waiting)
        coming = Signal(3)
        ends = Signal(3)
        owed = Signal(range(WORDS_WAITING + 1))  # words under way, and those that wait
        pop = Signal()
        m.d.comb += [
            issue.eq((sums | products) & (owed != WORDS_WAITING)),
            waiting.w_en.eq(coming[-1]),
            waiting.w_data.eq(Cat(reader.word, ends[-1])),
            waiting.r_en.eq(pop),
        ]
        m.d.sync += [
            coming.eq(Cat(issue, coming)),
            ends.eq(Cat(end, ends)),
            owed.eq(owed + issue - pop),
        ]
        value, last = waiting.r_data[:64], waiting.r_data[64]

        # ---- words into beats ---------------------------------------------------------------
        there, second = waiting.r_rdy, Signal()  # half of a beat, or of a word, is done
        if self._bits == 64:
            beat, valid, ended = value, there, last
            m.d.comb += pop.eq(push)
        elif self._bits == 32:
            beat, valid, ended = Mux(second, value[32:], value[:32]), there, second & last
            m.d.comb += pop.eq(push & second)
            with m.If(push):
                m.d.sync += second.eq(~second)
        else:
            low = Signal(64, reset_less=True)
            beat = Mux(second, Cat(low, value), value)
            valid, ended = there & (second | last), last
            m.d.comb += pop.eq(push | (there & ~second & ~last))
            with m.If(pop):
                m.d.sync += [low.eq(value), second.eq(~second & ~last)]
        busy = sums | products | owed.any()
        with m.If(self.cancel):
            m.d.sync += [x.eq(0) for x in (sums, products, coming, owed, second)]
        return beat, valid, ended, busy
