"""An ideal unit worked out digitally, mean readings alone: what a plan is rehearsed on.

A forecast of a refined solution has to know what a pass leaves, how strongly the next one drives
the array, and what runs again. All this is what the solver does: so it does it, for a few of the
columns, on a unit that draws its readings from their distribution, at O(n²) each, without a sample
being taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from thermokron.host.linalg.arrays import Floats
from thermokron.host.linalg.functions import Functions
from thermokron.host.linalg.lags import of_mean
from thermokron.host.linalg.result import Account
from thermokron.host.linalg.settling import Settling
from thermokron.model import Job, Readout, UnitSpec
from thermokron.model.unit import BaseUnit

__all__ = ["Call", "Effect", "StandIn"]

#: What a stand-in can leave out, to see what it does.
Effect = Literal["sampling", "settling"]
#: Terms of the Fourier series of a quantiser's mean.
TERMS = 3
#: Programmed arrays that are kept diagonalised: those of a matrix in blocks take turns.
KEPT = 64


@dataclass(frozen=True)
class Call:
    """Jobs of one program that were run together.

    Attributes
    ----------
    job : Job
        The program, and the couplings.
    vectors : int
        Bias vectors in all.
    of_columns : bool
        Whether they are as many as the columns that are solved for make them.
    """

    job: Job
    vectors: int
    of_columns: bool = True

    def enter(self, spec: UnitSpec, account: Account, times: float = 1.0) -> None:
        """Enter what it costs with so many `times` the vectors."""
        left = max(round(self.vectors * (times if self.of_columns else 1.0)), 1)
        while left > 0:
            count = min(left, spec.rhs_depth)
            job = self.job.with_biases(np.zeros((count, spec.cells), np.int16))
            empty = np.zeros((count, spec.cells), np.int64)
            cycles = spec.phase_cycles(job)
            readout = Readout(sums=empty, products=None, clipped=empty, cycles=cycles)
            account.enter(spec, job, readout)
            left -= count


class StandIn(BaseUnit):
    """An ideal unit, of means alone.

    Parameters
    ----------
    spec : UnitSpec
    size : int
        Cells that matrices take; what others read stays zero.

    Attributes
    ----------
    calls : list of Call
        What was run.
    flops : int
        Spent so far.
    """

    def __init__(self, spec: UnitSpec, size: int) -> None:
        super().__init__(spec, 0)
        self.size = size
        self.calls: list[Call] = []
        self.without: frozenset[Effect] = frozenset()
        self.temperature: float | None = None
        self._arrays: dict[int, tuple[NDArray[np.signedinteger], Functions]] = {}
        self._spent = 0

    def begin(
        self,
        without: frozenset[Effect] = frozenset(),
        temperature: float | None = None,
    ) -> None:
        """Forget what was run, for a rehearsal `without` some effect, or at a temperature T in full
        scales squared whatever jobs say."""
        self.calls, self.stream = [], 0
        self.without, self.temperature = without, temperature

    @property
    def flops(self) -> int:
        return self._spent + sum(array.flops for _, array in self._arrays.values())

    def array(self, job: Job) -> Functions:
        """The matrix that the couplings of a job stand for."""
        known = self._arrays.get(id(job.couplings))
        if known is None:
            if len(self._arrays) == KEPT:
                _, oldest = self._arrays.pop(next(iter(self._arrays)))
                self._spent += oldest.flops
            values = self.spec.coupling_values(job.couplings[: self.size, : self.size])
            known = job.couplings, Functions(values)
            self._arrays[id(job.couplings)] = known
        return known[1]

    def run(self, job: Job, *, stream: int | None = None) -> Readout:
        """Execute one job, of which the number of columns makes no difference."""
        self.calls.append(Call(job, len(job.biases), of_columns=False))
        return super().run(job, stream=stream)

    def run_many(self, jobs: Iterable[Job]) -> Iterator[Readout]:
        """Execute jobs in order, as one call."""
        last, vectors = None, 0
        for job in jobs:
            last, vectors = job, vectors + len(job.biases)
            yield super().run(job)
        if last is not None:
            self.calls.append(Call(last, vectors))

    def _execute(self, job: Job, stream: int) -> Readout:
        spec, array, count = self.spec, self.array(job), job.samples
        rng = np.random.default_rng((self.seed, stream))
        cycle, size = spec.clock_s / spec.tau_s, self.size
        settling = Settling(job.settle_cycles * cycle, 1.0, count, job.interval_cycles * cycle)
        temperature = self.temperature
        if temperature is None:
            temperature = spec.temperature_value(job.temperature)
        settled = "settling" in self.without
        biases = spec.bias_values(job.biases[:, :size])

        def response(rates: Floats) -> Floats:
            passed: Floats = 1.0 / rates if settled else settling.filter(rates) / rates
            return passed

        def deviation(rates: Floats) -> Floats:
            drawn = temperature / rates * settling.filter(2.0 * rates)
            spread: Floats = np.sqrt(drawn * of_mean(rates * settling.interval, count))
            return spread

        mean = array.of(biases, response)
        if "sampling" not in self.without:
            mean += array.drawn(len(biases), deviation, rng)
        levels = mean / spec.adc_step
        if count > 1:
            levels = _converted(levels, math.sqrt(temperature) / spec.adc_step, count, rng)
        sums, clipped = np.zeros((2, len(biases), spec.cells), np.int64)
        sums[:, :size] = np.rint(np.clip(levels, spec.adc_min, spec.adc_max) * count)
        at_rail = (levels > spec.adc_max - 0.5) | (levels < spec.adc_min + 0.5)
        clipped[:, :size] = at_rail * count
        cycles = spec.phase_cycles(job)
        return Readout(sums=sums, products=None, clipped=clipped, cycles=cycles)


def _converted(levels: Floats, dither: float, count: int, rng: np.random.Generator) -> Floats:
    """Means of `count` codes of readings that vary by `dither` about levels, in ADC steps.

    The quietest cell's deviation, √T, is taken for all: a code's mean is
    u + Σ_k (-1)^k/(πk) sin(2πku) e^(-2π²k²σ²), and codes scatter by 1/12 less its square about it.
    """
    mean, lasting = levels.copy(), 0.0
    for k in range(1, TERMS + 1):
        size = math.exp(-2.0 * (math.pi * k * dither) ** 2) / (math.pi * k)
        mean += (-1) ** k * size * np.sin(2.0 * math.pi * k * levels)
        lasting += 0.5 * size**2
    spread = math.sqrt(max(1.0 / 12.0 - lasting, 0.0) / count)
    mean += spread * rng.standard_normal(levels.shape)
    return mean
