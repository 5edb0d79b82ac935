"""Drives a unit through its registers, over whatever carries reads and writes to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thermokron.model import PHASES, BaseUnit, Job, Readout, UnitFault, UnitSpec
from thermokron.rtl.layout import product_index, sum_index
from thermokron.rtl.regmap import RegisterMap, read_spec, register_map

__all__ = ["Link", "RegisterUnit"]

#: A run that does not end within this many times its cycles, and these more, never will.
PATIENCE, PATIENCE_CYCLES = 2, 10_000


class Link(Protocol):
    """What carries reads and writes to a unit's registers, and waits for its interrupt.

    An access that the unit refuses (SLVERR) raises `UnitFault`, a link that is lost
    `ConnectionError`. A link to a simulation has one more method, which `RegisterUnit` calls
    before every START: `expect(job, stream)`.
    """

    def write(self, address: int, words: ArrayLike) -> None:
        """Write 32-bit words to consecutive word addresses."""
        ...

    def read(self, ranges: ArrayLike) -> NDArray[np.uint32]:
        """The words of each (byte address, count of words), one after the other."""
        ...

    def wait_interrupt(self, cycles: int) -> bool:
        """Wait for the interrupt line, `cycles` clock cycles at most; whether it is high."""
        ...

    def close(self) -> None:
        """Release the link; a second call does nothing."""
        ...


class RegisterUnit(BaseUnit):
    """A unit behind registers: a simulation's, or a board's.

    Parameters
    ----------
    link : Link
        The way to it. The unit owns and closes it.
    spec : UnitSpec
        What the unit is expected to be; it is asked, and has to agree.
    seed : int
        Seed of the noise where it is simulated.

    Raises
    ------
    ValueError
        If what answers is not a unit, or not this one; the message says in what they differ.
    """

    def __init__(self, link: Link, spec: UnitSpec, seed: int = 0) -> None:
        super().__init__(spec, seed)
        self.link = link
        self._map = register_map(spec)
        found = read_spec(lambda address: int(link.read([(address, 1)])[0]))
        differing = [
            f"{f.name} = {getattr(found, f.name)}, not {getattr(spec, f.name)}"
            for f in fields(UnitSpec)
            if getattr(found, f.name) != getattr(spec, f.name)
        ]
        if differing:
            raise ValueError(f"the unit is another one: it has {'; '.join(differing)}")
        self._upper = np.triu_indices(spec.cells)
        # what each coupling bank holds, as bytes, and which one the last run used
        self._banks: list[bytes | None] = [None, None]
        self._known: tuple[NDArray[Any], bytes] | None = None  # couplings as they are sent
        self._bank = 0

    def close(self) -> None:
        """Release the link."""
        self.link.close()

    def abort(self) -> None:
        """End a run that is on, with the fault "aborted"; does nothing otherwise.

        `UnitFault` if that is another thread's, which waits for its end.
        """
        with self._turn(wait=False):
            self._abort()

    def _abort(self) -> None:
        self._write({"control": {"abort": 1}})

    def run_many(self, jobs: Iterable[Job]) -> Iterator[Readout]:
        """Execute jobs in order, loading the couplings of the next while the array samples.

        The next job is taken from `jobs` while the present one runs; what goes wrong with it
        is raised after the present one's read-out has been handed out.
        """
        iterator = iter(jobs)
        pending: Job | Exception | None = _next(iterator)

        def load_ahead() -> None:
            nonlocal pending
            pending = _next(iterator)
            if isinstance(pending, Job) and pending.couplings.shape == (self.spec.cells,) * 2:
                self._load_couplings(pending)

        while pending is not None:
            if isinstance(pending, Exception):
                raise pending
            running = pending
            self.spec.check(running)
            with self._turn():
                self._start(running, self.stream)
                load_ahead()
                readout = self._finish(running)
                self.stream += len(running.biases)
            yield readout

    def _execute(self, job: Job, stream: int) -> Readout:
        self._start(job, stream)
        return self._finish(job)

    # ---- one run ------------------------------------------------------------------------------

    def _start(self, job: Job, stream: int) -> None:
        bank = self._load_couplings(job)
        self._load_biases(job)
        self._write(
            {
                "irq_enable": {"done": 1, "fault": 1},
                "mode": {"second_moments": int(job.second_moments), "bank": bank},
                "biases": {"value": len(job.biases)},
                "temperature": {"value": job.temperature},
                "settle": {"value": job.settle_cycles},
                "interval": {"value": job.interval_cycles},
                "samples": {"value": job.samples},
            }
        )
        if (expect := getattr(self.link, "expect", None)) is not None:
            expect(job, stream)
        try:
            self._write({"control": {"start": 1}})
        except ConnectionError:
            raise
        except UnitFault:
            self._raise_fault()  # the sticky reason says more than "refused"
            raise
        self._bank = bank

    def _finish(self, job: Job) -> Readout:
        limit = PATIENCE * sum(self.spec.phase_cycles(job).values()) + PATIENCE_CYCLES
        if not self.link.wait_interrupt(limit):
            self._abort()
            raise UnitFault(f"the unit was not done after {limit} clock cycles")
        status = self._map.registers["status"]
        words_each = self.spec.result_words(job.samples)
        plan = _read_plan(self.spec, len(job.biases), job.second_moments, words_each)
        if status.unpack(self._read(status.address)).get("fault"):
            self._raise_fault()
        words = self.link.read(plan.ranges)
        return plan.readout(words)

    def _load_couplings(self, job: Job) -> int:
        """Bring the couplings into a bank that is not in use, unless one holds them; which."""
        if self._known is None or self._known[0] is not job.couplings:
            upper = job.couplings[self._upper]
            self._known = job.couplings, upper.tobytes()
        content = self._known[1]
        if content in self._banks:
            return self._banks.index(content)
        bank = 1 - self._bank
        self._banks[bank] = None  # unknown, should the write fail halfway
        codes = np.frombuffer(content, job.couplings.dtype)
        self.link.write(self._map.windows[f"couplings{bank}"].address, codes)
        self._banks[bank] = content
        return bank

    def _load_biases(self, job: Job) -> None:
        vectors, n = job.biases.shape
        padded = np.zeros((vectors, 1 << (n - 1).bit_length()), np.int64)
        padded[:, :n] = job.biases
        used = padded.size - (padded.shape[1] - n)
        self.link.write(self._map.windows["biases_mem"].address, padded.ravel()[:used])

    # ---- registers ------------------------------------------------------------------------------

    def _read(self, address: int) -> int:
        return int(self.link.read([(address, 1)])[0])

    def _write(self, values: Mapping[str, Mapping[str, int]]) -> None:
        """Write registers by name and field, neighbours in one burst."""
        words = {
            self._map.registers[name].address: self._map.registers[name].pack(**contents)
            for name, contents in values.items()
        }
        burst: list[int] = []
        for address in sorted(words):
            burst.append(words[address])
            if address + 4 not in words:
                self.link.write(address - 4 * (len(burst) - 1), burst)
                burst = []

    def _raise_fault(self) -> None:
        """Raise the unit's fault, if it has one."""
        from thermokron.rtl.regmap import FaultReason

        register = self._map.registers["fault"]
        reason = FaultReason(register.unpack(self._read(register.address))["reason"])
        if reason != FaultReason.none:
            raise UnitFault(f"{reason.name}: {reason.doc}")


class _ReadPlan:
    """Which words a read-out of one kind needs, in one burst, and what they mean."""

    def __init__(
        self, spec: UnitSpec, vectors: int, second_moments: bool, words: tuple[int, int, int]
    ) -> None:
        registers: RegisterMap = register_map(spec)
        self._spec = spec
        self._parts: dict[str, tuple[slice, NDArray[np.int64], tuple[int, ...]]] = {}
        first, last = (registers.registers[f"cycles_{PHASES[i]}"] for i in (0, -1))
        self._cycles = (last.address + 4 * last.words - first.address) // 4
        ranges = [np.array([[first.address, self._cycles]])]
        count = self._cycles
        sums = sum_index(spec, vectors)
        results = {"sums": sums, "clipped": sums}
        if second_moments:
            results["products"] = product_index(spec)
        for (name, index), width in zip(results.items(), words, strict=False):
            if not width:
                continue
            window = registers.windows[name]
            entries, position = np.unique(index, return_inverse=True)
            at = window.address + 4 * window.entry_words * entries
            if width == window.entry_words:  # neighbours as one range
                begins = np.flatnonzero(np.diff(entries, prepend=-2) != 1)
                counts = np.diff(begins, append=len(entries)) * width
                ranges.append(np.stack([at[begins], counts], axis=1))
            else:  # the low words alone
                ranges.append(np.stack([at, np.ones_like(at)], axis=1))
            part = slice(count, count := count + width * len(entries))
            self._parts[name] = part, position.ravel(), index.shape
        self.ranges = np.concatenate(ranges).astype(np.uint32)

    def readout(self, words: NDArray[np.uint32]) -> Readout:
        """The read-out that the words of `ranges` are."""
        cycles = words[: self._cycles].astype("<u4").view("<u8").tolist()

        def entries(name: str) -> NDArray[np.int64]:
            part, position, shape = self._parts[name]
            found = words[part].astype("<u4")
            wide = len(found) == 2 * (int(position.max()) + 1)
            values = found.view("<i8" if wide else "<i4").astype(np.int64)
            return values[position].reshape(shape)

        sums = entries("sums")
        if "clipped" in self._parts:
            clipped = entries("clipped")
        else:
            rails = (sums == self._spec.adc_min) | (sums == self._spec.adc_max)
            clipped = rails.astype(np.int64)
        return Readout(
            sums=sums,
            products=entries("products") if "products" in self._parts else None,
            clipped=clipped,
            cycles=dict(zip(PHASES, cycles, strict=True)),
        )


@lru_cache(maxsize=256)
def _read_plan(
    spec: UnitSpec, vectors: int, second_moments: bool, words: tuple[int, int, int]
) -> _ReadPlan:
    return _ReadPlan(spec, vectors, second_moments, words)


def _next(jobs: Iterator[Job]) -> Job | Exception | None:
    """The next job, what kept it from coming, or None at the end."""
    try:
        return next(jobs, None)
    except Exception as error:
        return error
