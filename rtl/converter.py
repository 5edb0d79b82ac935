"""Converter port: one conversion of all cells, from CONVST to captured codes."""

from __future__ import annotations

from amaranth import Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from thermokron.model import UnitSpec
from thermokron.rtl.synchroniser import Synchroniser

__all__ = ["ConverterPort", "sample_layout"]


def sample_layout(spec: UnitSpec) -> data.ArrayLayout:
    """Codes of one sample, cell 0 at the least significant end."""
    return data.ArrayLayout(signed(spec.adc_bits), spec.cells)


class ConverterPort(wiring.Component):
    """Parallel interface to the ADCs, one four-phase handshake per sample.

    CONVST rises on the sampling edge and stays high until the codes are captured. The ADC
    raises DRDY with valid data, holds both until CONVST falls, and then lowers DRDY. DRDY may be
    asynchronous: it passes two flip-flops here, and data are read only while it is known high.
    A capture takes place `adc_cycles` after CONVST at the earliest, so that an ADC which answers
    sooner does not change the timing. See docs/converter-port.md for the diagram.

    Members
    -------
    trigger : In(1)
        Sample on the next clock edge.
    cancel : In(1)
        Drop the conversion under way and what has not been taken.
    convst : Out(1), drdy : In(1), adc_data : In(cells·adc_bits)
        The pins. CONVST is in the domain `pins`, whose reset needs no clock.
    codes : Out(stream)
        Captured samples. A receiver that takes each within one sampling interval loses none.
    idle : Out(1)
        No conversion under way, none waiting to be taken.
    timeout : Out(1)
        No DRDY within `adc_timeout_cycles`, or still none at the next `trigger`.
    stuck : Out(1)
        DRDY still high at `trigger`.
    """

    def __init__(self, spec: UnitSpec) -> None:
        self._spec = spec
        super().__init__(
            {
                "trigger": In(1),
                "cancel": In(1),
                "convst": Out(1),
                "drdy": In(1),
                "adc_data": In(spec.cells * spec.adc_bits),
                "codes": Out(stream.Signature(sample_layout(spec))),
                "idle": Out(1),
                "timeout": Out(1),
                "stuck": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        spec = self._spec
        ready = Signal()
        m.submodules.drdy_sync = drdy_sync = Synchroniser()
        m.d.comb += [drdy_sync.i.eq(self.drdy), ready.eq(drdy_sync.o)]
        elapsed = Signal(range(spec.adc_timeout_cycles + 1))
        # what it is compared with, a cycle ahead, for what follows from it reaches far
        enough = Signal()  # elapsed ≥ adc_cycles - 1
        expired = Signal()  # elapsed = adc_timeout_cycles - 1
        capture = Signal()
        m.d.comb += [
            capture.eq(self.convst & ready & enough),
            self.timeout.eq(self.convst & ~capture & (self.trigger | expired)),
            self.stuck.eq(self.trigger & ready & (capture | ~self.convst)),
            self.idle.eq(~self.convst & ~self.codes.valid),
        ]
        m.d.sync += [
            elapsed.eq(Mux(self.convst, elapsed + 1, 0)),
            enough.eq(self.convst & (elapsed >= spec.adc_cycles - 2)),
            expired.eq(self.convst & (elapsed == spec.adc_timeout_cycles - 2)),
        ]
        with m.If(self.codes.ready):
            m.d.sync += self.codes.valid.eq(0)
        with m.If(capture):
            m.d.sync += [
                self.codes.payload.eq(self.adc_data),
                self.codes.valid.eq(1),
            ]
            m.d.pins += self.convst.eq(0)
        with m.If(self.trigger & ~self.convst & ~ready):
            m.d.pins += self.convst.eq(1)
        with m.If(self.cancel | self.timeout | self.stuck):
            m.d.sync += self.codes.valid.eq(0)
            m.d.pins += self.convst.eq(0)
        return m
