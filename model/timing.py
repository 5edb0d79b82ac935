"""How many clock cycles a run takes: the control plane's timing, in closed form.

A run overlaps what it can. While the array is discharged, settles and is sampled, the next bias
vector goes to the input registers of its DACs; a load pulse makes it effective when discharge has
begun again. The cells are discharged as soon as a vector's last sample has been taken, and its
conversion goes on meanwhile. With streams, biases arrive while the array is at work, and so do
results leave. `tests/rtl` holds the gateware to what is said here.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

__all__ = [
    "ACCUMULATOR_LATENCY",
    "HANDSHAKE_CYCLES",
    "beside_cycles",
    "coupling_words",
    "cycles_of",
    "discharge_floor",
    "item_bytes",
    "longest_discharge",
    "port_beats",
    "port_cycles",
    "sample_spacing",
    "vector_beats",
    "vector_cycles",
]

#: From the read of an accumulator word until its update can be read again.
ACCUMULATOR_LATENCY = 4
#: A conversion's handshake: CONVST must fall, and DRDY must be seen low before the next one. One
#: cycle for a converter that sees CONVST with a flip-flop on the unit's clock, two for the unit's
#: synchroniser, and the one at whose end CONVST rises.
HANDSHAKE_CYCLES = 4
#: A run over a code memory: reads, their latency of two, and the cycle in which its end is seen.
LOAD_OVERHEAD = 3
#: From the load pulse to the first read of the next vector.
PREFETCH_OVERHEAD = 1
#: From the last word of a streamed vector's write to its first read.
ARRIVAL_OVERHEAD = 1
#: After the last conversion: capture, hand-over and the accumulator's pipeline.
SAMPLE_OVERHEAD = 6
#: From the end of accumulation to the first word of wide results, and to the end after the last.
RESULT_OVERHEAD = 6
#: Cycles of AXI4-Lite for a write and for a read of a window, of managers that do not wait.
WRITE_CYCLES, READ_CYCLES = 2, 6


class Sizes(Protocol):
    """What is used here of a `UnitSpec`."""

    @property
    def cells(self) -> int: ...
    @property
    def coupling_bits(self) -> int: ...
    @property
    def bias_bits(self) -> int: ...
    @property
    def adc_bits(self) -> int: ...
    @property
    def adc_cycles(self) -> int: ...
    @property
    def discharge_cycles(self) -> int: ...
    @property
    def dac_lanes(self) -> int: ...
    @property
    def stream_bits(self) -> int | None: ...
    @property
    def folds(self) -> int: ...

    def result_words(self, samples: int) -> tuple[int, int, int]: ...


def coupling_words(cells: int, dac_lanes: int) -> int:
    """Words of `dac_lanes` codes in the upper triangle, whose rows begin at whole words."""
    blocks = -(-cells // dac_lanes)
    return sum(blocks - row // dac_lanes for row in range(cells))


def item_bytes(bits: int) -> int:
    """Bytes of a code in a stream: an int8 or an int16."""
    return 1 if bits <= 8 else 2


def port_beats(
    spec: Sizes, *, vectors: Any, samples: Any, second_moments: bool
) -> tuple[int, Any, Any]:
    """Beats of the streams for a matrix, so many bias vectors, and what comes of them."""
    assert spec.stream_bits is not None
    size = spec.stream_bits // 8
    codes = coupling_words(spec.cells, spec.dac_lanes) * spec.dac_lanes
    couplings = -(-codes * item_bytes(spec.coupling_bits) // size)
    biases = vectors * vector_beats(spec, spec.bias_bits)
    words = vectors * spec.cells
    if second_moments:
        words = words + spec.cells * (spec.cells // 2 + 1)
    wide = np.ceil(words * 8 / size)
    narrow = vectors * vector_beats(spec, spec.adc_bits)
    results = wide if second_moments else np.where(np.equal(samples, 1), narrow, wide)
    return couplings, biases, _plain(results)


def vector_beats(spec: Sizes, bits: int) -> int:
    """Beats of a stream for a vector of codes of so many bits; it ends with a whole one."""
    assert spec.stream_bits is not None
    return -(-spec.cells * item_bytes(bits) * 8 // spec.stream_bits)


def vector_cycles(spec: Sizes) -> int:
    """Clock cycles in which a bias vector passes from its stream to the store.

    A beat takes as many as it has words of `dac_lanes` codes.
    """
    assert spec.stream_bits is not None
    codes = spec.stream_bits // (8 * item_bytes(spec.bias_bits))
    return vector_beats(spec, spec.bias_bits) * max(1, codes // spec.dac_lanes)


def sample_spacing(spec: Sizes, *, narrow: bool) -> int:
    """Fewest cycles between the last sample of a vector and the first of the next.

    What the accumulator needs, or with `narrow` results, codes that leave on a stream, what these
    need.
    """
    return max(spec.folds, vector_beats(spec, spec.adc_bits) if narrow else 0)


def discharge_floor(spec: Sizes) -> int:
    """Fewest cycles of discharge: a conversion ends within it, and DRDY is seen low again."""
    return max(spec.discharge_cycles, spec.adc_cycles + HANDSHAKE_CYCLES - 2)


def longest_discharge(spec: Sizes) -> int:
    """Cycles of discharge at most, of any run; one more."""
    narrow = spec.stream_bits is not None
    return max(discharge_floor(spec), sample_spacing(spec, narrow=narrow) - 2) + 1


def cycles_of(
    spec: Sizes,
    *,
    vectors: Any,
    settle_cycles: Any,
    interval_cycles: Any,
    samples: Any,
    second_moments: bool,
    runs: Any,
    cells: int | None,
    dac_lanes: int | None,
    stream_biases: bool,
    stream_results: bool,
) -> dict[str, Any]:
    """See `UnitSpec.cycles_of`."""
    n = spec.cells if cells is None else cells
    lanes = spec.dac_lanes if dac_lanes is None else dac_lanes
    codes = -(-n // lanes)
    single = np.equal(samples, 1) & (not second_moments) & stream_results
    spacing = np.where(
        single, sample_spacing(spec, narrow=stream_results), sample_spacing(spec, narrow=False)
    )
    discharge = np.maximum(discharge_floor(spec), spacing - 1 - settle_cycles)
    sampling = (samples - 1) * interval_cycles + 1
    period = discharge + settle_cycles + sampling
    # when the codes of the first vector and of the last one are at the DACs; all have passed by
    # the rate of the slowest: the array, the DACs or the stream
    load = codes + LOAD_OVERHEAD
    each = _plain(vectors / runs)  # a mean, where runs differ
    arrival = vector_cycles(spec) if stream_biases else 0
    first = max(coupling_words(n, lanes) + LOAD_OVERHEAD, arrival + load + ARRIVAL_OVERHEAD)
    last = first + (each - 1) * np.maximum(period, load + PREFETCH_OVERHEAD)
    last = np.maximum(last, each * arrival + load + ARRIVAL_OVERHEAD)
    occupied = spec.folds * (n // 2 + 1 if second_moments else 1)
    tail = spec.adc_cycles + occupied + SAMPLE_OVERHEAD
    results: Any = 0
    if stream_results:
        beats = port_beats(spec, vectors=each, samples=samples, second_moments=second_moments)[2]
        words = each * n + (n * (n // 2 + 1) if second_moments else 0)
        rest = np.maximum(0, vector_beats(spec, spec.adc_bits) - occupied - 3)
        # a word is read in every cycle, however many a beat has
        results = np.where(single, rest, np.maximum(beats, words) + RESULT_OVERHEAD)
    cycles = {
        "load": runs * (last - (each - 1) * period),
        "discharge": vectors * discharge,
        "settle": vectors * settle_cycles,
        "sample": vectors * sampling + runs * (tail - 1),
        "results": runs * results,
    }
    return {phase: _plain(count) for phase, count in cycles.items()}


def _plain(count: Any) -> Any:
    """A number where it is one, as exact as it was."""
    if np.ndim(count):
        return count
    value = count.item() if isinstance(count, np.generic | np.ndarray) else count
    return int(value) if float(value).is_integer() else value


def beside_cycles(
    spec: Any, job: Any, *, stream_biases: bool, stream_results: bool
) -> dict[str, int]:
    """See `UnitSpec.beside_cycles`; vector by vector, in clock cycles since START."""
    phases = spec.phase_cycles(job, stream_biases=stream_biases, stream_results=stream_results)
    vectors, words = len(job.biases), spec.bias_words
    sampling = (job.samples - 1) * job.interval_cycles + 1
    period = phases["discharge"] // vectors + job.settle_cycles + sampling
    arrival = vector_cycles(spec) if stream_biases and spec.stream_bits is not None else 0
    loaded = max(  # when the first vector's codes, and the couplings, are at the DACs
        spec.coupling_words + LOAD_OVERHEAD, arrival + words + LOAD_OVERHEAD + ARRIVAL_OVERHEAD
    )
    biases = 0
    for vector in range(1, vectors):
        # the first code is at a DAC two cycles after it was read, the last one `words` later
        read = max(loaded + PREFETCH_OVERHEAD, (vector + 1) * arrival + ARRIVAL_OVERHEAD) + 1
        ends = loaded + period
        biases += min(words, max(0, ends - read - 1))
        loaded = max(ends, read + words + LOAD_OVERHEAD - 1)
    narrow = job.samples == 1 and not job.second_moments
    narrow = narrow and stream_results and spec.stream_bits is not None
    return {
        "biases": biases,
        "conversion": (vectors - 1) * (spec.adc_cycles - 1),
        "results": (vectors - 1) * (vector_beats(spec, spec.adc_bits) if narrow else 0),
    }


def port_cycles(spec: Any, job: Any) -> dict[str, int]:
    """See `UnitSpec.port_cycles`."""
    vectors, n = job.biases.shape
    if spec.stream_bits is not None:
        beats = port_beats(
            spec, vectors=vectors, samples=job.samples, second_moments=job.second_moments
        )
        return dict(zip(("couplings", "biases", "results"), map(int, beats), strict=True))
    sums, clipped, products = spec.result_words(job.samples)
    words = (sums + clipped) * vectors * n
    if job.second_moments:
        words += products * n * (n + 1) // 2
    return {
        "couplings": WRITE_CYCLES * spec.coupling_words * spec.dac_lanes,
        "biases": WRITE_CYCLES * vectors * n,
        "results": READ_CYCLES * words,
    }
