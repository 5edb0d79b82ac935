"""Two flip-flops for a signal that may change at any time, marked as what they are."""

from __future__ import annotations

from amaranth import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Synchroniser"]


class Synchroniser(wiring.Component):
    """As `amaranth.lib.cdc.FFSynchronizer`, whose flip-flops cannot be given attributes.

    ASYNC_REG has Vivado place both in one slice, keep them apart from shift registers, and
    simulate what metastability would do; other tools leave it alone.

    Members
    -------
    i : In(1)
        From anywhere.
    o : Out(1)
        The same two edges later.
    """

    def __init__(self) -> None:
        super().__init__({"i": In(1), "o": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # neither has a reset: a level is a level, in reset too
        marked = {"reset_less": True, "attrs": {"ASYNC_REG": "TRUE"}}
        stage0 = Signal(**marked)
        stage1 = Signal(**marked)
        m.d.sync += [stage0.eq(self.i), stage1.eq(stage0)]
        m.d.comb += self.o.eq(stage1)
        return m
