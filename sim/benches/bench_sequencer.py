"""Bench of `Sequencer`: legality, phases cycle by cycle, faults and aborts anywhere.

The other blocks are played by the bench. The golden model is a list with one entry per cycle of
the run (`Plan`), from which phase, counters and pulses follow.
"""

from __future__ import annotations

import random
from typing import Any

import cocotb

from thermokron.model import PHASES, UnitSpec
from thermokron.model.spec import MAX_INTERVAL_CYCLES, MAX_SAMPLES
from thermokron.rtl.regmap import FaultReason, Phase
from thermokron.sim.benches.sequencer_plan import Plan
from thermokron.sim.benches.support import Bench, Block, settled, together, value

FAULT_INPUTS = {
    "abort": FaultReason.aborted,
    "bad_code": FaultReason.illegal_code,
    "adc_timeout": FaultReason.adc_timeout,
    "adc_stuck": FaultReason.adc_stuck,
    "dac_timeout": FaultReason.dac_timeout,
    "stream_early": FaultReason.stream_early,
    "stream_late": FaultReason.stream_late,
}
#: What the blocks say of themselves.
BUSY = tuple(
    f"{block}_busy"
    for block in ("couplings", "biases", "sampler", "converter", "moments", "results")
)


def legal_program(spec: UnitSpec, rng: random.Random) -> dict[str, int]:
    """A program that START accepts, often at the limits."""
    second = rng.getrandbits(1) if spec.second_moments else 0
    shortest = spec.shortest_interval(bool(second))
    streams = int(spec.stream_bits is not None)
    return {
        "stream_biases": rng.getrandbits(1) & streams,
        "stream_results": rng.getrandbits(1) & streams,
        "spoiled": 0,
        "second_moments": second,
        "biases": 1 if second else rng.choice([1, spec.rhs_depth]),
        "temperature": rng.choice([0, spec.temperature_max, rng.randint(0, spec.temperature_max)]),
        "settle": rng.choice([1, 2**32 - 1, rng.randint(1, 2**32 - 1), rng.randint(1, 40)]),
        "interval": rng.choice([shortest, MAX_INTERVAL_CYCLES, shortest + 5]),
        "samples": rng.choice([1, MAX_SAMPLES, rng.randint(1, MAX_SAMPLES)]),
    }


def refusals(spec: UnitSpec, rng: random.Random) -> list[tuple[dict[str, int], int]]:
    """Illegal programs, each with one value just beyond a limit or far from it; their reasons."""

    def broken(**values: int) -> dict[str, int]:
        return legal_program(spec, rng) | values

    top = 2**32 - 1
    programs = []
    for count in (0, spec.rhs_depth + 1, spec.rhs_depth + 2**16, top):
        programs.append((broken(second_moments=0, biases=count), FaultReason.illegal_biases))
    for code in (spec.temperature_max + 1, 2**31, top):
        programs.append((broken(temperature=code), FaultReason.illegal_temperature))
    programs.append((broken(settle=0), FaultReason.illegal_settle))
    for second in (0, 1) if spec.second_moments else (0,):
        shortest = spec.shortest_interval(bool(second))
        for interval in (0, 1, shortest - 1, MAX_INTERVAL_CYCLES + 1, 2**24 + shortest, top):
            program = broken(second_moments=second, biases=1, interval=interval)
            programs.append((program, FaultReason.illegal_interval))
    for samples in (0, MAX_SAMPLES + 1, 2**21 + 1, top):
        programs.append((broken(samples=samples), FaultReason.illegal_samples))
    interval = spec.shortest_interval(True)
    if spec.rhs_depth > 1 or not spec.second_moments:
        for count in (min(2, spec.rhs_depth), spec.rhs_depth):
            program = broken(second_moments=1, biases=count, interval=interval)
            programs.append((program, FaultReason.illegal_mode))
    if spec.stream_bits is None:
        for name in ("stream_biases", "stream_results"):
            programs.append((broken(**{name: 1}), FaultReason.illegal_mode))
    programs.append((broken(spoiled=1), FaultReason.illegal_bank))
    return programs


class Runner:
    """One instance, its program, and the status that it has to show while idle."""

    def __init__(self, bench: Bench, block: Block) -> None:
        self.bench, self.block, self.rng = bench, block, bench.random(block)
        self.forget()

    def forget(self) -> None:
        """What reset does to the status."""
        self.done, self.fault, self.reason, self.temperature = 0, 0, 0, 0
        self.cycles = dict.fromkeys(PHASES, 0)

    def program(self, values: dict[str, int]) -> None:
        for name, setting in values.items():
            getattr(self.block, name).value = setting

    def expect(self, what: str, **values: int) -> None:
        for name, expected in values.items():
            got = value(getattr(self.block, name))
            assert got == expected, f"{self.block.name} {what}: {name} is {got}, not {expected}"

    def expect_idle(self, what: str, *, starts: int = 0) -> None:
        self.expect(what, phase=Phase.idle, busy=0, discharge=1, cancel=0, done=self.done,
                    fault=self.fault, reason=self.reason, temperature_code=self.temperature,
                    biases_start=starts, sampler_start=0, results_start=0, bias_load=0,
                    **{f"cycles_{p}": n for p, n in self.cycles.items()})  # fmt: skip

    async def idle(self, cycles: int) -> None:
        """Idle cycles with the blocks' lines, aborts and the program's registers in motion."""
        for _ in range(cycles):
            for name in (*FAULT_INPUTS, "trigger", "accepted"):
                getattr(self.block, name).value = int(self.rng.random() < 0.3)
            self.block.temperature.value = self.rng.getrandbits(32)
            await settled()
            self.expect_idle("idle")
            self.expect("idle", couplings_start=0)
            await self.bench.next_cycle()
        for name in (*FAULT_INPUTS, "trigger", "accepted"):
            getattr(self.block, name).value = 0

    async def clear(self) -> None:
        self.block.clear.value = 1
        await self.bench.next_cycle()
        self.block.clear.value = 0
        self.done = self.fault = self.reason = 0
        await self.idle(1)

    async def refused(self, program: dict[str, int], reason: int) -> None:
        """A START that is refused changes nothing but FAULT."""
        self.program(program)
        await self.bench.next_cycle()
        self.block.start.value = 1
        await settled()
        self.expect_idle("refused start")
        self.expect(f"{program}", refused=1, couplings_start=0)
        await self.bench.next_cycle()
        self.block.start.value = 0
        self.fault, self.reason = 1, reason
        await self.idle(self.rng.randint(1, 3))

    async def run(self, *, faults: tuple[str, ...] = (), at: int | None = None) -> None:
        """Start a legal program and follow it, up to the faults in cycle `at`."""
        block, rng = self.block, self.rng
        program = legal_program(block.spec, rng)
        if rng.random() < 0.97:  # all of a deep store is for a few runs
            program["biases"] = min(program["biases"], rng.randint(1, 4))
        plan = Plan(block.spec, program, rng)
        self.program(program)
        # two cycles, in which the length of discharge follows from the program
        await self.bench.next_cycle(2)
        block.start.value = 1
        await settled()
        self.expect_idle("start", starts=1)
        self.expect(f"{program}", refused=0, couplings_start=1, next_vector=0)
        await self.bench.next_cycle()
        block.start.value = 0
        self.temperature = program["temperature"]
        block.temperature.value = rng.getrandbits(32)
        stop = len(plan.steps) if at is None else at % len(plan.steps)
        for number, step in enumerate(plan.steps[: stop + 1]):
            for name in (*BUSY, "trigger", "accepted"):
                getattr(block, name).value = getattr(step, name)
            # neither START nor CLEAR does anything during a run
            block.start.value = block.clear.value = int(rng.random() < 0.1)
            for name in faults:
                getattr(block, name).value = int(number == stop)
            await settled()
            self.expect(
                f"cycle {number}",
                phase=Phase[step.phase],
                busy=1,
                done=0,
                fault=0,
                reason=0,
                vector=step.vector,
                discharge=step.discharge,
                temperature_code=self.temperature,
                cancel=int(number == stop),
                couplings_start=0,
                bias_load=step.bias_load,
                biases_start=step.biases_start,
                sampler_start=step.sampler_start,
                results_start=step.results_start,
            )
            if step.biases_start:
                self.expect("biases_start", next_vector=step.vector + 1)
            if step.sampled is not None:
                last = int(step.sampled == program["biases"] - 1)
                self.expect(f"cycle {number}", sampled_vector=step.sampled, last=last)
            if step.first is not None:
                self.expect(f"cycle {number}", first=step.first)
            await self.bench.next_cycle()
        for name in (*faults, *BUSY, "start", "clear", "trigger", "accepted"):
            getattr(block, name).value = 0
        self.cycles = plan.cycles(min(stop + 1, len(plan.steps)))
        reasons = [reason for name, reason in FAULT_INPUTS.items() if name in faults]
        self.done, self.fault, self.reason = not reasons, bool(reasons), (*reasons, 0)[0]
        await self.idle(self.rng.randint(1, 4))


@cocotb.test()
async def legality(dut: Any) -> None:
    """Every reason to refuse, at the edge of every limit; the first one in order is given."""
    bench = Bench(dut, "legality")
    await bench.start()

    async def scenario(block: Block) -> None:
        runner, rng = Runner(bench, block), bench.random(block)
        await runner.idle(3)
        for program, reason in refusals(block.spec, rng):
            await runner.refused(program, reason)
            if rng.random() < 0.3:
                await runner.clear()
            if rng.random() < 0.3:  # done stays when a start is refused
                await runner.run()
        # several rules broken at once: the reasons are in the order of the registers
        everything = {"second_moments": 0, "biases": 0, "temperature": 2**31, "settle": 0,
                      "interval": 0, "samples": 0}  # fmt: skip
        legal = legal_program(block.spec, rng) | {"second_moments": 0, "biases": 1}
        for name, reason in (
            ("biases", FaultReason.illegal_biases),
            ("temperature", FaultReason.illegal_temperature),
            ("settle", FaultReason.illegal_settle),
            ("interval", FaultReason.illegal_interval),
            ("samples", FaultReason.illegal_samples),
        ):
            await runner.refused(everything, reason)
            everything[name] = legal[name]
        # and what is just within the limits is accepted
        for _ in range(bench.rounds):
            runner.program(legal_program(block.spec, rng))
            await bench.next_cycle()
            await settled()
            runner.expect("legal", refused=0)
            await bench.next_cycle()

    await together(scenario(block) for block in bench.blocks)


@cocotb.test()
async def random_runs(dut: Any) -> None:
    """Runs, faults in any cycle, refusals and clears in any order."""
    bench = Bench(dut, "random_runs")
    await bench.start()

    async def scenario(block: Block) -> None:
        runner, rng = Runner(bench, block), bench.random(block)
        illegal = refusals(block.spec, rng)
        for _ in range(bench.rounds):
            kind = rng.random()
            if kind < 0.4:
                await runner.run()
            elif kind < 0.8:
                names = tuple(rng.sample(list(FAULT_INPUTS), rng.choice([1, 1, 2, 4, 7])))
                await runner.run(faults=names, at=rng.randrange(10_000))
            elif kind < 0.9:
                await runner.refused(*rng.choice(illegal))
            else:
                await runner.clear()

    await together(scenario(block) for block in bench.blocks)


@cocotb.test()
async def fault_in_every_cycle(dut: Any) -> None:
    """Each fault in each of the first cycles of a run, so in every phase and on every boundary."""
    bench = Bench(dut, "fault_in_every_cycle")
    await bench.start()

    async def scenario(block: Block) -> None:
        runner, rng = Runner(bench, block), bench.random(block)
        names = list(FAULT_INPUTS)
        for at in range(bench.rounds):
            await runner.run(faults=(names[at % len(names)],), at=at)
            await runner.run(faults=(rng.choice(names),), at=-1 - at)

    await together(scenario(block) for block in bench.blocks)


@cocotb.test()
async def reset_in_mid_flight(dut: Any) -> None:
    """Reset ends a run, with the cells held at zero; the next one is right."""
    bench = Bench(dut, "reset_in_mid_flight")
    rng = bench.random()
    await bench.start()
    runners = [Runner(bench, block) for block in bench.blocks]

    async def runs(runner: Runner) -> None:
        while True:
            await runner.run()

    for _ in range(6):
        await bench.interrupted(map(runs, runners), rng.randint(1, 80))
        for runner in runners:
            runner.forget()
            runner.expect_idle("after reset")
        await together(runner.run() for runner in runners)
