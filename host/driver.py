"""Drives a unit through its registers, over whatever carries reads and writes to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thermokron.host.windows import (
    bias_words,
    coupling_words,
    cycle_words,
    phase_counts,
    read_plan,
)
from thermokron.model import BaseUnit, Job, Readout, UnitFault, UnitSpec
from thermokron.rtl.packets import pack_biases, pack_couplings, result_bytes, unpack_results
from thermokron.rtl.regmap import read_spec, register_map

__all__ = ["Link", "RegisterUnit", "StreamLink"]

#: A run that does not end within this many times its cycles, and these more, never will. Besides, a
#: converter may keep it waiting for as long as the unit itself is patient.
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


@runtime_checkable
class StreamLink(Link, Protocol):
    """A link that reaches a unit's streams, too.

    Packets go on their way while time passes, whatever else goes on: `UnitFault` if the unit does
    not take one, or has sent another than is asked for.
    """

    def send(self, stream: str, packet: bytes) -> None:
        """Queue a packet for the stream "couplings" or "biases", and return at once."""
        ...

    def deliver(self, stream: str) -> None:
        """Wait until the unit has taken all that was sent to a stream."""
        ...

    def take(self, count: int) -> bytes:
        """The packet of `count` bytes that has come from the stream of results."""
        ...

    def flush(self) -> None:
        """Drop packets that have not begun, wait for the end of others, forget what has come."""
        ...


class RegisterUnit(BaseUnit):
    """A unit behind registers: a simulation's, or a board's.

    Its bulk data pass its streams where it has some and the link reaches them: couplings before a
    run, or while the one before it is on; biases and results while it is on. Otherwise they pass
    the windows, word by word, while the unit waits.

    Parameters
    ----------
    link : Link
        The way to it. The unit owns and closes it.
    spec : UnitSpec
        What the unit is expected to be; it is asked, and has to agree.
    seed : int
        Seed of the noise where it is simulated.
    streams : bool
        False: leave the streams alone.

    Attributes
    ----------
    streams : bool
        Whether bulk data pass the streams; may be changed between runs, if there are some.

    Raises
    ------
    ValueError
        If what answers is not a unit, or not this one; the message says in what they differ.
    """

    def __init__(self, link: Link, spec: UnitSpec, seed: int = 0, *, streams: bool = True) -> None:
        super().__init__(spec, seed)
        self.link = link
        self.streams = streams and spec.stream_bits is not None and isinstance(link, StreamLink)
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
        # what each coupling bank holds, as bytes, and which one MODE names
        self._banks: list[bytes | None] = [None, None]
        self._known: tuple[NDArray[Any], bytes] | None = None  # couplings, and what is compared
        self._bank = 0
        self._ahead: bytes | None = None  # what a packet on its way brings to the other one

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
            if isinstance(pending, Job) and self._fit(pending):
                self._load_couplings(pending, ahead=True)

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
        self._load_couplings(job)
        bank = self._banks.index(self._content(job))
        if not self.streams:
            window = self._map.windows["biases_mem"]
            self.link.write(window.address, bias_words(self.spec, job.biases))
        self._write(
            {
                "irq_enable": {"done": 1, "fault": 1},
                "mode": {
                    "second_moments": int(job.second_moments),
                    "bank": bank,
                    "stream_biases": int(self.streams),
                    "stream_results": int(self.streams),
                },
                "biases": {"value": len(job.biases)},
                "temperature": {"value": job.temperature},
                "settle": {"value": job.settle_cycles},
                "interval": {"value": job.interval_cycles},
                "samples": {"value": job.samples},
            }
        )
        self._bank = bank
        if (expect := getattr(self.link, "expect", None)) is not None:
            expect(job, stream)
        if self.streams:
            self._streaming.send("biases", pack_biases(self.spec, job.biases))
        try:
            self._write({"control": {"start": 1}})
        except ConnectionError:
            raise
        except UnitFault:
            self._banks[bank] = None  # which may be what is refused
            self._flush()
            self._raise_fault()  # the sticky reason says more than "refused"
            raise

    def _finish(self, job: Job) -> Readout:
        try:
            return self._wait_and_read(job)
        except BaseException:
            self._ahead = None  # who knows whether it has arrived
            raise

    def _wait_and_read(self, job: Job) -> Readout:
        cycles = self.spec.phase_cycles(
            job, stream_biases=self.streams, stream_results=self.streams
        )
        limit = PATIENCE * sum(cycles.values()) + PATIENCE_CYCLES
        limit += max(self.spec.adc_timeout_cycles, self.spec.dac_timeout_cycles)
        if not self.link.wait_interrupt(limit):
            self._abort()
            self._flush()
            raise UnitFault(f"the unit was not done after {limit} clock cycles")
        status = self._map.registers["status"]
        if status.unpack(self._read(status.address)).get("fault"):
            self._flush()
            self._raise_fault()
        vectors, kind = len(job.biases), job.second_moments
        if not self.streams:
            words_each = self.spec.result_words(job.samples)
            plan = read_plan(self.spec, vectors, kind, words_each)
            return plan.readout(self.link.read(plan.ranges))
        count = result_bytes(self.spec, vectors, job.samples, kind)
        try:
            packet = self._streaming.take(count)
        except ConnectionError:
            raise
        except UnitFault:
            self._flush()
            raise
        sums, clipped, products = unpack_results(self.spec, packet, vectors, job.samples, kind)
        return Readout(
            sums=sums,
            products=products,
            clipped=clipped,
            cycles=phase_counts(self.link.read([cycle_words(self._map)])),
        )

    @property
    def _streaming(self) -> StreamLink:
        assert isinstance(self.link, StreamLink)
        return self.link

    def _flush(self) -> None:
        """After a run that failed: packets that it has left are no other run's."""
        if self.streams:
            self._streaming.flush()

    def _fit(self, job: Job) -> bool:
        """Whether a bank can hold the couplings."""
        fitting = job.couplings.shape == (self.spec.cells,) * 2
        return fitting and job.largest_coupling <= self.spec.coupling_max

    def _content(self, job: Job) -> bytes:
        if self._known is None or self._known[0] is not job.couplings:
            self._known = job.couplings, job.couplings[self._upper].tobytes()
        return self._known[1]

    def _load_couplings(self, job: Job, *, ahead: bool = False) -> None:
        """Bring the couplings into the bank that MODE does not name, unless one holds them.

        What is sent `ahead`, while a run is on, may be on its way still.
        """
        content = self._content(job)
        bank = 1 - self._bank
        if self._ahead is not None and not ahead:
            coming, self._ahead = self._ahead, None
            self._streaming.deliver("couplings")
            self._banks[bank] = coming
        if content in self._banks:
            return
        self._banks[bank] = None  # unknown, should the write fail halfway
        if not self.streams:
            window = self._map.windows[f"couplings{bank}"]
            self.link.write(window.address, coupling_words(self.spec, job.couplings))
        else:
            packet = pack_couplings(self.spec, job.couplings)
            if ahead:
                self._streaming.send("couplings", packet)
                self._ahead = content
                return
            self._write({"mode": {"bank": self._bank}})  # after a reset it may name the other one
            self._streaming.send("couplings", packet)
            try:
                self._streaming.deliver("couplings")
            except ConnectionError:
                raise
            except UnitFault:
                self._flush()
                raise
        self._banks[bank] = content

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


def _next(jobs: Iterator[Job]) -> Job | Exception | None:
    """The next job, what kept it from coming, or None at the end."""
    try:
        return next(jobs, None)
    except Exception as error:
        return error
