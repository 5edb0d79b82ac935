"""What the benches of the datapath's blocks share.

One simulated design holds several instances of a block, each with its own specification
(`thermokron.sim.benches.catalogue.Bundle`); the ports of instance `a` are called `a_<port>`.
Scenarios run on all instances side by side, on one clock and one reset.

A cycle of a scenario begins at the falling edge of the clock, where it drives inputs. Then it
waits for `settled()` and sees what the rising edge will see, combinational answers included;
so both simulators show the same, whatever order they have within a time step.
"""

from __future__ import annotations

import random
from collections.abc import Coroutine, Iterable
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, First, ReadOnly, RisingEdge, Timer

from thermokron.model import UnitSpec
from thermokron.sim.runner import bench_parameters

__all__ = ["PERIOD_PS", "Adc", "Bench", "Block", "settled", "signed", "together", "value"]

PERIOD_PS = 1000


def value(handle: Any) -> int:
    """What a signal holds, unsigned; an X or Z in it is an error."""
    return int(handle.value)


def signed(word: int, bits: int) -> int:
    """The low `bits` of a word as two's complement."""
    word &= (1 << bits) - 1
    return word - (word >> (bits - 1) << bits)


async def settled() -> None:
    """Wait until inputs driven in this time step have had their effect; nothing may be driven."""
    await ReadOnly()


async def together(scenarios: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run scenarios side by side until all have ended."""
    for task in [cocotb.start_soon(scenario) for scenario in scenarios]:
        await task


class Block:
    """One instance: its specification, and its ports as attributes without the prefix."""

    def __init__(self, dut: Any, name: str, kind: str, spec: UnitSpec) -> None:
        self._dut, self.name, self.kind, self.spec = dut, name, kind, spec

    def __getattr__(self, port: str) -> Any:
        handle = getattr(self._dut, f"{self.name}_{port}")
        self.__dict__[port] = handle
        return handle


class Bench:
    """The simulated design, its instances, clock and reset.

    Parameters of `run_bench`: `instances` (name to `kind` and `spec`), `inputs` (names of the
    design's input ports), `seed`, `rounds`.
    """

    def __init__(self, dut: Any, test: str) -> None:
        parameters = bench_parameters()
        self.dut, self._test = dut, test
        self.seed: int = parameters["seed"]
        self.rounds: int = parameters["rounds"]
        self._inputs: list[str] = parameters["inputs"]
        self.blocks = [
            Block(dut, name, instance["kind"], UnitSpec.from_json(instance["spec"]))
            for name, instance in parameters["instances"].items()
        ]
        print(f"{test}: seed {self.seed}, {self.rounds} rounds")

    def random(self, block: Block | None = None) -> random.Random:
        """A generator of its own for each test and instance."""
        return random.Random(f"{self.seed} {self._test} {block.name if block else ''}")

    async def start(self) -> None:
        """Start the clock, set all inputs to 0 and reset the design."""
        self._zero_inputs()
        Clock(self.dut.clk, PERIOD_PS, unit="ps").start()
        await self.next_cycle()
        await self.reset()

    def _zero_inputs(self) -> None:
        for name in self._inputs:
            if name != "clk":
                getattr(self.dut, name).value = 0

    async def reset(self, cycles: int = 2) -> None:
        """Hold reset for some cycles; all other inputs keep their values.

        Ends when the registers behind the pins, whose reset is released by two flip-flops, go on.
        """
        self.dut.rst.value = 1
        for _ in range(cycles):
            await self.next_cycle()
        self.dut.rst.value = 0
        await self.next_cycle(2)

    async def next_cycle(self, count: int = 1) -> None:
        """To the next falling edge, where inputs are driven."""
        for _ in range(count):
            await FallingEdge(self.dut.clk)

    async def interrupted(
        self, scenarios: Iterable[Coroutine[Any, Any, None]], cycles: int
    ) -> None:
        """Run scenarios for some cycles, cut them off there, and reset the design.

        Inputs are 0 afterwards.
        """
        tasks = [cocotb.start_soon(scenario) for scenario in scenarios]
        await self.next_cycle(cycles)
        await RisingEdge(self.dut.clk)  # where all of them wait for the next falling edge
        for task in tasks:
            task.cancel()
        await self.next_cycle()
        self._zero_inputs()
        await self.reset()


class Adc:
    """An ADC on a converter port's pins, which takes and releases DRDY off the clock edges.

    Data is noise except while DRDY is high.

    Attributes
    ----------
    answer : float or None
        Clock cycles from CONVST to DRDY; None for an ADC that never answers.
    release : float
        Clock cycles from the fall of CONVST to that of DRDY.
    """

    #: Both, where DRDY is a flip-flop on the unit's clock that takes CONVST: just after the edge
    #: that follows the one with which CONVST changes.
    REGISTERED = 1.05

    def __init__(self, block: Block, rng: random.Random) -> None:
        self.block, self.rng = block, rng
        self.answer: float | None = 0.0
        self.release = 0.0
        self._bits = block.spec.cells * block.spec.adc_bits

    def sample(self) -> int:
        """The data of a conversion that begins now; `answer` and `release` may be set here."""
        return self.noise()

    def noise(self) -> int:
        return self.rng.getrandbits(self._bits)

    async def run(self) -> None:
        """Answer for ever."""
        block = self.block
        while True:
            await RisingEdge(block.convst)
            data, fallen = self.sample(), FallingEdge(block.convst)
            if self.answer is None:
                await fallen
                continue
            if self.answer:
                wait = Timer(round(self.answer * PERIOD_PS), "ps")
                if await First(wait, fallen) is fallen:
                    continue  # cancelled before it answered
            block.adc_data.value = data
            block.drdy.value = 1
            await fallen
            block.adc_data.value = self.noise()
            if self.release:
                await Timer(round(self.release * PERIOD_PS), "ps")
            block.drdy.value = 0
