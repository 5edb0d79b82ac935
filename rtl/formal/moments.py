"""What is proved of the moment accumulator: every word against a sum kept beside it.

A pair of cells, or a cell and its bias vector, is chosen once, any of them; its sum is kept in
the harness, wider than the block's word, and compared with what the word's memory holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from amaranth import Cat, Const, Mux, Signal, Value, signed

from thermokron.model import UnitSpec
from thermokron.model.spec import MAX_SAMPLES
from thermokron.rtl.formal.copies import Broken
from thermokron.rtl.formal.harness import Harness
from thermokron.rtl.formal.proof import Proof
from thermokron.rtl.layout import span
from thermokron.rtl.moments import MomentAccumulator

__all__ = ["PROOFS"]

_COUNT_BITS = MAX_SAMPLES.bit_length()


class _Accumulation:
    """The block, the sample that it adds, and how far it is with it."""

    def __init__(self, cells: int, lanes: int) -> None:
        self.spec = spec = UnitSpec(cells=cells, lanes=lanes, adc_bits=3, rhs_depth=2)
        self.h = h = Harness(MomentAccumulator(spec))
        dut, m = h.dut, h.m
        accepted = h.named("accepted", dut.samples.valid & dut.samples.ready)
        load, begins = h.inside("load"), h.inside("begins")
        self.taken = h.named("taken", load & ~dut.cancel)
        self.active = h.inside("active")
        self.diagonal = h.inside("diagonal")
        self.fold = Signal(range(spec.folds + 1), name="fold")
        self.first = Signal()
        self.lanes = lanes
        self.lane = h.constant("chosen_lane", span(lanes))
        h.assume(self.lane < lanes)
        self.sample = [Signal(signed(spec.adc_bits), name=f"cell{i}") for i in range(cells)]
        with m.If(self.taken):
            m.d.sync += [self.first.eq(begins), self.fold.eq(0)]
            for cell, code in enumerate(self.sample):
                m.d.sync += code.eq(dut.samples.payload[cell])

        with m.Elif(self.active & h.inside("diagonal_end")):
            m.d.sync += self.fold.eq(self.fold + 1)

        # codes stay for the cycle after; a first sample is told with it
        payload = Value.cast(dut.samples.payload)
        h.assume(~(h.calm & h.past(accepted)) | (payload == h.past(payload)))
        given = h.past(accepted) & ~h.past(dut.cancel)
        h.invariant("what_was_given_is_loaded", ~h.calm | (load == given))
        h.invariant("what_is_loaded_was_just_given", ~load | h.inside("recent")[0])
        h.invariant("a_first_sample_is_known", ~(h.calm & load) | (begins == h.past(dut.first)))
        # the sequencer keeps to this; the vector's number matters only when a sample is taken
        self.vector = Signal.like(dut.vector)
        with m.If(self.taken):
            m.d.sync += self.vector.eq(dut.vector)
        under_way = h.calm & h.past(self.active | load | accepted)
        h.assume(~under_way | (dut.second_moments == h.past(dut.second_moments)))

        # what induction needs: the rings are turned as far as the counters say
        x, y = h.inside("x"), h.inside("y")
        for place in range(cells):
            bits = slice(spec.adc_bits * place, spec.adc_bits * (place + 1))
            mine, other = self.code(self.fold + place), self.code(self.fold + self.diagonal + place)
            h.invariant(f"x{place}_is_turned", ~self.active | (x[bits].as_signed() == mine))
            h.invariant(f"y{place}_is_turned", ~self.active | (y[bits].as_signed() == other))
        h.invariant("fold_exists", ~self.active | (self.fold < spec.folds))
        h.invariant("diagonal_exists", ~self.active | (self.diagonal < spec.diagonals))
        whole = (spec.folds - self.fold) * spec.diagonals - self.diagonal
        to_do = Mux(dut.second_moments, whole, spec.folds - self.fold)
        h.invariant("what_is_left_is_known", ~self.active | (h.inside("left") == to_do))
        h.invariant("end_is_known", ~self.active | (h.inside("sample_end") == (to_do == 1)))
        h.invariant("end_is_foreseen", ~self.active | (h.inside("ending") == (to_do <= 2)))
        ready = ~load & (~self.active | (to_do <= 2))
        h.invariant("a_sample_finds_the_rings_free", ~accepted | ready)
        h.invariant("a_sample_is_loaded_into_free_rings", ~load | ~self.active | (to_do == 1))
        h.invariant("first_is_kept", ~self.active | (self.first == h.inside("fresh")))

    def in_lane(self, values: Iterable[Any]) -> Any:
        """Of a value of each lane, the chosen lane's."""
        chosen, *others = values
        for lane, value in enumerate(others, 1):
            chosen = Mux(self.lane == lane, value, chosen)
        return chosen

    def code(self, cell: Value) -> Any:
        """Code of a cell by its number, modulo n."""
        code: Any = self.sample[0]
        number = cell % self.spec.cells
        for index, other in enumerate(self.sample):
            code = Mux(number == index, other, code)
        return code


@dataclass(frozen=True)
class _Part:
    """Bits of a word that are a sum of their own, and what is added; `counts` if 0 or 1 is."""

    name: str
    bits: slice
    term: Any
    counts: bool = False


def _compare(
    a: _Accumulation,
    bank: str,
    address: Any,
    counts: Any,
    current: Any,
    pending: Any,
    term: Callable[[Any], Any],
    parts: list[_Part],
) -> None:
    """Properties of the word at `address` of the chosen lane's memory.

    `counts` says, when a sample is taken, that it belongs to the word; `current` that the sample
    being accumulated does, and `pending` that it has not yet been added.
    """
    h, m = a.h, a.h.m

    def lane(name: str) -> Any:
        return a.in_lane(Value.cast(h.inside(f"{bank}.lane{i}.{name}")) for i in range(a.lanes))

    memories = [f"{bank}.lane{i}.memory" for i in range(a.lanes)]
    content = h.named("content", a.in_lane(h.word(memory, address) for memory in memories))
    width = len(content)
    read, fresh = a.in_lane(h.read_data(memory) for memory in memories), lane("fresh")
    adding, held = lane("adding"), lane("held")
    fetching = h.named("fetching_here", adding[0] & (lane("address0") == address))
    summing = h.named("summing_here", adding[1] & (lane("address1") == address))
    ports = [h.write_port(memory) for memory in memories]
    enable, write_address = (a.in_lane(port) for port in zip(*ports, strict=True))
    writing = h.named("writing_here", enable & (write_address == address))
    # what the word will be, once all that has been read for it is written
    fetched = Mux(fresh[0], 0, read) + term(lane("given"))
    settled: Any = content
    for under_way, value in (
        (writing, lane("total")),
        (summing, Mux(fresh[1], 0, held) + lane("term")),
        (fetching, fetched),
    ):
        settled = Mux(under_way, value[:width], settled)
    settled = h.named("settled", settled[:width])
    undisturbed = (read == content) & ~summing & ~writing
    h.holds("a_read_sees_the_last_write", ~fetching | fresh[0] | undisturbed)

    valid, mine = Signal(name="valid"), Signal(name="mine")
    before = Signal(range(MAX_SAMPLES + 1), name="samples_before")
    samples = h.named("samples_now", Mux(mine, Mux(a.first, 0, before) + 1, before))
    with m.If(a.taken):
        m.d.sync += [mine.eq(counts), before.eq(samples)]
        with m.If(counts & h.inside("begins")):
            m.d.sync += valid.eq(1)
    with m.If(h.dut.cancel & a.active):
        m.d.sync += valid.eq(0)
    # the sums are made for as many samples
    h.assume(~(a.taken & counts) | h.inside("begins") | (samples < MAX_SAMPLES))
    h.invariant("samples_are_counted", samples <= MAX_SAMPLES)
    h.invariant("the_sample_is_known_to_count", ~a.active | (mine == current))

    for part in parts:
        name = part.name
        bits = len(content[part.bits])  # enough, as `word_widths` proves
        earlier = Signal(bits, name=f"{name}_before")
        total = Signal(bits, name=f"{name}_now")
        m.d.comb += total.eq(Mux(mine, Mux(a.first, 0, earlier) + part.term, earlier))
        with m.If(a.taken):
            m.d.sync += earlier.eq(total)
        if part.counts:
            h.invariant(f"{name}_are_counted", (total <= samples) & (earlier <= before))
        known = valid & ~(pending & a.first)
        on_its_way = settled[part.bits] == Mux(pending, earlier, total)
        h.invariant(f"{name}_is_on_its_way", ~known | on_its_way)
        h.holds(f"{name}_is_in_memory", ~(valid & h.dut.idle) | (content[part.bits] == total))
        h.reached(f"{name}_of_two_samples", h.dut.idle & valid & (samples == 2))


def word_widths() -> Harness:
    """No sum overflows: arithmetic, of as many samples as there may be, whatever they are."""
    spec = UnitSpec(cells=3, lanes=1, adc_bits=3, rhs_depth=2)
    h = Harness(MomentAccumulator(spec))
    sums, products = (len(h.inside(f"{bank}.lane0.total")) for bank in ("sums", "products"))
    clips = sums - spec.sum_bits  # which stand in one word with a sum
    x = h.free("x", signed(spec.adc_bits))
    y = h.free("y", signed(spec.adc_bits))
    samples = h.free("samples", range(MAX_SAMPLES))
    for name, bits, term, least, most in (
        ("sums", sums - _COUNT_BITS, x, spec.adc_min, spec.adc_max),
        ("products", products, x * y, spec.adc_min * spec.adc_max, spec.adc_min**2),
        ("clips", clips, (x == spec.adc_min) | (x == spec.adc_max), 0, 1),
    ):
        earlier = h.free(f"{name}_before", signed(bits + 4))
        total = h.named(f"{name}_now", earlier + term)
        # by induction: so it is without a sample, and stays with each
        h.assume((earlier >= samples * least) & (earlier <= samples * most))
        within = (total >= (samples + 1) * least) & (total <= (samples + 1) * most)
        h.invariant(f"{name}_are_within_bounds", within)
        word = total[:bits] if name == "clips" else total[:bits].as_signed()
        h.holds(f"{name}_fit_their_word", total == word)
    return h


def _product(pair: Value) -> Any:
    half = len(pair) // 2
    return pair[:half].as_signed() * pair[half:].as_signed()


def product_words(cells: int, lanes: int) -> Harness:
    """Σ x_i x_j: the word that the layout names for i and j, when nothing is under way."""
    a = _Accumulation(cells, lanes)
    h, dut, spec = a.h, a.h.dut, a.spec
    fold = h.constant("chosen_fold", span(spec.folds))
    diagonal = h.constant("chosen_diagonal", range(spec.diagonals))
    h.assume((fold < spec.folds) & (diagonal < spec.diagonals))
    where = (fold * spec.diagonals + diagonal)[: len(h.inside("product_address"))]
    address = h.inside("product_address")
    counted = address == a.fold * spec.diagonals + a.diagonal
    h.invariant("address_is_fold_and_diagonal", ~(a.active & dut.second_moments) | counted)
    pending = a.active & dut.second_moments & (address <= where)
    i = a.lane * spec.folds + fold
    product = a.code(i) * a.code(i + diagonal)
    counts = dut.second_moments
    part = _Part("product", slice(None), product)
    _compare(a, "products", where, counts, counts, pending, _product, [part])
    return h


def sum_words(cells: int, lanes: int) -> Harness:
    """Σ x_i and how often x_i was clipped: the word for a cell and a bias vector."""
    a = _Accumulation(cells, lanes)
    h, dut, spec = a.h, a.h.dut, a.spec
    fold = h.constant("chosen_fold", span(spec.folds))
    vector = h.constant("chosen_vector", range(spec.rhs_depth))
    h.assume(fold < spec.folds)
    address = h.inside("sum_address")
    where = (vector * spec.folds + fold)[: len(address)]
    h.invariant(
        "address_is_vector_and_fold",
        ~a.active | (address == a.vector * spec.folds + a.fold),
    )
    mine = a.vector == vector
    later = (a.fold < fold) | ((a.fold == fold) & ~a.diagonal.any())

    def term(code: Any) -> Any:
        clip = (code == spec.adc_min) | (code == spec.adc_max)
        return Cat(clip, Const(0, _COUNT_BITS - 1), code).as_signed()

    code = a.code(a.lane * spec.folds + fold)
    clipped = (code == spec.adc_min) | (code == spec.adc_max)
    parts = [
        _Part("clips", slice(0, _COUNT_BITS), clipped, counts=True),
        _Part("sum", slice(_COUNT_BITS, None), code),
    ]
    _compare(a, "sums", where, dut.vector == vector, mine, a.active & mine & later, term, parts)
    return h


_TOO_SOON = "a sample is taken before the last one's word is written"
_STALE = Broken(
    _TOO_SOON,
    "moments",
    "(~active | ending) & ~recent.any()",
    "~active | ending",
    ("a_read_sees_the_last_write",),
)
_IDLE = ("idle before the last word is written", "idle.eq(~load & ~active & ~pipeline.any())")
_FOLDED = Broken(
    "the second ring is not turned with the first",
    "moments",
    "y.eq(turned),",
    "y.eq(x),",
    ("product_is_in_memory",),
)
_PRODUCTS = (
    Broken(_IDLE[0], "moments", _IDLE[1], "idle.eq(~load & ~active)", ("product_is_in_memory",)),
    Broken(
        "a first sample is added to what its word held before",
        "moments",
        "fresh.eq(begins),\n                x",
        "fresh.eq(0),\n                x",
        ("product_is_in_memory",),
    ),
)
_VECTORS = Broken(
    "bias vectors overlap",
    "moments",
    "sum_address.eq(self.vector * folds)",
    "sum_address.eq(self.vector)",
    ("sum_is_in_memory",),
)
_SUMS = (
    Broken(_IDLE[0], "moments", _IDLE[1], "idle.eq(~load & ~active)", ("sum_is_in_memory",)),
    Broken(
        "only one end of the range counts as clipped",
        "moments",
        "(code == low) | (code == high)",
        "(code == high)",
        ("clips_is_in_memory",),
    ),
)
_ALL_DIAGONALS = Broken(
    "the sum is added on every diagonal",
    "moments",
    "diagonal_start.eq(~diagonal.any())",
    "diagonal_start.eq(1)",
    ("a_read_sees_the_last_write",),
)
_OTHER_DIAGONALS = Broken(
    "the sum is added on diagonals that it does not belong to",
    "moments",
    "diagonal_start.eq(~diagonal.any())",
    "diagonal_start.eq(~diagonal.all())",
    ("a_read_sees_the_last_write",),
)


def _moments(what: str, cells: int, lanes: int, copies: tuple[Broken, ...], long: bool) -> Proof:
    return Proof(
        f"{what}-{cells}-in-{lanes}",
        f"accumulator of {cells} cells in {lanes} lane{'s' * (lanes > 1)}, 3-bit ADC, 2 vectors",
        partial({"products": product_words, "sums": sum_words}[what], cells, lanes),
        "induction",
        8,
        20 if long else 8,
        copies,
        long=long,
        cycles=20,
    )


_WIDTHS = (
    Broken(
        "a product's word is too short",
        "moments",
        "signed(spec.product_bits),",
        "signed(spec.product_bits - 2),",
        ("products_fit_their_word",),
    ),
    Broken(
        "a word of sum and clips is a bit short",
        "moments",
        "signed(spec.sum_bits + count_bits)",
        "signed(spec.sum_bits + count_bits - 1)",
        ("sums_fit_their_word", "clips_fit_their_word"),
    ),
)

PROOFS = (
    Proof(
        "widths",
        "words of the accumulator, 3-bit codes, 2^20 samples",
        word_widths,
        "bounded",
        2,
        4,
        _WIDTHS,
    ),
    _moments("products", 3, 3, (_STALE, *_PRODUCTS), long=False),
    _moments("products", 3, 1, (_STALE, _FOLDED, *_PRODUCTS), long=False),
    _moments("products", 4, 2, (_STALE, _FOLDED, *_PRODUCTS), long=True),
    _moments("sums", 3, 3, (_STALE, *_SUMS), long=True),
    _moments("sums", 3, 1, (_ALL_DIAGONALS, _VECTORS, *_SUMS), long=False),
    _moments("sums", 4, 2, (_OTHER_DIAGONALS, _VECTORS, *_SUMS), long=True),
)
