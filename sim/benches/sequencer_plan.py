"""A run as the sequencer has to take it, cycle by cycle: the golden model of its bench."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from thermokron.model import PHASES, UnitSpec
from thermokron.model.timing import discharge_floor, sample_spacing

__all__ = ["Plan", "Step"]


@dataclass(frozen=True)
class Step:
    """One cycle of a run: where it is, what the other blocks do in it, and what they are told."""

    phase: str
    vector: int
    couplings_busy: int = 0
    biases_busy: int = 0
    sampler_busy: int = 0
    converter_busy: int = 0
    moments_busy: int = 0
    results_busy: int = 0
    trigger: int = 0
    accepted: int = 0
    first: int | None = None
    sampled: int | None = None  # the vector whose samples are under way
    discharge: int = 1
    bias_load: int = 0
    biases_start: int = 0
    sampler_start: int = 0
    results_start: int = 0


class Plan:
    """A run, cycle by cycle, for loads, settling, sampling and results of random lengths."""

    def __init__(self, spec: UnitSpec, program: dict[str, int], rng: random.Random) -> None:
        self.steps: list[Step] = []
        self._rng, vectors = rng, program["biases"]
        narrow = program["stream_results"] and program["samples"] == 1
        narrow = narrow and not program["second_moments"]
        spacing = sample_spacing(spec, narrow=bool(narrow))
        least = max(discharge_floor(spec), spacing - 1 - program["settle"])

        # biases are loaded beside everything else: busy up to this cycle
        couplings, self._biases = rng.randint(1, 12), rng.randint(1, 12)
        self._converter = 0  # likewise, the conversion of a vector's last sample
        while couplings > 0 or self._biases > 0:
            self._add(Step("load", 0, couplings_busy=int(couplings > 0)))
            couplings -= 1
        self._add(Step("load", 0))  # in which their end is seen
        for vector in range(vectors):
            more = int(vector < vectors - 1)
            self._add(Step("discharge", vector, bias_load=1, biases_start=more))
            self._biases = more * rng.choice([1, rng.randint(1, 40)])
            for _ in range(least - 2):
                self._add(Step("discharge", vector))
            while self._converter > 0:
                self._add(Step("discharge", vector))
            self._add(Step("discharge", vector, sampler_start=1))
            self._sample(vector, rng.randint(1, 9), rng.randint(1, 4))
            if more:
                self._converter = rng.choice([0, rng.randint(1, 9), 2 * least])
                while self.steps[-1].biases_busy:  # up to the cycle in which their end is seen
                    self._add(Step("load", vector))
        self._end(vectors - 1, program["stream_results"], narrow)

    def _add(self, step: Step) -> None:
        """The next cycle, with what goes on beside it."""
        converting = step.converter_busy or int(self._converter > 0)
        busy = int(self._biases > 0)
        self.steps.append(replace(step, biases_busy=busy, converter_busy=converting))
        self._biases -= 1
        self._converter -= 1

    def _sample(self, vector: int, settle: int, samples: int) -> None:
        here = Step("settle", vector, sampled=vector, sampler_busy=1, discharge=0)
        for _ in range(settle - 1):
            self._add(here)
        self._add(replace(here, trigger=1, first=1))
        first, here = 1, replace(here, phase="sample")
        for _ in range(samples - 1):
            for _ in range(self._rng.randint(0, 5)):
                self._add(replace(here, first=first, converter_busy=1))
            self._add(replace(here, first=first, accepted=1, converter_busy=1))
            first = 0
            self._add(replace(here, first=0, trigger=1))
        self._add(replace(here, sampler_busy=0))

    def _end(self, vector: int, streamed: int, narrow: int) -> None:
        rng = self._rng
        here = Step("sample", vector, sampled=vector, results_busy=int(narrow))
        for _ in range(rng.randint(0, 6)):
            self._add(replace(here, converter_busy=1, moments_busy=rng.getrandbits(1)))
        for _ in range(rng.randint(0, 6)):
            self._add(replace(here, moments_busy=1))
        left = rng.randint(0, 5) if streamed else 0
        wide = int(bool(streamed) and not narrow)
        here = replace(here, results_busy=int(bool(narrow) and left > 0))
        self._add(replace(here, results_start=wide))
        if here.results_busy or wide:
            for _ in range(left):
                self._add(replace(here, phase="results", results_busy=1))
            self._add(replace(here, phase="results", results_busy=0))

    def cycles(self, count: int) -> dict[str, int]:
        """What the counters say after so many cycles."""
        return {p: sum(s.phase == p for s in self.steps[:count]) for p in PHASES}
