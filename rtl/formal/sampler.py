"""What is proved of the sampler: its grid, for any program."""

from __future__ import annotations

from amaranth import Signal

from thermokron.model import UnitSpec
from thermokron.model.spec import MAX_SAMPLES
from thermokron.rtl.formal.copies import Broken
from thermokron.rtl.formal.harness import Harness
from thermokron.rtl.formal.proof import Proof
from thermokron.rtl.sampler import Sampler

__all__ = ["PROOFS"]


def sampler_grid() -> Harness:
    """Trigger j comes settle + j·interval cycles after the start, for every program, to the end.

    The grid is a sum of the program's own numbers, kept beside the block: `due`.
    """
    h = Harness(Sampler(UnitSpec(cells=2)))
    dut, m = h.dut, h.m
    elapsed, due = Signal(48), Signal(48)  # no program is longer than 2^32 + 2^20 * 2^24 cycles
    given, open_ = Signal(22), Signal()  # triggers since the start; more are to come
    m.d.sync += elapsed.eq(elapsed + 1)
    on_grid = h.named("on_grid", open_ & (elapsed == due))
    reported = Signal(22)
    with m.If(on_grid):
        m.d.sync += reported.eq(reported + 1)
        m.d.sync += [due.eq(due + dut.interval), given.eq(given + 1)]
        m.d.sync += open_.eq(given + 1 != dut.samples)
    with m.If(dut.start | dut.clear):
        m.d.sync += reported.eq(0)
    with m.If(dut.start):
        m.d.sync += [elapsed.eq(1), due.eq(dut.settle), given.eq(0), open_.eq(1)]
    with m.If(dut.cancel):
        m.d.sync += open_.eq(0)

    for program in (dut.settle, dut.interval, dut.samples):
        h.assume(program != 0)
        h.assume(~dut.running | (program == h.past(program)))
    h.assume(dut.samples <= MAX_SAMPLES)
    h.assume(~(dut.clear & dut.running))

    h.holds("trigger_exactly_on_the_grid", dut.trigger == on_grid)
    h.holds("running_until_the_last_trigger", dut.running == open_)
    h.holds("never_more_than_the_samples", ~dut.running | (given < dut.samples))
    h.holds("sampled_counts_triggers", dut.sampled == reported)
    h.holds("quiet_after_cancel", ~(h.calm & h.past(dut.cancel)) | ~dut.running)
    # what induction needs: the block counts down what is left of the way
    h.invariant("what_is_counted_is_given", ~open_ | (reported == given))
    h.invariant("left_is_the_way_to_go", ~open_ | (h.inside("left") == (due - elapsed)[: len(due)]))
    h.reached("third_trigger", dut.trigger & (given == 2) & (dut.interval == 3))
    return h


PROOFS = (
    Proof(
        "sampler",
        "sampler, counters as wide as they are",
        sampler_grid,
        "induction",
        2,
        5,
        (
            Broken(
                "the first trigger comes a cycle late",
                "sampler",
                "left.eq(self.settle - 1)",
                "left.eq(self.settle)",
                ("trigger_exactly_on_the_grid",),
            ),
            Broken(
                "the interval is a cycle too long",
                "sampler",
                "left.eq(self.interval - 1)",
                "left.eq(self.interval)",
                ("trigger_exactly_on_the_grid",),
            ),
            Broken(
                "one sample more than asked for",
                "sampler",
                "sampled_next == self.samples",
                "self.sampled == self.samples",
                ("running_until_the_last_trigger", "never_more_than_the_samples"),
            ),
            Broken(
                "a cancel is not heard",
                "sampler",
                "with m.If(self.cancel):",
                "with m.If(self.cancel & ~self.trigger):",
                ("quiet_after_cancel",),
            ),
            Broken(
                "the count goes on over a clear",
                "sampler",
                "with m.If(self.start | self.clear):",
                "with m.If(self.start):",
                ("sampled_counts_triggers",),
            ),
        ),
    ),
)
