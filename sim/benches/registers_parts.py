"""The register file under test, memories behind its windows, and monitors that are always on."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteMaster, AxiResp  # type: ignore[import-untyped]

from thermokron.model import UnitSpec
from thermokron.rtl.regmap import register_map
from thermokron.sim.benches.golden_map import GoldenMap
from thermokron.sim.runner import bench_parameters

PULSES = ("control_start", "control_abort", "control_clear")
PERIOD_PS = 1000


class Bench:
    """The design, its clock, memories behind the windows, and monitors that are always on."""

    def __init__(self, dut: Any, salt: int) -> None:
        parameters = bench_parameters()
        self.dut = dut
        self.spec = UnitSpec.from_json(parameters["spec"])
        self.map = register_map(self.spec)
        self.golden = GoldenMap(self.map)
        self.operations = int(parameters["operations"])
        self.random = random.Random(1000 * parameters["seed"] + salt)
        self.pulses: Counter[str] = Counter()
        self.memory = {name: [0] * w.words for name, w in self.map.windows.items()}

    async def start(self) -> None:
        """Reset the design and start everything."""
        Clock(self.dut.clk, PERIOD_PS, unit="ps").start()
        for channel in ("aw", "w", "ar"):
            getattr(self.dut, f"axi_{channel}valid").value = 0
        for channel in ("b", "r"):
            getattr(self.dut, f"axi_{channel}ready").value = 0
        self.apply_inputs()
        self.dut.rst.value = 1
        for _ in range(3):
            await RisingEdge(self.dut.clk)
        self.dut.rst.value = 0
        await RisingEdge(self.dut.clk)
        for name in self.map.windows:
            cocotb.start_soon(self._memory(name))
        cocotb.start_soon(self._monitor())

    def master(self, *, pauses: float) -> AxiLiteMaster:
        """An AXI master, each of whose channels pauses in that fraction of the cycles."""
        bus = AxiLiteBus.from_prefix(self.dut, "axi")
        master = AxiLiteMaster(bus, self.dut.clk, self.dut.rst)
        writes, reads = master.write_if, master.read_if
        if pauses:
            for channel in (writes.aw_channel, writes.w_channel, writes.b_channel,
                            reads.ar_channel, reads.r_channel):  # fmt: skip
                channel.set_pause_generator(self._pauses(pauses))
        return master

    def _pauses(self, fraction: float) -> Iterator[bool]:
        while True:  # in bursts, so that queues fill up and run empty
            yield from [self.random.random() < fraction] * self.random.randint(1, 6)

    def apply_inputs(self) -> None:
        """Drive what the golden model holds onto the design's inputs."""
        golden = self.golden
        for name, value in golden.status.items():
            getattr(self.dut, name).value = value
        for name, value in golden.locked.items():
            getattr(self.dut, f"{name}_locked").value = value
        self.dut.start_refused.value = golden.start_refused

    def randomise_inputs(self) -> None:
        golden, bits = self.golden, self.random.getrandbits
        for name in golden.status:
            golden.status[name] = bits(self.map.fields[name].width)
        for name in golden.locked:
            golden.locked[name] = bits(1)
        golden.start_refused = bits(1)
        self.apply_inputs()

    async def _memory(self, name: str) -> None:
        """A memory behind a window: two cycles of latency, and noise when it was not asked."""
        pins = {
            pin: getattr(self.dut, f"{name}_{pin}")
            for pin in ("address", "write", "write_data", "read", "read_data")
        }
        words = self.memory[name]
        on_its_way = None
        while True:
            await RisingEdge(self.dut.clk)
            address = int(pins["address"].value)
            noise = self.random.getrandbits(32)
            pins["read_data"].value = noise if on_its_way is None else on_its_way
            on_its_way = words[address] if pins["read"].value else None
            if pins["write"].value:
                assert not pins["read"].value, f"{name}: read and write in one cycle"
                words[address] = int(pins["write_data"].value)

    async def _monitor(self) -> None:
        """Count pulses; hold responses to the rule that they stay until they are taken."""
        pending: dict[str, tuple[int, ...]] = {}
        payloads = {"b": ("bresp",), "r": ("rresp", "rdata")}
        while True:
            await RisingEdge(self.dut.clk)
            for name in PULSES:
                self.pulses[name] += int(getattr(self.dut, name).value)
            if self.dut.rst.value:
                pending.clear()
                continue
            for channel, names in payloads.items():
                valid = getattr(self.dut, f"axi_{channel}valid").value
                now = tuple(int(getattr(self.dut, f"axi_{n}").value) for n in names)
                if channel in pending:
                    assert valid, f"axi_{channel}valid fell before the response was taken"
                    assert now == pending[channel], f"the response on {names} changed"
                taken = getattr(self.dut, f"axi_{channel}ready").value
                if valid and not taken:
                    pending[channel] = now
                else:
                    pending.pop(channel, None)

    def any_address(self) -> int:
        """A word address: registers, windows and their edges, and the gaps between."""
        pick = self.random.choice
        kind = self.random.random()
        if kind < 0.5:
            register = pick(list(self.map.registers.values()))
            return register.address + 4 * self.random.randrange(register.words)
        if kind < 0.9:
            window = pick(list(self.map.windows.values()))
            last = window.words - 1
            word = pick([0, 1, last, self.random.randint(0, last), last + 1])
            # past the end of the last window the bus may have no more addresses
            return (window.address + 4 * word) % (1 << self.map.address_bits)
        return 4 * self.random.getrandbits(self.map.address_bits - 2)

    async def write(self, master: AxiLiteMaster, address: int, data: int) -> None:
        """Write a word; response, pulses and settings must be the model's."""
        refused = self.golden.write(address, data)
        answer = await master.write(address, data.to_bytes(4, "little"))
        self._expect(answer.resp, refused, f"write {address:#x} {data:#x}")
        assert +self.pulses == self.golden.pulses, f"write {address:#x} {data:#x}: pulses"
        self.expect_config()

    async def read(self, master: AxiLiteMaster, address: int) -> None:
        """Read a word; it must be the model's."""
        expected = self.golden.read(address)
        answer = await master.read(address, 4)
        self._expect(answer.resp, expected is None, f"read {address:#x}")
        got = int.from_bytes(answer.data, "little")
        assert got == (expected or 0), f"read {address:#x}: {got:#x}, not {expected:#x}"

    def _expect(self, response: AxiResp, refused: bool, what: str) -> None:
        expected = AxiResp.SLVERR if refused else AxiResp.OKAY
        assert response == expected, f"{what}: {response!r}, not {expected!r}"

    def expect_config(self) -> None:
        for name, value in self.golden.config.items():
            got = int(getattr(self.dut, name).value)
            assert got == value, f"{name} is {got:#x}, not {value:#x}"
