"""The one specification that the gateware, its golden model and the host share."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thermokron.model import timing
from thermokron.model.checks import check_choice, check_integer, check_real, fields_from_json
from thermokron.model.job import Job

__all__ = ["PHASES", "UnitSpec"]

#: The phases of a run, in the order of `Readout.cycles`.
PHASES = ("load", "discharge", "settle", "sample", "results")

MAX_SAMPLES = 2**20
MAX_SETTLE_CYCLES = 2**32 - 1
MAX_INTERVAL_CYCLES = 2**24 - 1


def _range(default: float | None, low: float, high: float, doc: str) -> Any:
    return field(default=default, metadata={"range": (low, high), "doc": doc})


def _choice(default: int | bool | None, choices: tuple[int | bool | None, ...], doc: str) -> Any:
    return field(default=default, metadata={"choices": choices, "doc": doc})


@dataclass(frozen=True, kw_only=True)
class UnitSpec:
    """Sizes, widths and nominal values of one thermodynamic unit.

    Everything else that has a width or a limit is derived from these fields, never set: the
    same object makes the gateware (`thermokron.rtl.ThermodynamicUnit`), its golden model
    (`thermokron.model.NumericUnit`), the register map and the limits that the host respects.

    Raises
    ------
    ValueError
        If a field is out of range; the message names the field, its value and the legal range.
    TypeError
        If a field is not a number of the right kind.
    """

    cells: int = _range(16, 2, 4096, "noisy analog cells in the array")
    lanes: int = _range(None, 1, 4096, "multipliers in the moment accumulator; divides cells")
    coupling_bits: int = _range(8, 3, 16, "bits of a coupling code, sign included")
    bias_bits: int = _range(12, 4, 16, "bits of a bias code, sign included")
    adc_bits: int = _range(12, 3, 16, "bits of an ADC code, two's complement")
    temperature_bits: int = _range(10, 6, 16, "bits of the noise temperature code, unsigned")
    rhs_depth: int = _range(64, 1, 256, "bias vectors that one start can run through")
    dac_lanes: int = _choice(1, (1, 2, 4, 8, 16), "codes per clock cycle to the DACs")
    stream_bits: int | None = _choice(
        64, (None, 32, 64, 128), "bits of the AXI4-Streams for bulk data; None for no streams"
    )
    second_moments: bool = _choice(
        True, (True, False), "whether there are product accumulators; without, means alone"
    )
    adc_cycles: int = _range(4, 4, 65535, "clock cycles from CONVST to valid data, nominal")
    adc_timeout_cycles: int = _range(None, 1, 65535, "clock cycles after which an ADC is dead")
    dac_timeout_cycles: int = _range(65535, 1, 65535, "clock cycles after which a DAC is dead")
    discharge_cycles: int = _range(8, 1, 65535, "clock cycles for which DISCHARGE is held")
    clock_hz: float = _range(25e6, 1e3, 1e10, "clock frequency in Hz")
    tau_s: float = _range(20e-9, 1e-12, 1.0, "RC time constant of a cell in seconds")
    temperature_full_scale: float = _range(
        *(1 / 16, 1e-9, 1.0),
        "noise temperature at full code, in ADC full scales squared: a noise source, not kT/C",
    )

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if "choices" in f.metadata:
                check_choice(f.name, value, f.metadata["choices"])
                continue
            low, high = f.metadata["range"]
            if f.name == "lanes" and value is None:
                value = self.cells  # one lane per cell: the fastest accumulator
            if f.name == "adc_timeout_cycles" and value is None:
                value = min(max(255, 2 * self.adc_cycles), high)
            check = check_real if isinstance(low, float) else check_integer
            object.__setattr__(self, f.name, check(f.name, value, low, high))
        if self.cells % self.lanes:
            divisors = [d for d in range(1, self.cells + 1) if self.cells % d == 0]
            raise ValueError(
                f"lanes = {self.lanes} does not divide cells = {self.cells}; legal: {divisors}"
            )
        if self.adc_timeout_cycles < self.adc_cycles:
            raise ValueError(
                f"adc_timeout_cycles = {self.adc_timeout_cycles} is shorter than a nominal "
                f"conversion; legal: adc_cycles = {self.adc_cycles} to 65535"
            )

    # ---- derived sizes and widths -------------------------------------------------------

    @property
    def folds(self) -> int:
        """Cells per lane, F."""
        return self.cells // self.lanes

    @property
    def diagonals(self) -> int:
        """Cyclic diagonals of the second moment matrix, D = floor(n/2) + 1."""
        return self.cells // 2 + 1

    @property
    def coupling_count(self) -> int:
        """Couplings in the packed upper triangle, n(n+1)/2."""
        return self.cells * (self.cells + 1) // 2

    @property
    def coupling_words(self) -> int:
        """Words of `dac_lanes` codes in which the couplings are kept and go to the DACs.

        Row i has the columns from the multiple of dac_lanes at or below i on.
        """
        return timing.coupling_words(self.cells, self.dac_lanes)

    @property
    def bias_words(self) -> int:
        """Words of `dac_lanes` codes in which a bias vector goes to the DACs."""
        return -(-self.cells // self.dac_lanes)

    @property
    def coupling_max(self) -> int:
        """Largest coupling code, 2^(bits-1) - 1; it stands for 1."""
        return (1 << (self.coupling_bits - 1)) - 1

    @property
    def bias_max(self) -> int:
        """Largest bias code, 2^(bits-1) - 1; it stands for 1."""
        return (1 << (self.bias_bits - 1)) - 1

    @property
    def temperature_max(self) -> int:
        """Largest temperature code, 2^bits - 1; it stands for `temperature_full_scale`."""
        return (1 << self.temperature_bits) - 1

    @property
    def adc_min(self) -> int:
        """Code of the negative rail."""
        return -(1 << (self.adc_bits - 1))

    @property
    def adc_max(self) -> int:
        """Code of the positive rail."""
        return (1 << (self.adc_bits - 1)) - 1

    @property
    def adc_step(self) -> float:
        """One ADC step, in full scales."""
        return 2.0 ** (1 - self.adc_bits)

    @property
    def sum_bits(self) -> int:
        """Signed width of an entry of Σx: adc_bits + 20.

        |code| ≤ 2^(adc_bits-1) and at most 2^20 samples, so |Σx| ≤ 2^(adc_bits+19), and only
        the negative extreme is attained; it is the most negative number of this width.
        """
        return self.adc_bits + 20

    @property
    def product_bits(self) -> int:
        """Signed width of an entry of Σxxᵀ: 2·adc_bits + 20.

        |product| ≤ 2^(2·adc_bits-2) and at most 2^20 samples, so the sum is at most
        2^(2·adc_bits+18), below the largest number of this width, 2^(2·adc_bits+19) - 1.
        """
        return 2 * self.adc_bits + 20

    @property
    def clock_s(self) -> float:
        """Clock period in seconds."""
        return 1.0 / self.clock_hz

    # ---- codes --------------------------------------------------------------------------

    def coupling_codes(self, values: ArrayLike) -> NDArray[np.int64]:
        """Nearest coupling codes of values in [-1, 1] (half to even), any shape."""
        return np.rint(self._within("couplings", values) * self.coupling_max).astype(np.int64)

    def coupling_values(self, codes: ArrayLike) -> NDArray[np.float64]:
        """Values of coupling codes, any shape."""
        return np.asarray(codes, dtype=np.float64) / self.coupling_max

    def bias_codes(self, values: ArrayLike) -> NDArray[np.int64]:
        """Nearest bias codes of values in [-1, 1] (half to even), any shape."""
        return np.rint(self._within("biases", values) * self.bias_max).astype(np.int64)

    def bias_values(self, codes: ArrayLike) -> NDArray[np.float64]:
        """Values of bias codes, in ADC full scales, any shape."""
        return np.asarray(codes, dtype=np.float64) / self.bias_max

    def temperature_code(self, temperature: float) -> int:
        """Largest code whose temperature does not exceed `temperature` (full scales squared)."""
        temperature = check_real("temperature", temperature, 0.0, self.temperature_full_scale)
        # the slack keeps temperature_code(temperature_value(code)) == code
        return math.floor(temperature / self.temperature_full_scale * self.temperature_max + 1e-9)

    def temperature_value(self, code: int) -> float:
        """Noise temperature T of a code, in ADC full scales squared."""
        return self.temperature_full_scale * code / self.temperature_max

    @staticmethod
    def _within(name: str, values: ArrayLike) -> NDArray[np.float64]:
        array = np.asarray(values, dtype=np.float64)
        if not np.all(np.abs(array) <= 1.0):  # NaN fails too
            raise ValueError(f"{name} must lie within [-1, 1], the range of the DAC")
        return array

    # ---- time ---------------------------------------------------------------------------

    def accumulate_cycles(self, second_moments: bool = True) -> int:
        """Clock cycles for which one sample occupies the accumulator."""
        return self.folds * (self.diagonals if second_moments else 1)

    def shortest_interval(self, second_moments: bool = True) -> int:
        """Fewest clock cycles between samples.

        The largest of what the accumulator needs, what its read-modify-write pipeline needs,
        and what a conversion with its handshake needs.
        """
        return max(
            self.accumulate_cycles(second_moments),
            timing.ACCUMULATOR_LATENCY,
            self.adc_cycles + timing.HANDSHAKE_CYCLES,
        )

    def phase_cycles(
        self, job: Job, *, stream_biases: bool = True, stream_results: bool = True
    ) -> dict[str, int]:
        """Clock cycles of a run by phase, from START to DONE, when nothing stalls.

        Nothing that is in one phase is in another; what goes on beside it is in `beside_cycles`.
        Biases and results that do not pass a stream pass through the windows.
        """
        return self.cycles_of(
            vectors=len(job.biases),
            settle_cycles=job.settle_cycles,
            interval_cycles=job.interval_cycles,
            samples=job.samples,
            second_moments=job.second_moments,
            stream_biases=stream_biases,
            stream_results=stream_results,
        )

    def cycles_of(
        self,
        *,
        vectors: Any,
        settle_cycles: Any,
        interval_cycles: Any,
        samples: Any,
        second_moments: bool,
        runs: Any = 1,
        cells: int | None = None,
        dac_lanes: int | None = None,
        stream_biases: bool = True,
        stream_results: bool = True,
    ) -> dict[str, Any]:
        """The same of `runs` jobs with so many bias vectors in all; numbers, or arrays of them.

        With `cells` and `dac_lanes` of a unit that is not built: one whose array is as large as the
        matrix on it, or that brings another number of codes a cycle to its DACs.
        """
        return timing.cycles_of(
            self,
            vectors=vectors,
            settle_cycles=settle_cycles,
            interval_cycles=interval_cycles,
            samples=samples,
            second_moments=second_moments,
            runs=runs,
            cells=cells,
            dac_lanes=dac_lanes,
            stream_biases=stream_biases and self.stream_bits is not None,
            stream_results=stream_results and self.stream_bits is not None,
        )

    def beside_cycles(
        self, job: Job, *, stream_biases: bool = True, stream_results: bool = True
    ) -> dict[str, int]:
        """Clock cycles of work that goes on beside the phases of `phase_cycles`.

        "biases" to the DACs' input registers while the array is at work; the last "conversion" of a
        vector, and "results" that leave on the stream, while it is at the next.
        """
        return timing.beside_cycles(
            self, job, stream_biases=stream_biases, stream_results=stream_results
        )

    def port_cycles(self, job: Job) -> dict[str, int]:
        """Clock cycles for which the "couplings", "biases" and "results" of a job take a port.

        Each has a stream of its own, and of these biases and results pass during the run. Without
        streams all pass the one AXI4-Lite port while the array waits: a write every two cycles, a
        read of a window every six.
        """
        return timing.port_cycles(self, job)

    def elapsed_cycles(self, job: Job) -> int:
        """Clock cycles of a job on its own, from its first word at a port to its last one.

        The registers of the program are not in it: some twenty cycles on AXI4-Lite.
        """
        ports = self.port_cycles(job)
        outside = ports["couplings"] if self.stream_bits else sum(ports.values())
        return outside + sum(self.phase_cycles(job).values())

    def port_bytes(self, job: Job) -> tuple[int, int, int]:
        """Bytes over the unit's ports for a job's couplings, its biases, and its read-out.

        As the streams have them, in whole beats; without streams, as AXI4-Lite has them: a code in
        a word of 32 bits, and of the results `result_words`. Registers are not counted.
        """
        vectors, n = job.biases.shape
        if self.stream_bits is not None:
            beats = timing.port_beats(
                self, vectors=vectors, samples=job.samples, second_moments=job.second_moments
            )
            couplings, biases, results = (count * self.stream_bits // 8 for count in beats)
            return couplings, biases, results
        sums, clipped, products = self.result_words(job.samples)
        words = (sums + clipped) * vectors * n
        if job.second_moments:
            words += products * n * (n + 1) // 2
        return 4 * self.coupling_words * self.dac_lanes, 4 * vectors * n, 4 * words

    def result_words(self, samples: int) -> tuple[int, int, int]:
        """Words of 32 bits in which a sum, a clip count and a product of so many samples fit.

        The sum of a single sample is its code, which says by itself whether it was clipped.
        """
        sums = samples << (self.adc_bits - 1) <= 1 << 31
        products = samples << (2 * self.adc_bits - 2) < 1 << 31
        return (1 if sums else 2), (0 if samples == 1 else 1), (1 if products else 2)

    def check(self, job: Job) -> None:
        """Refuse what this unit cannot do.

        Raises
        ------
        ValueError
            Naming the field of the job, its value and the legal range.
        """
        n = self.cells
        if job.couplings.shape != (n, n):
            raise ValueError(f"couplings have shape {job.couplings.shape}, the unit is {(n, n)}")
        if job.biases.shape[1] != n:
            raise ValueError(f"biases have shape {job.biases.shape}, the unit takes (K, {n})")
        if job.second_moments and not self.second_moments:
            raise ValueError(
                "second_moments = True, and the unit has no product accumulators; legal: False"
            )
        if len(job.biases) > self.rhs_depth:
            raise ValueError(
                f"biases hold {len(job.biases)} vectors; legal: 1 to rhs_depth = {self.rhs_depth}"
            )
        for name, worst, limit in (
            ("couplings", job.largest_coupling, self.coupling_max),
            ("biases", job.largest_bias, self.bias_max),
        ):
            if worst > limit:
                raise ValueError(f"{name} hold a code of magnitude {worst}; legal: 0 to {limit}")
        check_integer("temperature", job.temperature, 0, self.temperature_max)
        check_integer("settle_cycles", job.settle_cycles, 1, MAX_SETTLE_CYCLES)
        check_integer(
            "interval_cycles",
            job.interval_cycles,
            self.shortest_interval(job.second_moments),
            MAX_INTERVAL_CYCLES,
        )
        check_integer("samples", job.samples, 1, MAX_SAMPLES)

    # ---- identity -----------------------------------------------------------------------

    def to_json(self) -> str:
        """The spec as one JSON object, keys in field order."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> UnitSpec:
        """The inverse of `to_json`; unknown or missing fields are a `ValueError`."""
        return cls(**fields_from_json(cls, text))

    @property
    def fingerprint(self) -> int:
        """CRC-32 of `to_json`, which the built unit states in a read-only register."""
        return zlib.crc32(self.to_json().encode())
