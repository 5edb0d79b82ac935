"""What a unit's pins do from one edge to the next, whatever stands at them."""

from __future__ import annotations

from amaranth import Cat

from thermokron.rtl.formal.copies import Broken
from thermokron.rtl.formal.harness import Harness
from thermokron.rtl.formal.proof import Proof
from thermokron.rtl.formal.unit import SIZES, SPEC, UnitUnderProof, know

__all__ = ["PROOFS"]


def pins() -> Harness:
    """What pins do from one edge to the next, beside any converter and any DACs."""
    u = UnitUnderProof(SPEC)
    h, dut = u.h, u.h.dut
    calm, past = h.calm, h.past
    active = Cat(dut.convst, dut.dac_valid, dut.bias_valid, dut.bias_load).any()
    quiet = ~active & dut.discharge
    h.holds("abort_or_fault_quiets_pins_at_once", ~(calm & past(u.cancel)) | (quiet & ~u.busy))
    h.holds("abort_is_heard", ~(u.registers.control_abort & u.busy) | u.cancel)
    h.holds("idle_pins_are_quiet", u.busy | quiet)
    h.holds("sampled_only_while_cells_are_free", ~u.rise | ~past(dut.discharge))
    h.holds("bias_load_only_while_cells_are_held", ~dut.bias_load | dut.discharge)
    h.holds("bias_load_is_one_cycle", ~(calm & dut.bias_load) | ~past(dut.bias_load))
    resting = dut.discharge & ~dut.convst
    h.holds("reset_rests_the_cells_at_once", ~(u.reset | ~calm) | resting)
    for dac, payload in (
        ("dac", (dut.dac_row, dut.dac_col, dut.dac_enable, dut.dac_code)),
        ("bias", (dut.bias_cell, dut.bias_enable, dut.bias_code)),
    ):
        valid, ready = getattr(dut, f"{dac}_valid"), getattr(dut, f"{dac}_ready")
        stalled = calm & past(valid & ~ready & ~u.cancel)
        h.holds(f"{dac}_valid_stays_until_taken", ~stalled | valid)
        same = Cat(*payload) == past(Cat(*payload))
        h.holds(f"{dac}_code_stays_until_taken", ~stalled | same)
    know(u)
    return h


_PINS = (
    Broken(
        "an abort leaves the cells to themselves",
        "sequencer",
        "            m.d.pins += self.discharge.eq(1)\n"
        "            m.d.sync += [\n                state.eq(State.IDLE),",
        "            m.d.sync += [\n                state.eq(State.IDLE),",
        ("abort_or_fault_quiets_pins_at_once",),
    ),
    Broken(
        "a load pulse outlives an abort",
        "sequencer",
        "                self.bias_load.eq(0),\n                self.done",
        "                self.done",
        ("idle_pins_are_quiet",),
    ),
    Broken(
        "blocks do not hear of an abort",
        "sequencer",
        "self.cancel.eq(failed)",
        "self.cancel.eq(failed & ~self.abort)",
        ("abort_is_heard", "sampled_only_while_cells_are_free"),
    ),
    Broken(
        "a load pulse lasts while the next vector is loaded",
        "sequencer",
        "m.d.sync += self.bias_load.eq(0)",
        "m.d.sync += self.bias_load.eq(self.bias_load & ~self.biases_busy)",
        ("bias_load_only_while_cells_are_held", "bias_load_is_one_cycle"),
    ),
    Broken(
        "reset waits for the clock",
        "rtlil",
        'ClockDomain("pins", async_reset=True)',
        'ClockDomain("pins", async_reset=False)',
        ("reset_rests_the_cells_at_once",),
    ),
    Broken(
        "codes move on whether a DAC is ready or not",
        "codes",
        "moves.eq(~valid | (self.codes.ready & self.codes.valid)),",
        "moves.eq(1),",
        (
            "dac_valid_stays_until_taken",
            "dac_code_stays_until_taken",
            "bias_valid_stays_until_taken",
            "bias_code_stays_until_taken",
        ),
    ),
)

PROOFS = (Proof("pins", SIZES, pins, "induction", 4, 15, _PINS),)
