"""Bench of `ConverterPort` with an ADC that keeps no time: latency, timeouts, stalls, cancel.

The ADC (`support.Adc`) raises and lowers DRDY at any time between clock edges. The reference is
the rule of the handshake, cycle by cycle (`Reference`), and exact numbers for single cases.
"""

from __future__ import annotations

from typing import Any

import cocotb
from cocotb.triggers import Timer

from thermokron.sim.benches.support import (
    PERIOD_PS,
    Adc,
    Bench,
    Block,
    settled,
    together,
    value,
)


class Reference:
    """The port as its documentation has it, one cycle at a time.

    A cycle is given its inputs as the rising edge at its end sees them.
    """

    def __init__(self, adc_cycles: int, timeout_cycles: int) -> None:
        self.adc_cycles, self.timeout_cycles = adc_cycles, timeout_cycles
        self.convst, self.age = False, 0  # age: cycles since CONVST rose, this one included
        self.drdy = [0, 0]  # as the last two edges saw it
        self.waiting: int | None = None  # a sample not yet taken

    def cycle(
        self, *, trigger: int, cancel: int, drdy: int, data: int, ready: int
    ) -> dict[str, int | None]:
        """The outputs of this cycle; then the edge."""
        self.age = self.age + 1 if self.convst else 0
        known = self.drdy[0]
        capture = self.convst and known and self.age >= self.adc_cycles
        overdue = self.convst and not capture and (trigger or self.age == self.timeout_cycles)
        stuck = trigger and known and (capture or not self.convst)
        seen = {
            "convst": int(self.convst),
            "timeout": int(overdue),
            "stuck": int(stuck),
            "idle": int(not self.convst and self.waiting is None),
            "codes_valid": int(self.waiting is not None),
            "codes_payload": self.waiting,
        }
        if ready:
            self.waiting = None
        if capture:
            self.waiting = data
        if capture or overdue:
            self.convst = False
        elif trigger and not stuck:
            self.convst = True
        if cancel or overdue or stuck:
            self.convst, self.waiting = False, None
        self.drdy = [self.drdy[1], drdy]
        return seen


class Port:
    """One instance, driven a cycle at a time and held against the reference."""

    def __init__(self, bench: Bench, block: Block) -> None:
        self.bench, self.block, self.rng = bench, block, bench.random(block)
        spec = block.spec
        self.reference = Reference(spec.adc_cycles, spec.adc_timeout_cycles)
        self.seen: dict[str, int | None] = {}

    async def cycle(self, *, trigger: int = 0, cancel: int = 0, ready: int = 1) -> None:
        block = self.block
        block.trigger.value, block.cancel.value, block.codes_ready.value = trigger, cancel, ready
        await settled()
        got: dict[str, int | None] = {
            name: value(getattr(block, name))
            for name in ("convst", "timeout", "stuck", "idle", "codes_valid")
        }
        got["codes_payload"] = value(block.codes_payload) if got["codes_valid"] else None
        # the pins change on no clock edge, so that the rest of the cycle may still move them
        await Timer(PERIOD_PS // 2 - 2, "ps")
        expected = self.reference.cycle(
            trigger=trigger,
            cancel=cancel,
            drdy=value(block.drdy),
            data=value(block.adc_data),
            ready=ready,
        )
        assert got == expected, f"{block.name}: {got}, not {expected}"
        self.seen = expected
        await self.bench.next_cycle()
        block.trigger.value = block.cancel.value = 0


@cocotb.test()
async def random_conversions(dut: Any) -> None:
    """Triggers at any spacing, ADCs of any latency and release time, cancels."""
    bench = Bench(dut, "random_conversions")
    await bench.start()
    found: dict[str, set[str]] = {block.name: set() for block in bench.blocks}

    async def scenario(block: Block) -> None:
        port, rng = Port(bench, block), bench.random(block)
        adc = Adc(block, rng)
        cocotb.start_soon(adc.run())
        nominal, limit = block.spec.adc_cycles, block.spec.adc_timeout_cycles
        for _ in range(bench.rounds):
            around = nominal + rng.uniform(-3, 6)
            adc.answer = rng.choice([0.0, 0.3, max(0.01, around), limit + rng.uniform(-4, 1), None])
            if adc.answer is not None:
                # between the edges: an edge at the same time would be a race, not a test
                adc.answer = max(0.0, int(adc.answer) + rng.uniform(0.05, 0.4))
            adc.release = rng.choice([0.0, 0.3, rng.randint(1, 4) + 0.3, 12.3])
            spacing = rng.choice(
                [nominal + 3, nominal + rng.randint(1, 7), limit + rng.randint(0, 5)]
            )
            cancel_in = rng.randint(0, spacing) if rng.random() < 0.1 else None
            await port.cycle(trigger=1, cancel=int(cancel_in == 0))
            reported = {name for name in ("stuck", "timeout") if port.seen[name]}
            # the receiver takes a sample at any time within the interval
            patience = rng.randint(1, spacing)
            for cycle in range(1, spacing):
                waited = patience if port.seen["codes_valid"] else 0
                await port.cycle(cancel=int(cancel_in == cycle), ready=int(cycle >= waited))
                reported |= {name for name in ("stuck", "timeout") if port.seen[name]}
                reported |= {"sample"} if port.seen["codes_valid"] else set()
            found[block.name] |= reported

    await together(scenario(block) for block in bench.blocks)
    for name, reported in found.items():
        assert reported == {"sample", "stuck", "timeout"}, f"{name}: met only {reported}"


@cocotb.test()
async def exact_cycles(dut: Any) -> None:
    """When CONVST falls and what is reported, in numbers, by the time of the answer."""
    bench = Bench(dut, "exact_cycles")
    await bench.start()

    async def scenario(block: Block) -> None:
        port, adc = Port(bench, block), Adc(block, bench.random(block))
        cocotb.start_soon(adc.run())
        nominal, limit = block.spec.adc_cycles, block.spec.adc_timeout_cycles
        # an answer in the first cycle and one 2 cycles before the capture make no difference;
        # after that, DRDY is known two edges after it has risen
        cases: list[tuple[float | None, int | None]]
        cases = [(0.0, nominal), (nominal - 3 + 0.3, nominal)]
        cases += [(nominal - 2 + 0.3, nominal + 1), (nominal + 0.3, nominal + 3)]
        cases += [(limit - 3 + 0.3, limit), (limit - 2 + 0.3, None), (None, None)]
        for answer, capture in cases:
            if capture is not None and capture > limit:
                capture = None
            adc.answer, adc.release = answer, 0.0
            await port.cycle(trigger=1)
            high = 0
            while value(block.convst):
                await port.cycle()
                high += 1
                late = high == limit and capture is None
                assert port.seen["timeout"] == late, f"answer {answer}: cycle {high}"
            assert high == (limit if capture is None else capture), f"answer {answer}"
            assert value(block.codes_valid) == (capture is not None)
            for _ in range(6):
                await port.cycle()
                assert not port.seen["timeout"]
                assert not port.seen["stuck"]

    await together(scenario(block) for block in bench.blocks)


@cocotb.test()
async def next_trigger_due(dut: Any) -> None:
    """The next trigger finds the ADC late, just done, not yet low, or ready: no trigger is lost."""
    bench = Bench(dut, "next_trigger_due")
    await bench.start()

    async def scenario(block: Block) -> None:
        port, adc = Port(bench, block), Adc(block, bench.random(block))
        cocotb.start_soon(adc.run())
        nominal = block.spec.adc_cycles
        for answer in (0.0, nominal - 2 + 0.3, nominal - 1 + 0.3):
            capture = max(nominal, int(answer) + 3)  # cycle of CONVST at whose end it falls
            if capture >= block.spec.adc_timeout_cycles:
                continue
            for spacing in range(1, capture + 6):
                adc.answer, adc.release = answer, 0.0
                await port.cycle(trigger=1)
                for _ in range(spacing - 1):
                    await port.cycle()
                await port.cycle(trigger=1)
                reported = port.seen["timeout"], port.seen["stuck"]
                if spacing < capture:
                    assert reported == (1, 0), f"{answer} {spacing}"
                elif spacing < capture + 3:  # captured, but two flip-flops still say DRDY
                    assert reported == (0, 1), f"{answer} {spacing}"
                else:
                    assert reported == (0, 0), f"{answer} {spacing}"
                assert value(block.convst) == (spacing >= capture + 3)
                for _ in range(capture + 6):
                    await port.cycle()

    await together(scenario(block) for block in bench.blocks)


@cocotb.test()
async def every_sample_once(dut: Any) -> None:
    """At the shortest interval, with a receiver that uses up to all of it, nothing is lost."""
    bench = Bench(dut, "every_sample_once")
    await bench.start()

    async def scenario(block: Block) -> None:
        port, rng = Port(bench, block), bench.random(block)
        adc = Adc(block, rng)
        cocotb.start_soon(adc.run())
        interval = block.spec.shortest_interval(False)
        offered, taken, count, age = [], [], 60, 0
        pick = rng.randint(1, interval)
        for cycle in range(interval * (count + 2)):
            adc.answer = rng.choice([0.0, rng.uniform(0.05, 0.4)])
            before = port.reference.waiting
            age = age + 1 if before is not None else 0
            ready = int(age >= pick)
            await port.cycle(trigger=int(cycle % interval == 0 and cycle < count * interval),
                             ready=ready)  # fmt: skip
            assert not port.seen["timeout"]
            assert not port.seen["stuck"]
            if before is not None and ready:
                taken.append(before)
                age, pick = 0, rng.randint(1, interval)
            if port.reference.waiting is not None and (before is None or ready):
                offered.append(port.reference.waiting)
        assert len(taken) == len(offered) == count
        assert taken == offered

    await together(scenario(block) for block in bench.blocks)


@cocotb.test()
async def registered_drdy(dut: Any) -> None:
    """DRDY as a flip-flop on the unit's clock: every interval from the shortest on, and no less."""
    bench = Bench(dut, "registered_drdy")
    await bench.start()

    async def scenario(block: Block) -> None:
        port, adc = Port(bench, block), Adc(block, bench.random(block))
        adc.answer = adc.release = Adc.REGISTERED
        cocotb.start_soon(adc.run())
        shortest, count = block.spec.shortest_interval(False), 20
        for interval in range(shortest, shortest + 5):
            taken = high = 0
            for cycle in range(interval * count):
                await port.cycle(trigger=int(cycle % interval == 0))
                assert not port.seen["timeout"], f"interval {interval}"
                assert not port.seen["stuck"], f"interval {interval}"
                taken += port.seen["codes_valid"] or 0
                high += port.seen["convst"] or 0
            assert taken == count
            assert high == count * block.spec.adc_cycles, "a capture was late"
        await port.cycle(trigger=1)
        for _ in range(shortest - 2):
            await port.cycle()
        await port.cycle(trigger=1)
        assert port.seen["stuck"], "START could accept a shorter interval"

    await together(scenario(block) for block in bench.blocks)


@cocotb.test()
async def reset_in_mid_flight(dut: Any) -> None:
    """Reset ends a conversion; once DRDY is low the next one is not disturbed."""
    bench = Bench(dut, "reset_in_mid_flight")
    rng = bench.random()
    await bench.start()
    adcs = [Adc(block, rng) for block in bench.blocks]
    for adc in adcs:
        cocotb.start_soon(adc.run())

    async def convert(block: Block, count: int) -> None:
        port = Port(bench, block)
        for cycle in range(count * (block.spec.adc_cycles + 3)):
            await port.cycle(trigger=int(cycle % (block.spec.adc_cycles + 3) == 0))

    for _ in range(6):
        await bench.interrupted((convert(b, 100) for b in bench.blocks), rng.randint(1, 30))
        for block in bench.blocks:
            assert not value(block.convst)
            assert not value(block.codes_valid)
        await bench.next_cycle(3)
        await together(convert(block, 3) for block in bench.blocks)
