"""The analog front end: the noise cell array behind the converter pins of a simulated unit.

Collects what the unit sends to its coupling and bias DACs, lets the array go when the unit
releases discharge, and answers every CONVST with the codes that `thermokron.model.sample_blocks`
draws for the exact time at which it rose. Time is counted in clock cycles: simulated time since
the release, divided by the simulated period. A strobe off the expected grid is an error.

The front end wakes for every code that a DAC takes, twice for every sample, and never for a
clock edge alone: a unit that idles or settles costs nothing beyond its own simulation.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import cocotb
import numpy as np
from cocotb.simtime import get_sim_time
from cocotb.task import current_task
from cocotb.triggers import Event, Timer
from numpy.typing import NDArray

from thermokron.model import ArrayPhysics, NoiseArray, UnitSpec, sample_blocks
from thermokron.sim.flaws import FrontEndFlaws
from thermokron.sim.pins import integer_reader, integer_writer

__all__ = ["FrontEnd", "FrontEndError"]

NEVER = -1  # when the next sample is due while the array is discharged


class FrontEndError(AssertionError):
    """The unit drove its converter pins as it must not; the message says which, when and how."""


class FrontEnd:
    """An array, its DACs and its ADCs, bound to the pins of a unit.

    Parameters
    ----------
    dut : cocotb handle
        What has the pins of `thermokron.rtl.ThermodynamicUnit`, and `clk`. Where it has real
        signals `cell_0` …, the cells' voltages are written there (see `thermokron.sim.waves`).
    spec : UnitSpec
    physics : ArrayPhysics
    seed : int
        Seed of the noise, as a unit's.
    period : int
        Clock period in simulation steps.

    Attributes
    ----------
    flaws : FrontEndFlaws
        May be replaced at any time; counts from the next discharge.
    couplings : (n, n) int64, biases : (n,) int64
        Codes that the DACs hold.
    stream : int
        Number of the next discharge.
    failed : cocotb.triggers.Event
        Set when `error` is.
    error : Exception or None
        What went wrong. The front end answers nothing more until `start` is called again.
    """

    def __init__(
        self, dut: Any, spec: UnitSpec, physics: ArrayPhysics, *, seed: int, period: int
    ) -> None:
        self._dut, self._spec, self._physics = dut, spec, physics
        self._seed, self._period = seed, period
        self.flaws = FrontEndFlaws()
        self.stream = 0
        self._grid: tuple[int, int] | None = None
        n = spec.cells
        self.couplings = np.zeros((n, n), np.int64)
        self.biases = np.zeros(n, np.int64)
        self._coupled = np.zeros((n, n), bool)
        self._biased = np.zeros(n, bool)
        self._array: NoiseArray | None = None  # with these couplings, decomposed
        self._temperature = integer_reader(dut.temperature)
        self._adc_data, self._drdy = integer_writer(dut.adc_data), integer_writer(dut.drdy)
        self._traced = hasattr(dut, "cell_0")
        self._cells = [getattr(dut, f"cell_{i}") for i in range(n)] if self._traced else []
        self._released = 0
        self._due = NEVER
        self._interval = 0
        self._sample = 0
        self._codes: Iterator[int] = iter(())
        self._voltages: Iterator[NDArray[np.float64]] = iter(())
        self._random = Random(0)
        self._tasks: list[Any] = []
        self.failed: Any = Event()
        self.error: Exception | None = None

    def expect(self, settle_cycles: int, interval_cycles: int, *, stream: int) -> None:
        """Announce the grid of the next run, and the number of its first discharge."""
        self._grid = settle_cycles, interval_cycles
        self.stream = stream

    def start(self) -> None:
        """Begin, or begin anew after a reset or an error; the DACs hold what they held."""
        for task in self._tasks:
            task.cancel()
        self.error = None
        self.failed.clear()
        self._due = NEVER
        dut = self._dut
        self._drdy(0)
        dut.dac_ready.value = 1
        dut.bias_ready.value = 1
        self._trace(np.zeros(self._spec.cells))
        jobs = [
            self._collect(dut.dac_valid, dut.dac_ready, self._take_coupling()),
            self._collect(dut.bias_valid, dut.bias_ready, self._take_bias()),
            self._watch_discharge(),
            self._convert(),
        ]
        self._tasks = [cocotb.start_soon(self._guard(job)) for job in jobs]

    async def _guard(self, job: Any) -> None:
        try:
            await job
        except Exception as error:
            self.error = error
            self.failed.set()
            for task in self._tasks:
                if task is not current_task():
                    task.cancel()

    # ---- DACs -------------------------------------------------------------------------------

    async def _collect(self, valid: Any, ready: Any, take: Any) -> None:
        """Call `take` in every clock cycle in which both are high."""
        edge, begins = self._dut.clk.rising_edge, valid.rising_edge
        is_valid, set_ready = integer_reader(valid), integer_writer(ready)
        ready_now = True
        while True:
            if not is_valid():
                await begins
            await edge
            # signals still have the values that this edge samples
            if is_valid() and ready_now:
                if self._due != NEVER:
                    raise FrontEndError(f"{self._now()}: a DAC was written after discharge")
                take()
            stall = self.flaws.stall
            if stall is not None or not ready_now:
                ready_now = stall is None or self._random.random() >= stall
                set_ready(int(ready_now))

    def _take_coupling(self) -> Any:
        dut, n = self._dut, self._spec.cells
        row, col = integer_reader(dut.dac_row), integer_reader(dut.dac_col)
        code, sign = integer_reader(dut.dac_code), 1 << (self._spec.coupling_bits - 1)

        def take() -> None:
            i, j = row(), col()
            if not i <= j < n:
                raise FrontEndError(f"{self._now()}: coupling DAC ({i}, {j}) does not exist")
            value = (code() ^ sign) - sign
            if self.couplings[i, j] != value:
                self.couplings[i, j] = self.couplings[j, i] = value
                self._array = None
            self._coupled[i, j] = True

        return take

    def _take_bias(self) -> Any:
        dut, n = self._dut, self._spec.cells
        cell, code = integer_reader(dut.bias_cell), integer_reader(dut.bias_code)
        sign = 1 << (self._spec.bias_bits - 1)

        def take() -> None:
            i = cell()
            if i >= n:
                raise FrontEndError(f"{self._now()}: bias DAC {i} does not exist")
            self.biases[i] = (code() ^ sign) - sign
            self._biased[i] = True

        return take

    # ---- array ------------------------------------------------------------------------------

    async def _watch_discharge(self) -> None:
        release, hold = self._dut.discharge.falling_edge, self._dut.discharge.rising_edge
        while True:
            await release
            self._release()
            await hold
            self._due = NEVER
            self._trace(np.zeros(self._spec.cells))

    def _release(self) -> None:
        self._drdy(0)
        if self._grid is None:
            raise FrontEndError(f"{self._now()}: discharge was released, but no run is expected")
        upper = np.triu(np.ones_like(self._coupled))
        for name, programmed in (("coupling", self._coupled[upper]), ("bias", self._biased)):
            if not programmed.all():
                count = int(np.count_nonzero(~programmed))
                raise FrontEndError(
                    f"{self._now()}: discharge was released with {count} {name} DACs never written"
                )
        settle, interval = self._grid
        if self._array is None:
            self._array = NoiseArray(self._spec, self._physics, self.couplings, 0)
        self._array = self._array.at(self._temperature())
        blocks = sample_blocks(
            self._array,
            self.biases[None].copy(),  # read at the first sample, by when it might have changed
            settle_cycles=settle,
            interval_cycles=interval,
            seed=self._seed,
            stream=self.stream,
        )
        self._codes = self._hand_over(blocks)
        self._released = get_sim_time()
        self._due = self._released + settle * self._period
        self._interval = interval * self._period
        self._sample = 0
        self._random = Random(self.flaws.seed * 1_000_003 + self.stream)
        self.stream += 1

    def _hand_over(self, blocks: Iterator[tuple[Any, Any]]) -> Iterator[int]:
        """Samples as the ADC's packed data, cell 0 at the least significant end."""
        shifts = np.arange(self._spec.adc_bits)
        for (voltages,), (codes,) in blocks:
            if self._traced:
                self._voltages = iter(voltages)
            bits = ((codes[:, :, None] >> shifts) & 1).astype(np.uint8)
            rows = np.packbits(bits.reshape(len(codes), -1), axis=1, bitorder="little")
            for row in rows:
                yield int.from_bytes(row.tobytes(), "little")

    async def _convert(self) -> None:
        rises, falls = self._dut.convst.rising_edge, self._dut.convst.falling_edge
        set_data, set_drdy = self._adc_data, self._drdy
        converting = integer_reader(self._dut.convst)
        while True:
            await rises
            if get_sim_time() != self._due:
                self._off_grid()
            self._due += self._interval
            set_data(next(self._codes))
            if self._traced:
                self._trace(next(self._voltages))
            sample, self._sample = self._sample, self._sample + 1
            flaws = self.flaws
            if flaws.latency_cycles and (delay := self._random.randint(0, flaws.latency_cycles)):
                await Timer(delay * self._period, "step")
                if not converting():  # given up meanwhile
                    continue
            if flaws.silent_from is None or sample < flaws.silent_from:
                set_drdy(1)
            await falls
            if flaws.stuck_from is None or sample < flaws.stuck_from:
                set_drdy(0)

    def _off_grid(self) -> None:
        if self._due == NEVER:
            raise FrontEndError(f"{self._now()}: CONVST rose while the array was discharged")
        off = (get_sim_time() - self._due) / self._period
        since = (get_sim_time() - self._released) / self._period
        raise FrontEndError(
            f"{self._now()}: CONVST for sample {self._sample} rose {since:g} cycles after "
            f"discharge, {abs(off):g} cycles {'late' if off > 0 else 'early'}"
        )

    # ---- time and traces --------------------------------------------------------------------

    def _now(self) -> str:
        return f"at {get_sim_time() / 1000:g} ns"

    def _trace(self, voltages: NDArray[np.float64]) -> None:
        if self._traced:
            for cell, voltage in zip(self._cells, voltages.tolist(), strict=True):
                cell.value = voltage
