"""Bench of `Couplings` and `Biases`: traffic, loads, packets, stalls, bad codes, cancel, reset."""

from __future__ import annotations

from typing import Any

import cocotb

from thermokron.sim.benches.code_loader import Loader
from thermokron.sim.benches.support import Bench, together, value


@cocotb.test()
async def random_loads(dut: Any) -> None:
    """Loads of either bank or any vector, stalled, cancelled, restarted, with bad codes."""
    bench = Bench(dut, "random_loads")
    await bench.start()
    await together(Loader(bench, block).session(bench.rounds) for block in bench.blocks)


@cocotb.test()
async def packets(dut: Any) -> None:
    """A packet fills the other bank: a load of that waits for its end, one of this does not.

    A vector is loaded as soon as it has come.
    """
    bench = Bench(dut, "packets")
    await bench.start()

    async def scenario(loader: Loader) -> None:
        for _ in range(bench.rounds):
            if not loader.couplings:
                loader.queue, loader.stall = [], loader.rng.choice([0.0, 0.3])
                loader.pauses = loader.rng.choice([0.0, 0.5])
                await loader.vectors()
                continue
            bank = loader.rng.randrange(2)
            await loader.fill_unknown(bank)
            loader.queue, loader.stall = [], loader.rng.choice([0.0, 0.3])
            loader.pauses = loader.rng.choice([0.0, 0.5, 0.9])
            await loader.packet(bank, wrong=loader.rng.choice([0, 0, 0, -1, 1]))

    loaders = [Loader(bench, block) for block in bench.blocks]
    await together(scenario(loader) for loader in loaders if loader.streams)


@cocotb.test()
async def patience(dut: Any) -> None:
    """A DAC that is not ready for so many cycles is dead; one cycle less is none."""
    bench = Bench(dut, "patience")
    await bench.start()

    async def scenario(loader: Loader) -> None:
        block, most = loader.block, loader.spec.dac_timeout_cycles
        await loader.fill_unknown(0)
        loader.queue, loader.stall = [], 0.0
        for waits in (most - 1, most):
            await loader.cycle(start=1)
            while not value(block.dac_valid) and not value(block.bad_code):
                await loader.cycle()
            loader.stall = 1.1
            for _ in range(waits):
                assert not value(block.timeout)
                await loader.cycle()
            loader.stall = 0.0
            if value(block.dac_valid):
                assert value(block.timeout) == (waits == most)
            await loader.cycle(cancel=1)
            assert not value(block.timeout)

    await together(scenario(Loader(bench, block)) for block in bench.blocks)


@cocotb.test()
async def reset_in_mid_flight(dut: Any) -> None:
    """Reset ends a load; what the host had written is still there."""
    bench = Bench(dut, "reset_in_mid_flight")
    rng = bench.random()
    await bench.start()
    for _ in range(3):
        loaders = [Loader(bench, block) for block in bench.blocks]
        await bench.interrupted((x.session(100) for x in loaders), rng.randint(50, 300))
        for loader in loaders:
            assert not value(loader.block.busy)
            assert not value(loader.block.dac_valid)
            loader.queue, loader.in_use, loader.held = [], None, None
        await together(loader.read_back(20) for loader in loaders)
        await together(loader.session(2) for loader in loaders)
