"""The host's side of a co-simulated unit: one simulator process, and the link to its registers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thermokron.model import ArrayPhysics, Job, UnitSpec
from thermokron.model.checks import check_real
from thermokron.model.unit import check_owner
from thermokron.sim import protocol
from thermokron.sim.builders import tail
from thermokron.sim.faults import (
    AccessRefused,
    SimulationError,
    SimulatorDied,
    SimulatorSilent,
)
from thermokron.sim.flaws import FrontEndFlaws
from thermokron.sim.frontend import stream_into
from thermokron.sim.harness import write_save_file
from thermokron.sim.player import Into
from thermokron.sim.protocol import HOST_CHECK_CYCLES, Channel, Kind, ProtocolError
from thermokron.sim.runner import PARAMETERS
from thermokron.sim.scratch import Scratch
from thermokron.sim.simulators import clock_period
from thermokron.sim.unit_build import unit_build

__all__ = ["SimulatorLink"]

#: Seconds without a sign of life after which a simulator is given up, beside what the clock cycles
#: asked for may take.
TIMEOUT_S = 30.0
#: The same, at least, while it starts and loads its libraries.
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
#: How many times dearer than those so far the clock cycles of a request may be.
MARGIN = 10.0
#: The environment variable that tells a player what it plays for.
SIZES = "THERMOKRON_UNIT_SIZES"
#: Clock cycles that a word takes at most on its way into or out of the registers.
CYCLES_PER_WORD = 4
#: The same of a byte of a stream into it.
CYCLES_PER_BYTE = 1


class SimulatorLink:
    """A unit's registers, in a simulator that this object starts, watches and stops.

    It belongs to the process that made it, and does one request at a time.

    Parameters
    ----------
    spec, physics, seed
        What is simulated, and the seed of its noise.
    simulator : str
        "icarus" or "verilator".
    waves : Path, optional
        Where to write a waveform: `.vcd`, or `.fst` where the simulator can.
    timeout_s : float
        How many seconds the simulator may give no sign of life, beside ten times what the clock
        cycles asked for would take at the pace so far; 1 to 10^6.

    Attributes
    ----------
    log : Path
        The simulator's log: beside the waveform, or in a folder that goes with the simulator.
    waveform, save_file : Path or None
        The waveform and, once the simulation is closed, its save file for GTKWave.
    process : subprocess.Popen
        The simulator.

    Raises
    ------
    ValueError
        If the control plane cannot be built for the spec, or timeout_s is out of range.
    SimulatorMissing, BuildFailure
        See `thermokron.sim.simulators.build`.
    SimulatorDied
        If it does not start; from every method, if it is not running any more.
    SimulatorSilent
        From every method, if it does not answer in time, as when it was stopped (SIGSTOP).
    SimulationError
        From every method, if another thread's request is under way.
    RuntimeError
        From every method, in another process, as after a fork.
    """

    def __init__(
        self,
        spec: UnitSpec,
        physics: ArrayPhysics,
        *,
        seed: int,
        simulator: str,
        waves: Path | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._timeout_s = check_real("timeout_s", timeout_s, 1.0, 1e6)
        self.waveform = None if waves is None else waves.absolute()
        self.save_file: Path | None = None
        self._spec = spec
        self._build = unit_build(spec, simulator, waves=waves.suffix.lstrip(".") if waves else None)
        if self.waveform:
            self.waveform.parent.mkdir(parents=True, exist_ok=True)
            # the cache may be gone when the save file is written
            self._traced = (self._build.folder / "design.v").read_text(encoding="utf-8")
        self._owner = os.getpid()
        self._talking = threading.Lock()
        self._asked: str | None = None  # what has had no answer yet
        self._late = False
        self._cycles, self._seconds = 0, 0.0  # what requests took so far
        self._sent: Counter[Into] = Counter()  # bytes that the unit may not have taken yet
        scratch = Scratch()
        ours, theirs = socket.socketpair()
        try:
            self.log = (self.waveform or scratch.folder / "simulation").with_suffix(".log")
            with theirs:
                self.process = self._start(scratch.folder, physics, seed, theirs.fileno())
        except BaseException:
            ours.close()
            scratch.remove()
            raise
        self._finalizer = weakref.finalize(self, _abandon, self.process, ours, scratch, self._owner)
        _sockets.add(ours)
        self._channel = Channel(ours)
        try:
            self._receive("START", 0, max(START_TIMEOUT_S, self._timeout_s))
        except BaseException:
            self._finalizer()
            raise

    def _start(
        self, folder: Path, physics: ArrayPhysics, seed: int, connection: int
    ) -> subprocess.Popen[bytes]:
        spec = self._spec
        environment = self._build.environment("thermokron.sim.server", Path(os.devnull))
        widths = (spec.coupling_bits, spec.bias_bits, spec.adc_bits, spec.dac_lanes)
        sizes = (spec.cells, *widths, spec.stream_bits or 0, clock_period(spec))
        environment[SIZES] = " ".join(map(str, sizes))
        environment[PARAMETERS] = json.dumps(
            {
                "spec": spec.to_json(),
                "physics": physics.to_json(),
                "seed": seed,
                "socket": connection,
                "scratch": str(folder),
                "alive_s": self._timeout_s / 4,
                "drive_clock": self._build.simulator != "verilator",
                "player": self._build.player_library,
                "traced": self.waveform is not None,
            }
        )
        with open(self.log, "wb") as log:
            return subprocess.Popen(
                self._build.command(self.waveform),
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[connection],
                start_new_session=True,  # Ctrl-C is the host's to handle
            )

    # ---- requests ---------------------------------------------------------------------------

    def write(self, address: int, words: ArrayLike) -> None:
        """Write 32-bit words to consecutive word addresses; `AccessRefused` on SLVERR."""
        payload = protocol.pack_write(address, words)
        self._request(Kind.WRITE, payload, cycles=len(payload) // 4 * CYCLES_PER_WORD)

    def read(self, ranges: ArrayLike) -> NDArray[np.uint32]:
        """The words of each (address, count), one after the other; `AccessRefused` on SLVERR."""
        cycles = int(np.asarray(ranges)[:, 1].sum()) * CYCLES_PER_WORD
        answer = self._request(Kind.READ, protocol.pack_read(ranges), cycles=cycles)
        return protocol.unpack_words(answer)

    def wait_interrupt(self, cycles: int) -> bool:
        """Let time pass until the interrupt line is high, or so many clock cycles have passed.

        Returns whether the line is high.
        """
        answer = self._request(Kind.WAIT, protocol.pack_numbers(cycles), cycles=cycles)
        return bool(protocol.unpack_numbers(answer, 2)[0])

    def send(self, stream: str, packet: bytes) -> None:
        """Queue a packet for the stream "couplings" or "biases", and return at once.

        The unit takes it while time passes, whatever else goes on; its last beat has TLAST.
        `ValueError` if it has not whole beats.
        """
        into = stream_into(self._spec, stream, packet)
        self._request(Kind.SEND, protocol.pack_send(into, packet))
        self._sent[into] += len(packet)

    def deliver(self, stream: str) -> None:
        """Let time pass until the unit has taken all that was sent to a stream.

        `AccessRefused` if it lets a beat of it wait for a thousand clock cycles.
        """
        into = stream_into(self._spec, stream)
        cycles = self._sent.pop(into, 0) * CYCLES_PER_BYTE
        self._request(Kind.DELIVER, protocol.pack_numbers(into), cycles=cycles)

    def take(self, count: int) -> bytes:
        """The packet of `count` bytes that has come from the stream of results.

        `AccessRefused` if it is not exactly one of that length; what came is gone then.
        """
        return self._request(Kind.TAKE, protocol.pack_numbers(count))

    def flush(self) -> None:
        """Drop packets that have not begun, let the unit take the others, forget what has come.

        `AccessRefused` as of `deliver`; then all are dropped.
        """
        self._request(Kind.FLUSH, cycles=self._sent.total() * CYCLES_PER_BYTE)
        self._sent.clear()

    def reset(self) -> None:
        """Reset the unit and its front end; the streams are empty then."""
        self._request(Kind.RESET)
        self._sent.clear()

    def expect(self, job: Job, stream: int) -> None:
        """Announce a run of a job, which the registers hold, and its first discharge's number."""
        self._request(Kind.EXPECT, protocol.pack_job(stream, job))

    def misbehave(self, flaws: FrontEndFlaws) -> None:
        """Let the converters misbehave from the next discharge on; `FrontEndFlaws()` ends it."""
        self._request(Kind.FLAWS, protocol.pack_json(flaws.to_dict()))

    def info(self) -> dict[str, Any]:
        """What the simulation knows of itself: "simulator", and time in "cycles", "seconds"."""
        return protocol.unpack_json(self._request(Kind.INFO))

    def close(self) -> None:
        """End the simulation, complete the waveform, remove the folder; again does nothing."""
        if os.getpid() != self._owner or not self._finalizer.alive:
            return
        try:
            if self._asked is None and self.process.poll() is None:
                with contextlib.suppress(OSError, EOFError):  # it is killed then
                    self._channel.send(Kind.CLOSE, timeout_s=STOP_TIMEOUT_S)
                    self._channel.receive(timeout_s=STOP_TIMEOUT_S)
                    # the simulator ends by itself when it has completed its waveform
                    self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            pass  # the finalizer kills it
        finally:
            self._finalizer()
        if self.waveform is not None and self.waveform.exists():
            self.save_file = write_save_file(
                self._spec, self.waveform, self._traced, self._build.top
            )

    # ---- the one conversation ------------------------------------------------------------------

    def _request(self, kind: Kind, payload: bytes = b"", *, cycles: int = 0) -> bytes:
        check_owner(self._owner)
        if not self._talking.acquire(blocking=False):
            raise SimulationError(
                f"{kind.name} met another request in flight, {self._asked}; a simulator answers "
                "one at a time: let one thread speak to it, or use `run`, which takes turns"
            )
        try:
            if not self._finalizer.alive:
                raise SimulationError("the simulation is closed")
            if self._asked is not None and self.process.poll() is None:
                what = "was not answered in time" if self._late else "was interrupted"
                raise SimulationError(f"an earlier request {what} ({self._asked}); close the unit")
            self._asked = kind.name
            try:
                self._channel.send(kind, payload, timeout_s=self._allowed(cycles))
            except TimeoutError:
                raise self._silence(kind.name, cycles, self._allowed(cycles)) from None
            except ConnectionError:
                raise self._death(f"is gone at {kind.name}") from None
            return self._receive(kind.name, cycles, self._allowed(cycles))
        finally:
            self._talking.release()

    def _allowed(self, cycles: int) -> float:
        """Seconds that a request may take, which asks for so many clock cycles."""
        # a run says at least so often that it goes on
        cycles = min(cycles, HOST_CHECK_CYCLES) if self._asked == Kind.WAIT.name else cycles
        return self._timeout_s + MARGIN * cycles * self._cycle_s

    @property
    def _cycle_s(self) -> float:
        """What a clock cycle has cost so far, in seconds."""
        return self._seconds / self._cycles if self._cycles else 0.0

    def _receive(self, what: str, cycles: int, allowed_s: float) -> bytes:
        begin = time.monotonic()
        while True:
            try:
                kind, payload = self._channel.receive(timeout_s=allowed_s)
            except TimeoutError:
                raise self._silence(what, cycles, allowed_s) from None
            except (EOFError, ConnectionError) as error:
                if isinstance(error, ProtocolError) and self.process.poll() is None:
                    raise SimulationError(f"damaged answer to {what}: {error}") from error
                gone = "did not start" if what == "START" else f"is gone at {what}"
                raise self._death(gone) from None
            if kind is not Kind.ALIVE:
                break
        self._asked = None
        if kind is Kind.FAILED:
            report = protocol.unpack_json(payload)
            if report["error"] == "BusError":
                raise AccessRefused(report["message"])
            raise SimulationError(f"{report['error']}: {report['message']}")
        if kind is not Kind.DONE:
            raise SimulationError(f"{kind.name} is no answer to {what}")
        if what == Kind.WAIT.name:
            cycles = protocol.unpack_numbers(payload, 2)[1]
        if cycles:
            self._cycles += cycles
            self._seconds += time.monotonic() - begin
        return payload

    def _silence(self, what: str, cycles: int, allowed_s: float) -> SimulatorSilent:
        self._late = True
        pace = f"; a clock cycle took {self._cycle_s * 1e6:.2g} µs so far" if self._cycles else ""
        asked = f", which asks for {cycles} clock cycles{pace}" if cycles else ""
        state = "is stopped (SIGSTOP)" if _is_stopped(self.process.pid) else "is running"
        return SimulatorSilent(
            f"the simulator ({self._build.simulator}, process {self.process.pid}) gave no sign of "
            f"life for {allowed_s:.0f} s at {what}{asked}; it {state}. Close the unit; on a slow "
            f"machine raise timeout_s = {self._timeout_s:g} (on the command line --timeout)"
            + (f" above {START_TIMEOUT_S:g}" if what == "START" else "")
        )

    def _death(self, what: str) -> SimulatorDied:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        status = self.process.poll()
        if status is None:
            state = "still running"
        elif status < 0:
            state = f"killed by {signal.Signals(-status).name}"
        else:
            state = f"exit status {status}"
        message = f"the simulator ({self._build.simulator}, {state}) {what}; its log ends:\n"
        return SimulatorDied(message + tail(self.log))


def _is_stopped(process: int) -> bool:
    with contextlib.suppress(OSError):
        about = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        return about.rpartition(")")[2].split()[:1] == ["T"]
    return False


#: Connections of this process to its simulators.
_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def _leave_to_the_parent() -> None:
    """A child that kept a connection would keep the simulator from noticing its host's end."""
    for connection in list(_sockets):
        connection.close()


os.register_at_fork(after_in_child=_leave_to_the_parent)


def _abandon(
    process: subprocess.Popen[bytes], connection: socket.socket, scratch: Scratch, owner: int
) -> None:
    if os.getpid() != owner:  # a child that was forked has these objects, too
        return
    with contextlib.suppress(OSError):
        process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    connection.close()
    scratch.remove()
