"""What is proved of the AXI4-Lite subordinate: the rules of the bus, on a unit's register file.

The rules are those of Arm IHI 0022; that none is left out was checked against the list in
ZipCPU's `faxil_slave` (wb2axip).
"""

from __future__ import annotations

from typing import Any

from amaranth import Cat, Signal, Value

from thermokron.model import UnitSpec
from thermokron.rtl.axi import OKAY, SLVERR, ReadState
from thermokron.rtl.formal.copies import Broken
from thermokron.rtl.formal.harness import Harness
from thermokron.rtl.formal.proof import Proof
from thermokron.rtl.registers import RegisterFile
from thermokron.rtl.regmap import register_map

__all__ = ["PROOFS", "SMALL"]

#: A unit small enough for a solver.
SMALL = UnitSpec(cells=2, lanes=1, adc_bits=3, coupling_bits=3, bias_bits=4, rhs_depth=2)


def _count(h: Harness, name: str, up: Any, down: Any) -> Any:
    """How many came and did not leave: of what one handshake brings and another takes."""
    count = Signal(3, name=name)
    h.m.d.sync += count.eq(count + up - down)
    return count


def _patience(h: Harness, name: str, waits: Any, cycles: int) -> Any:
    """A property: nothing waits for more cycles than these. Returns how many it has waited for."""
    count = Signal(4, name=f"waited_{name}")
    with h.m.If(~waits):
        h.m.d.sync += count.eq(0)
    with h.m.Elif(count != 15):
        h.m.d.sync += count.eq(count + 1)
    h.holds(f"{name}_waits_at_most_{cycles}", ~waits | (count < cycles))
    return count


def bus_rules() -> Harness:
    """Writes and reads of a manager that keeps to the rules, its patience and its order free."""
    h = Harness(RegisterFile(SMALL))
    axi = h.dut.axi
    aw, w = axi.awvalid & axi.awready, axi.wvalid & axi.wready
    b, ar, r = axi.bvalid & axi.bready, axi.arvalid & axi.arready, axi.rvalid & axi.rready

    # ---- the manager: what it offers stays as it is until it is taken ------------------------
    _stable(h, axi.awvalid, axi.awready, axi.awaddr)
    _stable(h, axi.wvalid, axi.wready, Value.cast(axi.wdata), Value.cast(axi.wstrb))
    _stable(h, axi.arvalid, axi.arready, axi.araddr)

    # ---- what is answered --------------------------------------------------------------------
    addresses = _count(h, "addresses", aw, b)
    words = _count(h, "words", w, b)
    reads = _count(h, "reads", ar, r)
    h.holds("no_response_without_address_and_data", ~axi.bvalid | ((addresses > 0) & (words > 0)))
    h.holds("no_read_data_without_request", ~axi.rvalid | (reads == 1))
    h.holds("at_most_two_writes_are_open", (addresses <= 2) & (words <= 2))
    h.holds("at_most_one_read_is_open", (reads <= 1) & ~(axi.arready & (reads != 0)))

    # ---- responses stay ----------------------------------------------------------------------
    refused = h.calm & h.past(axi.bvalid & ~axi.bready)
    h.holds("bvalid_stays_until_taken", ~refused | axi.bvalid)
    h.holds("bresp_stays_until_taken", ~refused | (axi.bresp == h.past(axi.bresp)))
    refused = h.calm & h.past(axi.rvalid & ~axi.rready)
    h.holds("rvalid_stays_until_taken", ~refused | axi.rvalid)
    h.holds("rresp_stays_until_taken", ~refused | (axi.rresp == h.past(axi.rresp)))
    h.holds("rdata_stays_until_taken", ~refused | (axi.rdata == h.past(axi.rdata)))
    h.holds("bresp_is_okay_or_slverr", ~axi.bvalid | _either(axi.bresp))
    h.holds("rresp_is_okay_or_slverr", ~axi.rvalid | _either(axi.rresp))
    h.holds("reset_ends_responses", ~h.settled | h.calm | ~(axi.bvalid | axi.rvalid))
    h.holds("reset_leaves_the_bus_ready", h.calm | (axi.awready & axi.wready & axi.arready))

    # ---- answers in time, if the manager takes earlier ones ----------------------------------
    _patience(h, "write_response", (addresses != 0) & (words != 0) & ~axi.bvalid, 1)
    no_data = _patience(h, "read_data", (reads != 0) & ~axi.rvalid, 5)
    blocked = axi.bvalid & ~axi.bready
    starved = axi.awvalid & ~axi.awready & ~blocked & (words > axi.bvalid)
    _patience(h, "awready", starved, 2)
    starved = axi.wvalid & ~axi.wready & ~blocked & (addresses > axi.bvalid)
    _patience(h, "wready", starved, 2)
    starved = axi.arvalid & ~axi.arready & ~(axi.rvalid & ~axi.rready)
    no_ready = _patience(h, "arready", starved, 6)

    # ---- no path through the bus -------------------------------------------------------------
    for name in ("awready", "wready", "arready", "bvalid", "rvalid"):
        h.no_path(f"{name}_follows_registers_alone", getattr(axi, name))

    # ---- what induction needs: the block's state says what is open ---------------------------
    have_address, have_data = h.inside("writer.have_address"), h.inside("writer.have_data")
    h.invariant("open_addresses_are_known", addresses == have_address + axi.bvalid)
    h.invariant("open_words_are_known", words == have_data + axi.bvalid)
    state = h.inside("reader.state")
    h.invariant("open_reads_are_known", reads == (state != ReadState.IDLE))
    h.invariant("reader_is_in_a_state", state <= max(ReadState))
    for waited, code in enumerate((s for s in ReadState if s != ReadState.IDLE), 1):
        in_time = (no_ready <= waited) & (no_data <= waited)
        h.invariant(f"{code.name.lower()}_comes_in_time", (state != code) | in_time)
    h.reached("two_writes_running", b & h.past(b, 2) & (axi.bresp == OKAY))
    h.reached("read_of_a_window", r & (axi.rresp == OKAY) & h.past(state == ReadState.CAPTURE))
    return h


def _stable(h: Harness, valid: Any, ready: Any, *payload: Any) -> None:
    offered = h.calm & h.past(valid & ~ready)
    h.assume(~offered | valid)
    for part in payload:
        h.assume(~offered | (part == h.past(part)))
    h.assume(h.calm | ~valid)


def _either(response: Any) -> Any:
    return (response == OKAY) | (response == SLVERR)


def frozen_program() -> Harness:
    """While a run is on, nothing that is written changes the program."""
    h = Harness(RegisterFile(SMALL))
    dut = h.dut
    held = h.calm & h.past(dut.status_busy | dut.control_start)
    unsettled: list[Any] = []
    for name, field in register_map(SMALL).fields.items():
        if field.access == "config":
            value = getattr(dut, name)
            h.holds(f"{name}_is_frozen", ~held | (value == h.past(value)))
            unsettled.append(value != h.past(value))
    for name in ("couplings0", "couplings1", "biases_mem"):
        port = getattr(dut, name)
        # a request comes a cycle after it was decided on
        locked = h.calm & h.past(port.locked)
        h.holds(f"{name}_is_not_written_while_locked", ~(locked & port.write))
    # the rest of what is assumed of a register file where a unit is proved without it
    settled = h.calm & ~Cat(*unsettled).any()
    h.holds("a_start_finds_the_program_settled", ~dut.control_start | settled)
    pulses = Cat(dut.control_start, dut.control_abort, dut.control_clear)
    h.holds("pulses_come_alone", ~(pulses & (pulses - 1)).any())
    idle = ~dut.status_busy
    h.assume(~h.calm | idle | h.past(dut.status_busy | dut.control_start))
    h.holds("start_and_clear_only_while_idle", idle | ~(dut.control_start | dut.control_clear))
    ports = [getattr(dut, name) for name in register_map(SMALL).windows]
    reads = Cat(port.read for port in ports).any()
    writes = Cat(port.write for port in ports).any()
    h.holds("windows_are_not_read_while_busy", idle | ~reads)
    h.holds("windows_are_not_read_and_written_at_once", ~(reads & writes))
    return h


_AXI = (
    Broken(
        "a response is withdrawn when an address comes",
        "axi",
        "with m.If(self.bready):\n            m.d.sync += self.bvalid",
        "with m.If(self.bready | self.awvalid):\n            m.d.sync += self.bvalid",
        ("bvalid_stays_until_taken", "write_response_waits_at_most_1", "wready_waits_at_most_2"),
    ),
    Broken(
        "a response overtakes one that has not been taken",
        "axi",
        "have_address & have_data & ~self.bvalid",
        "have_address & have_data",
        ("bresp_stays_until_taken", "at_most_two_writes_are_open", "awready_waits_at_most_2"),
    ),
    Broken(
        "a write does not wait for its data",
        "axi",
        "have_address & have_data & ~self.bvalid",
        "have_address & ~self.bvalid",
        ("no_response_without_address_and_data",),
    ),
    Broken(
        "awready waits for awvalid",
        "axi",
        "self.awready.eq(~have_address)",
        "self.awready.eq(~have_address & self.awvalid)",
        ("awready_follows_registers_alone", "reset_leaves_the_bus_ready"),
    ),
    Broken(
        "wready waits for wvalid",
        "axi",
        "self.wready.eq(~have_data)",
        "self.wready.eq(~have_data & self.wvalid)",
        ("wready_follows_registers_alone",),
    ),
    Broken(
        "arready waits for arvalid",
        "axi",
        "m.d.comb += self.arready.eq(1)",
        "m.d.comb += self.arready.eq(self.arvalid)",
        ("arready_follows_registers_alone",),
    ),
    Broken(
        "rvalid waits for rready",
        "axi",
        "m.d.comb += self.rvalid.eq(1)",
        "m.d.comb += self.rvalid.eq(self.rready)",
        ("rvalid_follows_registers_alone", "arready_waits_at_most_6"),
    ),
    Broken(
        "bvalid waits for bready",
        "registers",
        "else bus.eq(port)",
        'else bus.eq(port & (self.axi.bready if name == "bvalid" else -1))',
        ("bvalid_follows_registers_alone",),
    ),
    Broken(
        "read data is not held until it is taken",
        "axi",
        "                with m.If(self.rready):\n                    m.d.sync += state",
        "                with m.If(True):\n                    m.d.sync += state",
        (
            "rvalid_stays_until_taken",
            "no_read_data_without_request",
            "at_most_one_read_is_open",
            "read_data_waits_at_most_5",
        ),
    ),
    Broken(
        "read data follows the memory while it waits",
        "axi",
        "m.d.comb += self.rvalid.eq(1)",
        "m.d.comb += self.rvalid.eq(1)\n"
        "                m.d.sync += [self.rdata.eq(self.late_data), self.rresp.eq(OKAY)]",
        ("rdata_stays_until_taken", "rresp_stays_until_taken"),
    ),
    Broken(
        "a refused write gets EXOKAY",
        "axi",
        "Mux(self.error, SLVERR, OKAY)),\n            ]",
        "Mux(self.error, 1, OKAY)),\n            ]",
        ("bresp_is_okay_or_slverr",),
    ),
    Broken(
        "a refused read gets EXOKAY",
        "axi",
        "Mux(self.error, SLVERR, OKAY)),\n                        self",
        "Mux(self.error, 1, OKAY)),\n                        self",
        ("rresp_is_okay_or_slverr",),
    ),
    Broken(
        "reset leaves a response on the bus",
        "axi",
        '"bvalid": Out(1),\n                "bready": In(1),',
        '"bvalid": Out(1, init=1),\n                "bready": In(1),',
        ("reset_ends_responses",),
    ),
)

_FROZEN = (
    Broken(
        "registers take what is written during a run",
        "registers",
        "refused = self.status_busy\n",
        "refused = Const(0)\n",
        (
            "irq_enable_done_is_frozen",
            "irq_enable_fault_is_frozen",
            "biases_is_frozen",
            "temperature_is_frozen",
            "settle_is_frozen",
            "interval_is_frozen",
            "samples_is_frozen",
            "mode_second_moments_is_frozen",
            "mode_bank_is_frozen",
            "mode_stream_biases_is_frozen",
            "mode_stream_results_is_frozen",
        ),
    ),
    Broken(
        "writes follow each other in every cycle",
        "axi",
        "self.execute.eq(have_address & have_data & ~self.bvalid)",
        "self.execute.eq((have_address | self.awvalid) & (have_data | self.wvalid))",
        ("a_start_finds_the_program_settled",),
    ),
    Broken(
        "several pulses at once are let through",
        "registers",
        "refused = several | (",
        "refused = (",
        ("pulses_come_alone",),
    ),
    Broken(
        "start is let through during a run",
        "registers",
        'self.status_busy & (bits["start"] | bits["clear"])',
        'self.status_busy & bits["clear"]',
        ("start_and_clear_only_while_idle",),
    ),
    Broken(
        "a refused read of a window is done all the same",
        "registers",
        "with m.If(reader.start & ~self.status_busy):",
        "with m.If(reader.start):",
        ("windows_are_not_read_while_busy",),
    ),
    Broken(
        "a read does not wait for a write",
        "registers",
        "reader.stall.eq(writer.execute)",
        "reader.stall.eq(0)",
        ("windows_are_not_read_and_written_at_once",),
    ),
    Broken(
        "a refused write to a window is done all the same",
        "registers",
        "writer.execute & writer.strobe.all() & ~port.locked",
        "writer.execute & writer.strobe.all()",
        (
            "couplings0_is_not_written_while_locked",
            "couplings1_is_not_written_while_locked",
            "biases_mem_is_not_written_while_locked",
        ),
    ),
)

PROOFS = (
    Proof("axi", "register file of 2 cells behind AXI4-Lite", bus_rules, "induction", 4, 12, _AXI),
    Proof("frozen", "register file of 2 cells", frozen_program, "induction", 1, 5, _FROZEN),
)
