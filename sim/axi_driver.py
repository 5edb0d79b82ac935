"""An AXI4-Lite manager that costs nothing while it is idle and one or two wakes per access.

A bus-functional model that looks at the bus on every clock edge slows a simulation by 40% even
when nothing moves. This one knows two things of its subordinate, `thermokron.rtl.axi`, and
wakes on the edges of its signals alone:

- AWREADY and WREADY fall together when a write that was offered on both channels at once has
  been accepted, and ARREADY falls when a read has been: no two accesses are accepted in
  consecutive cycles.
- BRESP is valid by the time the next write is accepted, and holds until its response.

It obeys the bus's rules (an offer stands unchanged until it is accepted), but with a subordinate
that behaves otherwise it would stall; then `BusError` says so. For verifying the
bus itself use another manager: the benches of `sim/benches` use `cocotbext-axi`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cocotb.triggers import SimTimeoutError, with_timeout

from thermokron.sim.pins import integer_reader, integer_writer, settled

__all__ = ["AxiLiteDriver", "BusError"]

OKAY = 0
#: Clock cycles for one access after which a burst is given up.
PATIENCE = 64


class BusError(RuntimeError):
    """An access was refused, or never answered."""


class AxiLiteDriver:
    """Reads and writes 32-bit words through the pins `s_axi_*` of a unit.

    Parameters
    ----------
    dut : cocotb handle
        What has the pins, and `clk`.
    period : int
        Clock period in simulation steps.
    """

    def __init__(self, dut: Any, period: int) -> None:
        self._clk = dut.clk
        self._period = period
        self._awready, self._arready = dut.s_axi_awready, dut.s_axi_arready
        self._bvalid, self._rvalid = dut.s_axi_bvalid, dut.s_axi_rvalid
        self._write = {
            name: integer_writer(getattr(dut, f"s_axi_{name}"))
            for name in ("awaddr", "awvalid", "wdata", "wstrb", "wvalid", "araddr", "arvalid")
        }
        self._bresp = integer_reader(dut.s_axi_bresp)
        self._rresp = integer_reader(dut.s_axi_rresp)
        self._rdata = integer_reader(dut.s_axi_rdata)
        for name in ("awaddr", "awprot", "awvalid", "wdata", "wvalid", "araddr", "arprot"):
            getattr(dut, f"s_axi_{name}").value = 0
        dut.s_axi_arvalid.value = 0
        dut.s_axi_wstrb.value = 0xF
        dut.s_axi_bready.value = 1  # responses are always welcome
        dut.s_axi_rready.value = 1

    async def write(self, address: int, words: Sequence[int]) -> None:
        """Write words to consecutive word addresses, in two cycles each.

        Raises
        ------
        BusError
            If any was refused (SLVERR); the message has the address of the first. The others
            have been written.
        """
        if words:
            await self._within(
                len(words), self._write_all(address, words), f"write to {address:#x}"
            )

    async def read(self, ranges: Sequence[tuple[int, int]]) -> list[int]:
        """The words of each (address, count), one after the other.

        Raises
        ------
        BusError
            If any was refused (SLVERR); the message has the address of the first.
        """
        addresses = [a + 4 * i for a, count in ranges for i in range(count)]
        if not addresses:
            return []
        what = f"read of {addresses[0]:#x}"
        words: list[int] = await self._within(len(addresses), self._read_all(addresses), what)
        return words

    async def _write_all(self, address: int, words: Sequence[int]) -> None:
        pins, accepted, bresp = self._write, self._awready.falling_edge, self._bresp
        refused = []
        await self._clk.rising_edge
        pins["awvalid"](1)
        pins["wvalid"](1)
        for i, word in enumerate(words):
            pins["awaddr"](address + 4 * i)
            pins["wdata"](word)
            await accepted
            await settled()
            if i and bresp() != OKAY:
                refused.append(i - 1)
        pins["awvalid"](0)
        pins["wvalid"](0)
        await self._bvalid.rising_edge
        await settled()
        if bresp() != OKAY:
            refused.append(len(words) - 1)
        if refused:
            raise BusError(f"write to {address + 4 * refused[0]:#x} refused (SLVERR)")

    async def _read_all(self, addresses: Sequence[int]) -> list[int]:
        pins = self._write
        accepted, answered = self._arready.falling_edge, self._rvalid.rising_edge
        rresp, rdata = self._rresp, self._rdata
        words, refused = [], []
        await self._clk.rising_edge
        pins["araddr"](addresses[0])
        pins["arvalid"](1)
        for i, address in enumerate(addresses, 1):
            await accepted
            if i < len(addresses):
                pins["araddr"](addresses[i])
            else:
                pins["arvalid"](0)
            await answered
            await settled()
            words.append(rdata())
            if rresp() != OKAY:
                refused.append(address)
        if refused:
            raise BusError(f"read of {refused[0]:#x} refused (SLVERR)")
        return words

    async def _within(self, accesses: int, burst: Any, what: str) -> Any:
        """Await a burst, but not forever: one timer for all of it."""
        try:
            return await with_timeout(burst, PATIENCE * self._period * (accesses + 1), "step")
        except SimTimeoutError:
            for name in ("awvalid", "wvalid", "arvalid"):
                self._write[name](0)
            raise BusError(f"{what} was never answered") from None
