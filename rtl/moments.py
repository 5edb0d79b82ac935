"""Moment accumulator: Σx, Σxxᵀ and clip counts by rotating diagonals."""

from __future__ import annotations

from functools import reduce
from operator import or_

from amaranth import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
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
    """

    def __init__(self, depth: int, word: data.StructLayout) -> None:
        self._depth, self._word = depth, word
        super().__init__(
            {
                "add": In(1),
                "first": In(1),
                "address": In(span(depth)),
                "term": In(word),
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
        m.d.comb += [
            read.en.eq(self.add | self.read),
            read.addr.eq(Mux(self.add, self.address, self.read_address)),
            self.read_data.eq(read.data),
        ]
        m.d.sync += [
            adding.eq(self.add),
            fresh.eq(self.first),
            address.eq(self.address),
            write.en.eq(adding),
            write.addr.eq(address),
        ]
        for name, _ in self._word:
            field, term = getattr(read.data, name), getattr(self.term, name)
            m.d.sync += getattr(write.data, name).eq(Mux(fresh, 0, field) + term)
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
        x, y = Signal(sample_layout(spec)), Signal(sample_layout(spec))
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

        # ---- lanes ----------------------------------------------------------------------
        sum_word = data.StructLayout(
            {"sum": signed(spec.sum_bits), "clipped": (MAX_SAMPLES).bit_length()}
        )
        product_word = data.StructLayout({"product": signed(spec.product_bits)})
        sum_read, product_read = Signal(), Signal()
        m.d.comb += [
            sum_read.eq(self.sums.read | self.clipped.read),
            product_read.eq(self.products.read),
        ]
        sums_at = Mux(self.clipped.read, self.clipped.address, self.sums.address[1:])
        products_at = self.products.address[1:]
        sums_out, products_out = [], []
        for lane in range(spec.lanes):
            cell = lane * folds
            m.submodules[f"sums{lane}"] = sums = Accumulator(sum_depth, sum_word)
            m.submodules[f"products{lane}"] = products = Accumulator(product_depth, product_word)
            m.d.sync += [
                sums.term.sum.eq(x[cell]),
                sums.term.clipped.eq((x[cell] == low) | (x[cell] == high)),
                products.term.product.eq(x[cell] * y[cell]),
            ]
            m.d.comb += [
                sums.add.eq(active & diagonal_start),
                sums.first.eq(fresh),
                sums.address.eq(sum_address),
                sums.read.eq(sum_read),
                sums.read_address.eq(sums_at[: ceil_log2(sum_depth)]),
                products.add.eq(active & self.second_moments),
                products.first.eq(fresh),
                products.address.eq(product_address),
                products.read.eq(product_read),
                products.read_address.eq(products_at[: ceil_log2(product_depth)]),
            ]
            sums_out.append(sums.read_data)
            products_out.append(products.read_data)

        # ---- windows: the lane's word one cycle after the address, its half the next ------
        def chosen(layout: data.StructLayout, lane: Value, words: list[data.View]) -> data.View:
            selected, word = Signal(spec.lanes), Signal(layout)
            m.d.sync += selected.eq(1 << lane if len(lane) else 1)
            m.d.comb += Value.cast(word).eq(
                reduce(or_, (Mux(s, w, 0) for s, w in zip(selected, words, strict=True)))
            )
            return word

        sum_half, product_half = Signal(), Signal()
        m.d.sync += [
            sum_half.eq(self.sums.address[0]),
            product_half.eq(self.products.address[0]),
        ]
        sum_word_out = chosen(sum_word, sums_at[ceil_log2(sum_depth) :], sums_out)
        product_word_out = chosen(
            product_word, products_at[ceil_log2(product_depth) :], products_out
        )
        for window, half, value in (
            (self.sums, sum_half, sum_word_out.sum),
            (self.products, product_half, product_word_out.product),
        ):
            wide = Signal(signed(64), name="wide")
            m.d.comb += wide.eq(value)
            m.d.sync += window.read_data.eq(Mux(half, wide[32:], wide[:32]))
        m.d.sync += self.clipped.read_data.eq(sum_word_out.clipped)
        m.d.comb += [w.locked.eq(self.locked) for w in (self.sums, self.products, self.clipped)]
        return m
