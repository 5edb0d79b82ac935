"""The player against a unit without logic, whose pins do what a test says (`scripted.cpp`)."""

from __future__ import annotations

import ctypes
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from ctypes import c_bool, c_uint32
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import thermokron.sim.player
from thermokron.sim import FrontEndFlaws
from thermokron.sim.player import Event, Into, Player

CELLS, BITS = 5, 12


class Outputs(ctypes.Structure):
    """As in `pins.h`."""

    _fields_ = [
        *((name, c_bool) for name in ("awready", "wready", "bvalid", "arready", "rvalid", "irq")),
        *((name, c_bool) for name in ("dac_valid", "bias_valid", "bias_load", "discharge")),
        *((name, c_bool) for name in ("convst", "couplings_tready", "biases_tready")),
        *((name, c_bool) for name in ("results_tvalid", "results_tlast")),
        *((name, c_uint32) for name in ("bresp", "rdata", "rresp")),
    ]


class Codes(ctypes.Structure):
    """As in `pins.h`."""

    _fields_ = [("row", c_uint32), ("first", c_uint32), ("enable", c_uint32),
                ("codes", c_uint32 * 8)]  # fmt: skip


class Inputs(ctypes.Structure):
    """As in `scripted.cpp`."""

    _fields_ = [
        *((name, c_bool) for name in ("rst", "dac_ready", "bias_ready", "drdy", "results_tready")),
        ("tvalid", c_bool * 2),
        ("tlast", c_bool * 2),
        ("tdata", c_uint32 * 4 * 2),
        ("adc_data", c_uint32 * 4),
    ]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if not shutil.which("g++"):
        pytest.skip("g++ is not installed")
    path = tmp_path_factory.mktemp("scripted") / "unit.so"
    headers = Path(thermokron.sim.player.__file__).parent
    command = ["g++", "-std=c++20", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-I"]
    source = Path(__file__).with_name("scripted.cpp")
    subprocess.run([*command, str(headers), "-o", str(path), str(source)], check=True)
    found = ctypes.CDLL(str(path))
    for name, kind in (("open", ctypes.c_void_p), ("outputs", ctypes.POINTER(Outputs)),
                       ("couplings", ctypes.POINTER(Codes)), ("biases", ctypes.POINTER(Codes)),
                       ("result", ctypes.POINTER(c_uint32)),
                       ("inputs", ctypes.POINTER(Inputs))):  # fmt: skip
        getattr(found, f"scripted_{name}").restype = kind
    return found


class Scripted:
    """One such unit, in discharge after a reset, and its player."""

    def __init__(self, library: ctypes.CDLL, lanes: int = 1, stream_bits: int = 64) -> None:
        self.lanes, self.beat = lanes, stream_bits // 8
        self._library = library
        unit = library.scripted_open(CELLS, BITS, lanes, stream_bits)
        self._unit = ctypes.c_void_p(unit)
        self.player = Player(library, unit, CELLS)
        for name in ("outputs", "couplings", "biases", "inputs"):
            setattr(self, name, getattr(library, f"scripted_{name}")(self._unit).contents)
        self.result = library.scripted_result(self._unit)
        self.outputs: Outputs
        self.inputs: Inputs
        self.outputs.discharge = True
        self.player.reset()
        while self.player.event is Event.NONE:
            self.edge()
        assert not self.inputs.rst

    def close(self) -> None:
        self._library.scripted_close(self._unit)

    def edge(self, **outputs: bool) -> Event:
        """One more clock edge, after which outputs are as before but for these."""
        for name, value in outputs.items():
            setattr(self.outputs, name, value)
        self._library.scripted_edge(self._unit)
        return self.player.event

    def offer(
        self, kind: str, first: int, codes: list[int], row: int = 0, enable: int = -1
    ) -> None:
        """Codes for the lanes from `first` on, which the next edge brings to the DACs."""
        pins = getattr(self, kind)
        packed = sum((code & (1 << BITS) - 1) << BITS * lane for lane, code in enumerate(codes))
        pins.row, pins.first = row, first
        pins.enable = (1 << self.lanes) - 1 & enable
        for word in range(8):
            pins.codes[word] = packed >> 32 * word & 0xFFFFFFFF
        name = "dac_valid" if kind == "couplings" else "bias_valid"
        self.edge(**{name: True})
        self.edge(**{name: False})

    def blocks(self, begin: int = 0) -> Iterator[tuple[int, int]]:
        """First cell and enabled lanes of the words that hold the cells from `begin` on."""
        for first in range(begin // self.lanes * self.lanes, CELLS, self.lanes):
            cells = range(first, first + self.lanes)
            yield first, sum(1 << i for i, cell in enumerate(cells) if begin <= cell < CELLS)

    def write_couplings(self, codes: np.ndarray) -> None:
        padded = np.pad(codes, ((0, 0), (0, 16)), constant_values=-1)
        for row in range(CELLS):
            for first, enable in self.blocks(row):
                lanes = padded[row, first : first + self.lanes].tolist()
                self.offer("couplings", first, lanes, row, enable)

    def write_biases(self, codes: np.ndarray) -> None:
        padded = np.pad(codes, (0, 16), constant_values=-1)
        for first, enable in self.blocks():
            self.offer("biases", first, padded[first : first + self.lanes].tolist(), 0, enable)

    def load(self) -> Event:
        self.edge(bias_load=True)
        return self.edge(bias_load=False)

    def release(self, settle: int = 4, interval: int = 9) -> Event:
        """All DACs written, and the array let go; up to the edge before its first sample."""
        rng = np.random.default_rng(1)
        self.write_couplings(random_couplings(rng))
        self.write_biases(rng.integers(-2047, 2048, CELLS))
        self.load()
        self.player.expect(settle, interval, 0)
        assert self.edge(discharge=False) is Event.RELEASED
        self.player.supply(np.arange(5 * CELLS, dtype=np.int32).reshape(5, CELLS), None)
        for _ in range(settle - 1):
            self.edge()
        return self.player.event


@pytest.fixture
def scripted(library: ctypes.CDLL) -> Iterator[Callable[..., Scripted]]:
    made: list[Scripted] = []

    def make(**sizes: Any) -> Scripted:
        made.append(Scripted(library, **sizes))
        return made[-1]

    yield make
    for unit in made:
        unit.close()


def random_couplings(rng: np.random.Generator) -> np.ndarray:
    upper = np.triu(rng.integers(-2047, 2048, (CELLS, CELLS)))
    return upper + np.triu(upper, 1).T


# ---- DACs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 16])
def test_codes_reach_the_dacs_of_their_lanes(scripted, lanes: int) -> None:
    unit, rng = scripted(lanes=lanes), np.random.default_rng(lanes)
    couplings, biases = random_couplings(rng), rng.integers(-2047, 2048, (2, CELLS))
    unit.write_couplings(couplings)
    unit.write_biases(biases[0])
    assert not unit.player.biases.any()  # they wait for the load
    unit.load()
    unit.player.expect(4, 9, 0)
    assert unit.edge(discharge=False) is Event.RELEASED
    unit.player.supply(np.zeros((1, CELLS), np.int32), None)
    unit.write_biases(biases[1])  # while the array settles
    assert unit.player.couplings.tolist() == couplings.tolist()
    assert unit.player.biases.tolist() == biases[0].tolist()
    unit.edge(discharge=True)
    unit.load()
    assert unit.player.biases.tolist() == biases[1].tolist()
    assert unit.player.event is not Event.FAILED


def test_a_code_that_comes_with_the_load_is_the_next_vectors(scripted) -> None:
    unit = scripted()
    unit.write_biases(np.arange(CELLS))
    unit.edge(bias_load=True, bias_valid=True)  # cell 4 is on the pins still
    unit.biases.codes[0] = 99
    unit.edge(bias_load=True, bias_valid=False)
    assert unit.player.biases.tolist() == list(range(CELLS))
    unit.edge(bias_load=False)
    assert unit.player.event is Event.FAILED
    assert "with 4 codes not written" in unit.player.error


def _write_late(unit: Scripted) -> None:
    unit.release()
    unit.offer("couplings", 0, [1])


def _load_late(unit: Scripted) -> None:
    unit.release()
    unit.write_biases(np.arange(CELLS))
    unit.load()


def _load_half(unit: Scripted) -> None:
    unit.offer("biases", 0, [1, 2])
    unit.load()


def _load_twice(unit: Scripted) -> None:
    unit.write_biases(np.arange(CELLS))
    unit.load()
    unit.load()


def _release_unloaded(unit: Scripted) -> None:
    unit.write_couplings(np.eye(CELLS, dtype=int))
    unit.write_biases(np.arange(CELLS))
    unit.player.expect(4, 9, 0)
    unit.edge(discharge=False)


def _release_half(unit: Scripted) -> None:
    unit.write_biases(np.arange(CELLS))
    unit.load()
    unit.offer("couplings", 0, [1, 2])
    unit.player.expect(4, 9, 0)
    unit.edge(discharge=False)


def _strobe_discharged(unit: Scripted) -> None:
    unit.release()
    unit.edge(discharge=True)
    unit.edge(convst=True)


@pytest.mark.parametrize(
    ("lanes", "drive", "message"),
    [
        (1, _write_late, "a coupling DAC was written after discharge"),
        (1, _load_late, "bias DACs were loaded after discharge"),
        (2, _load_half, "bias DACs were loaded with 3 codes not written since the last load"),
        (4, _load_twice, "bias DACs were loaded with 5 codes not written since the last load"),
        (1, _release_unloaded, "discharge was released, and the bias DACs were never loaded"),
        (2, _release_half, "discharge was released with 13 coupling DACs never written"),
        (1, _strobe_discharged, "CONVST rose while the array was discharged"),
        (1, lambda u: u.edge(discharge=False), "discharge was released, but no run is expected"),
        (2, lambda u: u.offer("couplings", 0, [1, 2], 1), r"coupling DAC (1, 0) does not exist"),
        (2, lambda u: u.offer("couplings", 4, [1, 2], 1), r"coupling DAC (1, 5) does not exist"),
        (1, lambda u: u.offer("couplings", 2, [1], 3), r"coupling DAC (3, 2) does not exist"),
        (8, lambda u: u.offer("biases", 0, [0] * 8), "bias DAC 5 does not exist"),
        (4, lambda u: u.offer("biases", 2, [0] * 4), "from 2 on, which is no multiple of their 4"),
        (4, lambda u: u.offer("couplings", 1, [0] * 4), "coupling DACs were written from 1 on"),
    ],
)
def test_what_a_unit_must_not_do_is_named(
    scripted, lanes: int, drive: Callable[[Scripted], None], message: str
) -> None:
    unit = scripted(lanes=lanes)
    drive(unit)
    assert unit.player.event is Event.FAILED
    assert message in unit.player.error
    assert unit.player.error.startswith("at ")
    unit.player.reset()
    unit.edge(discharge=True, convst=False, bias_load=False)
    assert unit.player.event is not Event.FAILED


def test_a_reset_forgets_codes_that_were_not_loaded(scripted) -> None:
    unit = scripted()
    unit.write_biases(np.arange(CELLS))
    unit.player.reset()
    while unit.player.event is Event.NONE:
        unit.edge()
    unit.load()
    assert "with 5 codes not written" in unit.player.error


# ---- ADCs --------------------------------------------------------------------------------------


def test_a_conversion_goes_on_when_the_cells_are_discharged(scripted) -> None:
    unit = scripted()
    unit.player.misbehave(FrontEndFlaws(latency_cycles=40, seed=11))
    unit.release()
    unit.edge(convst=True)
    assert not unit.inputs.drdy
    waited = 0
    while not unit.inputs.drdy:
        assert unit.edge(discharge=True) is not Event.FAILED
        waited += 1
    assert waited > 2  # the draw of this seed
    packed = sum(int(unit.inputs.adc_data[i]) << 32 * i for i in range(2))
    assert [packed >> BITS * i & 0xFFF for i in range(CELLS)] == list(range(CELLS))
    unit.edge(convst=False)
    assert not unit.inputs.drdy


def test_a_conversion_that_is_given_up_does_not_answer(scripted) -> None:
    unit = scripted()
    unit.player.misbehave(FrontEndFlaws(latency_cycles=40, seed=11))
    unit.release()
    unit.edge(convst=True)
    unit.edge(convst=False, discharge=True)
    for _ in range(50):
        unit.edge()
        assert not unit.inputs.drdy


# ---- streams into the unit ---------------------------------------------------------------------


class Taker:
    """Takes beats where a unit would, and watches whether one stays until it is taken."""

    def __init__(self, unit: Scripted, stream: Into) -> None:
        self.unit, self.stream = unit, stream
        self.packets: list[bytes] = []
        self._open = b""
        self._waits: tuple[bytes, bool] | None = None  # a beat that was not taken

    def look(self) -> None:
        """At the beat that the next edge takes, if the unit is ready for it."""
        inputs, s = self.unit.inputs, int(self.stream)
        ready = getattr(self.unit.outputs, f"{self.stream.name.lower()}_tready")
        beat = bytes(inputs.tdata[s])[: self.unit.beat], bool(inputs.tlast[s])
        if self._waits is not None:
            assert inputs.tvalid[s], "a beat was withdrawn before it was taken"
            assert beat == self._waits, "a beat changed before it was taken"
        self._waits = beat if inputs.tvalid[s] and not ready else None
        if inputs.tvalid[s] and ready:
            self._open += beat[0]
            if beat[1]:
                self.packets.append(self._open)
                self._open = b""


@pytest.mark.parametrize("stall", [None, 0.8])
@pytest.mark.parametrize("stream_bits", [32, 64, 128])
def test_packets_arrive_as_they_were_sent(scripted, stream_bits: int, stall: float | None) -> None:
    rng = random.Random(stream_bits)
    unit = scripted(stream_bits=stream_bits)
    unit.player.misbehave(FrontEndFlaws(stream_stall=stall, seed=4))
    sent: dict[Into, list[bytes]] = {stream: [] for stream in Into}
    takers = [Taker(unit, stream) for stream in Into]
    held_back = 0
    for cycle in range(4000):
        for stream in Into:
            if cycle < 1000 and rng.random() < 0.02:
                sent[stream].append(rng.randbytes(unit.beat * rng.randrange(1, 9)))
                unit.player.send(stream, sent[stream][-1])
        for taker in takers:
            taker.look()
        unit.edge(couplings_tready=rng.random() < 0.7, biases_tready=rng.random() < 0.7)
        waiting = len(takers[0].packets) < len(sent[Into.COUPLINGS])
        held_back += waiting and not unit.inputs.tvalid[Into.COUPLINGS]
    assert sum(map(len, sent.values())) > 20
    assert {taker.stream: taker.packets for taker in takers} == sent
    assert bool(held_back) == bool(stall)


def test_delivered_is_when_the_last_beat_has_been_taken(scripted) -> None:
    unit = scripted()
    unit.player.deliver(Into.BIASES)
    assert unit.player.event is Event.DONE  # there is nothing
    unit.player.send(Into.COUPLINGS, bytes(8))
    unit.player.send(Into.BIASES, bytes(16))
    unit.player.deliver(Into.BIASES)
    assert unit.edge(biases_tready=True) is Event.NONE
    assert unit.edge() is Event.NONE  # took the first beat
    assert unit.edge() is Event.DONE
    assert not unit.inputs.tvalid[Into.BIASES]
    assert unit.inputs.tvalid[Into.COUPLINGS]


def test_a_stream_that_is_not_taken_is_given_up_and_flushed(scripted) -> None:
    unit = scripted()
    unit.player.send(Into.COUPLINGS, bytes(8))
    unit.player.deliver(Into.COUPLINGS)
    assert [unit.edge() for _ in range(1000)] == [Event.NONE] * 1000
    assert Event.SILENT in [unit.edge() for _ in range(100)]
    unit.player.flush()
    assert not unit.inputs.tvalid[Into.COUPLINGS]
    assert unit.edge() is Event.DONE


def test_a_flush_sends_on_what_has_begun_and_forgets_what_has_come(scripted) -> None:
    unit = scripted()
    taker = Taker(unit, Into.BIASES)
    unit.player.send(Into.COUPLINGS, bytes(8))
    for packet in (bytes(range(24)), bytes(8)):
        unit.player.send(Into.BIASES, packet)
    for _ in range(2):
        unit.edge(biases_tready=True, results_tvalid=True, results_tlast=True)
        taker.look()
    unit.player.flush()
    assert not unit.inputs.tvalid[Into.COUPLINGS]
    for _ in range(9):
        assert unit.edge() is Event.NONE  # there are results still
        taker.look()
    assert taker.packets == [bytes(range(24))]  # the second one never begins
    assert unit.edge(results_tvalid=False) is Event.DONE
    assert unit.player.take() == (b"", [])
    # unless the unit waits for it: a run was ended that had not got its biases yet
    for packet in (bytes(8), bytes(16)):
        unit.player.send(Into.BIASES, packet)
    unit.player.flush()
    while unit.player.event is Event.NONE:
        taker.look()
        unit.edge()
    assert taker.packets == [bytes(range(24)), bytes(8)]
    # one that is stuck in the midst is dropped after all
    unit.player.send(Into.BIASES, bytes(24))
    unit.edge(biases_tready=True)
    unit.edge(biases_tready=False)
    unit.player.flush()
    for _ in range(1100):
        unit.edge()
    assert unit.player.event is Event.SILENT
    assert not unit.inputs.tvalid[Into.BIASES]


# ---- results -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stall", [None, 0.6])
@pytest.mark.parametrize("stream_bits", [32, 64, 128])
def test_results_are_what_was_taken(scripted, stream_bits: int, stall: float | None) -> None:
    rng = random.Random(stream_bits)
    unit = scripted(stream_bits=stream_bits)
    unit.player.misbehave(FrontEndFlaws(stream_stall=stall, seed=4))
    due = [(rng.randbytes(unit.beat), rng.random() < 0.3) for _ in range(60)]
    left, paused = list(due), 0
    while left:
        valid = bool(unit.outputs.results_tvalid) or rng.random() < 0.5
        for word in range(unit.beat // 4):
            unit.result[word] = int.from_bytes(left[0][0][4 * word : 4 * word + 4], "little")
        unit.edge(results_tvalid=valid, results_tlast=left[0][1])
        paused += not unit.inputs.results_tready
        if valid and unit.inputs.results_tready:  # the next edge takes it
            del left[0]
            unit.outputs.results_tvalid = False
            unit.edge() if not left else None
    received, ends = unit.player.take()
    assert received == b"".join(beat for beat, _ in due)
    assert ends == [unit.beat * (i + 1) for i, (_, last) in enumerate(due) if last]
    assert unit.player.take() == (b"", [])
    assert bool(paused) == bool(stall)


def test_a_reset_empties_the_streams(scripted) -> None:
    unit = scripted()
    for stream in Into:
        unit.player.send(stream, bytes(16))
    unit.edge(results_tvalid=True, couplings_tready=True)
    unit.player.reset()
    while unit.player.event is Event.NONE:
        unit.edge(results_tvalid=False)
        assert not any(unit.inputs.tvalid)
    assert unit.player.take() == (b"", [])


def test_a_unit_without_streams_has_nothing_of_them(scripted) -> None:
    unit = scripted(stream_bits=0)
    unit.player.flush()
    assert unit.player.event is Event.DONE
    unit.player.misbehave(FrontEndFlaws(stream_stall=0.9))
    unit.edge()
    assert not unit.inputs.results_tready
