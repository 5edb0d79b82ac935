"""Moment accumulator: Σx, Σxxᵀ and clip counts by rotating diagonals."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from operator import or_
from typing import Any

from amaranth import Cat, Const, Module, Mux, Shape, Signal, Value, signed, unsigned
from amaranth.hdl import ValueLike
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from thermokron.model import UnitSpec
from thermokron.model.spec import MAX_SAMPLES
from thermokron.model.timing import ACCUMULATOR_LATENCY
from thermokron.rtl.converter import sample_layout
from thermokron.rtl.layout import result_depth, span
from thermokron.rtl.registers import MemoryPort
from thermokron.rtl.results import ResultReader

__all__ = ["MomentAccumulator"]

Term = Callable[[Value], Value]


class Accumulator(wiring.Component):
    """Memory whose words are added to: word[address] = (first ? 0 : word[address]) + term.

    `term` makes what is added of what is given.

    A read-modify-write takes four cycles: read; hold what was read, for memories are slow, and make
    the term, for products are; add; write. So the same address may come again after four cycles
    (`thermokron.model.timing.ACCUMULATOR_LATENCY`), and different addresses every cycle. While
    nothing is added, `read` fetches a word for the host, which is at `word` two cycles later.

    Data registers have no reset, and an enable each, so that they rest where there is nothing to
    do: that saves power, and a simulator need not evaluate what a register does not take.
    """

    def __init__(self, depth: int, word: Shape, given: Shape, term: Term) -> None:
        self._depth, self._term = depth, term
        super().__init__(
            {
                "add": In(1),
                "first": In(1),
                "address": In(span(depth)),
                "given": In(given),
                "read": In(1),
                "read_address": In(span(depth)),
                "word": Out(word),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.memory = memory = Memory(
            shape=self.word.shape(), depth=len(span(self._depth)), init=[]
        )
        read, write = memory.read_port(), memory.write_port()
        # what is under way: a word that was read, and a word that is held
        fetching = Signal()
        adding = Signal(2)
        fresh = Signal(2)
        addresses = [Signal.like(self.address, name=f"address{i}") for i in range(2)]
        given = Signal.like(self.given, reset_less=True)
        made = self._term(given)
        term = Signal(made.shape(), reset_less=True)
        held = Signal.like(self.word, reset_less=True)
        total = Signal.like(self.word, reset_less=True)
        m.d.comb += [
            read.en.eq(self.add | self.read),
            read.addr.eq(Mux(self.add, self.address, self.read_address)),
            self.word.eq(held),
            write.data.eq(total),
        ]
        m.d.sync += [
            fetching.eq(read.en),
            adding.eq(Cat(self.add, adding[0])),
            fresh.eq(Cat(self.first, fresh[0])),
            addresses[0].eq(self.address),
            addresses[1].eq(addresses[0]),
            write.en.eq(adding[1]),
            write.addr.eq(addresses[1]),
        ]
        with m.If(fetching):
            m.d.sync += held.eq(read.data)
        with m.If(self.add):
            m.d.sync += given.eq(self.given)
        with m.If(adding[0]):
            m.d.sync += term.eq(made)
        with m.If(adding[1]):
            m.d.sync += total.eq(Mux(fresh[1], 0, held) + term)
        return m


class Bank(wiring.Component):
    """Accumulators side by side, one a lane, all at the same address; and a way to read them.

    Members
    -------
    add, first, address : In
        As an `Accumulator`'s.
    given : In
        What each lane makes its term of.
    read : In(1), read_address : In
        Read a word: the lane in the upper bits, the lane's word in the lower ones.
    word : Out
        That word, two cycles after `read`; 0 where there is none.
    """

    def __init__(
        self,
        lanes: int,
        depth: int,
        word: Shape,
        given: Shape,
        term: Term,
    ) -> None:
        self._lanes, self._depth, self._term = lanes, depth, term
        super().__init__(
            {
                "add": In(1),
                "first": In(1),
                "address": In(span(depth)),
                "given": In(data.ArrayLayout(given, lanes)),
                "read": In(1),
                "read_address": In(ceil_log2(lanes) + ceil_log2(depth)),
                "word": Out(word),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        word_bits = ceil_log2(self._depth)
        lane = self.read_address[word_bits:]
        selected = [Signal(self._lanes, name=f"selected{i}") for i in range(2)]
        reading = Signal()
        m.d.sync += reading.eq(self.read)
        chosen: ValueLike = 1 << lane if len(lane) else 1
        if self._depth < 1 << word_bits:  # a lane's words are padded in the window
            chosen = Mux(self.read_address[:word_bits] < self._depth, chosen, 0)
        with m.If(self.read):
            m.d.sync += selected[0].eq(chosen)
        with m.If(reading):
            m.d.sync += selected[1].eq(selected[0])
        words = []
        for index in range(self._lanes):
            accumulator = Accumulator(
                self._depth, self.word.shape(), self.given[index].shape(), self._term
            )
            m.submodules[f"lane{index}"] = accumulator
            m.d.comb += [
                accumulator.add.eq(self.add),
                accumulator.first.eq(self.first),
                accumulator.address.eq(self.address),
                accumulator.given.eq(self.given[index]),
                accumulator.read.eq(self.read),
                accumulator.read_address.eq(self.read_address[:word_bits]),
            ]
            words.append(Mux(selected[1][index], accumulator.word, 0))
        while len(words) > 1:  # a tree, as deep as the logarithm of their number
            words = [reduce(or_, words[i : i + 2]) for i in range(0, len(words), 2)]
        m.d.comb += self.word.eq(words[0])
        return m


class MomentAccumulator(wiring.Component):
    """Accumulates the moments of a stream of samples, n(n+1)/2 products from shifts alone.

    Cells are held in two rings x and y. Lane l of L watches position lF of both, F = n/L. For
    each of F folds, x is rotated by one and y starts as a copy of it; for each of D = ⌊n/2⌋+1
    diagonals the lane adds x·y to word f·D + d of its own memory, and y is rotated by one. So
    lane l meets cell i = lF + f beside cell (i + d) mod n, and every pair of cells meets at the
    shorter of its two cyclic distances; for even n the pairs at distance n/2 meet twice, and
    either result may be read. One sample takes F·D cycles (F without second moments), and at
    least the four that a word needs before it can be added to again.

    No sum overflows: a code has magnitude at most 2^(B-1), there are at most 2^20 samples, so
    |Σx| ≤ 2^(B+19), attained only at the negative end, which a signed word of B+20 bits holds;
    |Σxy| ≤ 2^(2B-2)·2^20 = 2^(2B+18), within a signed word of 2B+20 bits, whose largest value
    is 2^(2B+19) - 1; and a clip count of 2^20 fits in 21 bits unsigned.

    Members
    -------
    samples : In(stream)
        Codes of one sample, cell 0 at the least significant end; they stay for the cycle after
        the one in which it is taken over.
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
    reader : In(ResultReader)
        Words for the stream of results; read only while idle, and not with a window.
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
        product_window = lane_bits + ceil_log2(product_depth) + 1 if spec.second_moments else 1
        super().__init__(
            {
                "samples": In(stream.Signature(sample_layout(spec))),
                "first": In(1),
                "vector": In(span(spec.rhs_depth)),
                "second_moments": In(1),
                "idle": Out(1),
                "cancel": In(1),
                "reader": In(ResultReader(spec)),
                "locked": In(1),
                "sums": In(MemoryPort(sum_window + 1)),
                "products": In(MemoryPort(product_window)),
                "clipped": In(MemoryPort(sum_window)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        spec = self._spec
        n, folds, diagonals = spec.cells, spec.folds, spec.diagonals
        sum_depth, product_depth = result_depth(spec)
        low, high = spec.adc_min, spec.adc_max

        # ---- control: which diagonal, of which fold ----------------------------------------
        ring = sample_layout(spec)
        x = Signal(ring, reset_less=True)
        y = Signal(ring, reset_less=True)
        load = Signal()
        active = Signal()
        begins = Signal()
        fresh = Signal()
        longest = folds * diagonals if spec.second_moments else folds
        left = Signal(range(longest + 1))  # cycles that the sample still takes
        diagonal = Signal(range(diagonals))
        product_address = Signal(span(product_depth))
        sum_address = Signal(span(sum_depth))
        diagonal_start = Signal()
        diagonal_end = Signal()
        # of these cycles this is the last; it, or the one before
        sample_end = Signal()
        ending = Signal()
        recent = Signal(ACCUMULATOR_LATENCY - 1)  # samples taken over in the last cycles
        accept = self.samples.valid & self.samples.ready
        occupied: ValueLike = folds
        if spec.second_moments:
            occupied = Mux(self.second_moments, longest, folds)
        m.d.comb += [
            diagonal_start.eq(~diagonal.any()),
            diagonal_end.eq(
                ~self.second_moments | (diagonal == diagonals - 1) if spec.second_moments else 1
            ),
            # a sample may be shorter than a read-modify-write; the same word must not come again
            self.samples.ready.eq((~active | ending) & ~recent.any()),
        ]
        # a cycle between, for whether a sample is taken over comes late, and the rings are wide
        m.d.sync += [
            recent.eq(Cat(accept, recent)),
            load.eq(accept & ~self.cancel),
        ]
        with m.If(accept):
            m.d.sync += begins.eq(self.first)
        turned = Cat(*(x[(i + 1) % n] for i in range(n)))
        with m.If(active):
            m.d.sync += [
                product_address.eq(product_address + 1),
                diagonal.eq(diagonal + 1),
                left.eq(left - 1),
                sample_end.eq(left == 2),
                ending.eq(~left[2:].any()),  # at most 3, also where that is all it can count
                y.eq(Cat(*(y[(i + 1) % n] for i in range(n)))),
            ]
            with m.If(diagonal_end):
                m.d.sync += [
                    x.eq(turned),
                    y.eq(turned),
                    diagonal.eq(0),
                    sum_address.eq(sum_address + 1),
                ]
            with m.If(sample_end):
                m.d.sync += active.eq(0)
        with m.If(load):
            m.d.sync += [
                active.eq(1),
                fresh.eq(begins),
                x.eq(self.samples.payload),
                y.eq(self.samples.payload),
                diagonal.eq(0),
                product_address.eq(0),
                sum_address.eq(self.vector * folds),
                left.eq(occupied),
                sample_end.eq(occupied == 1),
                ending.eq(occupied <= 2),
            ]
        with m.If(self.cancel):
            m.d.sync += active.eq(0)
        # a write is done three cycles after its read
        pipeline = Signal(ACCUMULATOR_LATENCY - 1)
        m.d.sync += pipeline.eq(Cat(active, pipeline))
        m.d.comb += self.idle.eq(~load & ~active & ~pipeline.any())

        # ---- lanes ----------------------------------------------------------------------
        # One addition for a sum and its clip count, which is below and never carries: with up to
        # 2^20 samples it stays within its bits.
        count_bits = MAX_SAMPLES.bit_length()

        def code_and_clip(code: Value) -> Value:
            clip = (code == low) | (code == high)
            return Cat(clip, Const(0, count_bits - 1), code).as_signed()

        code = signed(spec.adc_bits)
        m.submodules.sums = sums = Bank(
            spec.lanes, sum_depth, signed(spec.sum_bits + count_bits), code, code_and_clip
        )
        for lane in range(spec.lanes):
            m.d.comb += sums.given[lane].eq(x[lane * folds])
        reading = self.reader.sums
        m.d.comb += [
            sums.add.eq(active & diagonal_start),
            sums.address.eq(sum_address),
            sums.first.eq(fresh),
            sums.read.eq(self.sums.read | self.clipped.read | reading),
            sums.read_address.eq(
                Mux(
                    self.clipped.read,
                    self.clipped.address,
                    Mux(reading, self.reader.address, self.sums.address[1:]),
                )
            ),
            self.clipped.read_data.eq(sums.word[:count_bits]),
            self.reader.word.eq(sums.word),
            *(w.locked.eq(self.locked) for w in (self.sums, self.products, self.clipped)),
        ]
        self._show(m, self.sums, sums.word >> count_bits)
        if not spec.second_moments:
            return m

        def product(pair: Value) -> Value:
            one, other = pair[: spec.adc_bits], pair[spec.adc_bits :]
            return one.as_signed() * other.as_signed()

        m.submodules.products = products = Bank(
            spec.lanes,
            product_depth,
            signed(spec.product_bits),
            unsigned(2 * spec.adc_bits),
            product,
        )
        was_product = Signal(2)  # of the reads under way for the stream
        m.d.sync += was_product.eq(Cat(self.reader.products, was_product[0]))
        for lane in range(spec.lanes):
            m.d.comb += products.given[lane].eq(Cat(x[lane * folds], y[lane * folds]))
        m.d.comb += [
            products.add.eq(active & self.second_moments),
            products.address.eq(product_address),
            products.first.eq(fresh),
            products.read.eq(self.products.read | self.reader.products),
            products.read_address.eq(
                Mux(self.reader.products, self.reader.address, self.products.address[1:])
            ),
        ]
        with m.If(was_product[1]):
            m.d.comb += self.reader.word.eq(products.word)
        self._show(m, self.products, products.word)
        return m

    @staticmethod
    def _show(m: Module, window: Any, word: Value) -> None:
        """A word's low half, or its high one, as the host has asked for."""
        halves = Signal(2)  # of the reads under way
        m.d.sync += halves.eq(Cat(window.address[0], halves[0]))
        m.d.comb += window.read_data.eq(Mux(halves[1], word >> 32, word))
