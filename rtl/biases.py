"""Bias store and loader."""

from __future__ import annotations

from amaranth import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import ceil_log2

from thermokron.model import UnitSpec
from thermokron.model.timing import item_bytes
from thermokron.rtl.codes import CodeLoader, CodeStore
from thermokron.rtl.layout import bias_stride, span
from thermokron.rtl.streams import AxiStreamSignature, PacketWriter

__all__ = ["Biases"]


class Biases(wiring.Component):
    """Bias vectors, and the loader that sends one of them to the DACs' input registers.

    A vector starts at a power of two, so that its address is its number with zeros appended.

    Members
    -------
    window : In(MemoryPort)
        The host's window: word k·S + cell, one code per word, S of `layout.bias_stride`. What is
        between the vectors reads as 0.
    locked : In(1)
        In use: the host must not write.
    axis : In(AxiStreamSignature)
        Packets of bias vectors, of units with streams.
    stream_run : In(1)
        A run begins whose vectors come on the stream: take a packet. Until the next such run or
        `cancel`, a load of a vector waits until it has arrived. After `cancel` what is left of the
        packet is dropped.
    window_run : In(1)
        A run begins whose vectors stand in the window.
    vectors : In
        Vectors of the run, less one; stable while it is on.
    start, cancel, busy, bad_code, timeout
        See `CodeLoader`.
    vector : In
        Number of the vector to load, sampled with `start`.
    open : Out(1)
        A packet is under way.
    early, late : Out(1)
        It ends in the wrong place.
    dac : Out(stream)
        `cell` of the first code, `enable`, `codes`.
    """

    def __init__(self, spec: UnitSpec) -> None:
        bits, lanes = spec.bias_bits, spec.dac_lanes
        self._cells, self._stride = spec.cells, bias_stride(spec) // lanes  # in words
        depth = spec.rhs_depth * self._stride
        address_bits = ceil_log2(len(span(depth)))
        self._pad = ceil_log2(bias_stride(spec))
        item_bits = None if spec.stream_bits is None else 8 * item_bytes(bits)
        self._store = CodeStore(depth, bits, lanes, item_bits=item_bits)
        self._loader = CodeLoader(
            spec.cells, bits, lanes, address_bits, spec.dac_timeout_cycles, triangle=False
        )
        self._writer, axis = None, {}
        if spec.stream_bits is not None:
            self._writer = PacketWriter(
                spec,
                bits,
                address_bits,
                row_codes=spec.cells,
                rows=spec.rhs_depth,
                row_stride=self._stride,
            )
            axis = {"axis": In(AxiStreamSignature(spec.stream_bits))}
        super().__init__(
            {
                "window": self._store.signature.members["window0"],
                "locked": In(1),
                **axis,
                "stream_run": In(1),
                "window_run": In(1),
                "vectors": In(span(spec.rhs_depth)),
                "start": In(1),
                "cancel": In(1),
                "vector": In(span(spec.rhs_depth)),
                "busy": Out(1),
                "bad_code": Out(1),
                "timeout": Out(1),
                "open": Out(1),
                "early": Out(1),
                "late": Out(1),
                "dac": Out(self._loader.codes.signature),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.store = store = self._store
        m.submodules.loader = loader = self._loader
        connect(m, loader.read, store.read)
        connect(m, loader.codes, flipped(self.dac))
        # what a window has between its vectors is in no memory
        cell = self.window.address[: self._pad]
        between = Signal(2)
        m.d.sync += between.eq((between << 1) | (cell >= self._cells))
        for name in self.window.signature.members:
            outer, inner = getattr(self.window, name), getattr(store.window0, name)
            if name == "read_data":
                m.d.comb += outer.eq(Mux(between[1], 0, inner))
            elif name == "locked":
                m.d.comb += outer.eq(inner)
            else:
                m.d.comb += inner.eq(outer)
        m.d.comb += [
            store.locked.eq(self.locked),
            loader.start.eq(self.start),
            loader.cancel.eq(self.cancel),
            loader.base.eq(self.vector * self._stride),
            loader.available.eq(1),
            self.busy.eq(loader.busy),
            self.bad_code.eq(loader.bad_code),
            self.timeout.eq(loader.timeout),
        ]
        if self._writer is None:
            return m

        m.submodules.writer = writer = self._writer
        connect(m, flipped(self.axis), writer.axis)
        connect(m, writer.write, store.write)
        streamed = Signal()
        expected = Signal()
        loading = Signal.like(self.vector)
        m.d.comb += [
            writer.allow.eq(expected),
            writer.rows.eq(self.vectors),
            writer.base.eq(0),
            writer.forget.eq(self.stream_run),
            writer.cancel.eq(self.cancel),
            writer.owed.eq(expected),
            loader.available.eq(~streamed | (writer.arrived > loading)),
            self.open.eq(writer.open),
            self.early.eq(writer.early),
            self.late.eq(writer.late),
        ]
        with m.If(writer.begun | self.window_run | self.cancel):
            m.d.sync += expected.eq(0)
        with m.If(self.window_run):
            m.d.sync += streamed.eq(0)
        with m.If(self.stream_run):
            m.d.sync += [streamed.eq(1), expected.eq(1)]
        with m.If(self.start & ~loader.busy):
            m.d.sync += loading.eq(self.vector)
        return m
