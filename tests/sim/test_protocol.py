"""The framed protocol: what is sent arrives, and what is damaged is noticed and named."""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from thermokron.model import Job
from thermokron.sim import protocol
from thermokron.sim.protocol import HEADER, MAX_PAYLOAD, Channel, Kind, ProtocolError


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        left.settimeout(10)
        right.settimeout(10)
        yield left, right


def frame(kind: Kind, payload: bytes) -> bytes:
    """The bytes of a frame, as a channel sends them."""
    left, right = socket.socketpair()
    with left, right:
        Channel(left).send(kind, payload)
        left.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: right.recv(1 << 16), b""))


def test_frames_arrive_as_they_were_sent(ends: tuple[socket.socket, socket.socket]) -> None:
    rng = random.Random(1)
    sent = [(rng.choice(list(Kind)), rng.randbytes(rng.choice([0, 1, 7, 64, 5000])))
            for _ in range(200)]  # fmt: skip
    sent.append((Kind.WRITE, rng.randbytes(1 << 20)))  # more than the socket holds at once
    channel = Channel(ends[0])
    sender = threading.Thread(target=lambda: [channel.send(k, p) for k, p in sent])
    sender.start()
    receiver = Channel(ends[1])
    assert [receiver.receive() for _ in sent] == sent
    sender.join()


def test_a_frame_may_come_in_pieces(ends: tuple[socket.socket, socket.socket]) -> None:
    data = frame(Kind.READ, b"12345678") + frame(Kind.DONE, b"")

    def dribble() -> None:
        for byte in data:
            ends[0].sendall(bytes([byte]))

    threading.Thread(target=dribble).start()
    receiver = Channel(ends[1])
    assert receiver.receive() == (Kind.READ, b"12345678")
    assert receiver.receive() == (Kind.DONE, b"")


def test_every_damaged_bit_is_noticed() -> None:
    data = frame(Kind.WRITE, b"\x00\x01\x00\x00some words..")
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << (bit % 8)
        left, right = socket.socketpair()
        with left, right:
            left.sendall(damaged)
            left.shutdown(socket.SHUT_WR)
            with pytest.raises(ProtocolError):
                Channel(right).receive()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"HTTP/1.1 200 OK\r\n", r"begins with b'HTTP'; expected b'TKS1'"),
        (frame(Kind.READ, b"12345678")[:-3], r"ended within a payload of 8 bytes: 5 bytes came"),
        (frame(Kind.READ, b"")[:9], r"ended within a header: 9 bytes came"),
        (HEADER.pack(b"TKS1", 1, bytes(3), MAX_PAYLOAD + 1, 0), rf"legal: 0 to {MAX_PAYLOAD}"),
        (HEADER.pack(b"TKS1", 99, bytes(3), 0, 0x89B60D61), "CRC"),
    ],
)
def test_damage_is_named(
    ends: tuple[socket.socket, socket.socket], data: bytes, message: str
) -> None:
    ends[0].sendall(data)
    ends[0].shutdown(socket.SHUT_WR)
    with pytest.raises(ProtocolError, match=message):
        Channel(ends[1]).receive()


def test_the_other_end_closing_between_frames_is_no_damage(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ends[0].close()
    with pytest.raises(EOFError, match="closed the connection"):
        Channel(ends[1]).receive()


def test_a_payload_beyond_the_limit_is_refused(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    with pytest.raises(ValueError, match=rf"legal: 0 to {MAX_PAYLOAD}"):
        Channel(ends[0]).send(Kind.WRITE, bytes(MAX_PAYLOAD + 1))


def test_payloads_round_trip() -> None:
    words = np.array([-1, 0, 1, -(2**31), 2**31 - 1, 2**32 - 1])
    address, found = protocol.unpack_write(protocol.pack_write(0x1C0, words))
    assert (address, found.tolist()) == (0x1C0, [int(w) & 0xFFFFFFFF for w in words])
    ranges = [[0x100, 1], [0xC0000, 4096]]
    assert protocol.unpack_read(protocol.pack_read(ranges)).tolist() == ranges
    assert protocol.unpack_send(protocol.pack_send(1, b"packet..")) == (1, b"packet..")
    job = Job(
        couplings=np.array([[3, -1], [-1, 2]]),
        biases=np.array([[-7, 5], [0, 1], [2, -2]]),
        temperature=9,
        settle_cycles=2**32 - 1,
        interval_cycles=2**24,
        samples=2**20,
        second_moments=False,
    )
    assert protocol.unpack_job(protocol.pack_job(2**63 - 1, job)) == (2**63 - 1, job)
    answer = protocol.unpack_words(protocol.pack_words([0, 2**32 - 1]))
    assert answer.dtype == np.uint32
    assert answer.tolist() == [0, 2**32 - 1]
    assert protocol.unpack_numbers(protocol.pack_numbers(0, 2**64 - 1), 2) == (0, 2**64 - 1)
    assert protocol.unpack_json(protocol.pack_json({"a": [1, "x"]})) == {"a": [1, "x"]}


@pytest.mark.parametrize(
    ("unpack", "payload"),
    [
        (protocol.unpack_write, b"1234"),
        (protocol.unpack_write, b"123456789"),
        (protocol.unpack_send, b"1234"),
        (protocol.unpack_read, b""),
        (protocol.unpack_read, b"1234"),
        (protocol.unpack_words, b"123"),
        (lambda p: protocol.unpack_numbers(p, 2), struct.pack("<Q", 1)),
        (protocol.unpack_json, b"{"),
        (protocol.unpack_json, b"[1]"),
    ],
)
def test_payloads_of_a_wrong_shape_are_named(unpack, payload) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ProtocolError, match=r"expected|not JSON"):
        unpack(payload)
