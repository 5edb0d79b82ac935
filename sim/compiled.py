"""A unit's RTL in this process: C++ by CXXRTL, compiled to a library, behind its registers."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thermokron.model import ArrayPhysics, Job, UnitSpec
from thermokron.model.files import digest
from thermokron.model.unit import check_owner
from thermokron.rtl.cxxrtl import cxxrtl_headers, generate_cxxrtl
from thermokron.rtl.limits import check_buildable
from thermokron.sim.builders import compiler, run_tool
from thermokron.sim.cache import cached
from thermokron.sim.faults import AccessRefused, SimulationError
from thermokron.sim.flaws import FrontEndFlaws
from thermokron.sim.frontend import BusError, FrontEnd, stream_into
from thermokron.sim.player import ENDS, Player
from thermokron.sim.simulators import SimulatorMissing, clock_period
from thermokron.sim.unit_build import rtl_key

__all__ = ["CompiledLink", "unit_library"]

#: The player, which is compiled with the unit.
PLAYER = Path(__file__).parent / "player"
SOURCES = ("compiled.cpp", "capi.h", "dacs.h", "pins.h", "player.h", "streams.h")
#: CXXRTL's operations on wide values are loops that only -O3 unrolls. A vectorised load of what
#: was just stored in parts waits for the store, so that costs more than it brings.
FLAGS = ("-std=c++20", "-O2", "-fpeel-loops", "-fno-tree-vectorize", "-DNDEBUG", "-shared", "-fPIC")
#: With waveforms, which cost more than anything that a compiler could save.
WAVES_FLAGS = ("-std=c++20", "-O1", "-DNDEBUG", "-shared", "-fPIC")
#: Clock cycles at a time, between which Ctrl-C is heard.
STRETCH = 1_000_000


def unit_library(spec: UnitSpec, *, waves: bool = False) -> Path:
    """The library of a unit, compiled or from the cache.

    Raises
    ------
    ValueError
        If the control plane cannot be built for the spec.
    SimulatorMissing
        If there is no g++; the message says what to install.
    BuildFailure
        If it does not compile; the message ends with the compiler's.
    """
    check_buildable(spec)
    if not shutil.which("g++"):
        raise SimulatorMissing(
            "engine 'compiled' needs g++, which is not on the PATH (Debian: apt install g++); "
            "engine 'numeric' returns the same integers without"
        )
    flags = WAVES_FLAGS if waves else FLAGS
    texts = [(PLAYER / name).read_text(encoding="utf-8") for name in SOURCES]
    # sources that have changed since they were imported: a build that nobody else is to have
    made_of = rtl_key(spec) or secrets.token_hex(16)
    key = digest(made_of, compiler(), flags, texts)

    def fill(folder: Path) -> None:
        (folder / "unit.cc").write_text(generate_cxxrtl(spec, names=waves), encoding="utf-8")
        for name, text in zip(SOURCES, texts, strict=True):
            (folder / name).write_text(text, encoding="utf-8")
        command = [
            "g++",
            *flags,
            f"-DTHERMOKRON_WAVES={int(waves)}",
            '-DTHERMOKRON_DESIGN="unit.cc"',
        ]
        command += ["-I", str(cxxrtl_headers()), "-o", "unit.so", SOURCES[0]]
        run_tool(command, folder, folder / "build.log")

    return cached("compiled", key, fill) / "unit.so"


class CompiledLink:
    """A unit's registers, in a library of this process.

    It belongs to the process that made it.

    Parameters
    ----------
    spec, physics, seed
        What is simulated, and the seed of its noise.
    waves : Path, optional
        Where to write a waveform, as VCD; it has the cells' voltages, too.

    Raises
    ------
    ValueError, SimulatorMissing, BuildFailure
        See `unit_library`.
    OSError
        If the waveform cannot be written; from every method, too.
    SimulationError
        From every method, if the unit does at its pins what it must not, or the link is closed.
    RuntimeError
        From every method, in another process, as after a fork.
    """

    def __init__(
        self, spec: UnitSpec, physics: ArrayPhysics, *, seed: int, waves: Path | None = None
    ) -> None:
        self.waveform = None if waves is None else waves.absolute()
        library = ctypes.CDLL(str(unit_library(spec, waves=waves is not None)))
        if self.waveform is not None:
            self.waveform.parent.mkdir(parents=True, exist_ok=True)
            self.waveform.open("wb").close()  # an error that names it, if it cannot be written
        for name, result, arguments in (
            (
                "unit_open",
                ctypes.c_void_p,
                [ctypes.c_uint32] * 6 + [ctypes.c_uint64, ctypes.c_char_p],
            ),
            ("unit_close", ctypes.c_bool, [ctypes.c_void_p]),
            ("unit_run", ctypes.c_bool, [ctypes.c_void_p, ctypes.c_uint64]),
        ):
            function = getattr(library, name)  # which keeps it, as library[name] would not
            function.restype, function.argtypes = result, arguments
        self._library, self._spec, self._owner = library, spec, os.getpid()
        self._unit = library.unit_open(
            spec.cells,
            spec.coupling_bits,
            spec.bias_bits,
            spec.adc_bits,
            spec.dac_lanes,
            spec.stream_bits or 0,
            clock_period(spec),
            None if self.waveform is None else os.fsencode(self.waveform),
        )
        self._finalizer = weakref.finalize(self, _close, library, self._unit, self._owner)
        self.player = Player(library, self._unit, spec.cells)
        self._frontend = FrontEnd(
            self.player, spec, physics, seed=seed, traced=self.waveform is not None
        )
        self.reset()

    # ---- requests ---------------------------------------------------------------------------

    def write(self, address: int, words: ArrayLike) -> None:
        """Write 32-bit words to consecutive word addresses; `AccessRefused` on SLVERR."""
        self._check()
        self.player.write(address, words)
        self._finish("write to")

    def read(self, ranges: ArrayLike) -> NDArray[np.uint32]:
        """The words of each (address, count), one after the other; `AccessRefused` on SLVERR."""
        self._check()
        words = self.player.read(ranges)
        self._finish("read of")
        return words

    def wait_interrupt(self, cycles: int) -> bool:
        """Let time pass until the interrupt line is high, or so many clock cycles have passed.

        Returns whether the line is high.
        """
        self._check()
        self.player.wait(cycles)
        self._finish()
        return self.player.interrupt

    def send(self, stream: str, packet: bytes) -> None:
        """Queue a packet for the stream "couplings" or "biases", and return at once.

        The unit takes it while time passes, whatever else goes on; its last beat has TLAST.
        `ValueError` if it has not whole beats.
        """
        self._check()
        self.player.send(stream_into(self._spec, stream, packet), packet)

    def deliver(self, stream: str) -> None:
        """Let time pass until the unit has taken all that was sent to a stream.

        `AccessRefused` if it lets a beat of it wait for a thousand clock cycles.
        """
        self._check()
        self.player.deliver(stream_into(self._spec, stream))
        self._finish(f"stream {stream}")

    def take(self, count: int) -> bytes:
        """The packet of `count` bytes that has come from the stream of results.

        `AccessRefused` if it is not exactly one of that length; what came is gone then.
        """
        self._check()
        try:
            return self._frontend.take(count)
        except BusError as error:
            raise AccessRefused(str(error)) from None

    def flush(self) -> None:
        """Drop packets that have not begun, let the unit take the others, forget what has come.

        `AccessRefused` as of `deliver`; then all are dropped.
        """
        self._check()
        self.player.flush()
        self._finish("the rest of a packet")

    def reset(self) -> None:
        """Reset the unit and its front end; the streams are empty then."""
        self._check()
        self.player.reset()
        self._advance()

    def expect(self, job: Job, stream: int) -> None:
        """Announce a run of a job, which the registers hold, and its first discharge's number."""
        self._check()
        self._frontend.expect(job, stream)

    def misbehave(self, flaws: FrontEndFlaws) -> None:
        """Let the converters misbehave from the next discharge on; `FrontEndFlaws()` ends it."""
        self._check()
        self.player.misbehave(flaws)

    def info(self) -> dict[str, Any]:
        """What the simulation knows of itself: "simulator", and time in "cycles", "seconds"."""
        self._check()
        cycles = self.player.cycle
        seconds = cycles * clock_period(self._spec) * 1e-12
        return {"cycles": cycles, "seconds": seconds, "simulator": "CXXRTL"}

    def close(self) -> None:
        """End the simulation, and complete the waveform; again does nothing."""
        if self._finalizer() is False:
            raise OSError(f"the waveform {self.waveform} could not be written whole")

    # ---- time ---------------------------------------------------------------------------------

    def _check(self) -> None:
        check_owner(self._owner)
        if not self._finalizer.alive:
            raise SimulationError("the simulation is closed")

    def _finish(self, what: str = "") -> None:
        """Let the clock run to the end of a command.

        Whatever cuts it short, Ctrl-C too, the unit is reset: nobody waits for the run's end.
        """
        try:
            self._advance()
        except BaseException as error:
            self.player.reset()
            self._advance()
            if isinstance(error, AssertionError):
                raise SimulationError(f"{type(error).__name__}: {error}") from error
            raise
        try:
            self._frontend.check_answered(what)
        except BusError as error:
            raise AccessRefused(str(error)) from None

    def _advance(self) -> None:
        run = self._library.unit_run
        while (event := self.player.event) not in ENDS:
            if event:
                self._frontend.answer(event)
            if not run(self._unit, STRETCH):
                raise OSError(f"the waveform {self.waveform} could not be written")


def _close(library: ctypes.CDLL, unit: int, owner: int) -> bool:
    # a child that was forked has the same open file, and must not write what is buffered again
    return os.getpid() != owner or bool(library.unit_close(unit))
