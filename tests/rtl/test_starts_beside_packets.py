"""A start in every cycle around that in which a packet of couplings ends in the wrong place."""

from __future__ import annotations

import pytest
from amaranth import ClockDomain, Module
from amaranth.sim import Simulator

from thermokron.model import UnitSpec
from thermokron.rtl import ThermodynamicUnit, register_map
from thermokron.rtl.regmap import FaultReason

SPEC = UnitSpec(cells=4, lanes=4, stream_bits=32)
ADDRESS = {name: register.address for name, register in register_map(SPEC).registers.items()}
PROGRAM = {"biases": 1, "temperature": 1, "settle": 20, "interval": 40, "samples": 1}
OKAY, SLVERR, DONE = 0, 2, 2


def outcome(offset: int) -> tuple[int, int, FaultReason]:
    """The answer to a start `offset` cycles before TLAST; whether the run is done; its fault."""
    unit, top = ThermodynamicUnit(SPEC), Module()
    for domain in ("sync", "pins"):
        top.domains += ClockDomain(domain)
    top.submodules.unit = unit
    top.d.comb += unit.drdy.eq(unit.convst)
    bus, stream, found = unit.s_axi, unit.s_axis_couplings, []

    async def write(ctx, name, setting):
        for signal, value in ((bus.awaddr, ADDRESS[name]), (bus.wdata, setting), (bus.wstrb, 15),
                              (bus.awvalid, 1), (bus.wvalid, 1), (bus.bready, 1)):  # fmt: skip
            ctx.set(signal, value)
        await ctx.tick()
        ctx.set(bus.awvalid, 0)
        ctx.set(bus.wvalid, 0)
        while not ctx.get(bus.bvalid):
            await ctx.tick()
        answer = ctx.get(bus.bresp)
        await ctx.tick()
        return answer

    async def read(ctx, name):
        for signal, value in ((bus.araddr, ADDRESS[name]), (bus.arvalid, 1), (bus.rready, 1)):
            ctx.set(signal, value)
        await ctx.tick()
        ctx.set(bus.arvalid, 0)
        while not ctx.get(bus.rvalid):
            await ctx.tick()
        value = ctx.get(bus.rdata)
        await ctx.tick()
        return value

    async def host(ctx):
        ctx.set(unit.dac_ready, 1)
        ctx.set(unit.bias_ready, 1)
        await ctx.tick().repeat(4)
        for name, setting in PROGRAM.items():
            assert await write(ctx, name, setting) == OKAY
        ctx.set(stream.tvalid, 1)  # into bank 1, which the mode names then
        await ctx.tick()
        ctx.set(stream.tvalid, 0)
        assert await write(ctx, "mode", 2) == OKAY
        answer = None
        for cycle in range(14):
            ctx.set(stream.tvalid, cycle == 5 + offset)
            ctx.set(stream.tlast, cycle == 5 + offset)
            if cycle == 5:
                ctx.set(bus.awaddr, ADDRESS["control"])
                ctx.set(bus.wdata, 1)
            ctx.set(bus.awvalid, cycle == 5)
            ctx.set(bus.wvalid, cycle == 5)
            await ctx.tick()
            if ctx.get(bus.bvalid):
                answer = ctx.get(bus.bresp)
        while (status := await read(ctx, "status")) & 1:
            pass
        found.append((answer, status & DONE, FaultReason(await read(ctx, "fault"))))

    simulator = Simulator(top)
    for domain in ("sync", "pins"):
        simulator.add_clock(1e-6, domain=domain)
    simulator.add_testbench(host)
    simulator.run()
    return found[0]


@pytest.mark.parametrize("offset", range(-3, 7))
def test_no_run_takes_a_spoiled_bank(offset):
    answer, done, fault = outcome(offset)
    assert not done
    assert (answer, fault) in {
        (SLVERR, FaultReason.illegal_bank),
        (OKAY, FaultReason.stream_early),
    }
