"""Bias store and loader."""

from __future__ import annotations

from amaranth import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import ceil_log2

from thermokron.model import UnitSpec
from thermokron.rtl.codes import CodeLoader, CodeStore
from thermokron.rtl.layout import span

__all__ = ["Biases"]


class Biases(wiring.Component):
    """Bias vectors, and the loader that streams one of them to the DACs.

    A vector starts at a power of two, so that its address is its number with zeros appended.

    Members
    -------
    window : In(MemoryPort)
        The host's window: word k·2^⌈log2 n⌉ + cell, one code per word.
    locked : In(1)
        In use: the host must not write.
    start, cancel, busy, bad_code
        See `CodeLoader`.
    vector : In
        Number of the vector to load, sampled with `start`.
    dac : Out(stream)
        `cell` and `code`.
    """

    def __init__(self, spec: UnitSpec) -> None:
        self._pad = ceil_log2(spec.cells)
        self._store = CodeStore(spec.rhs_depth << self._pad, spec.bias_bits)
        self._loader = CodeLoader(
            spec.cells, spec.bias_bits, ceil_log2(spec.rhs_depth << self._pad), triangle=False
        )
        super().__init__(
            {
                "window": self._store.signature.members["window0"],
                "locked": In(1),
                "start": In(1),
                "cancel": In(1),
                "vector": In(span(spec.rhs_depth)),
                "busy": Out(1),
                "bad_code": Out(1),
                "dac": Out(self._loader.codes.signature),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.store = store = self._store
        m.submodules.loader = loader = self._loader
        connect(m, flipped(self.window), store.window0)
        connect(m, loader.read, store.read)
        connect(m, loader.codes, flipped(self.dac))
        m.d.comb += [
            store.locked.eq(self.locked),
            loader.start.eq(self.start),
            loader.cancel.eq(self.cancel),
            loader.base.eq(self.vector << self._pad),
            self.busy.eq(loader.busy),
            self.bad_code.eq(loader.bad_code),
        ]
        return m
