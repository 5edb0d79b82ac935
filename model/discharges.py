"""Discharges side by side, and what their samples are, stretch by stretch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thermokron.model.array import NoiseArray
from thermokron.model.chain import CHUNK, Chain
from thermokron.model.converters import AnalogToDigital
from thermokron.model.discretisation import relaxation
from thermokron.model.normals import ALIGNMENT, Normals
from thermokron.model.threads import single_threaded_blas

__all__ = [
    "BLOCKS",
    "JITTER",
    "SETTLING",
    "THERMAL",
    "Discharges",
    "Room",
    "Stretch",
    "alone",
    "blocks_of",
    "first_of",
    "in_time",
    "room",
    "wipe",
]

#: Chunks of a block: their length and how many. The first sample is a discharge's own; then come
#: as few as may be asked for, and more each time. The last one goes on for ever.
CHUNKS = ((1, 1), (CHUNK - 1, 1), (CHUNK, 7), (CHUNK, 56), (CHUNK, 64))
#: Samples by block. After the last, all are as long as it and those before it together.
BLOCKS = tuple(length * count for length, count in CHUNKS[:-1])
#: Samples before each of these blocks, and before the first of those that are alike.
_FIRST = (0, *accumulate(BLOCKS))
#: Rows of a product that the first samples of as many streams share. BLAS results depend on its
#: shape, so that is fixed, and so is a stream's place in it: its number modulo how many share.
ROWS = 32
#: Rooms that are kept for the next who needs one, and the numbers in a buffer of theirs.
ROOMS_KEPT, NUMBERS_KEPT = 8, 2**19

# What a generator is for.
THERMAL, CONVERSION, JITTER, SETTLING = range(4)

Floats = NDArray[np.float64]


def first_of(block: int) -> int:
    """How many samples come before a block."""
    alike = len(BLOCKS)
    return _FIRST[block] if block < alike else _FIRST[alike] * (block - alike + 1)


def blocks_of(samples: int) -> int:
    """How many blocks so many samples take."""
    if samples > _FIRST[-1]:
        return len(BLOCKS) + -(-samples // _FIRST[-1]) - 1
    return next(block for block, first in enumerate(_FIRST) if samples <= first)


def in_time(steps: Floats, block: int) -> Floats:
    """A block's samples, (K, rows, n), in the order of time."""
    length, count = CHUNKS[min(block, len(BLOCKS))]
    vectors, rows, n = steps.shape
    return steps.reshape(vectors, length, count, n).swapaxes(1, 2).reshape(vectors, rows, n)


class Stretch(NamedTuple):
    """Consecutive blocks of some bias vectors."""

    vectors: slice
    begin: int
    end: int

    @property
    def first(self) -> int:
        """Its first sample."""
        return first_of(self.begin)

    @property
    def rows(self) -> int:
        """How many samples it has."""
        return first_of(self.end) - self.first

    @property
    def runs(self) -> list[tuple[slice, tuple[int, int, int]]]:
        """Rows of blocks of one shape: how many blocks, the length of a chunk, a block's chunks."""
        return _runs(self.begin, self.end)


@lru_cache(maxsize=64)
def _runs(begin: int, end: int) -> list[tuple[slice, tuple[int, int, int]]]:
    alike, first = len(BLOCKS), first_of(begin)
    bounds = [(block, block + 1) for block in range(begin, min(end, alike))]
    if end > alike:
        bounds.append((max(begin, alike), end))
    return [
        (slice(first_of(a) - first, first_of(b) - first), (b - a, *CHUNKS[min(a, alike)]))
        for a, b in bounds
    ]


def wipe(stretch: Stretch, steps: Floats, samples: int) -> None:
    """Set rows of (K, rows, n) to zero that are not of the first samples, in the last block."""
    if first_of(stretch.end) <= samples:
        return
    block = stretch.end - 1
    begin, (length, count) = first_of(block), CHUNKS[min(block, len(BLOCKS))]
    chunk, within = divmod(samples - begin, length)
    vectors, _, n = steps.shape
    of_block = steps[:, begin - stretch.first :].reshape(vectors, length, count, n)
    of_block[:, within:, chunk] = 0.0
    of_block[:, :, chunk + 1 :] = 0.0


class Room:
    """What a thread needs to work in: a generator, and buffers that are used again."""

    def __init__(self) -> None:
        self.normals = Normals()
        self._buffers = [np.empty(0)] * 3

    @property
    def size(self) -> int:
        """Numbers in the larger buffer."""
        return max(buffer.size for buffer in self._buffers)

    def buffer(self, number: int, vectors: int, count: int) -> Floats:
        """One of the three, (vectors, count), with whatever is in it."""
        size = vectors * count
        if self._buffers[number].size < size:
            self._buffers[number] = np.empty(size)
        return self._buffers[number][:size].reshape(vectors, count)


# Rooms that nobody is in. A process that writes to memory for the first time waits for each page.
_rooms: list[Room] = []


@contextmanager
def room() -> Iterator[Room]:
    """A room, as long as one is needed."""
    try:
        taken = _rooms.pop()
    except IndexError:
        taken = Room()
    yield taken
    if len(_rooms) < ROOMS_KEPT and taken.size <= NUMBERS_KEPT:
        _rooms.append(taken)


class Law:
    """What discharges of one array with the same times have in common.

    Attributes
    ----------
    chain : Chain
    first : (n,) float64
        The first sample's noise, in units of that of an interval.
    factors : tuple of two (n, n) float64, or None
        Noise factors of the first sample, transposed, and of an interval; where noise is unequal, a
        mode's is not independent of another's.
    quiet : bool
        Whether there is no noise.
    first_drive, drive : (n,) float64
        What a drift adds to modes before the first sample, and in an interval.
    turn : (n, n) float64
        From modes to what the ADC sees, in its steps.
    """

    def __init__(self, array: NoiseArray, settle_cycles: int, interval_cycles: int) -> None:
        settle, interval = array.elapsed(settle_cycles), array.elapsed(interval_cycles)
        rates = array.eigenvalues
        self.chain = Chain(rates, interval)
        first, each = array.noise_factor(settle), array.noise_factor(interval)
        self.quiet = not array.temperatures.any()
        self.factors = (first.T, each) if each.ndim == 2 else None
        unit = np.ones(len(rates)) if self.quiet or self.factors else each
        self.first = first / unit
        self.first_drive = relaxation(rates, settle) / unit
        self.drive = relaxation(rates, interval) / unit
        # a power of two more does not change how a product is rounded
        self.turn = array.eigenvectors.T * (unit / array.spec.adc_step)[:, None]

    @classmethod
    def of(cls, array: NoiseArray, settle_cycles: int, interval_cycles: int) -> Law:
        """That of an array, made only if it is not the one that was last asked for."""
        key = settle_cycles, interval_cycles
        if array.last_law is None or array.last_law[0] != key:
            array.last_law = key, cls(array, *key)
        law: Law = array.last_law[1]
        return law


class Discharges:
    """K discharges of an array; see `sample_blocks`, whose parameters these are.

    In the eigenbasis, and in units of the noise of one interval, samples are y_j = ρ y_(j-1) + g_j,
    g standard normal; turned back and scaled by one product, they are what the ADC sees. The block
    that begins with sample j has the numbers from j·n on of its stream's sequence (`Normals`),
    blocks of a chain hardly wait for each other (`Chain`), and every row has its place in a
    product. So a sample is the same, bit for bit, whatever is worked out beside it.

    Many threads may ask at once, each with a room of its own.
    """

    def __init__(
        self,
        array: NoiseArray,
        biases: ArrayLike,
        *,
        settle_cycles: int,
        interval_cycles: int,
        seed: int,
        stream: int,
    ) -> None:
        self.cells, self.step = array.spec.cells, array.spec.adc_step
        self._adc = AnalogToDigital(array.spec, array.physics, array.device)
        self._seed = seed
        drift = array.bias(biases)
        self._streams = range(stream, stream + len(drift))
        with single_threaded_blas():
            self._prepare(array, drift, settle_cycles, interval_cycles)

    def _prepare(
        self, array: NoiseArray, drift: Floats, settle_cycles: int, interval_cycles: int
    ) -> None:
        law = self._law = Law.of(array, settle_cycles, interval_cycles)
        self._driven = bool(drift.any())
        if self._driven:
            drift = alone(drift, array.eigenvectors, self._streams)
            self._first_mean, self._mean = drift * law.first_drive, drift * law.drive

    @property
    def vectors(self) -> int:
        """How many there are."""
        return len(self._streams)

    def begin(self, stretch: Stretch, room: Room) -> tuple[Floats, list[Floats]]:
        """Work a stretch out up to what came before; the room is taken until `finish`.

        Returns
        -------
        inputs : (K, rows·n) float64
        ends : list of (K, blocks, n, count) float64
            Of every run, what `Chain.ends` says.
        """
        streams, n = self._streams[stretch.vectors], self.cells
        if self._law.quiet:
            inputs = room.buffer(0, len(streams), stretch.rows * n)
            inputs[:] = 0.0
        else:
            inputs = self._draw(THERMAL, stretch, room, 0, n)
        ends = []
        for rows, shape in stretch.runs:
            run = inputs[:, rows.start * n : rows.stop * n]
            if stretch.begin == 0 and rows.start == 0:
                if self._law.factors:
                    run[:] = alone(run, self._law.factors[0], streams)
                elif not self._law.quiet:
                    run *= self._law.first
                if self._driven:
                    run += self._first_mean[stretch.vectors]
                ends.append(run[:, None, :, None].copy())
                continue
            blocks, length, count = shape
            modes = run.reshape(len(run), blocks, n, -1)
            if self._law.factors and not self._law.quiet:
                modes[:] = self._law.factors[1] @ modes
            if self._driven:
                modes += self._mean[stretch.vectors, None, :, None]
            ends.append(self._law.chain.ends(modes.reshape(len(run), blocks, n, length, count)))
        return inputs, ends

    def finals(self, stretch: Stretch, ends: list[Floats], last: Floats | None) -> list[Floats]:
        """The last state of each block of every run, given that before the stretch, (K, n)."""
        finals: list[Floats] = []
        for (_, (_, length, _)), each in zip(stretch.runs, ends, strict=True):
            # discharged before the first
            found = each[..., -1] if last is None else self._law.chain.finals(each, last, length)
            finals.append(found)
            last = found[:, -1]
        return finals

    def finish(
        self,
        stretch: Stretch,
        room: Room,
        begun: tuple[Floats, list[Floats]],
        finals: list[Floats],
        last: Floats | None,
    ) -> Floats:
        """What the ADC sees, in its steps, (K, rows, n), each block's samples chunk by chunk.

        In a block of chunks of some length, that is, come first the first samples of all chunks.
        """
        inputs, ends = begun
        n, vectors = self.cells, len(inputs)
        outputs = room.buffer(1, vectors, inputs.shape[1])
        remembers = self._law.chain.remembers
        steps = outputs if not remembers else inputs
        for (rows, shape), end, final in zip(stretch.runs, ends, finals, strict=True):
            part = slice(rows.start * n, rows.stop * n)
            if last is None:
                steps[:, part] = alone(
                    inputs[:, part], self._law.turn, self._streams[stretch.vectors]
                )
            else:
                blocks, length, count = shape
                layout = vectors, blocks, n, length, count
                states = inputs[:, part].reshape(layout)
                if remembers:
                    complete = outputs[:, part].reshape(layout)
                    self._law.chain.complete(states, end, final, last, complete)
                    states = complete
                np.matmul(
                    states.reshape(vectors, blocks, n, -1).swapaxes(2, 3),
                    self._law.turn,
                    out=steps[:, part].reshape(vectors, blocks, -1, n),
                )
            last = final[:, -1]
        return steps.reshape(vectors, -1, n)

    def convert(self, stretch: Stretch, room: Room, steps: Floats) -> bool:
        """What `finish` returned becomes codes, in place; whether any is at a rail."""
        noise = None
        if self._adc.noisy:
            noise = self._draw(CONVERSION, stretch, room, self._spare, self.cells)
            noise = noise.reshape(steps.shape)
        return self._adc.convert(steps, noise)

    @property
    def _spare(self) -> int:
        """The buffer that does not hold what `finish` returns."""
        return int(self._law.chain.remembers)

    def _draw(self, purpose: int, stretch: Stretch, room: Room, buffer: int, width: int) -> Floats:
        """Normal numbers of a stretch, (K, rows·width)."""
        first = stretch.first * width
        skipped = first % ALIGNMENT
        streams = self._streams[stretch.vectors]
        numbers = room.buffer(buffer, len(streams), skipped + stretch.rows * width)
        room.normals.draw(self._seed, purpose, streams, first - skipped, numbers)
        return numbers[:, skipped:]


def alone(rows: Floats, matrix: Floats, streams: range) -> Floats:
    """A row of each stream, (K, n), times a matrix (n, m), in products that they share."""
    vectors, n = rows.shape
    first = streams[0] % ROWS
    groups = -(-(first + vectors) // ROWS)
    placed = np.zeros((groups * ROWS, n))
    placed[first : first + vectors] = rows
    product: Floats = placed.reshape(groups, ROWS, n) @ matrix
    return product.reshape(-1, product.shape[-1])[first : first + vectors]
