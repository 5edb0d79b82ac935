"""Messages between the host and a simulation: framed, binary, checked.

A frame is a header and a payload, all numbers little-endian:

    offset  size  what
    0       4     magic, b"TKS1"; the digit is the protocol's version
    4       1     kind, a member of `Kind`
    5       3     zero
    8       4     length of the payload in bytes
    12      4     CRC-32 of bytes 0 to 11 and the payload

The host sends a request and waits for its one answer, DONE or FAILED; the simulation stands
still from that to the next. While a run goes on it says ALIVE from time to time. A burst is one
frame: a whole coupling matrix, or all the ranges of a read-out. What is damaged raises
`ProtocolError`, which says what was expected and what came; the stream cannot be trusted after
that, and is closed.
"""

from __future__ import annotations

import json
import socket
import struct
import time
import zlib
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thermokron.model import Job

__all__ = ["Channel", "Kind", "ProtocolError"]

MAGIC = b"TKS1"
HEADER = struct.Struct("<4sB3sII")
CHECKED = 12  # bytes of the header that the CRC covers: all but itself
MAX_PAYLOAD = 1 << 26
#: Seconds that a read waits at a time, so that time in which this process is stopped counts little.
SLICE_S = 0.5
#: A WAIT looks for the host every so many clock cycles, and may then say that it goes on.
HOST_CHECK_CYCLES = 2_000


class Kind(IntEnum):
    """Kinds of frames, with their payloads."""

    #: address u32, words u32 …: write them to consecutive word addresses.
    WRITE = 1
    #: (address u32, count u32) …: read these ranges of words. DONE carries the words, u32 each.
    READ = 2
    #: cycles u64: let time pass until the interrupt line is high, or so many cycles have passed.
    #: DONE carries u64, u64: whether the line is high, and the cycles that passed.
    WAIT = 3
    #: nothing: reset the unit.
    RESET = 4
    #: stream u64 and a job (`pack_job`): what the next run is, and the number of its first
    #: discharge.
    EXPECT = 5
    #: JSON: how the front end is to misbehave (the fields of `FrontEndFlaws`).
    FLAWS = 6
    #: nothing. DONE carries JSON: what the simulation knows of itself.
    INFO = 7
    #: nothing: end the simulation.
    CLOSE = 8
    #: stream u32 and bytes: queue a packet for a stream into the unit (`Into`).
    SEND = 9
    #: stream u64: let time pass until the unit has taken all that was sent to that stream.
    DELIVER = 10
    #: count u64. DONE carries the packet of so many bytes that has come from the stream of results.
    TAKE = 11
    #: nothing: drop packets that have not begun, deliver the others, forget what has come.
    FLUSH = 12
    #: Answer: it is done.
    DONE = 16
    #: Answer, JSON {"error", "message"}: it is not.
    FAILED = 17
    #: No answer yet, cycles u64: so many have passed of a WAIT that goes on.
    ALIVE = 18


class ProtocolError(ConnectionError):
    """What came over the connection is not a frame, or not the one that was due."""


class Channel:
    """One end of a connection that carries frames.

    Parameters
    ----------
    connection : socket.socket
        A connected stream socket; the channel owns it.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = bytearray()
        self._timeout_s: float | None = None

    def send(self, kind: Kind, payload: bytes = b"", *, timeout_s: float | None = None) -> None:
        """Send one frame.

        Raises
        ------
        ConnectionError
            If the other end is gone.
        TimeoutError
            If it takes nothing for so long.
        """
        if len(payload) > MAX_PAYLOAD:
            raise ValueError(f"payload of {len(payload)} bytes; legal: 0 to {MAX_PAYLOAD}")
        head = HEADER.pack(MAGIC, kind, bytes(3), len(payload), 0)[:CHECKED]
        check = zlib.crc32(payload, zlib.crc32(head))
        self._socket.settimeout(timeout_s)
        self._socket.sendall(b"".join((head, struct.pack("<I", check), payload)))

    def receive(self, *, timeout_s: float | None = None) -> tuple[Kind, bytes]:
        """The next frame.

        Raises
        ------
        TimeoutError
            If nothing comes for so long, while this process runs.
        EOFError
            If the other end has closed the connection between two frames.
        ProtocolError
            If what came is damaged, or ends within a frame.
        """
        self._timeout_s = timeout_s
        header = self._take(HEADER.size, "a header")
        magic, kind, zero, length, check = HEADER.unpack(header)
        if magic != MAGIC:
            raise ProtocolError(f"a frame begins with {magic!r}; expected {MAGIC!r}")
        if length > MAX_PAYLOAD:
            raise ProtocolError(f"a payload of {length} bytes; legal: 0 to {MAX_PAYLOAD}")
        payload = self._take(length, f"a payload of {length} bytes")
        found = zlib.crc32(payload, zlib.crc32(header[:CHECKED]))
        if found != check:
            raise ProtocolError(
                f"a frame of {length} bytes has CRC {found:#010x}, not {check:#010x}"
            )
        if zero != bytes(3) or kind not in Kind.__members__.values():
            raise ProtocolError(f"a frame of unknown kind {kind}")
        return Kind(kind), payload

    def _take(self, count: int, what: str) -> bytes:
        buffer = self._buffer
        while len(buffer) < count:
            try:
                chunk = self._chunk()
            except ConnectionResetError:
                chunk = b""
            if not chunk:
                if not buffer and what == "a header":
                    raise EOFError("the other end closed the connection")
                raise ProtocolError(f"the connection ended within {what}: {len(buffer)} bytes came")
            buffer += chunk
        taken = bytes(buffer[:count])
        del buffer[:count]
        return taken

    def _chunk(self) -> bytes:
        if (left_s := self._timeout_s) is None:
            self._socket.settimeout(None)  # a simulation's own code reads it too, and waits
            return self._socket.recv(1 << 16)
        while True:
            slice_s = min(left_s, SLICE_S)
            begin = time.monotonic()
            self._socket.settimeout(slice_s)
            try:
                return self._socket.recv(1 << 16)
            except TimeoutError:
                # one that took longer says that this process was stopped, and the other, perhaps
                if time.monotonic() - begin < 2.0 * SLICE_S:
                    left_s -= slice_s
                if left_s <= 0.0:
                    raise

    def ended(self) -> bool:
        """Whether the other end has closed the connection; does not wait."""
        try:
            return self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except ConnectionError:
            return True

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        self._socket.close()


# ---- payloads ---------------------------------------------------------------------------


def pack_write(address: int, words: ArrayLike) -> bytes:
    """Payload of WRITE: `words` are any integers of 32 bits, signed or not."""
    return struct.pack("<I", address) + np.asarray(words).astype("<u4").tobytes()


def unpack_write(payload: bytes) -> tuple[int, NDArray[np.uint32]]:
    """Address and words of WRITE."""
    if len(payload) < 8 or len(payload) % 4:
        raise ProtocolError(f"a write of {len(payload)} bytes; expected an address and words")
    words = np.frombuffer(payload, "<u4").astype(np.uint32)
    return int(words[0]), words[1:]


def pack_read(ranges: ArrayLike) -> bytes:
    """Payload of READ: (address, count of words) of each range."""
    return np.asarray(ranges, "<u4").tobytes()


def unpack_read(payload: bytes) -> NDArray[np.uint32]:
    """The ranges of READ."""
    if not payload or len(payload) % 8:
        raise ProtocolError(f"a read of {len(payload)} bytes; expected pairs of address and count")
    return np.frombuffer(payload, "<u4").reshape(-1, 2).astype(np.uint32)


def pack_words(words: ArrayLike) -> bytes:
    """Payload of the answer to READ."""
    return np.asarray(words, "<u4").tobytes()


def unpack_words(payload: bytes) -> NDArray[np.uint32]:
    """The words of the answer to READ."""
    if len(payload) % 4:
        raise ProtocolError(f"an answer of {len(payload)} bytes; expected words")
    return np.frombuffer(payload, "<u4").astype(np.uint32)


def pack_numbers(*values: int) -> bytes:
    """Payload of WAIT, DELIVER, TAKE, and WAIT's answers: 64-bit unsigned numbers."""
    return struct.pack(f"<{len(values)}Q", *values)


def unpack_numbers(payload: bytes, count: int) -> tuple[int, ...]:
    """The numbers of WAIT, DELIVER, TAKE, and WAIT's answers."""
    if len(payload) != 8 * count:
        raise ProtocolError(f"a payload of {len(payload)} bytes; expected {count} numbers")
    return struct.unpack(f"<{count}Q", payload)


def pack_send(stream: int, packet: bytes) -> bytes:
    """Payload of SEND."""
    return struct.pack("<I", stream) + packet


def unpack_send(payload: bytes) -> tuple[int, bytes]:
    """Stream and packet of SEND."""
    if len(payload) < 5:
        raise ProtocolError(f"a packet of {len(payload)} bytes; expected a stream and data")
    return int.from_bytes(payload[:4], "little"), payload[4:]


#: The numbers of a job in its payload.
NUMBERS = ("settle_cycles", "interval_cycles", "samples", "temperature")


def pack_job(stream: int, job: Job) -> bytes:
    """Payload of EXPECT: numbers u64, then couplings and biases, i32 each."""
    vectors, n = job.biases.shape
    numbers = (stream, *(getattr(job, name) for name in NUMBERS), job.second_moments, vectors, n)
    codes = (job.couplings.astype("<i4").tobytes(), job.biases.astype("<i4").tobytes())
    return b"".join((pack_numbers(*numbers), *codes))


def unpack_job(payload: bytes) -> tuple[int, Job]:
    """Stream and job of EXPECT."""
    head = 8 * (4 + len(NUMBERS))
    stream, *rest = unpack_numbers(payload[:head], head // 8)
    *numbers, second_moments, vectors, n = rest
    codes = np.frombuffer(payload[head:], "<i4").astype(np.int32)
    if len(codes) != n * (n + vectors):
        raise ProtocolError(f"a job of {len(codes)} codes; expected {n * (n + vectors)}")
    return stream, Job(
        couplings=codes[: n * n].reshape(n, n),
        biases=codes[n * n :].reshape(vectors, n),
        second_moments=bool(second_moments),
        **dict(zip(NUMBERS, numbers, strict=True)),
    )


def pack_json(values: dict[str, Any]) -> bytes:
    """Payload of FLAWS, FAILED and the answer to INFO."""
    return json.dumps(values).encode()


def unpack_json(payload: bytes) -> dict[str, Any]:
    """The object in FLAWS, FAILED or the answer to INFO."""
    try:
        values = json.loads(payload)
    except ValueError as error:
        raise ProtocolError(f"a payload is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ProtocolError(f"a payload holds {type(values).__name__}; expected an object")
    return values
