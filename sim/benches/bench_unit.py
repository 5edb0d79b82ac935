"""Bench of the whole unit: programs over AXI, DACs that stall, an ADC that keeps no time.

The AXI master, and the streams' ends, are cocotbext-axi's. The array's voltages are random codes,
for this bench is about the control plane; what one run has to do is said in a few lines of NumPy.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cocotb
import numpy as np

from thermokron.model.spec import MAX_SAMPLES
from thermokron.rtl.layout import coupling_cells
from thermokron.rtl.packets import pack_biases, pack_couplings
from thermokron.rtl.regmap import FaultReason
from thermokron.sim.benches.support import Bench, together, value
from thermokron.sim.benches.unit_parts import (
    coupling_transfers,
)
from thermokron.sim.benches.unit_station import Station


def stations(bench: Bench) -> list[Station]:
    return [Station(bench, block) for block in bench.blocks]


@cocotb.test()
async def random_runs(dut: Any) -> None:
    """Run after run, converters prompt or late, some with a host that cannot wait."""
    bench = Bench(dut, "random_runs")
    await bench.start()

    async def scenario(station: Station) -> None:
        await station.start()
        for number in range(bench.rounds):
            mode = station.rng.choice(["prompt", "registered", "late"])
            await station.run(mode, meddle=number % 3 == 1)

    await together(map(scenario, stations(bench)))


@cocotb.test()
async def registered_drdy(dut: Any) -> None:
    """DRDY as a flip-flop on the unit's clock, at the shortest intervals that START accepts."""
    bench = Bench(dut, "registered_drdy")
    await bench.start()

    async def scenario(station: Station) -> None:
        await station.start()
        for slack in range(5):
            await station.run("registered", slack=slack)

    await together(map(scenario, stations(bench)))


@cocotb.test()
async def results_that_wait(dut: Any) -> None:
    """One reading a vector, and nobody takes the codes: for longer than vectors take, and again.

    At last it is aborted meanwhile.
    """
    bench = Bench(dut, "results_that_wait")
    await bench.start()

    async def scenario(station: Station) -> None:
        await station.start()
        assert station.streams is not None
        for _ in range(max(2, bench.rounds // 2)):
            job = station.any_job()
            biases = np.resize(job.biases, (station.spec.rhs_depth, station.spec.cells))
            job = replace(job, biases=biases, settle_cycles=1, samples=1, second_moments=False)
            await station.program(job, streamed=True)
            station.begin(job, "late")
            await station.launch(job)
            station.streams.hold = True  # until the next vector's sample waits, too
            while not value(station.block.m_axis_results_tvalid):
                await bench.next_cycle()
            await bench.next_cycle(200)
            while not value(station.block.irq):
                station.streams.hold = not station.streams.hold
                for _ in range(station.rng.randint(1, 90)):
                    await bench.next_cycle()
            station.streams.hold = False
            await station.compare(job)
        # a packet so short that the first of it is under way when the last is asked for
        short = replace(job, biases=job.biases[:1], samples=2)
        await station.program(short, streamed=True)
        station.begin(short, "prompt")
        await station.launch(short)
        await station.until_interrupt()
        await station.compare(short)
        # cut off between its vectors, while its first codes wait, and after them, among its sums
        for settle, samples in ((900, 1), (1, 2)):
            job = replace(job, settle_cycles=settle, samples=samples)
            await station.program(job, streamed=True)
            station.begin(job, "late")
            await station.launch(job)
            station.streams.hold = True
            while not value(station.block.m_axis_results_tvalid):
                await bench.next_cycle()
            assert await station.host.set("control", abort=1)
            station.streams.hold = False
            assert await station.recover() == 1
            await station.expect_status(fault=FaultReason.aborted)
            await station.run()

    units = stations(bench)
    await together(scenario(station) for station in units if station.streams is not None)


@cocotb.test()
async def refused_starts(dut: Any) -> None:
    """SLVERR, the reason in FAULT, and nothing runs; the results of the last run stay."""
    bench = Bench(dut, "refused_starts")
    await bench.start()

    async def scenario(station: Station) -> None:
        await station.start()
        host, spec = station.host, station.spec
        await station.run()
        job = station.any_job()
        await station.program(job)
        assert await host.set("mode", second_moments=0)
        shortest = spec.shortest_interval(False)
        illegal = [
            ("biases", spec.rhs_depth + 1, FaultReason.illegal_biases),
            ("temperature", spec.temperature_max + 1, FaultReason.illegal_temperature),
            ("settle", 0, FaultReason.illegal_settle),
            ("interval", shortest - 1, FaultReason.illegal_interval),
            ("samples", MAX_SAMPLES + 1, FaultReason.illegal_samples),
        ]
        station.pins.forget()
        for name, setting, reason in illegal:
            before = await host.value(name)
            assert await host.set(name, value=setting)
            assert not await host.set("control", start=1)
            await station.expect_status(done=1, fault=reason)
            assert await host.set(name, value=before)
        assert await host.set("interval", value=spec.shortest_interval(True))
        modes = [{"stream_biases": 1}, {"stream_results": 1}] if station.streams is None else []
        if spec.rhs_depth > 1 or not spec.second_moments:
            assert await host.set("biases", value=min(2, spec.rhs_depth))
            modes.append({"second_moments": 1})
        for mode in modes:
            assert await host.set("mode", **mode)
            assert not await host.set("control", start=1)
            await station.expect_status(done=1, fault=FaultReason.illegal_mode)
        await bench.next_cycle(50)
        assert not station.pins.couplings
        assert not station.pins.released
        assert await host.set("control", clear=1)
        await station.expect_status()
        await station.run()

    await together(map(scenario, stations(bench)))


@cocotb.test()
async def faults(dut: Any) -> None:
    """A dead ADC, a stuck one, illegal codes, an abort at any time; a good run after each."""
    bench = Bench(dut, "faults")
    await bench.start()

    async def faulty(station: Station, kind: str) -> None:
        host, spec, rng, pins = station.host, station.spec, station.rng, station.pins
        station.matrices[station.bank] = None
        job = station.any_job(settle=rng.randint(20, 100))
        if kind == "stuck" and job.samples == 1:
            kind = "dead"
        # what is put into windows has to be what the run uses
        streamed = {"coupling": False, "bias": False, "early": True, "late": True}.get(kind)
        await station.program(job, streamed=streamed)
        station.begin(job, kind if kind in ("dead", "stuck") else "late")
        sent = None
        if kind == "coupling":
            where = int(rng.choice(np.flatnonzero(coupling_cells(spec)[2])))
            address = host.map.windows[f"couplings{station.bank}"].address + 4 * where
            assert await host.write_words(address, [rng.choice([-1, 1]) * (spec.coupling_max + 1)])
            whole = where // spec.dac_lanes * spec.dac_lanes  # of the words before
            sent = coupling_transfers(job)[: coupling_cells(spec)[2][:whole].sum()]
        if kind == "bias":
            where = rng.randrange(spec.cells)
            address = host.map.windows["biases_mem"].address + 4 * where
            assert await host.write_words(address, [spec.bias_max + 1 + rng.getrandbits(20)])
        if kind in ("dac", "bias_dac"):
            pins.dead = kind.removesuffix("_dac")
        if kind in ("early", "late"):
            packet = pack_biases(spec, job.biases)
            assert spec.stream_bits is not None
            beat = spec.stream_bits // 8
            kind = "late" if len(packet) == beat else kind
            packet = packet[:-beat] if kind == "early" else packet + packet
            await station.send_biases(packet)
            assert await host.set("control", start=1)
        else:
            await station.launch(job)
        if kind == "abort":
            await bench.next_cycle(rng.randint(0, 150))
            ended = value(station.block.irq)
            assert await host.set("control", abort=1)
            if ended:  # an abort after the end does nothing
                await station.compare(job)
                return
        await station.until_interrupt()
        reason = {
            "dead": FaultReason.adc_timeout,
            "stuck": FaultReason.adc_stuck,
            "coupling": FaultReason.illegal_code,
            "bias": FaultReason.illegal_code,
            "dac": FaultReason.dac_timeout,
            "bias_dac": FaultReason.dac_timeout,
            "early": FaultReason.stream_early,
            "late": FaultReason.stream_late,
            "abort": FaultReason.aborted,
        }[kind]
        if kind == "abort" and (await host.get("status"))["done"]:
            await station.compare(job)  # it came just too late
            return
        await station.expect_status(fault=reason)
        if sent is not None:
            assert pins.couplings == sent
        if kind == "bias":
            whole = where // spec.dac_lanes * spec.dac_lanes
            assert pins.biases == list(enumerate(job.biases[0, :whole].tolist()))
            assert not pins.released
        if kind == "dead" and job.samples > 1:
            due = min(spec.adc_timeout_cycles, job.interval_cycles)
            assert pins.held == [pins.strobes[0] + due]
        if kind == "stuck":
            assert pins.held == [pins.strobes[0] + job.interval_cycles]
            while value(station.block.drdy):
                await bench.next_cycle(100)
            await bench.next_cycle(3)
        assert len(pins.held) == len(pins.released), "the cells are not held"
        pins.dead = None
        await station.recover()

    async def spoiled(station: Station) -> None:
        """Packets of couplings that end early, or late; the bank is refused until one is whole."""
        host, spec, rng = station.host, station.spec, station.rng
        assert station.streams is not None
        assert spec.stream_bits is not None
        beat = spec.stream_bits // 8
        job = station.any_job()
        packet = pack_couplings(spec, job.couplings)
        wrong = packet[:-beat] if len(packet) > beat and rng.random() < 0.5 else packet + packet
        assert await host.set("mode", bank=station.bank ^ 1)
        await station.streams.couplings.send(wrong)
        while not (await host.get("streams"))["spoiled"]:
            pass
        await station.streams.couplings.wait()
        assert (await host.get("streams"))["spoiled"] == 1 << station.bank
        station.matrices[station.bank] = job.couplings
        await station.program(job, streamed=False)
        assert not await host.set("control", start=1)
        await station.expect_status(done=(await host.get("status"))["done"],
                                    fault=FaultReason.illegal_bank)  # fmt: skip
        if rng.random() < 0.5:
            await station.write_matrix(station.bank, job.couplings)
        else:
            assert await host.set("mode", bank=station.bank ^ 1)
            station.bank ^= 1
            await station.send_matrix(job.couplings)
            station.bank ^= 1
        assert not (await host.get("streams"))["spoiled"]

    async def scenario(station: Station) -> None:
        await station.start()
        kinds = ["dead", "stuck", "coupling", "bias", *["abort"] * (bench.rounds // 2)]
        kinds += ["dac", "bias_dac"]
        if station.streams is not None:
            kinds += ["early", "late", "spoiled"]
        for kind in station.rng.sample(kinds, len(kinds)):
            if kind == "spoiled":
                await spoiled(station)
            else:
                await faulty(station, kind)
            station.matrices[station.bank] = None
            await station.run()

    await together(map(scenario, stations(bench)))


@cocotb.test()
async def interrupts(dut: Any) -> None:
    """The line is high while an enabled bit of STATUS is."""
    bench = Bench(dut, "interrupts")
    await bench.start()

    async def scenario(station: Station) -> None:
        await station.start()
        host, block = station.host, station.block
        for fault in (False, True):
            job = station.any_job(settle=200)
            await station.program(job, streamed=False)
            station.begin(job, "prompt")
            assert await host.set("irq_enable", done=0, fault=0)
            assert await host.set("control", start=1)
            if fault:
                assert await host.set("control", abort=1)
            while (await host.get("status"))["busy"]:
                pass
            for enable in (0, 1, 2, 3, 0, 2):
                done, either = enable & 1, enable >> 1
                assert await host.set("irq_enable", done=done, fault=either)
                assert value(block.irq) == (either if fault else done)
            assert await host.set("irq_enable", done=1, fault=1)
            assert value(block.irq)
            assert await host.set("control", clear=1)
            assert not value(block.irq)
            await station.expect_status()

    await together(map(scenario, stations(bench)))


@cocotb.test()
async def reset_in_mid_flight(dut: Any) -> None:
    """Reset in the middle of runs and bus traffic; then a run as if nothing had been."""
    bench = Bench(dut, "reset_in_mid_flight")
    rng = bench.random()
    await bench.start()
    units = stations(bench)
    await together(station.start() for station in units)

    async def busy(station: Station) -> None:
        while True:
            await station.run(meddle=True)

    for _ in range(3):
        await bench.interrupted(map(busy, units), rng.randint(50, 1500))
        for station in units:
            assert value(station.block.discharge) == 1
            assert not value(station.block.convst)
            assert not value(station.block.dac_valid)
            assert not value(station.block.bias_valid)
            assert not value(station.block.irq)
            station.matrices, station.bank = [None, None], 0
        await bench.next_cycle(5)
        for station in units:
            await station.expect_status()
            assert await station.host.value("samples") == 0
            assert await station.host.set("irq_enable", done=1, fault=1)
        await together(station.run() for station in units)
