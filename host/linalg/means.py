"""Linear systems of array size: the mean of the array's fluctuations under a bias.

Under a bias b the array settles to x ~ N(A⁻¹b, T A⁻¹). Noise is then only a nuisance, apart from
dithering the ADC, so the temperature is the lowest that does; a mean of N samples is √(2/N)·x/σ
times more exact than a covariance, and one reading is enough for many purposes.

How strongly a column may be driven is found without products. ‖x‖∞ ≤ ‖b‖/λ_min bounds it, the
last reading of such columns tells it better, and the read-out itself shows which column left the
ADC's range, and which used too little of it; only those run again. So k columns cost the host a few
operations per number that it moves.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thermokron.host.calibration import Corrections
from thermokron.host.linalg.arrays import Floats
from thermokron.host.linalg.covariance import HEADROOM, spacing_cycles, tolerated_part
from thermokron.host.linalg.offsets import Offsets, averaging, blank
from thermokron.host.linalg.reading import Equation, Reading
from thermokron.host.linalg.refusals import Persistent
from thermokron.host.linalg.result import Account
from thermokron.host.linalg.settling import Settle, Settling, settled
from thermokron.model import Job, Unit

__all__ = ["Means"]

#: What a solution may fill of the ADC's range, less the noise, by a reading of the same column; and
#: by one of the column before it in a sequence, or a bound: then about one in twenty leaves the
#: range, and runs again.
FILL, EXPECTED_FILL = 0.7, 0.5
#: A column that fills less is driven more strongly, if it can be; where only the bound was known,
#: the second.
LEAST_FILL, LEAST_AT_FIRST = 0.1, 0.25
#: Standard deviations of the noise that dithers the ADC, in its steps: the rounding error's mean is
#: then below 0.3% of a step (see `Reading.variance`).
DITHER = 0.5
#: What the loudest cell's noise may take of the range at `HEADROOM`, and what is left for the rest.
MOST_NOISE, LEAST_ROOM = 0.6, 0.25
#: Times that a column is driven more weakly before clipping counts as persistent, and more strongly
#: before it is left as it is.
MAX_HALVINGS, MAX_RAISES = 10, 2
#: Readings from which on it pays to take one first, for how strongly columns may be driven.
SCOUTED = 4
#: Numbers of columns of which it is remembered how far they swung.
REMEMBERED = 4


def _slice(places: NDArray[np.intp]) -> slice | NDArray[np.intp]:
    """Ascending places, as a slice if they follow each other, which spares copies."""
    first, last = int(places[0]), int(places[-1])
    return slice(first, last + 1) if last - first + 1 == len(places) else places


def _largest(rows: Floats) -> Floats:
    """The largest magnitude in each row."""
    largest: Floats = np.maximum(rows.max(axis=1), -rows.min(axis=1)).astype(np.float64)
    return largest


def _squares_are_numbers(largest: Floats, rows: Floats) -> bool:
    """Whether squares of rows with these largest entries neither overflow nor vanish."""
    limits = np.finfo(rows.dtype)
    low, high = math.sqrt(limits.tiny) * 1e6, math.sqrt(limits.max) * 1e-6
    return not largest.size or bool(largest.min() > low and largest.max() < high)


def _column(factors: Floats, rows: Floats) -> Floats:
    """A factor for each row."""
    return factors.astype(rows.dtype)[:, None]


#: Of a job that was begun: which rows it reads, room for what it reads, and the job.
Begun = deque[tuple[NDArray[np.intp] | slice, Floats, Job]]


class Means:
    """Reads A⁻¹b, for many b, from a matrix of unit diagonal on an array.

    Parameters
    ----------
    unit : Unit
        Of at least n cells.
    job : Job
        The program: its couplings are used.
    size : int
        n.
    corrections : Corrections, optional
        What is known of the device.

    Attributes
    ----------
    gains : dict of int to (k,) float
        How far solutions swung, per length of their right-hand sides: of the last call with k
        columns, by k.
    """

    def __init__(
        self, unit: Unit, job: Job, size: int, corrections: Corrections | None = None
    ) -> None:
        self.unit, self.job, self.size = unit, job, size
        self.corrections = corrections
        self.gains: dict[int, Floats] = {}

    def recall(self, other: Means) -> None:
        """Expect of columns what another matrix, the one before in a sequence, did to them."""
        if other.size == self.size:
            self.gains = dict(other.gains)

    def read(
        self,
        equation: Equation,
        rows: Floats,
        rate: float,
        *,
        samples: int,
        settle: Settle,
        interval: float,
        account: Account,
        unit: Floats | float = 1.0,
        offsets: Offsets = "kept",
    ) -> Reading:
        """Solutions for (k, n) right-hand sides, one per row; about 8kn operations.

        Parameters
        ----------
        equation : Equation
            What the job's couplings stand for.
        rows : (k, n) float
            Right-hand sides; overwritten, unless they clip.
        rate : float
            λ of the slowest mode.
        samples : int
            Per right-hand side.
        settle : float or str
            The part of the slowest mode that may be left undone, or a time.
        interval : float
            Between samples, in τ/λ_min, if the unit can follow.
        account : Account
        unit : (n,) float, optional
            What entries are multiplied by, on their way.
        offsets : str
            Whether readings are kept as they are, or freed of offsets by readings without bias or
            with the opposite one.

        Raises
        ------
        Persistent
            If a column's samples clip however weak its bias.
        """
        spec, (k, n) = self.unit.spec, rows.shape
        fill = EXPECTED_FILL
        if samples >= SCOUTED and k not in self.gains:
            fill = FILL
            self.read(
                equation,
                rows.copy(),
                rate,
                samples=1,
                settle=settle,
                interval=interval,
                account=account,
            )
        code = self._temperature(rate)
        temperature = spec.temperature_value(code)
        cycles, settling = settled(spec, rate, settle)
        between = spacing_cycles(spec, rate, interval, second_moments=False)
        settling = replace(settling, readings=samples, interval=between * spec.clock_s / spec.tau_s)
        program = {
            "temperature": code,
            "settle_cycles": cycles,
            "interval_cycles": between,
            "samples": samples,
            "second_moments": False,
        }
        chopped = offsets == "chopped"
        rest: Floats | None = None
        if offsets == "blank":
            rest = blank(self.unit, self.job, n, self.corrections, account, **program)
        largest = _largest(rows)
        live = (largest > 0.0) & np.isfinite(largest)
        scale = np.ones(k)
        if not _squares_are_numbers(largest[live], rows):
            scale[live] = largest[live]
            rows *= _column(1.0 / scale, rows)
            account.flops(k * n)
        lengths = np.where(live, np.sqrt(np.einsum("ij,ij->i", rows, rows)), 1.0)
        most = np.divide(scale, largest, out=np.ones(k), where=live)
        if self.corrections is not None:
            most *= self.corrections.headroom
        account.flops(2 * k * n)
        noise = min(HEADROOM * math.sqrt(temperature / rate), MOST_NOISE)
        room = max(fill * (1.0 - noise), LEAST_ROOM)
        least = LEAST_FILL if self.gains else LEAST_AT_FIRST
        drive = np.minimum(room / (self._expected(k, rate) * lengths), most)
        tolerated = tolerated_part(spec) * samples + (samples >= 100)
        value, swings = np.empty((k, n), rows.dtype), np.zeros(k)
        value[~live] = 0.0 * largest[~live, None]  # NaN where a right-hand side is not finite
        raises, pending = np.zeros(k, np.int64), np.flatnonzero(live)
        for attempt in range(MAX_HALVINGS + 1):
            clipping, tried = np.zeros(k, bool), np.zeros(k, bool)
            begun: Begun = deque()
            jobs = self._jobs(rows, drive, pending, program, begun, chopped)
            for readout in self.unit.run_many(jobs):
                some, levels, job = begun.popleft()
                account.enter(spec, job, readout)
                account.reruns += attempt > 0
                factor = _column(spec.adc_step / samples * scale[some] / drive[some], rows)
                sums, clips = readout.sums[:, :n], readout.clipped[:, :n]
                if chopped:
                    factor *= rows.dtype.type(0.5)
                    sums, clips = sums[0::2] - sums[1::2], clips[0::2] + clips[1::2]
                read = np.multiply(sums, factor, out=levels, dtype=rows.dtype, casting="unsafe")
                if self.corrections is not None or rest is not None:
                    amplitude = _column(scale[some] / drive[some], rows)
                    if self.corrections is not None:
                        read = self.corrections.means(read, amplitude, offset=not chopped)
                    if rest is not None:
                        read = read - rest * amplitude
                swings[some] = _largest(read)
                if isinstance(some, slice):
                    np.multiply(read, unit, out=value[some])
                else:
                    value[some] = np.multiply(read, unit, out=read)
                worst = clips.max(axis=1)
                clipping[some], tried[some] = worst > tolerated, True
                if worst.any():
                    account.clipped += int(clips[worst <= tolerated].sum())
                account.flops(3 * n * len(levels))
            filled = swings * drive / scale
            weak = (filled < least) & (drive < most) & (raises < MAX_RAISES) & tried & ~clipping
            gains = filled / (drive * lengths)
            raises[clipping], raises[weak] = MAX_RAISES, raises[weak] + 1
            drive[clipping] *= 0.5
            drive[weak] *= room / np.maximum(filled[weak], 0.5 * spec.adc_step)
            np.minimum(drive, most, out=drive)
            pending = np.flatnonzero(clipping | weak)
            if not len(pending):
                self._remember(gains)
                return Reading(
                    value,
                    unit,
                    scale / drive,
                    equation,
                    temperature,
                    settling,
                    averaging(offsets, spec),
                )
        rows *= _column(scale, rows)
        raise Persistent(
            f"readings of {len(pending)} right-hand sides clip, however weak the bias",
            rate,
            spec.temperature_value(1),
        )

    def _jobs(
        self,
        rows: Floats,
        drive: Floats,
        pending: NDArray[np.intp],
        program: dict[str, Any],
        begun: Begun,
        chopped: bool,
    ) -> Iterator[Job]:
        """Jobs of as many rows each as fit, noted in `begun`; none waits for another's result."""
        spec, n = self.unit.spec, rows.shape[1]
        depth = spec.rhs_depth // 2 if chopped else spec.rhs_depth
        for first in range(0, len(pending), depth):
            some = _slice(pending[first : first + depth])
            levels = rows[some] * _column(drive[some] * spec.bias_max, rows)
            room, known = levels, self.corrections
            if chopped:  # every vector, and its opposite after it
                levels = (levels[:, None] * np.array([[1.0], [-1.0]], rows.dtype)).reshape(-1, n)
            if known is not None:
                levels = known.bias_levels(levels)
            biases = np.zeros((len(levels), spec.cells), np.int16)
            np.rint(levels, out=biases[:, :n], casting="unsafe")
            biases.setflags(write=False)
            job = self.job.with_biases(biases, **program)
            begun.append((some, room, job))
            yield job

    def _expected(self, k: int, rate: float) -> Floats:
        """How far a solution swings, per length of its right-hand side, (k,)."""
        bound = 1.0 / rate
        if not self.gains:
            return np.full(k, bound)
        known = self.gains.get(k)
        if known is None:
            known = np.full(k, max(gains.max() for gains in self.gains.values()))
        # a column that was zero tells nothing
        return np.where(known > 0.0, np.minimum(known, bound), bound)

    def _remember(self, gains: Floats) -> None:
        self.gains.pop(len(gains), None)
        self.gains[len(gains)] = gains
        if len(self.gains) > REMEMBERED:
            del self.gains[next(iter(self.gains))]

    def _temperature(self, rate: float) -> int:
        """The lowest code that dithers the ADC, or as much as the loudest cell has room for.

        The quietest cell has (A⁻¹)_ii ≥ 1, the loudest at most 1/λ_min.
        """
        spec = self.unit.spec
        dither = (DITHER * spec.adc_step) ** 2
        most = (MOST_NOISE / HEADROOM) ** 2 * rate
        wanted = min(dither, most, spec.temperature_full_scale)
        return max(spec.temperature_code(wanted), 1)

    def draw(
        self, shift: Floats, rate: float, count: int, *, settle: Settle, account: Account
    ) -> tuple[Floats, float, Settling]:
        """(count, n) independent draws from N(A⁻¹b, A⁻¹), b = `shift` (n,); √T; how it settled.

        At temperature T and under a bias √T b the array is √T times such a draw.

        Raises
        ------
        ValueError
            If A⁻¹b is too long beside the spread of A⁻¹ for the ADC.
        Persistent
            If the draws clip however low the temperature, for b = 0.
        """
        spec, n = self.unit.spec, self.size
        cycles, settling = settled(spec, rate, settle)
        length, largest = float(np.sqrt(shift @ shift)), float(np.abs(shift).max())
        account.flops(2 * n)
        # ‖A⁻¹b‖ ≤ ‖b‖/λ_min, and the loudest cell has (A⁻¹)_ii ≤ 1/λ_min
        root = 1.0 / (HEADROOM / math.sqrt(rate) + length / rate)
        tolerated = 1.0 + tolerated_part(spec) * count
        for attempt in range(MAX_HALVINGS):
            wanted = min(root**2, spec.temperature_full_scale)
            code = max(spec.temperature_code(wanted), 1)
            root = math.sqrt(spec.temperature_value(code))
            if root * largest > 1.0:
                break
            row = np.zeros((1, spec.cells), np.int16)
            levels = shift * (root * spec.bias_max)
            if self.corrections is not None:
                levels = self.corrections.bias_levels(levels)
            row[0, :n] = np.rint(np.clip(levels, -spec.bias_max, spec.bias_max))
            sums, clipped = [], np.zeros(n, np.int64)
            jobs = [
                self.job.with_biases(
                    np.repeat(row, min(spec.rhs_depth, count - first), axis=0),
                    temperature=code,
                    settle_cycles=cycles,
                    interval_cycles=spec.shortest_interval(False),
                    samples=1,
                    second_moments=False,
                )
                for first in range(0, count, spec.rhs_depth)
            ]
            for job, readout in zip(jobs, self.unit.run_many(jobs), strict=True):
                account.enter(spec, job, readout)
                account.reruns += attempt > 0
                sums.append(readout.sums[:, :n])
                clipped += readout.clipped[:, :n].sum(axis=0)
            if clipped.max() <= tolerated:
                account.clipped += int(clipped.sum())
                drawn = np.concatenate(sums).astype(np.float64) * (spec.adc_step / root)
                if self.corrections is not None:
                    drawn = self.corrections.means(drawn, 1.0 / root)
                return drawn, root, settling
            if code == 1:
                break
            root *= 0.5
        if largest > 0.0:
            raise ValueError(
                f"b of length {length:.3g}, scaled as M is, is too long: at the lowest temperature "
                "M⁻¹b leaves the ADC's range; a shorter b, or a unit with more temperature_bits"
            )
        seen = f"{int(clipped.max())} of {count} draws of a cell clip"
        raise Persistent(seen, rate, spec.temperature_value(1))
