"""Bench of `Sampler`: triggers on the exact grid, whatever the program, cancel and restart.

The golden model is the grid itself: cycles settle + j·interval after the one with `start`.
"""

from __future__ import annotations

from typing import Any

import cocotb
from cocotb.triggers import RisingEdge
from cocotb.utils import get_sim_time

from thermokron.sim.benches.support import PERIOD_PS, Bench, Block, settled, together, value


async def run(bench: Bench, block: Block, program: tuple[int, int, int], until: int) -> None:
    """Start a program and compare every cycle with the grid; cancel it in cycle `until`."""
    settle, interval, samples = program
    grid = {settle + j * interval for j in range(samples)}
    last, taken = max(grid), 0
    block.settle.value, block.interval.value, block.samples.value = program
    for cycle in range(min(last, until) + 4):
        block.start.value = int(cycle == 0)
        block.cancel.value = int(cycle == until)
        await settled()
        on = 0 < cycle <= min(last, until)
        if cycle:  # before, an earlier program shows
            assert value(block.sampled) == taken
            assert value(block.running) == on, f"{program} cycle {cycle}"
            assert value(block.trigger) == (on and cycle in grid), f"{program} cycle {cycle}"
            taken += value(block.trigger)
        await bench.next_cycle()
    block.start.value = block.cancel.value = 0
    assert taken == sum(cycle <= until for cycle in grid)
    if settle % 2:
        block.clear.value = 1
        await bench.next_cycle()
        block.clear.value = 0
        assert not value(block.sampled)


@cocotb.test()
async def random_programs(dut: Any) -> None:
    """Programs one after the other, with ones in all places, some of them cancelled."""
    bench = Bench(dut, "random_programs")
    await bench.start()

    async def scenario(block: Block) -> None:
        rng = bench.random(block)
        for _ in range(bench.rounds):
            program = rng.choice([1, 2, rng.randint(3, 30)]), rng.choice([1, 2, rng.randint(3, 9)])
            samples = rng.choice([1, 2, rng.randint(3, 12)])
            until = rng.randint(1, 40) if rng.random() < 0.3 else 10_000
            await run(bench, block, (*program, samples), until)
            await bench.next_cycle(rng.randint(0, 2))

    await together(scenario(block) for block in bench.blocks)


@cocotb.test()
async def restart(dut: Any) -> None:
    """A start while triggers are outstanding begins anew."""
    bench = Bench(dut, "restart")
    await bench.start()
    for block in bench.blocks:
        for outstanding in (1, 2, 3, 4, 5):
            block.settle.value, block.interval.value, block.samples.value = 3, 2, 9
            block.start.value = 1
            await bench.next_cycle()
            block.start.value = 0
            await bench.next_cycle(outstanding)
            await run(bench, block, (2, 3, 4), 10_000)


@cocotb.test(timeout_time=200, timeout_unit="us")
async def long_times(dut: Any) -> None:
    """Settling and intervals of many bits, without waking up in between."""
    bench = Bench(dut, "long_times")
    await bench.start()
    block = bench.blocks[0]
    settle, interval = 900 * bench.rounds + 1, 820 * bench.rounds + 1
    block.settle.value, block.interval.value, block.samples.value = settle, interval, 2
    block.start.value = 1
    begin = get_sim_time("ps")  # the middle of the cycle with `start`
    await bench.next_cycle()
    block.start.value = 0
    for due in (settle, settle + interval):
        await RisingEdge(block.trigger)
        cycle = (get_sim_time("ps") - begin + PERIOD_PS // 2) // PERIOD_PS
        assert cycle == due
    await bench.next_cycle(2)
    assert not value(block.running)


@cocotb.test()
async def reset_in_mid_flight(dut: Any) -> None:
    """Reset ends a program; the next one is not disturbed."""
    bench = Bench(dut, "reset_in_mid_flight")
    rng = bench.random()
    await bench.start()
    for _ in range(5):
        programs = [run(bench, block, (9, 5, 100), 10_000) for block in bench.blocks]
        await bench.interrupted(programs, rng.randint(1, 60))
        for block in bench.blocks:
            assert not value(block.running)
            assert not value(block.trigger)
            assert not value(block.sampled)
        await together(run(bench, block, (5, 2, 4), 10_000) for block in bench.blocks)
