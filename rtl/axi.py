"""AXI4-Lite (Arm IHI 0022), 32-bit data: the signature, and a subordinate's two channel pairs."""

from __future__ import annotations

from enum import IntEnum

from amaranth import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["OKAY", "SLVERR", "AxiLiteReader", "AxiLiteSignature", "AxiLiteWriter"]


#: BRESP and RRESP: done, and refused. A subordinate here uses no other.
OKAY, SLVERR = 0, 2


class AxiLiteSignature(wiring.Signature):
    """An AXI4-Lite bus with 32 bits of data, seen from the manager.

    Parameters
    ----------
    addr_width : int
        Bits of a byte address.
    """

    def __init__(self, addr_width: int) -> None:
        self.addr_width = addr_width
        super().__init__(
            {
                "awaddr": Out(addr_width),
                "awprot": Out(3),
                "awvalid": Out(1),
                "awready": In(1),
                "wdata": Out(32),
                "wstrb": Out(4),
                "wvalid": Out(1),
                "wready": In(1),
                "bresp": In(2),
                "bvalid": In(1),
                "bready": Out(1),
                "araddr": Out(addr_width),
                "arprot": Out(3),
                "arvalid": Out(1),
                "arready": In(1),
                "rdata": In(32),
                "rresp": In(2),
                "rvalid": In(1),
                "rready": Out(1),
            }
        )


class AxiLiteWriter(wiring.Component):
    """The write half of a subordinate: collects address and data, hands over one write at a time.

    Address and data may come in any order and any time apart. Ready signals depend on state
    alone, so there is no combinational path through the bus. A manager that does not wait
    gets one write every two cycles.

    Members
    -------
    awaddr … bready : the write channels of `AxiLiteSignature`
    execute : Out(1)
        High for one cycle per write, in which `address`, `data` and `strobe` are valid. Never
        high in two cycles running: what a write changes by the next clock edge is in force
        for the next write.
    address : Out(addr_width - 2), data : Out(32), strobe : Out(4)
        Word address, data, and which bytes are meant.
    error : In(1)
        Combinational answer while `execute` is high: respond with SLVERR.
    """

    def __init__(self, addr_width: int) -> None:
        super().__init__(
            {
                "awaddr": In(addr_width),
                "awvalid": In(1),
                "awready": Out(1),
                "wdata": In(32),
                "wstrb": In(4),
                "wvalid": In(1),
                "wready": Out(1),
                "bresp": Out(2),
                "bvalid": Out(1),
                "bready": In(1),
                "execute": Out(1),
                "address": Out(addr_width - 2),
                "data": Out(32),
                "strobe": Out(4),
                "error": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        have_address = Signal()
        have_data = Signal()
        m.d.comb += [
            self.awready.eq(~have_address),
            self.wready.eq(~have_data),
            # not when the response register is about to be free: BREADY would reach what a write
            # holds up, the streams, and a manager that does not wait has it free by then
            self.execute.eq(have_address & have_data & ~self.bvalid),
        ]
        with m.If(self.awvalid & self.awready):
            m.d.sync += [have_address.eq(1), self.address.eq(self.awaddr[2:])]
        with m.If(self.wvalid & self.wready):
            m.d.sync += [
                have_data.eq(1),
                self.data.eq(self.wdata),
                self.strobe.eq(self.wstrb),
            ]
        with m.If(self.bready):
            m.d.sync += self.bvalid.eq(0)
        with m.If(self.execute):
            m.d.sync += [
                have_address.eq(0),
                have_data.eq(0),
                self.bvalid.eq(1),
                self.bresp.eq(Mux(self.error, SLVERR, OKAY)),
            ]
        return m


class ReadState(IntEnum):
    """Where a read is. Codes without a state lead to IDLE."""

    IDLE = 0
    START = 1
    FETCH = 2
    WAIT = 3
    CAPTURE = 4
    RESPOND = 5


class AxiLiteReader(wiring.Component):
    """The read half of a subordinate: one read at a time, answered three cycles after its start.

    Members
    -------
    araddr … rready : the read channels of `AxiLiteSignature`
    address : Out(addr_width - 2)
        Word address, valid while a read is open.
    stall : In(1)
        Do not start a read in this cycle.
    start : Out(1)
        High for the one cycle in which the read is started.
    error : In(1)
        Combinational answer while `start` is high: respond with SLVERR.
    data : In(32)
        The data, three cycles after `start`.
    """

    def __init__(self, addr_width: int) -> None:
        super().__init__(
            {
                "araddr": In(addr_width),
                "arvalid": In(1),
                "arready": Out(1),
                "rdata": Out(32),
                "rresp": Out(2),
                "rvalid": Out(1),
                "rready": In(1),
                "address": Out(addr_width - 2),
                "stall": In(1),
                "start": Out(1),
                "error": In(1),
                "data": In(32),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # By hand, for Amaranth's own state machines stay for ever in a code that is no state. Tools
        # that know state machines would drop the way out of such a code, so they are told not to.
        state = Signal(range(len(ReadState)), attrs={"fsm_encoding": "none"})
        with m.Switch(state):
            with m.Case(ReadState.IDLE):
                m.d.comb += self.arready.eq(1)
                with m.If(self.arvalid):
                    m.d.sync += [self.address.eq(self.araddr[2:]), state.eq(ReadState.START)]
            with m.Case(ReadState.START):
                m.d.comb += self.start.eq(~self.stall)
                with m.If(self.start):
                    m.d.sync += [
                        self.rresp.eq(Mux(self.error, SLVERR, OKAY)),
                        state.eq(ReadState.FETCH),
                    ]
            with m.Case(ReadState.FETCH):
                m.d.sync += state.eq(ReadState.WAIT)
            with m.Case(ReadState.WAIT):
                m.d.sync += state.eq(ReadState.CAPTURE)
            with m.Case(ReadState.CAPTURE):
                m.d.sync += [
                    self.rdata.eq(Mux(self.rresp == OKAY, self.data, 0)),
                    state.eq(ReadState.RESPOND),
                ]
            with m.Case(ReadState.RESPOND):
                m.d.comb += self.rvalid.eq(1)
                with m.If(self.rready):
                    m.d.sync += state.eq(ReadState.IDLE)
            with m.Default():
                m.d.sync += state.eq(ReadState.IDLE)
        return m
