"""Bench of `RegisterFile`: AXI traffic by cocotbext-axi against a model of the map.

Parameters: `spec` (JSON), `seed`, `operations` (how many, in the random tests).
"""

from __future__ import annotations

from typing import Any

import cocotb
from cocotb.triggers import FallingEdge, RisingEdge, Timer
from cocotbext.axi import AxiResp  # type: ignore[import-untyped]

from thermokron.rtl.axi import ReadState
from thermokron.sim.benches.registers_parts import PULSES, Bench


@cocotb.test(timeout_time=100, timeout_unit="us")
async def every_field(dut: Any) -> None:
    """Constants state the spec, settings come back, every status bit is seen where it belongs."""
    bench = Bench(dut, 1)
    await bench.start()
    master = bench.master(pauses=0)
    bench.expect_config()
    for register in bench.map.registers.values():
        for word in range(register.words):
            await bench.read(master, register.address + 4 * word)
        if register.writable and register.name != "control":
            for data in (0xFFFF_FFFF, 0x5555_5555, 0xAAAA_AAAA, 0):
                await bench.write(master, register.address, data)
                await bench.read(master, register.address)
    for name in bench.golden.status:
        field = bench.map.fields[name]
        register = bench.map.registers[field.register]
        for bit in range(field.width):
            bench.golden.status[name] = 1 << bit
            bench.apply_inputs()
            for word in range(register.words):
                await bench.read(master, register.address + 4 * word)
        bench.golden.status[name] = 0


@cocotb.test(timeout_time=100, timeout_unit="us")
async def random_traffic(dut: Any) -> None:
    """Any access in any state, with pauses on every channel, one after the other."""
    bench = Bench(dut, 2)
    await bench.start()
    master = bench.master(pauses=0.4)
    control = bench.map.registers["control"].address
    for _ in range(bench.operations):
        if bench.random.random() < 0.3:
            await RisingEdge(dut.clk)
            bench.randomise_inputs()
        address, data = bench.any_address(), bench.random.getrandbits(32)
        kind = bench.random.random()
        if kind < 0.1:  # some of the four bytes
            offset = bench.random.randint(0, 3)
            length = bench.random.randint(1, 4 - offset - (offset == 0))
            answer = await master.write(address + offset, bytes(length))
            assert answer.resp == AxiResp.SLVERR
        elif kind < 0.3:
            await bench.write(master, control, bench.random.randrange(8))
        elif kind < 0.65:
            await bench.write(master, address, data)
        else:
            await bench.read(master, address)
    assert bench.memory == bench.golden.memory
    assert all(bench.pulses[name] for name in PULSES), bench.pulses


@cocotb.test(timeout_time=100, timeout_unit="us")
async def writes_of_no_byte(dut: Any) -> None:
    """Without a strobe a write is answered OKAY everywhere, at any time, and changes nothing."""
    bench = Bench(dut, 6)
    await bench.start()
    master = bench.master(pauses=0)
    for register in bench.map.registers.values():
        if register.writable and register.name != "control":
            await bench.write(master, register.address, bench.random.getrandbits(32))
    for window in bench.map.windows.values():
        bench.memory[window.name][:] = [
            bench.random.getrandbits(32) for _ in bench.memory[window.name]
        ]
    before = {name: list(words) for name, words in bench.memory.items()}
    addresses = [r.address for r in bench.map.registers.values()]
    addresses += [bench.any_address() for _ in range(bench.operations // 4)]
    dut.axi_wstrb.value, dut.axi_bready.value = 0, 1
    for address in addresses:
        bench.randomise_inputs()
        dut.axi_awaddr.value, dut.axi_wdata.value = address, bench.random.getrandbits(32)
        dut.axi_awvalid.value = dut.axi_wvalid.value = 1
        await RisingEdge(dut.clk)
        dut.axi_awvalid.value = dut.axi_wvalid.value = 0
        while True:
            await RisingEdge(dut.clk)
            if dut.axi_bvalid.value:
                break
        assert int(dut.axi_bresp.value) == AxiResp.OKAY, f"{address:#x}"
    await RisingEdge(dut.clk)
    assert +bench.pulses == bench.golden.pulses
    assert bench.memory == before
    bench.expect_config()


@cocotb.test(timeout_time=100, timeout_unit="us")
async def codes_without_a_state(dut: Any) -> None:
    """An upset that leaves the reader in no state at all costs a read, and not the bus."""
    bench = Bench(dut, 7)
    await bench.start()
    master = bench.master(pauses=0)
    for code in range(len(ReadState), 8):
        await FallingEdge(dut.clk)
        dut.reader.state.value = code
        await FallingEdge(dut.clk)
        assert int(dut.reader.state.value) == ReadState.IDLE
        assert dut.axi_arready.value
        assert not dut.axi_rvalid.value
        await bench.read(master, bench.map.registers["id"].address)


@cocotb.test(timeout_time=100, timeout_unit="us")
async def both_directions_at_once(dut: Any) -> None:
    """Reads and writes side by side, into the same windows, in bursts that queue up."""
    bench = Bench(dut, 3)
    await bench.start()
    master = bench.master(pauses=0.3)
    windows = [w for w in bench.map.windows.values() if w.writable]
    for window in windows:  # the lower half is read while the upper one is written
        for word in range(window.words // 2):
            bench.memory[window.name][word] = bench.random.getrandbits(32)
    written = {w.name: list(bench.memory[w.name]) for w in windows}

    async def write() -> None:
        for _ in range(bench.operations // 4):
            window = bench.random.choice(windows)
            first = bench.random.randint(window.words // 2, window.words - 1)
            count = bench.random.randint(1, min(8, window.words - first))
            data = [bench.random.getrandbits(32) for _ in range(count)]
            written[window.name][first : first + count] = data
            flat = b"".join(d.to_bytes(4, "little") for d in data)
            answer = await master.write(window.address + 4 * first, flat)
            assert answer.resp == AxiResp.OKAY

    async def read() -> None:
        for _ in range(bench.operations // 4):
            window = bench.random.choice(windows)
            first = bench.random.randrange(window.words // 2)
            count = bench.random.randint(1, min(8, window.words // 2 - first))
            answer = await master.read(window.address + 4 * first, 4 * count)
            assert answer.resp == AxiResp.OKAY
            got = [int.from_bytes(answer.data[i : i + 4], "little") for i in range(0, 4 * count, 4)]
            assert got == written[window.name][first : first + count]

    writer = cocotb.start_soon(write())
    await read()
    await writer
    for window in windows:
        assert bench.memory[window.name] == written[window.name]


@cocotb.test(timeout_time=100, timeout_unit="us")
async def reset_in_mid_flight(dut: Any) -> None:
    """Whatever goes on, reset ends it: no response is left over, settings are cleared."""
    bench = Bench(dut, 4)
    await bench.start()
    master = bench.master(pauses=0.5)
    samples = bench.map.registers["samples"].address
    for _ in range(12):
        for _ in range(3):
            master.init_write(samples, bench.random.randbytes(4))
            master.init_read(bench.any_address(), 4)
        for _ in range(bench.random.randint(1, 25)):
            await RisingEdge(dut.clk)
        dut.rst.value = 1
        for _ in range(2):
            await RisingEdge(dut.clk)
        await FallingEdge(dut.clk)
        assert not dut.axi_bvalid.value
        assert not dut.axi_rvalid.value
        bench.expect_config()
        await RisingEdge(dut.clk)
        dut.rst.value = 0
        await RisingEdge(dut.clk)
    await bench.write(master, samples, 1234)
    await bench.read(master, samples)


@cocotb.test(timeout_time=100, timeout_unit="us")
async def handshakes(dut: Any) -> None:
    """Address and data in either order, full speed, back-pressure, no path through the bus."""
    bench = Bench(dut, 5)
    await bench.start()
    address, samples = bench.map.registers["samples"].address, 7
    dut.axi_awaddr.value, dut.axi_wdata.value, dut.axi_wstrb.value = address, samples, 0xF

    async def cycles(count: int) -> None:
        for _ in range(count):
            await RisingEdge(dut.clk)
        await Timer(1, "ps")

    for first, second in (("aw", "w"), ("w", "aw")):
        await cycles(1)
        getattr(dut, f"axi_{first}valid").value = 1
        await cycles(1)
        getattr(dut, f"axi_{first}valid").value = 0
        await cycles(5)
        assert not dut.axi_bvalid.value, "a response to half a write"
        assert not getattr(dut, f"axi_{first}ready").value, "half a write was overwritten"
        getattr(dut, f"axi_{second}valid").value = 1
        await cycles(1)
        getattr(dut, f"axi_{second}valid").value = 0
        await cycles(1)
        assert dut.axi_bvalid.value
        assert int(dut.samples.value) == samples
        dut.axi_bready.value = 1
        await cycles(1)
        dut.axi_bready.value = 0
        assert not dut.axi_bvalid.value
        samples += 1
        dut.axi_wdata.value = samples

    # no ready may depend on a valid, no valid on a ready, within a cycle
    outputs = ("awready", "wready", "arready", "bvalid", "rvalid")
    before = [getattr(dut, f"axi_{name}").value for name in outputs]
    for name in ("awvalid", "wvalid", "arvalid", "bready", "rready"):
        getattr(dut, f"axi_{name}").value = 1
        await Timer(1, "ps")
        assert [getattr(dut, f"axi_{name}").value for name in outputs] == before, name
        getattr(dut, f"axi_{name}").value = 0
        await Timer(1, "ps")

    # nobody takes the responses: one write is answered, one more waits, the third does not start
    dut.axi_awvalid.value = dut.axi_wvalid.value = 1
    await cycles(20)
    assert dut.axi_bvalid.value
    assert not dut.axi_awready.value
    assert not dut.axi_wready.value
    dut.axi_bready.value = 1
    await cycles(4)

    responses, length = 0, 200
    for _ in range(length):
        await RisingEdge(dut.clk)
        responses += int(dut.axi_bvalid.value)
    assert responses == length // 2, "one write every two cycles"
    dut.axi_awvalid.value = dut.axi_wvalid.value = 0

    # the two lowest address bits do not count
    for low in range(4):
        dut.axi_araddr.value, dut.axi_arvalid.value, dut.axi_rready.value = address + low, 1, 0
        await cycles(1)
        dut.axi_arvalid.value = 0
        await cycles(4)
        assert dut.axi_rvalid.value
        assert int(dut.axi_rdata.value) == samples
        dut.axi_rready.value = 1
        await cycles(1)
