"""Sampler: CONVST on an exact grid."""

from __future__ import annotations

from amaranth import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from thermokron.model import UnitSpec
from thermokron.model.spec import MAX_SAMPLES

__all__ = ["Sampler"]


class Sampler(wiring.Component):
    """Counts settle and interval cycles and triggers the converter port.

    `start` is given in the last cycle of discharge. With the clock edge that ends it called 0,
    sample j is triggered such that CONVST rises on edge settle + j·interval exactly.

    Members
    -------
    start : In(1)
        Discharge ends with this cycle.
    cancel : In(1)
        No more triggers.
    clear : In(1)
        Another vector is due: `sampled` is 0 again. `start` does that too.
    settle, interval, samples : In
        The program, stable while `running`: clock cycles, clock cycles, count; each at least 1.
    running : Out(1)
        Triggers are outstanding.
    trigger : Out(1)
        Sample on the next clock edge.
    sampled : Out
        Triggers given since `start` or `clear`.
    """

    def __init__(self, spec: UnitSpec) -> None:
        super().__init__(
            {
                "start": In(1),
                "cancel": In(1),
                "clear": In(1),
                "settle": In(32),
                "interval": In(24),
                "samples": In(range(MAX_SAMPLES + 1)),
                "running": Out(1),
                "trigger": Out(1),
                "sampled": Out(range(MAX_SAMPLES + 1)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        left = Signal(32)  # cycles until the next trigger
        sampled_next = Signal.like(self.sampled)
        m.d.comb += [
            self.trigger.eq(self.running & ~left.any()),
            sampled_next.eq(self.sampled + 1),
        ]
        with m.If(self.trigger):
            m.d.sync += [left.eq(self.interval - 1), self.sampled.eq(sampled_next)]
            with m.If(sampled_next == self.samples):
                m.d.sync += self.running.eq(0)
        with m.Elif(self.running):
            m.d.sync += left.eq(left - 1)
        with m.If(self.start | self.clear):
            m.d.sync += self.sampled.eq(0)
        with m.If(self.start):
            m.d.sync += [self.running.eq(1), left.eq(self.settle - 1)]
        with m.If(self.cancel):
            m.d.sync += self.running.eq(0)
        return m
