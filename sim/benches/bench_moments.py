"""Bench of `MomentAccumulator`: random samples at any spacing against NumPy's integer sums."""

from __future__ import annotations

from typing import Any

import cocotb
import numpy as np
from numpy.typing import NDArray

from thermokron.model.spec import MAX_SAMPLES
from thermokron.rtl.layout import padded, product_index, result_depth, sum_index
from thermokron.sim.benches.support import (
    PERIOD_PS,
    Bench,
    Block,
    settled,
    signed,
    together,
    value,
)

#: Cycles between two samples at least, for the accumulator's pipeline.
LATENCY = 4


class Accumulator:
    """One instance, and its golden sums: `sums`, `clipped` (K, n) and `products` (n, n)."""

    def __init__(self, bench: Bench, block: Block) -> None:
        self.bench, self.block, self.rng = bench, block, bench.random(block)
        self.spec = spec = block.spec
        self.numpy = np.random.default_rng(self.rng.getrandbits(32))
        self.spacing = {
            second: max(spec.folds * (spec.diagonals if second else 1), LATENCY)
            for second in (False, True)
        }

    def any_samples(self, count: int) -> NDArray[np.int64]:
        """(count, n) codes; some of them at the rails, or all."""
        low, high = self.spec.adc_min, self.spec.adc_max
        shape = (count, self.spec.cells)
        codes = self.numpy.integers(low, high, shape, endpoint=True)
        kind = self.rng.random()
        if kind < 0.2:
            return np.full(shape, low)
        if kind < 0.7:
            rails = self.numpy.choice([low, high, 0, -1], shape)
            return np.where(self.numpy.random(shape) < 0.4, rails, codes)
        return codes

    def pack(self, codes: NDArray[np.int64]) -> int:
        bits = self.spec.adc_bits
        return sum((int(c) & ((1 << bits) - 1)) << (bits * i) for i, c in enumerate(codes))

    async def cycle(self) -> None:
        await self.bench.next_cycle()

    async def give(self, codes: NDArray[np.int64], *, first: bool, gap: int) -> int:
        """Offer a sample after some cycles; how many cycles it had to wait."""
        block = self.block
        for _ in range(gap):
            await self.cycle()
        block.samples_valid.value = 1
        block.samples_payload.value = self.pack(codes)
        block.first.value = int(first)
        waited = 0
        while True:
            await settled()
            taken = value(block.samples_ready)
            await self.cycle()
            if taken:
                break
            waited += 1
        block.samples_valid.value = 0
        block.first.value = self.rng.getrandbits(1)
        await self.cycle()  # for which the codes stay
        block.samples_payload.value = self.rng.getrandbits(self.spec.cells * self.spec.adc_bits)
        return waited

    async def until_idle(self) -> int:
        """Wait for the last word to be written; how many cycles it took."""
        cycles = 0
        while not value(self.block.idle):
            await self.cycle()
            cycles += 1
        return cycles

    async def accumulate(self, samples: NDArray[np.int64], gaps: float, *, second: bool) -> None:
        """One vector; at full speed if `gaps` is 0, and then in no more cycles than it needs."""
        for j, codes in enumerate(samples):
            gap = self.rng.choice([0, 0, 1, 2, 3, 10]) if self.rng.random() < gaps else 0
            waited = await self.give(codes, first=j == 0, gap=gap)
            if gaps == 0 and j:
                assert waited == self.spacing[second] - 2
        # two cycles to take a sample over, three from the last read to its write
        occupied = self.spec.accumulate_cycles(second)
        assert await self.until_idle() == occupied + 3

    async def read(self, window: str, words: NDArray[np.int64]) -> dict[int, int]:
        """Words of a window by address; one read per cycle, the answer two cycles later."""
        block, got = self.block, {}
        read, address = (getattr(block, f"{window}_{pin}") for pin in ("read", "address"))
        wanted = [int(w) for w in np.unique(words)]
        for cycle in range(len(wanted) + 2):
            read.value = int(cycle < len(wanted))
            if cycle < len(wanted):
                address.value = wanted[cycle]
            await settled()
            if cycle >= 2:
                got[wanted[cycle - 2]] = value(getattr(block, f"{window}_read_data"))
            await self.cycle()
        return got

    async def entries(self, window: str, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Entries of a window of 64-bit words, low half first."""
        words = await self.read(window, np.concatenate([2 * index.ravel(), 2 * index.ravel() + 1]))
        flat = [signed(words[2 * int(i)] | words[2 * int(i) + 1] << 32, 64) for i in index.ravel()]
        return np.array(flat, dtype=np.int64).reshape(index.shape)

    async def compare(self, vectors: list[NDArray[np.int64]], *, second: bool) -> None:
        """Read everything out, in random order of the windows, and compare."""
        low, high = self.spec.adc_min, self.spec.adc_max
        index = sum_index(self.spec, len(vectors))
        for window in self.rng.sample(["sums", "clipped", "products"], 3):
            if window == "sums":
                got = await self.entries("sums", index)
                assert np.array_equal(got, [samples.sum(axis=0) for samples in vectors])
            elif window == "clipped":
                words = await self.read("clipped", index)
                counts = [((x == low) | (x == high)).sum(axis=0) for x in vectors]
                got = np.array([words[int(i)] for i in index.ravel()]).reshape(index.shape)
                assert np.array_equal(got, counts)
            elif second:
                expected = sum(np.outer(codes, codes) for codes in vectors[0])
                got = await self.entries("products", product_index(self.spec))
                assert np.array_equal(got, expected)

    async def expect_padding(self) -> None:
        """What the windows hold beside the lanes' words reads 0."""
        sum_depth, product_depth = result_depth(self.spec)
        lanes = 1 << (self.spec.lanes - 1).bit_length()
        windows = [("sums", sum_depth, 2), ("clipped", sum_depth, 1)]
        if self.spec.second_moments:
            windows.append(("products", product_depth, 2))
        else:
            assert not any((await self.read("products", np.arange(2))).values())
        for window, depth, halves in windows:
            lane, word = np.divmod(np.arange(lanes * padded(depth)), padded(depth))
            beside = np.flatnonzero((lane >= self.spec.lanes) | (word >= depth))
            words = np.concatenate([halves * beside + half for half in range(halves)])
            assert not any((await self.read(window, words)).values()), window

    async def run(self, longest: int) -> None:
        """One run: a vector with second moments, or several without."""
        block, rng = self.block, self.rng
        second = self.spec.second_moments and rng.random() < 0.6
        count = 1 if second else rng.randint(1, self.spec.rhs_depth)
        gaps = rng.choice([0.0, 0.0, 0.5, 1.0])
        samples = [self.any_samples(rng.randint(1, longest)) for _ in range(count)]
        for vector, codes in enumerate(samples):
            block.second_moments.value, block.vector.value = int(second), vector
            await self.accumulate(codes, gaps, second=second)
        await self.compare(samples, second=second)
        await self.expect_padding()

    async def cancelled_run(self) -> None:
        """A run that is cancelled anywhere leaves nothing behind in the next one."""
        block, rng = self.block, self.rng
        block.second_moments.value, block.vector.value = rng.getrandbits(1), 0
        for j, codes in enumerate(self.any_samples(rng.randint(1, 4))):
            await self.give(codes, first=j == 0, gap=rng.randint(0, 5))
        for _ in range(rng.randint(0, self.spec.accumulate_cycles())):
            await self.cycle()
        block.cancel.value = 1
        await self.cycle()
        block.cancel.value = 0
        assert await self.until_idle() <= 3

    async def session(self, rounds: int) -> None:
        for _ in range(rounds):
            if self.rng.random() < 0.25:
                await self.cancelled_run()
            await self.run(longest=8)


@cocotb.test()
async def random_samples(dut: Any) -> None:
    """Runs of any mode, length and spacing, one after the other, some after a cancelled one."""
    bench = Bench(dut, "random_samples")
    await bench.start()
    await together(Accumulator(bench, block).session(bench.rounds) for block in bench.blocks)


@cocotb.test()
async def windows_are_locked(dut: Any) -> None:
    """`locked` reaches all three windows."""
    bench = Bench(dut, "windows_are_locked")
    await bench.start()
    for block in bench.blocks:
        for locked in (1, 0):
            block.locked.value = locked
            await settled()
            for window in ("sums", "products", "clipped"):
                assert value(getattr(block, f"{window}_locked")) == locked
            await bench.next_cycle()


@cocotb.test()
async def reset_in_mid_flight(dut: Any) -> None:
    """Reset ends whatever goes on; the next run is right."""
    bench = Bench(dut, "reset_in_mid_flight")
    rng = bench.random()
    await bench.start()
    for _ in range(3):
        scenarios = [Accumulator(bench, block).session(100) for block in bench.blocks]
        await bench.interrupted(scenarios, rng.randint(5, 100))
        for block in bench.blocks:
            assert value(block.idle)
        await together(Accumulator(bench, block).session(2) for block in bench.blocks)


@cocotb.test()
async def extreme_sums(dut: Any) -> None:
    """2^20 samples with every code at negative full scale: nothing overflows.

    One sample is held valid, so that the accumulator takes it again and again; Python sleeps
    until the last one. The clip counts tell how often it was taken.
    """
    bench = Bench(dut, "extreme_sums")
    await bench.start()
    blocks = [block for block in bench.blocks if block.name.startswith("extreme")]
    spacing = {block.name: Accumulator(bench, block).spacing[True] for block in blocks}
    assert len(set(spacing.values())) == 1
    for block in blocks:
        lowest = np.full(block.spec.cells, block.spec.adc_min)
        block.second_moments.value = block.samples_valid.value = block.first.value = 1
        block.samples_payload.value = Accumulator(bench, block).pack(lowest)
    await bench.next_cycle()
    for block in blocks:
        block.first.value = 0
    cycles = (MAX_SAMPLES - 1) * spacing[blocks[0].name]
    await cocotb.triggers.Timer(cycles * PERIOD_PS, "ps")
    for block in blocks:
        block.samples_valid.value = 0
    await bench.next_cycle(10)
    for block in blocks:
        accumulator, low, n = Accumulator(bench, block), block.spec.adc_min, block.spec.cells
        index = sum_index(block.spec, 1)
        words = await accumulator.read("clipped", index)
        assert [words[int(i)] for i in index.ravel()] == [MAX_SAMPLES] * n
        sums = await accumulator.entries("sums", index)
        assert np.array_equal(sums, np.full((1, n), MAX_SAMPLES * low))
        products = await accumulator.entries("products", product_index(block.spec))
        assert np.array_equal(products, np.full((n, n), MAX_SAMPLES * low * low))
