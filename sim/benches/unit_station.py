"""One unit under test: what it is programmed with, and what a run of it has to show."""

from __future__ import annotations

import cocotb
import numpy as np
from numpy.typing import NDArray

from thermokron.model import PHASES, Job
from thermokron.rtl.layout import bias_stride, coupling_cells, product_index, sum_index
from thermokron.rtl.packets import pack_biases, pack_couplings, result_bytes, unpack_results
from thermokron.rtl.regmap import FaultReason, Phase
from thermokron.sim.benches.support import Bench, Block, value
from thermokron.sim.benches.unit_parts import (
    ArrayAdc,
    Host,
    Pins,
    Streams,
    coupling_transfers,
    moments,
)


class Station:
    """One unit with host, pins and ADC, and the memory that the host believes it has."""

    def __init__(self, bench: Bench, block: Block) -> None:
        self.bench, self.block, self.spec = bench, block, block.spec
        self.rng = bench.random(block)
        self.numpy = np.random.default_rng(self.rng.getrandbits(32))
        self.host = Host(bench, block, self.rng)
        self.pins, self.adc = Pins(bench, block, self.rng), ArrayAdc(block, self.rng)
        self.streams = None if block.spec.stream_bits is None else Streams(bench, block, self.rng)
        #: Whether biases come, and results leave, on a stream in the present run.
        self.streamed = {"stream_biases": 0, "stream_results": 0}
        self.packet_bytes = 0  # of its results
        self.bank = 0
        #: Matrices in the banks, as far as they are known.
        self.matrices: list[NDArray[np.int64] | None] = [None, None]

    async def start(self) -> None:
        cocotb.start_soon(self.pins.run())
        cocotb.start_soon(self.adc.run())
        assert await self.host.set("irq_enable", done=1, fault=1)

    # ---- programs ------------------------------------------------------------------------

    def any_matrix(self) -> NDArray[np.int64]:
        n, limit = self.spec.cells, self.spec.coupling_max
        codes = self.numpy.integers(-limit, limit, (n, n), endpoint=True)
        return np.triu(codes) + np.triu(codes, 1).T

    def any_job(self, *, settle: int | None = None, slack: int | None = None) -> Job:
        """A legal job; `slack` is what its interval is longer than the shortest."""
        spec, rng = self.spec, self.rng
        second = spec.second_moments and rng.random() < 0.5
        vectors = 1 if second else rng.randint(1, spec.rhs_depth)
        shortest = spec.shortest_interval(second)
        matrix = self.matrices[self.bank]
        return Job(
            couplings=self.any_matrix() if matrix is None else matrix,
            biases=self.numpy.integers(-spec.bias_max, spec.bias_max, (vectors, spec.cells),
                                       endpoint=True),
            temperature=rng.randint(0, spec.temperature_max),
            settle_cycles=settle or rng.choice([1, 2, rng.randint(3, 60)]),
            interval_cycles=shortest
            + (rng.choice([0, rng.randint(1, 9)]) if slack is None else slack),
            samples=rng.choice([1, 1, 2, rng.randint(3, 9)]),
            second_moments=second,
        )  # fmt: skip

    def bank_words(self, matrix: NDArray[np.int64]) -> list[int]:
        rows, columns, used = coupling_cells(self.spec)
        return [
            int(matrix[i, j]) if on else 0 for i, j, on in zip(rows, columns, used, strict=True)
        ]

    async def write_matrix(self, bank: int, matrix: NDArray[np.int64]) -> None:
        window = self.host.map.windows[f"couplings{bank}"]
        assert await self.host.write_words(window.address, self.bank_words(matrix))
        self.matrices[bank] = matrix

    async def send_matrix(self, matrix: NDArray[np.int64]) -> None:
        """Into the bank that MODE does not name, by the stream."""
        assert self.streams is not None
        before = (await self.host.get("streams"))["packets"]
        await self.streams.couplings.send(pack_couplings(self.spec, matrix))
        while (await self.host.get("streams"))["packets"] == before:
            pass
        self.matrices[self.bank ^ 1] = matrix

    async def program(self, job: Job, *, streamed: bool | None = None) -> None:
        """Write a job, all of it; by streams or not as it happens."""
        host, spec, rng = self.host, self.spec, self.rng
        able = self.streams is not None and streamed is not False
        chosen = {name: int(able and (streamed or rng.random() < 0.6)) for name in self.streamed}
        if self.matrices[self.bank] is None:
            if able and rng.random() < 0.6:
                await host.set("mode", bank=self.bank ^ 1)
                self.bank ^= 1
                await self.send_matrix(job.couplings)
                self.bank ^= 1
            else:
                await self.write_matrix(self.bank, job.couplings)
        self.streamed = chosen
        if not chosen["stream_biases"]:
            base = host.map.windows["biases_mem"].address
            for k, row in enumerate(job.biases):
                words = [int(code) for code in row]
                assert await host.write_words(base + 4 * k * bias_stride(spec), words)
        mode = {"second_moments": int(job.second_moments), "bank": self.bank, **chosen}
        assert await host.set("mode", **mode)
        settings = {"biases": len(job.biases), "temperature": job.temperature,
                    "settle": job.settle_cycles, "interval": job.interval_cycles,
                    "samples": job.samples}  # fmt: skip
        for register, setting in rng.sample(list(settings.items()), len(settings)):
            assert await host.set(register, value=setting)

    async def launch(self, job: Job) -> None:
        """START, with the biases of a run that takes them from the stream."""
        if self.streamed["stream_biases"]:
            await self.send_biases(pack_biases(self.spec, job.biases))
        assert await self.host.set("control", start=1)

    async def send_biases(self, packet: bytes) -> None:
        """Put a packet before the unit, so that its first beat is there when a run begins."""
        assert self.streams is not None
        await self.streams.biases.send(packet)
        while not value(self.block.s_axis_biases_tvalid):
            await self.bench.next_cycle()

    async def recover(self) -> int:
        """After a fault: the rest of a packet that the unit drops, and what it sent of one.

        Returns how many packets of results were cut off.
        """
        cut = 0
        if self.streams is None:
            return cut
        self.streams.pause = 0.0
        while (await self.host.get("streams"))["biases_open"]:
            pass
        await self.streams.biases.wait()  # until the unit has dropped its packet
        while (await self.host.get("streams"))["results_open"]:
            pass
        while self.streams.results.count():
            packet = bytes(self.streams.results.recv_nowait().tdata)
            if len(packet) < self.packet_bytes:  # it ends with a beat of zeros
                assert not any(packet[-(self.spec.stream_bits or 0) // 8 :])
                cut += 1
        return cut

    def begin(self, job: Job, mode: str) -> None:
        """Set the converters' manners for a run."""
        self.pins.forget()
        if self.streams is not None:
            about = len(job.biases), job.samples, job.second_moments
            self.packet_bytes = result_bytes(self.spec, *about)
        self.pins.stall = self.rng.choice([0.0, 0.3, 0.8]) if mode != "prompt" else 0.0
        if self.streams is not None:
            steady = mode in ("prompt", "registered")  # whose cycles are compared
            self.streams.pause = 0.0 if steady else self.rng.choice([0.0, 0.2, 0.7])
        self.adc.mode, self.adc.interval, self.adc.codes = mode, job.interval_cycles, []

    async def until_interrupt(self, limit: int = 20_000) -> None:
        for _ in range(limit):
            if value(self.block.irq):
                return
            await self.bench.next_cycle()
        raise AssertionError(f"{self.block.name}: no interrupt within {limit} cycles")

    async def expect_status(self, *, done: int = 0, fault: int = 0) -> None:
        """The status of a unit that is idle, and its fault's reason."""
        status = await self.host.get("status")
        reason = FaultReason((await self.host.get("fault"))["reason"])
        assert reason == fault, f"{self.block.name}: {reason.name}"
        assert status == {"busy": 0, "done": done, "fault": int(fault != 0), "phase": Phase.idle}
        assert value(self.block.discharge) == 1

    # ---- runs ------------------------------------------------------------------------------

    async def run(
        self, mode: str = "late", *, meddle: bool = False, slack: int | None = None
    ) -> None:
        """One run, compared with the golden model in everything that can be seen of it."""
        job = self.any_job(settle=self.rng.randint(700, 1000) if meddle else None, slack=slack)
        await self.program(job)
        self.begin(job, mode)
        await self.launch(job)
        if meddle:
            await self.meddle()
        elif self.rng.random() < 0.3:
            while not value(self.block.irq):
                await self.expect_progress()
        await self.until_interrupt()
        await self.compare(job)
        if meddle:  # the bank that was filled during the run is next
            self.bank ^= 1
        elif self.rng.random() < 0.5:
            self.matrices[self.bank] = None

    async def compare(self, job: Job) -> None:
        host, pins, spec = self.host, self.pins, self.spec
        await self.expect_status(done=1)
        assert pins.couplings == coupling_transfers(job)
        assert pins.vectors == job.biases.tolist()
        assert pins.biases == [(i, code) for row in pins.vectors for i, code in enumerate(row)]
        assert len(pins.released) == len(pins.held) == len(job.biases)
        assert pins.strobes == [
            begin + job.settle_cycles + j * job.interval_cycles
            for begin in pins.released
            for j in range(job.samples)
        ]
        # the cells are discharged on the edge after a vector's last CONVST
        assert pins.held == [last + 1 for last in pins.strobes[job.samples - 1 :: job.samples]]
        assert pins.temperatures == {job.temperature}
        shape = (len(job.biases), job.samples, spec.cells)
        wanted = moments(spec, np.array(self.adc.codes, dtype=np.int64).reshape(shape))
        index = sum_index(spec, len(job.biases))
        assert np.array_equal(await host.entries("sums", index), wanted["sums"])
        assert np.array_equal(await host.entries("clipped", index), wanted["clipped"])
        if job.second_moments:
            products = await host.entries("products", product_index(spec))
            assert np.array_equal(products, wanted["products"])
        if self.streamed["stream_results"]:
            await self.compare_packet(job, wanted)
        await self.compare_cycles(job)
        assert await host.value("progress_vector") == len(job.biases) - 1
        assert await host.value("progress_sample") == job.samples

    async def compare_packet(self, job: Job, wanted: dict[str, NDArray[np.int64]]) -> None:
        """The packet of results says the same as the windows."""
        assert self.streams is not None
        assert self.streams.results.count() == 1, "not one packet of results"
        packet = bytes(self.streams.results.recv_nowait().tdata)
        about = len(job.biases), job.samples, job.second_moments
        sums, clipped, products = unpack_results(self.spec, packet, *about)
        assert len(packet) == result_bytes(self.spec, *about)
        assert np.array_equal(sums, wanted["sums"])
        assert np.array_equal(clipped, wanted["clipped"])
        assert products is None or np.array_equal(products, wanted["products"])

    async def compare_cycles(self, job: Job) -> None:
        """The counters say what the pins have shown; and what the spec says, where nothing stalls.

        Of a run's first load and of its end the pins show nothing.
        """
        cycles = {phase: await self.host.value(f"cycles_{phase}") for phase in PHASES}
        streamed = {name: bool(on) for name, on in self.streamed.items()}
        nominal = self.spec.phase_cycles(job, **streamed)
        shown = self.pins.phases(job.samples)
        for phase in ("discharge", "settle"):
            assert cycles[phase] == shown[phase], phase
        for phase in ("load", "sample"):
            assert cycles[phase] > shown[phase], phase
        if self.adc.mode == "prompt":
            assert cycles == nominal
            beside = self.spec.beside_cycles(job, **streamed)
            assert self.pins.beside() == {name: beside[name] for name in self.pins.beside()}
        if self.adc.mode == "registered":  # which is fast enough to change nothing
            assert cycles["sample"] == nominal["sample"]
            assert cycles["discharge"] == nominal["discharge"]
        assert all(cycles[phase] >= nominal[phase] for phase in ("discharge", "settle", "sample"))

    async def expect_progress(self) -> None:
        """The vector and the number of its samples, from what the pins have shown of them."""
        pins = self.pins
        loaded, taken = len(pins.loads), self._taken()
        shown = await self.host.value("progress_vector")
        progress = await self.host.value("progress_sample")
        if len(pins.loads) == loaded and not value(self.block.irq):
            assert shown == max(0, loaded - 1)
            assert taken <= progress <= self._taken()

    def _taken(self) -> int:
        """Samples of the vector at hand."""
        begin = (0, *self.pins.loads)[-1]
        return sum(cycle > begin for cycle in self.pins.strobes)

    async def meddle(self) -> None:
        """During a run: what must be refused, and the other bank's next matrix."""
        host, rng, windows = self.host, self.rng, self.host.map.windows
        if self.streams is not None and rng.random() < 0.6:
            await self.send_matrix(self.any_matrix())
        else:
            await self.write_matrix(self.bank ^ 1, self.any_matrix())
        registers = ["mode", "biases", "temperature", "settle", "interval", "samples", "irq_enable"]
        for _ in range(12):
            name = rng.choice(registers)
            address = host.map.registers[name].address
            used = windows[f"couplings{self.bank}"]
            window = rng.choice(list(windows.values()))
            word = 4 * rng.randrange(window.words)
            attempt = rng.randrange(6)
            if attempt == 0:
                accepted = await host.write_words(address, [rng.getrandbits(32)])
            elif attempt == 1:
                accepted = await host.write_words(used.address + word % (4 * used.words), [1])
            elif attempt == 2:
                accepted = await host.write_words(windows["biases_mem"].address, [1])
            elif attempt == 3:
                accepted = await host.read_words(window.address + word) is not None
            elif attempt == 4:
                accepted = await host.set("control", start=1) or await host.set("control", clear=1)
            else:
                await self.expect_progress()
                accepted = not (await host.get("status"))["busy"]
            if value(self.block.irq):
                await self.expect_status(done=1)
                raise AssertionError("the run has ended too early for this test")
            assert not accepted, f"attempt {attempt} ({name}) was accepted during a run"
