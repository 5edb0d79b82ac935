"""What the bench of the whole unit is made of: host, pins, ADC, and the model of one run."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from cocotb.triggers import FallingEdge
from cocotbext.axi import (  # type: ignore[import-untyped]
    AxiLiteBus,
    AxiLiteMaster,
    AxiResp,
    AxiStreamBus,
    AxiStreamSink,
    AxiStreamSource,
)
from numpy.typing import NDArray

from thermokron.model import Job, UnitSpec
from thermokron.rtl.regmap import register_map
from thermokron.sim.benches.support import Adc, Bench, Block, settled, signed, value

__all__ = ["ArrayAdc", "Host", "Pins", "Streams", "coupling_transfers", "moments"]


def pauses(rng: random.Random, share: Callable[[], float]) -> Iterator[bool]:
    """Cycles in which a channel pauses, for a generator of cocotbext-axi's."""
    while True:
        yield from [rng.random() < share()] * rng.randint(1, 6)


class Streams:
    """Sources and a sink on the streams of a unit, which nobody here wrote.

    Attributes
    ----------
    pause : float
        Share of the time in which each of them pauses.
    hold : bool
        The sink of results takes nothing.
    """

    def __init__(self, bench: Bench, block: Block, rng: random.Random) -> None:
        assert block.spec.stream_bits is not None
        self.pause, self.hold = 0.0, False
        ends = []
        for kind, port in (
            (AxiStreamSource, "s_axis_couplings"),
            (AxiStreamSource, "s_axis_biases"),
            (AxiStreamSink, "m_axis_results"),
        ):
            bus = AxiStreamBus.from_prefix(bench.dut, f"{block.name}_{port}")
            end = kind(bus, bench.dut.clk, bench.dut.rst, byte_lanes=block.spec.stream_bits // 8)
            end.log.setLevel("WARNING")
            end.set_pause_generator(
                pauses(rng, self._held if kind is AxiStreamSink else self._share)
            )
            ends.append(end)
        self.couplings, self.biases, self.results = ends

    def _share(self) -> float:
        return self.pause

    def _held(self) -> float:
        return 1.0 if self.hold else self.pause


class Host:
    """Registers and windows by name, over an AXI master that pauses on every channel."""

    def __init__(self, bench: Bench, block: Block, rng: random.Random) -> None:
        self.map, self.rng, self.clk = register_map(block.spec), rng, bench.dut.clk
        bus = AxiLiteBus.from_prefix(bench.dut, f"{block.name}_s_axi")
        self.master = AxiLiteMaster(bus, bench.dut.clk, bench.dut.rst)
        write, read = self.master.write_if, self.master.read_if
        for half in (write, read):
            half.log.setLevel("WARNING")
        for channel in (write.aw_channel, write.w_channel, write.b_channel,
                        read.ar_channel, read.r_channel):  # fmt: skip
            channel.log.setLevel("WARNING")
            channel.set_pause_generator(pauses(rng, lambda: 0.2))

    async def write_words(self, address: int, words: Sequence[int]) -> bool:
        """Write consecutive words; whether all were accepted."""
        data = b"".join((w & 0xFFFF_FFFF).to_bytes(4, "little") for w in words)
        answer = await self.master.write(address, data)
        return bool(answer.resp == AxiResp.OKAY)

    async def read_words(self, address: int, count: int = 1) -> list[int] | None:
        """Read consecutive words; None if one was refused."""
        answer = await self.master.read(address, 4 * count)
        if answer.resp != AxiResp.OKAY:
            return None
        return [int.from_bytes(answer.data[i : i + 4], "little") for i in range(0, 4 * count, 4)]

    async def set(self, register: str, **fields: int) -> bool:
        """Write a register, other fields 0; whether it was accepted."""
        found = self.map.registers[register]
        accepted = await self.write_words(found.address, [found.pack(**fields)])
        # the interrupt line is a register, which follows at the edge that takes the answer
        await FallingEdge(self.clk)
        return accepted

    async def get(self, register: str) -> dict[str, int]:
        """Fields of a register."""
        found = self.map.registers[register]
        words = await self.read_words(found.address, found.words)
        assert words is not None, f"{register} could not be read"
        return found.unpack(sum(word << 32 * i for i, word in enumerate(words)))

    async def value(self, register: str) -> int:
        return (await self.get(register))["value"]

    async def entries(self, window: str, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Entries of a result window, in the shape of `index`."""
        found, got = self.map.windows[window], []
        words: dict[int, list[int]] = {}
        size = found.entry_words
        wanted = sorted({int(i) for i in index.ravel()})
        while wanted:  # a burst per range of consecutive entries
            count = next((i for i, w in enumerate(wanted) if w != wanted[0] + i), len(wanted))
            data = await self.read_words(found.address + 4 * size * wanted[0], size * count)
            assert data is not None, f"{window} could not be read"
            words |= {wanted[0] + i: data[size * i : size * (i + 1)] for i in range(count)}
            wanted = wanted[count:]
        for i in index.ravel():
            word = sum(half << 32 * k for k, half in enumerate(words[int(i)]))
            got.append(signed(word, 64) if size == 2 else word)
        return np.array(got, dtype=np.int64).reshape(index.shape)


class ArrayAdc(Adc):
    """Random codes at random times, as late as the sampling interval allows; remembers both."""

    def __init__(self, block: Block, rng: random.Random) -> None:
        super().__init__(block, rng)
        self.mode = "prompt"
        self.interval = 0
        self.codes: list[list[int]] = []

    def sample(self) -> int:
        spec, rng = self.block.spec, self.rng
        low, high = spec.adc_min, spec.adc_max
        codes = [rng.choice([low, high, rng.randint(low, high)]) for _ in range(spec.cells)]
        # whole cycles of delay for which neither the next trigger nor the timeout is missed
        slack = min(self.interval - 6, spec.adc_timeout_cycles - 3)
        late = rng.randint(0, slack) if self.mode == "late" and slack > 0 else 0
        self.answer = None if self.mode == "dead" else late + rng.uniform(0.05, 0.4)
        self.release = 1e3 if self.mode == "stuck" else 0.2
        if self.mode == "prompt":
            self.answer = self.release = 0.0
        elif self.mode == "registered":
            self.answer = self.release = self.REGISTERED
        self.codes.append(codes)
        mask = (1 << spec.adc_bits) - 1
        return sum((code & mask) << (spec.adc_bits * i) for i, code in enumerate(codes))


class Pins:
    """What the array's side of the pins sees, cycle by cycle.

    Attributes
    ----------
    couplings, biases : list of tuple
        Transfers to the DACs, a code each: row and column, or cell; and the code.
    vectors : list of list of int
        What the bias DACs were told to take over of their input registers.
    loads : list of int
        Cycles in which they were.
    words : list of int
        Cycles in which a word of codes went to their input registers.
    converting : int
        Cycles in which CONVST was high while the cells were held.
    released : list of int
        Cycles in which discharge fell.
    held : list of int
        Cycles in which it rose.
    strobes : list of int
        Cycles in which CONVST rose.
    temperatures : set of int
        Codes of the noise temperature since discharge was first released.
    """

    def __init__(self, bench: Bench, block: Block, rng: random.Random) -> None:
        self.bench, self.block, self.rng = bench, block, rng
        self.stall = 0.0
        self.dead: str | None = None  # "dac" or "bias": which is never ready
        self.now = 0
        self._discharge, self._convst = 1, 0
        self._inputs: list[int | None] = [None] * block.spec.cells
        self.forget()

    def forget(self) -> None:
        self.couplings: list[tuple[int, ...]] = []
        self.biases: list[tuple[int, ...]] = []
        self.vectors: list[list[int | None]] = []
        self.loads: list[int] = []
        self.words: list[int] = []
        self.converting = 0
        self.released: list[int] = []
        self.held: list[int] = []
        self.strobes: list[int] = []
        self.temperatures: set[int] = set()

    def _codes(self, enable: Any, codes: Any, bits: int) -> list[tuple[int, int]]:
        """Lanes that are enabled, with their codes; what the others have may be undefined."""
        on, word = value(enable), codes.value
        return [
            (lane, signed(int(word[bits * lane + bits - 1 : bits * lane]), bits))
            for lane in range(self.block.spec.dac_lanes)
            if on >> lane & 1
        ]

    async def run(self) -> None:
        block, spec = self.block, self.block.spec
        while True:
            dac = self.dead != "dac" and self.rng.random() >= self.stall
            bias = self.dead != "bias" and self.rng.random() >= self.stall
            block.dac_ready.value, block.bias_ready.value = int(dac), int(bias)
            await settled()
            self.now += 1
            if value(block.dac_valid) and dac:
                row, column = value(block.dac_row), value(block.dac_col)
                for lane, code in self._codes(block.dac_enable, block.dac_code, spec.coupling_bits):
                    self.couplings.append((row, column + lane, code))
            if value(block.bias_valid) and bias:
                self.words.append(self.now)
                cell = value(block.bias_cell)
                for lane, code in self._codes(block.bias_enable, block.bias_code, spec.bias_bits):
                    self.biases.append((cell + lane, code))
                    self._inputs[cell + lane] = code
            discharge, convst = value(block.discharge), value(block.convst)
            self.converting += discharge & convst
            if value(block.bias_load):
                assert discharge, "the bias DACs are loaded while the array is at work"
                self.vectors.append(self._inputs)
                self.loads.append(self.now)
                self._inputs = [None] * spec.cells
            if discharge != self._discharge:
                (self.held if discharge else self.released).append(self.now)
            if convst > self._convst:
                assert not discharge, "CONVST rose while the cells were held"
                self.strobes.append(self.now)
            if not discharge:
                self.temperatures.add(value(block.temperature))
            self._discharge, self._convst = discharge, convst
            await self.bench.next_cycle()

    def beside(self) -> dict[str, int]:
        """Cycles in which codes come, and conversions go on, beside the array's own work."""
        at_work = [range(b, h) for b, h in zip(self.loads, self.held, strict=True)]
        last = self.converting // len(self.held)  # which the run waits for
        return {
            "biases": sum(any(word in span for span in at_work) for word in self.words),
            "conversion": self.converting - last,
        }

    def phases(self, samples: int) -> dict[str, int]:
        """Cycles of the phases, as far as the pins show them: of all but the ends of a run."""
        firsts = self.strobes[::samples]
        return {
            "load": sum(b - h for h, b in zip(self.held, self.loads[1:], strict=False)),
            "discharge": sum(r - b for b, r in zip(self.loads, self.released, strict=True)),
            "settle": sum(s - r for r, s in zip(self.released, firsts, strict=True)),
            "sample": sum(h - s for s, h in zip(firsts, self.held[:-1], strict=False)),
        }


def coupling_transfers(job: Job) -> list[tuple[int, int, int]]:
    """Row, column and code of the upper triangle, in the order in which it goes to the DACs."""
    n = len(job.couplings)
    return [(i, j, int(job.couplings[i, j])) for i in range(n) for j in range(i, n)]


def moments(spec: UnitSpec, codes: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Sums, clip counts and products of codes (K, samples, n)."""
    rails = (codes == spec.adc_min) | (codes == spec.adc_max)
    products = np.einsum("kji,kjl->il", codes, codes)
    return {"sums": codes.sum(1), "clipped": rails.sum(1), "products": products}
