"""Programs that are run to know a device, and how they are read.

A cell alone shows its own gain, offsets, noise and τ; two cells that are coupled to each other and
to nothing else show their coupling. Of n cells n/2 pairs are read at once, and a round-robin
tournament has every pair meet in n - 1 rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from thermokron.host.calibration.values import Floats
from thermokron.model import Job, Unit, UnitSpec
from thermokron.model.spec import MAX_INTERVAL_CYCLES, MAX_SAMPLES, MAX_SETTLE_CYCLES

__all__ = ["Bench", "Clipping", "Program", "alone", "couple", "dither", "tournament"]

#: Time to settle, in time constants of the slowest mode as it is nominally: e^-25 is left, and
#: e^-16 of a mode that is slower by half.
SETTLED = 25.0
#: Between samples, in the same.
APART = 2.0
#: Standard deviations of the noise that dithers the ADC, in its steps, at least.
DITHER = 0.5
#: What a reading of known size may fill of the ADC's range, and standard deviations of noise that
#: have to fit beside it.
FILL, HEADROOM = 0.6, 4.5
#: Part of the readings of a cell that may clip.
CLIPPED = 1e-3

Codes = NDArray[np.int16]
#: Called as work goes on: how much is done of how much, and what is next.
Progress = Callable[[float, str], None]


class Clipping(ValueError):
    """Readings of a known program leave the ADC's range."""


@dataclass(frozen=True)
class Program:
    """Couplings, and bias vectors to read under them.

    Attributes
    ----------
    couplings : (n, n) int16
    biases : (K, n) int16
    rate : float
        λ of the slowest mode, nominal.
    """

    couplings: Codes
    biases: Codes
    rate: float


def alone(spec: UnitSpec, code: int, biases: Codes) -> Program:
    """No cell coupled to any other, every diagonal coupling at `code`."""
    couplings = np.diag(np.full(spec.cells, code, dtype=np.int16))
    return Program(couplings, biases, code / spec.coupling_max)


def couple(spec: UnitSpec, pairs: NDArray[np.intp], code: int, level: int) -> Program:
    """Disjoint `pairs` (m, 2) coupled with `code`, diagonals at the full code.

    Four bias vectors: ±`level` on the first cell of every pair, then on the second.
    """
    n = spec.cells
    couplings = np.diag(np.full(n, spec.coupling_max, dtype=np.int16))
    first, second = pairs.T
    couplings[first, second] = couplings[second, first] = code
    biases = np.zeros((4, n), np.int16)
    biases[0, first] = biases[2, second] = level
    biases[1, first] = biases[3, second] = -level
    return Program(couplings, biases, 1.0 - code / spec.coupling_max)


def tournament(cells: int) -> Iterator[NDArray[np.intp]]:
    """Rounds of disjoint pairs (⌊n/2⌋, 2) in which every pair meets once: the circle method."""
    seats = [*range(cells), *[-1] * (cells % 2)]  # with an odd number one pauses
    half = len(seats) // 2
    for _ in range(len(seats) - 1):
        pairs = zip(seats[:half], reversed(seats[half:]), strict=True)
        yield np.array([pair for pair in pairs if -1 not in pair])
        seats = [seats[0], seats[-1], *seats[1:-1]]


def dither(spec: UnitSpec) -> int:
    """The lowest temperature code that dithers the ADC."""
    wanted = min((DITHER * spec.adc_step) ** 2, spec.temperature_full_scale)
    return min(max(spec.temperature_code(wanted) + 1, 1), spec.temperature_max)


@dataclass
class Bench:
    """A unit under test, and what it was asked to do.

    Attributes
    ----------
    unit : Unit
    progress : callable or None
        Told the part that is done, 0 to 1, and what is measured.
    total : float
        Readings of a cell that all will take.
    done, runs, seconds : float, int, float
        Readings so far, runs, and seconds of the unit from load to done.
    """

    unit: Unit
    progress: Progress | None = None
    total: float = 0.0
    done: float = 0.0
    runs: int = 0
    seconds: float = 0.0
    what: str = field(default="", init=False)

    def begin(self, what: str) -> None:
        """Say what is measured from here on."""
        self.what = what
        self._tell()

    def interval(self, rate: float, *, second_moments: bool = False) -> int:
        """Clock cycles between samples."""
        spec = self.unit.spec
        wanted = math.ceil(APART / rate * spec.tau_s * spec.clock_hz)
        return min(max(wanted, spec.shortest_interval(second_moments)), MAX_INTERVAL_CYCLES)

    def means(
        self,
        programs: Iterable[Program],
        samples: int,
        *,
        temperature: int,
        settle_cycles: int | None = None,
    ) -> Iterator[Floats]:
        """Of each program the mean readings (K, n), in ADC full scales.

        Raises
        ------
        Clipping
            If more of a cell's readings clip than by chance.
        """
        spec = self.unit.spec
        scale = spec.adc_step / samples
        counts: list[int] = []

        def jobs() -> Iterator[Job]:
            for program in programs:
                starts = range(0, len(program.biases), spec.rhs_depth)
                counts.append(len(starts))
                whole: Job | None = None
                for start in starts:
                    biases = program.biases[start : start + spec.rhs_depth]
                    if whole is None:
                        whole = Job(
                            couplings=program.couplings,
                            biases=biases,
                            temperature=temperature,
                            settle_cycles=settle_cycles or self._settle(program.rate),
                            interval_cycles=self.interval(program.rate),
                            samples=samples,
                            second_moments=False,
                        )
                    yield whole.with_biases(biases)

        parts: list[Floats] = []
        for readout in self.unit.run_many(jobs()):
            self._enter(samples * len(readout.sums), readout.total_cycles)
            if readout.clipped.max() > CLIPPED * samples + 1:
                raise Clipping(
                    f"{int(readout.clipped.max())} of {samples} readings of a cell clip under a "
                    "known program: its couplings, gain or offset are off by more than calibration "
                    "allows for, or it is broken"
                )
            parts.append(np.multiply(readout.sums, scale, dtype=np.float64))
            if len(parts) == counts[0]:  # jobs of the next may have been made already
                counts.pop(0)
                yield np.concatenate(parts)
                parts = []

    def variances(self, program: Program, samples: int, *, temperature: int) -> Floats:
        """The variance of each cell's readings under one bias vector, in full scales squared.

        Raises
        ------
        Clipping
            As of `means`.
        """
        spec = self.unit.spec
        job = Job(
            couplings=program.couplings,
            biases=program.biases,
            temperature=temperature,
            settle_cycles=self._settle(program.rate),
            interval_cycles=self.interval(program.rate, second_moments=True),
            samples=min(samples, MAX_SAMPLES),
            second_moments=True,
        )
        readout = self.unit.run(job)
        self._enter(job.samples, readout.total_cycles)
        if readout.clipped.max() > CLIPPED * job.samples + 1:
            raise Clipping(f"{int(readout.clipped.max())} of {job.samples} samples of a cell clip")
        assert readout.products is not None
        sums = readout.sums[0].astype(np.float64)
        squares = readout.products.diagonal().astype(np.float64) - sums**2 / job.samples
        variances: Floats = squares * (spec.adc_step**2 / (job.samples - 1))
        return variances

    def _settle(self, rate: float) -> int:
        spec = self.unit.spec
        cycles = math.ceil(SETTLED / rate * spec.tau_s * spec.clock_hz)
        return min(max(cycles, 1), MAX_SETTLE_CYCLES)

    def _enter(self, readings: int, cycles: int) -> None:
        self.runs += 1
        self.done += readings
        self.seconds += cycles * self.unit.spec.clock_s
        self._tell()

    def _tell(self) -> None:
        if self.progress is not None:
            self.progress(min(self.done / self.total, 1.0) if self.total else 0.0, self.what)
