"""The player, called from Python."""

from __future__ import annotations

import ctypes
from ctypes import c_bool, c_char_p, c_double, c_int, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thermokron.sim.flaws import FrontEndFlaws

__all__ = ["ENDS", "Event", "Into", "Player"]


class Event(IntEnum):
    """What a player has to say; see `player.h`."""

    NONE = 0
    #: The command has been executed.
    DONE = 1
    #: The array was let go, and not as presumed.
    RELEASED = 2
    #: A sample is due, and there is none left.
    NEEDED = 3
    #: The unit drove its converter pins as it must not.
    FAILED = 4
    #: The bus gave no answer, or a stream's beat was not taken.
    SILENT = 5


class Into(IntEnum):
    """Streams into a unit."""

    COUPLINGS = 0
    BIASES = 1


#: After which a command is over, for better or worse.
ENDS = (Event.DONE, Event.SILENT)

#: Result and arguments, after the unit, of the functions of `capi.h`.
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "event": (c_int,),
    "cycle": (c_uint64,),
    "stream": (c_uint64,),
    "refused": (c_int64,),
    "error": (c_char_p,),
    "interrupt": (c_bool,),
    "temperature": (c_uint32,),
    "couplings": (c_void_p,),
    "biases": (c_void_p,),
    "write": (None, c_uint32, c_void_p, c_uint64),
    "read": (None, c_void_p, c_uint64, c_void_p),
    "wait": (None, c_uint64),
    "reset": (None,),
    "deliver": (None, c_uint32),
    "flush": (None,),
    "send": (None, c_uint32, c_char_p, c_uint64),
    "received": (c_uint64,),
    "packets": (c_uint64,),
    "take": (None, c_void_p, c_void_p),
    "expect": (None, c_uint64, c_uint64, c_uint64),
    "presume": (None, c_uint64, c_uint64, c_uint64, c_void_p, c_void_p, c_void_p, c_void_p),
    "supply": (None, c_uint64, c_void_p, c_void_p),
    "misbehave": (None, c_int64, c_int64, *[c_uint64] * 3, *[c_double] * 3),
}


class Player:
    """One unit's player, in a library or in the program that this runs in.

    A command begins with a call of `write`, `read`, `wait`, `deliver`, `flush` or `reset`. It is
    under way until `event` is DONE, FAILED or SILENT; who calls lets the clock run, and answers
    RELEASED and NEEDED with `supply`. Streams go on beside all of them.

    Parameters
    ----------
    library : ctypes.CDLL
        What has the functions of `capi.h`.
    unit : int
        Address of the unit.
    cells : int
        Its cells, n.
    """

    def __init__(self, library: ctypes.CDLL, unit: int, cells: int) -> None:
        self._call: dict[str, Any] = {}
        for name, (result, *arguments) in SIGNATURES.items():
            function = library[f"player_{name}"]
            function.restype, function.argtypes = result, [c_void_p, *arguments]
            self._call[name] = function
        self._unit, self._cells = unit, cells
        self._held: tuple[Any, ...] = ()  # memory that the player reads
        self._supplied: tuple[Any, ...] = ()
        self._answer = np.empty(0, np.uint32)

    # ---- what it says --------------------------------------------------------------------------

    @property
    def event(self) -> Event:
        """What the last clock edge, or the last call, has brought."""
        return Event(self._call["event"](self._unit))

    @property
    def cycle(self) -> int:
        """Clock cycles so far."""
        return int(self._call["cycle"](self._unit))

    @property
    def stream(self) -> int:
        """Number of the next discharge."""
        return int(self._call["stream"](self._unit))

    @property
    def refused(self) -> int | None:
        """Address of the first access of the last command that was refused, or not answered."""
        address = self._call["refused"](self._unit)
        return None if address < 0 else int(address)

    @property
    def error(self) -> str:
        """What FAILED is about."""
        return str(self._call["error"](self._unit).decode())

    @property
    def interrupt(self) -> bool:
        """Whether the interrupt line is high."""
        return bool(self._call["interrupt"](self._unit))

    @property
    def temperature(self) -> int:
        """The code at the temperature pins."""
        return int(self._call["temperature"](self._unit))

    @property
    def couplings(self) -> NDArray[np.int32]:
        """(n, n) codes that the coupling DACs hold."""
        n = self._cells
        return self._codes("couplings", n * n).reshape(n, n)

    @property
    def biases(self) -> NDArray[np.int32]:
        """(n,) codes that the bias DACs hold."""
        return self._codes("biases", self._cells)

    def _codes(self, name: str, count: int) -> NDArray[np.int32]:
        address = self._call[name](self._unit)
        return np.array((c_int32 * count).from_address(address), np.int32)

    # ---- commands --------------------------------------------------------------------------------

    def write(self, address: int, words: ArrayLike) -> None:
        """Write words, any integers of 32 bits, to consecutive word addresses."""
        given = np.asarray(words).astype(np.uint32)
        self._call["write"](self._unit, address, given.ctypes.data, len(given))

    def read(self, ranges: ArrayLike) -> NDArray[np.uint32]:
        """The words of each (address, count), which are there when the command is done."""
        pairs = np.ascontiguousarray(ranges, np.uint32).reshape(-1, 2)
        self._answer = np.empty(int(pairs[:, 1].sum()), np.uint32)
        self._call["read"](self._unit, pairs.ctypes.data, len(pairs), self._answer.ctypes.data)
        return self._answer

    def wait(self, cycles: int) -> None:
        """Let time pass until the interrupt line is high, or so many clock cycles have passed."""
        self._call["wait"](self._unit, cycles)

    def deliver(self, stream: Into) -> None:
        """Let time pass until the unit has taken all that a stream has for it.

        SILENT if a beat of it is offered for 1,024 cycles and not taken.
        """
        self._call["deliver"](self._unit, stream)

    def flush(self) -> None:
        """Drop packets that have not begun, and deliver the rest; forget what has come.

        SILENT as `deliver`, and then all is dropped.
        """
        self._call["flush"](self._unit)

    def reset(self) -> None:
        """Reset the unit, empty the streams, and forget an error."""
        self._call["reset"](self._unit)

    # ---- streams ---------------------------------------------------------------------------------

    def send(self, stream: Into, packet: bytes) -> None:
        """Queue a packet of whole beats."""
        self._call["send"](self._unit, stream, packet, len(packet))

    def take(self) -> tuple[bytes, list[int]]:
        """What has come from the stream of results, and after how many bytes packets ended."""
        received = np.empty(self._call["received"](self._unit), np.uint8)
        ends = np.empty(self._call["packets"](self._unit), np.uint64)
        self._call["take"](self._unit, received.ctypes.data, ends.ctypes.data)
        return received.tobytes(), ends.tolist()

    # ---- the array -------------------------------------------------------------------------------

    def expect(self, settle_cycles: int, interval_cycles: int, stream: int) -> None:
        """Announce the grid of the next run, and the number of its first discharge."""
        self._call["expect"](self._unit, settle_cycles, interval_cycles, stream)

    def presume(
        self,
        couplings: NDArray[np.int32],
        biases: NDArray[np.int32],
        temperature: int,
        codes: NDArray[np.int32],
        voltages: NDArray[np.float64] | None,
    ) -> None:
        """Say what the codes (K, samples, n) of the run that was announced will be.

        The player takes them for a discharge before which the DACs hold just these couplings
        (n, n) and biases (K, n).
        """
        self._held = (couplings, biases, codes, voltages)
        self._call["presume"](
            self._unit,
            *codes.shape[:2],
            temperature,
            couplings.ctypes.data,
            biases.ctypes.data,
            codes.ctypes.data,
            None if voltages is None else voltages.ctypes.data,
        )

    def supply(self, codes: NDArray[np.int32], voltages: NDArray[np.float64] | None) -> None:
        """The next samples of this discharge, (samples, n): after RELEASED or NEEDED."""
        self._supplied = (codes, voltages)
        self._call["supply"](
            self._unit,
            len(codes),
            codes.ctypes.data,
            None if voltages is None else voltages.ctypes.data,
        )

    def misbehave(self, flaws: FrontEndFlaws) -> None:
        """Let the converters misbehave from the next discharge on."""
        self._call["misbehave"](
            self._unit,
            -1 if flaws.silent_from is None else flaws.silent_from,
            -1 if flaws.stuck_from is None else flaws.stuck_from,
            flaws.latency_cycles or 0,
            flaws.early_cycles or 0,
            flaws.seed,
            flaws.glitch or 0.0,
            flaws.stall or 0.0,
            flaws.stream_stall or 0.0,
        )
