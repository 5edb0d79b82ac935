"""Moment accumulator: Σx, Σxxᵀ and clip counts by rotating diagonals."""

from __future__ import annotations

from functools import reduce
from operator import or_

from amaranth import Cat, Module, Mux, Shape, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import ceil_log2

from thermokron.model import UnitSpec
from thermokron.model.spec import ACCUMULATOR_LATENCY, MAX_SAMPLES
from thermokron.rtl.converter import sample_layout
from thermokron.rtl.layout import result_depth, span
from thermokron.rtl.registers import MemoryPort

__all__ = ["MomentAccumulator"]


class Accumulator(wiring.Component):
    """Memory whose words are added to: word[address] = (first ? 0 : word[address]) + term.

    A read-modify-write takes three cycles: read; add; write. So the same address may come again
    after three cycles (`thermokron.model.spec.ACCUMULATOR_LATENCY`), and different addresses
    every cycle. `term` is given one cycle after `add`, where a multiplier's register delivers
    it. While nothing is added, `read` fetches a word for the host.

    Data registers have no reset, and an enable each, so that they rest where there is nothing to
    do: that saves power, and a simulator need not evaluate what a register does not take.
    """

    def __init__(self, depth: int, word: Shape, term: Shape) -> None:
        self._depth, self._word = depth, word
        super().__init__(
            {
                "add": In(1),
                "first": In(1),
                "address": In(span(depth)),
                "term": In(term),
                "read": In(1),
                "read_address": In(span(depth)),
                "read_data": Out(word),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.memory = memory = Memory(
            shape=self._word, depth=len(span(self._depth)), init=[]
        )
        read, write = memory.read_port(), memory.write_port()
        adding, fresh, address = Signal(), Signal(), Signal.like(self.address)
        total = Signal(self._word, reset_less=True)
        m.d.comb += [
            read.en.eq(self.add | self.read),
            read.addr.eq(Mux(self.add, self.address, self.read_address)),
            self.read_data.eq(read.data),
            write.data.eq(total),
        ]
        m.d.sync += [
            adding.eq(self.add),
            fresh.eq(self.first),
            address.eq(self.address),
            write.en.eq(adding),
            write.addr.eq(address),
        ]
        with m.If(adding):
            m.d.sync += total.eq(Mux(fresh, 0, read.data) + self.term)
        return m


class Bank(wiring.Component):
    """One accumulator per lane, all at the same address, and the host's window onto their words.

    Members
    -------
    add, first, address : In
        As an `Accumulator`'s.
    terms : In
        What each lane adds; taken with `add`.
    locked : In(1)
        The window is not to be read.
    window : In(MemoryPort)
        Lane after lane, each padded to a power of two; `wide` words in two halves, the low one
        first.
    """

    def __init__(self, lanes: int, depth: int, word: Shape, term: Shape, *, wide: bool) -> None:
        self._lanes, self._depth, self._wide = lanes, depth, wide
        self._word, self._term = word, term
        super().__init__(
            {
                "add": In(1),
                "first": In(1),
                "address": In(span(depth)),
                "terms": In(data.ArrayLayout(term, lanes)),
                "locked": In(1),
                "window": In(MemoryPort(ceil_log2(lanes) + ceil_log2(depth) + wide)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        window, word_bits = self.window, ceil_log2(self._depth)
        at = window.address[1:] if self._wide else window.address
        lane = at[word_bits:]
        selected, high, reading = Signal(self._lanes), Signal(), Signal()
        m.d.comb += window.locked.eq(self.locked)
        m.d.sync += reading.eq(window.read)
        with m.If(window.read):
            m.d.sync += [selected.eq(1 << lane if len(lane) else 1), high.eq(window.address[0])]
        parts = []
        for index in range(self._lanes):
            accumulator = Accumulator(self._depth, self._word, self._term)
            m.submodules[f"lane{index}"] = accumulator
            term = Signal(self._term, reset_less=True, name=f"term{index}")
            with m.If(self.add):
                m.d.sync += term.eq(self.terms[index])
            m.d.comb += [
                accumulator.add.eq(self.add),
                accumulator.first.eq(self.first),
                accumulator.address.eq(self.address),
                accumulator.term.eq(term),
                accumulator.read.eq(window.read),
                accumulator.read_address.eq(at[:word_bits]),
            ]
            word = accumulator.read_data
            part = Mux(high, word >> 32, word) if self._wide else word
            parts.append(Mux(selected[index], part, 0))
        while len(parts) > 1:  # a tree, as deep as the logarithm of their number
            parts = [reduce(or_, parts[i : i + 2]) for i in range(0, len(parts), 2)]
        with m.If(reading):  # the lane's word one cycle after the address
            m.d.sync += window.read_data.eq(parts[0])
        return m


class MomentAccumulator(wiring.Component):
    """Accumulates the moments of a stream of samples, n(n+1)/2 products from shifts alone.

    Cells are held in two rings x and y. Lane l of L watches position lF of both, F = n/L. For
    each of F folds, x is rotated by one and y starts as a copy of it; for each of D = ⌊n/2⌋+1
    diagonals the lane adds x·y to word f·D + d of its own memory, and y is rotated by one. So
    lane l meets cell i = lF + f beside cell (i + d) mod n, and every pair of cells meets at the
    shorter of its two cyclic distances; for even n the pairs at distance n/2 meet twice, and
    either result may be read. One sample takes F·D cycles (F without second moments), and at
    least the three that a word needs before it can be added to again.

    No sum overflows: a code has magnitude at most 2^(B-1), there are at most 2^20 samples, so
    |Σx| ≤ 2^(B+19), attained only at the negative end, which a signed word of B+20 bits holds;
    |Σxy| ≤ 2^(2B-2)·2^20 = 2^(2B+18), within a signed word of 2B+20 bits, whose largest value
    is 2^(2B+19) - 1; and a clip count of 2^20 fits in 21 bits unsigned.

    Members
    -------
    samples : In(stream)
        Codes of one sample, cell 0 at the least significant end.
    first : In(1)
        With a sample: it begins a new vector; what its words held before is overwritten.
    vector : In
        Number of the bias vector that samples belong to; stable while not `idle`.
    second_moments : In(1)
        Accumulate products too; stable while not `idle`.
    idle : Out(1)
        Nothing is being accumulated, and a word read now is up to date.
    cancel : In(1)
        Drop the sample being accumulated.
    locked : In(1)
        The windows are not to be read.
    sums, products, clipped : In(MemoryPort)
        The host's windows, laid out as in `thermokron.rtl.layout`; read only while idle.
    """

    def __init__(self, spec: UnitSpec) -> None:
        self._spec = spec
        sum_depth, product_depth = result_depth(spec)
        lane_bits = ceil_log2(spec.lanes)
        sum_window = lane_bits + ceil_log2(sum_depth)
        super().__init__(
            {
                "samples": In(stream.Signature(sample_layout(spec))),
                "first": In(1),
                "vector": In(span(spec.rhs_depth)),
                "second_moments": In(1),
                "idle": Out(1),
                "cancel": In(1),
                "locked": In(1),
                "sums": In(MemoryPort(sum_window + 1)),
                "products": In(MemoryPort(lane_bits + ceil_log2(product_depth) + 1)),
                "clipped": In(MemoryPort(sum_window)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        spec = self._spec
        n, folds, diagonals = spec.cells, spec.folds, spec.diagonals
        sum_depth, product_depth = result_depth(spec)
        low, high = spec.adc_min, spec.adc_max

        # ---- control: which fold, which diagonal ----------------------------------------
        ring = sample_layout(spec)
        x, y = Signal(ring, reset_less=True), Signal(ring, reset_less=True)
        active, fresh = Signal(), Signal()
        fold, diagonal = Signal(span(folds)), Signal(range(diagonals))
        product_address, sum_address = Signal(span(product_depth)), Signal(span(sum_depth))
        diagonal_start, diagonal_end, sample_end = Signal(), Signal(), Signal()
        recent = Signal(ACCUMULATOR_LATENCY - 1)  # samples taken over in the last cycles
        m.d.comb += [
            diagonal_start.eq(~diagonal.any()),
            diagonal_end.eq(~self.second_moments | (diagonal == diagonals - 1)),
            sample_end.eq(diagonal_end & (fold == folds - 1)),
            # a sample may be shorter than a read-modify-write; the same word must not come again
            self.samples.ready.eq((~active | sample_end) & ~recent.any()),
        ]
        m.d.sync += recent.eq(Cat(self.samples.valid & self.samples.ready, recent))
        turned = Cat(*(x[(i + 1) % n] for i in range(n)))
        with m.If(active):
            m.d.sync += [
                product_address.eq(product_address + 1),
                diagonal.eq(diagonal + 1),
                y.eq(Cat(*(y[(i + 1) % n] for i in range(n)))),
            ]
            with m.If(diagonal_end):
                m.d.sync += [
                    x.eq(turned),
                    y.eq(turned),
                    diagonal.eq(0),
                    fold.eq(fold + 1),
                    sum_address.eq(sum_address + 1),
                ]
            with m.If(sample_end):
                m.d.sync += active.eq(0)
        with m.If(self.samples.valid & self.samples.ready):
            m.d.sync += [
                active.eq(1),
                fresh.eq(self.first),
                x.eq(self.samples.payload),
                y.eq(self.samples.payload),
                fold.eq(0),
                diagonal.eq(0),
                product_address.eq(0),
                sum_address.eq(self.vector * folds),
            ]
        with m.If(self.cancel):
            m.d.sync += active.eq(0)
        # a write follows its addition by two cycles
        pipeline = Signal(2)
        m.d.sync += pipeline.eq(Cat(active, pipeline[0]))
        m.d.comb += self.idle.eq(~active & ~pipeline.any())

        # ---- what is added, and where --------------------------------------------------
        mine = [x[lane * folds] for lane in range(spec.lanes)]
        others = [y[lane * folds] for lane in range(spec.lanes)]
        code = signed(spec.adc_bits)
        for name, window, bank, add, address, terms in (
            (
                "sums",
                self.sums,
                Bank(spec.lanes, sum_depth, signed(spec.sum_bits), code, wide=True),
                active & diagonal_start,
                sum_address,
                mine,
            ),
            (
                "clipped",
                self.clipped,
                Bank(
                    spec.lanes, sum_depth, unsigned(MAX_SAMPLES.bit_length()), unsigned(1), wide=False
                ),
                active & diagonal_start,
                sum_address,
                [(own == low) | (own == high) for own in mine],
            ),
            (
                "products",
                self.products,
                Bank(
                    spec.lanes,
                    product_depth,
                    signed(spec.product_bits),
                    signed(2 * spec.adc_bits),
                    wide=True,
                ),
                active & self.second_moments,
                product_address,
                [own * other for own, other in zip(mine, others, strict=True)],
            ),
        ):
            m.submodules[name] = bank
            connect(m, flipped(window), bank.window)
            m.d.comb += [
                bank.add.eq(add),
                bank.first.eq(fresh),
                bank.address.eq(address),
                bank.locked.eq(self.locked),
                *(bank.terms[lane].eq(term) for lane, term in enumerate(terms)),
            ]
        return m
