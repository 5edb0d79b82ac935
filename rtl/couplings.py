"""Coupling store and loader."""

from __future__ import annotations

from amaranth import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import ceil_log2

from thermokron.model import UnitSpec
from thermokron.rtl.codes import CodeLoader, CodeStore

__all__ = ["Couplings"]


class Couplings(wiring.Component):
    """Two banks of packed upper triangles, and the loader that streams one to the DACs.

    While the loader or the array uses one bank, the host may fill the other.

    Members
    -------
    bank0, bank1 : In(MemoryPort)
        The host's windows: packed upper triangle, row by row, one code per word.
    locked : In(2)
        A bit per bank: in use, the host must not write.
    start, cancel, busy, bad_code
        See `CodeLoader`.
    bank : In(1)
        The bank to load, sampled with `start`.
    dac : Out(stream)
        `row` ≤ `column` and `code`.
    """

    def __init__(self, spec: UnitSpec) -> None:
        self._depth = spec.coupling_count
        self._store = CodeStore(self._depth, spec.coupling_bits, windows=2)
        self._loader = CodeLoader(
            spec.cells, spec.coupling_bits, ceil_log2(2 * self._depth), triangle=True
        )
        super().__init__(
            {
                "bank0": self._store.signature.members["window0"],
                "bank1": self._store.signature.members["window1"],
                "locked": In(2),
                "start": In(1),
                "cancel": In(1),
                "bank": In(1),
                "busy": Out(1),
                "bad_code": Out(1),
                "dac": Out(self._loader.codes.signature),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.store = store = self._store
        m.submodules.loader = loader = self._loader
        connect(m, flipped(self.bank0), store.window0)
        connect(m, flipped(self.bank1), store.window1)
        connect(m, loader.read, store.read)
        connect(m, loader.codes, flipped(self.dac))
        m.d.comb += [
            store.locked.eq(self.locked),
            loader.start.eq(self.start),
            loader.cancel.eq(self.cancel),
            loader.base.eq(self.bank * self._depth),
            self.busy.eq(loader.busy),
            self.bad_code.eq(loader.bad_code),
        ]
        return m
