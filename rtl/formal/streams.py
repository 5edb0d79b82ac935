"""A unit's AXI4-Streams: beats that wait, and packets that end."""

from __future__ import annotations

from dataclasses import replace

from amaranth import Signal

from thermokron.rtl.formal.copies import Broken
from thermokron.rtl.formal.harness import Harness
from thermokron.rtl.formal.proof import Proof
from thermokron.rtl.formal.unit import SIZES, SPEC, UnitUnderProof

__all__ = ["PROOFS"]


def streams() -> Harness:
    """AXI4-Stream: what is offered stays until it is taken, and no path through the ports."""
    u = UnitUnderProof(replace(SPEC, stream_bits=32))
    h, dut, calm, past = u.h, u.h.dut, u.h.calm, u.h.past
    axis = dut.m_axis_results
    offered = calm & past(axis.tvalid & ~axis.tready)
    h.holds("results_stay_valid_until_taken", ~offered | axis.tvalid)
    h.holds("results_stay_the_same_until_taken", ~offered | (axis.tdata == past(axis.tdata)))
    h.holds("the_end_stays_the_end_until_taken", ~offered | (axis.tlast == past(axis.tlast)))
    h.holds("reset_ends_the_stream", calm | ~axis.tvalid)
    h.no_path("results_valid_follows_registers_alone", axis.tvalid)
    for name in ("couplings", "biases"):
        source = getattr(dut, f"s_axis_{name}")
        h.no_path(f"{name}_ready_waits_for_no_stream", source.tready, "*_axis_*")
    h.reached("a_beat_that_waits", offered)
    return h


def packets() -> Harness:
    """A run's end is the end of its packet, whatever the receiver does."""
    u = UnitUnderProof(replace(SPEC, stream_bits=32))
    h, axis, past = u.h, u.h.dut.m_axis_results, u.h.past
    h.assume((u.registers.settle <= 1) & (u.registers.samples <= 2) & (u.registers.biases <= 1))
    in_packet = Signal()
    with h.m.If(axis.tvalid & axis.tready):
        h.m.d.sync += in_packet.eq(~axis.tlast)
    ended = h.named("ended", h.calm & past(u.busy & ~u.cancel) & ~u.busy)
    h.holds("a_run_ends_between_packets", ~ended | ~(in_packet | axis.tvalid))
    told = past(u.registers.mode_stream_results)
    seen = Signal()
    with h.m.If(axis.tvalid & axis.tready & axis.tlast):
        h.m.d.sync += seen.eq(1)
    with h.m.If(h.inside("sequencer.couplings_start")):
        h.m.d.sync += seen.eq(0)
    h.holds("a_run_with_results_has_its_packet", ~(ended & told) | seen)
    h.reached("a_packet", ended & seen)
    return h


_STREAMS = (
    Broken(
        "a result is replaced before it is taken",
        "results",
        "free.eq((~axis.tvalid | axis.tready) & ~closing)",
        "free.eq(~closing)",
        ("results_stay_the_same_until_taken", "the_end_stays_the_end_until_taken"),
    ),
    Broken(
        "a result is withdrawn at an abort",
        "results",
        "with m.If(axis.tready):",
        "with m.If(axis.tready | self.cancel):",
        ("results_stay_valid_until_taken",),
    ),
    Broken(
        "reset leaves a beat on the stream",
        "streams",
        '"tvalid": Out(1)',
        '"tvalid": Out(1, init=1)',
        ("reset_ends_the_stream",),
    ),
    Broken(
        "a receiver of packets waits for tvalid",
        "streams",
        "self.axis.tready.eq(dropping | (",
        "self.axis.tready.eq(self.axis.tvalid & dropping | (",
        ("couplings_ready_waits_for_no_stream", "biases_ready_waits_for_no_stream"),
    ),
    Broken(
        "results are valid only when they are taken",
        "unit",
        "connect(m, results.axis, flipped(self.m_axis_results))",
        "port = self.m_axis_results\n        m.d.comb += [\n"
        "            port.tvalid.eq(results.axis.tvalid & port.tready),\n"
        "            port.tdata.eq(results.axis.tdata),\n"
        "            port.tlast.eq(results.axis.tlast),\n"
        "            results.axis.tready.eq(port.tready),\n        ]",
        ("results_valid_follows_registers_alone",),
    ),
)

_PACKETS = (
    Broken(
        "a run does not wait for its codes to leave",
        "sequencer",
        "with m.If(self.results_start | self.results_busy):",
        "with m.If(self.results_start):",
        ("a_run_ends_between_packets",),
    ),
    Broken(
        "the stream is not told which sample is the last",
        "unit",
        "results.last.eq(sequencer.last)",
        "results.last.eq(0)",
        ("a_run_with_results_has_its_packet",),
    ),
)

PROOFS = (
    Proof("streams", f"{SIZES}, 32-bit streams", streams, "induction", 3, 30, _STREAMS, cycles=32),
    Proof(
        "packets",
        f"{SIZES}, 32-bit streams; one vector of one or two samples",
        packets,
        "bounded",
        42,
        45,
        _PACKETS,
        long=True,
        cycles=42,
    ),
)
