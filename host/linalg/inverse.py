"""The inverse of one array-sized matrix: the covariance of the array's fluctuations."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from thermokron.host.linalg.arrays import Floats
from thermokron.host.linalg.program import Guard, Program, program
from thermokron.host.linalg.result import Account
from thermokron.host.linalg.spectrum import largest_eigenvalue
from thermokron.model import Job, Readout, Unit, UnitSpec
from thermokron.model.spec import MAX_INTERVAL_CYCLES, MAX_SAMPLES, MAX_SETTLE_CYCLES

__all__ = [
    "Complements",
    "Options",
    "Persistent",
    "Sampled",
    "sample_inverse",
    "timing",
    "tolerated_part",
]

#: Standard deviations of the noisiest cell that fit under the ADC's rail.
HEADROOM = 4.5
#: The same where ADC steps are scarce: 0.05% of the samples clip, and cost 0.1% of the variance.
COARSE_HEADROOM = 3.5
#: Relative bias that is left after settling, of the slowest mode.
SETTLING_BIAS = 1e-4
#: Part of the samples of a cell that may clip: costs about 0.2% of its variance.
CLIPPED_PART = 1e-3
#: Slope of the converter below which it is not known: cells quieter than 0.22 of its step.
LEAST_SLOPE = 0.2
#: Runs of one matrix before it is given up.
MAX_ATTEMPTS = 6
#: Samples of the run that finds the temperature for a coarse ADC.
PILOT_SAMPLES = 128


#: How elimination finds P⁻¹Q: see `eliminate`.
Complements = Literal["auto", "covariance", "means"]


class Persistent(ValueError):
    """Samples clip however low the temperature is."""


@dataclass(frozen=True)
class Options:
    """What a call asks of every run.

    Attributes
    ----------
    samples : int
        Samples per run.
    interval : float
        Sampling interval in units of τ/λ_min.
    guard : str
        See `program`.
    complements : str
        See `eliminate`.
    """

    samples: int
    interval: float
    guard: Guard
    complements: Complements = "auto"


def timing(
    spec: UnitSpec, rate: float, interval: float, *, second_moments: bool
) -> tuple[int, int]:
    """Settling time and sampling interval in clock cycles for a slowest mode of rate/τ.

    Settling to a relative bias ε from x = 0 takes ln(1/ε)·τ/λ for the mean, half of it for the
    covariance.
    """
    relaxation = spec.tau_s * spec.clock_hz / rate
    settle = math.ceil(-math.log(SETTLING_BIAS) * relaxation * (0.5 if second_moments else 1.0))
    spacing = max(math.ceil(interval * relaxation), spec.shortest_interval(second_moments))
    return min(max(settle, 1), MAX_SETTLE_CYCLES), min(spacing, MAX_INTERVAL_CYCLES)


@dataclass(frozen=True)
class Sampled:
    """A sampled inverse of a matrix with unit diagonal.

    Attributes
    ----------
    value : (n, n) float64
        The inverse, symmetric.
    raw : (n, n) float64
        The same with ADC noise on the diagonal: what the sampling error scales with.
    program : Program
        The codes that were sampled.
    samples : int
        Samples taken.
    spacing : float
        Sampling interval in units of τ.
    adc_variance : float
        The square of one ADC step, in the units of `value`.
    """

    value: Floats
    raw: Floats
    program: Program
    samples: int
    spacing: float
    adc_variance: float

    def correlation(self) -> Floats:
        """Factor, (n, n), on the variance of independent samples' covariance.

        The exact factor is a mean of coth((λ_k+λ_l)Δ/2τ) over modes, weighted by their part in
        the entry. coth is convex, so it is at least the coth of the mean rate, which is
        (1/X_ii + 1/X_jj)/2, and at most that of the slowest mode; this is the mean of the two.
        """
        rate = 1.0 / np.maximum(self.value.diagonal(), 1.0)
        slowest = min(self.program.rate, float(rate.min()))
        factor: Floats = 0.5 * (
            1.0 / np.tanh(0.5 * self.spacing * (rate[:, None] + rate))
            + 1.0 / math.tanh(self.spacing * slowest)
        )
        return factor

    def standard_error(self) -> Floats:
        """(n, n): √((X_ii X_jj + X_ij²)/N), corrected for correlated samples.

        (Isserlis' theorem for Gaussian x.) Where the ADC step exceeds 1.5 σ, Sheppard's correction
        fails by (q²/π² + 4σ²) exp(-2π²σ²/q²), and the converter's mean slope is no longer 1 but
        g = 1 - 2 exp(-2π²σ²/q²), so that covariances shrink by g_i g_j; both are the first terms
        of Fourier series in 1/q, and are added as far as they can be told from the result.
        """
        diagonal = self.raw.diagonal()
        variance = (diagonal[:, None] * diagonal + self.raw**2) / (self.samples - 1)
        variance = variance * self.correlation()
        spread = np.maximum(self.value.diagonal(), 0.0)
        faded = np.exp(-2.0 * math.pi**2 * spread / self.adc_variance)
        slope = np.maximum(1.0 - 2.0 * faded, LEAST_SLOPE)
        missed = self.raw * (1.0 / (slope[:, None] * slope) - 1.0)
        missed.flat[:: len(missed) + 1] = (self.adc_variance / math.pi**2 + 4.0 * spread) * faded
        variance += missed**2
        return np.sqrt(variance)


def sample_inverse(
    unit: Unit,
    matrix: Floats,
    bound: float | None,
    options: Options,
    account: Account,
    *,
    doubtful: bool = False,
) -> Sampled:
    """Sample the inverse of an SPD matrix with unit diagonal and at most `cells` rows.

    Reruns where samples clip, or where the result shows a mode much slower than assumed.

    Raises
    ------
    Indefinite
        See `program`.
    Persistent
        If samples still clip at the lowest temperature or after `MAX_ATTEMPTS` runs.
    """
    spec, n = unit.spec, len(matrix)
    # where the slowest mode is as fast as this, the accumulator sets the pace
    fastest = spec.shortest_interval() * spec.clock_s / spec.tau_s
    enough = min(options.interval / fastest, 1.0)

    def plan_with(guard: Guard) -> Program:
        return program(spec, matrix, bound, guard, account, enough=enough, doubtful=doubtful)

    plan = plan_with(options.guard)
    for attempt in range(MAX_ATTEMPTS):
        settle, spacing = timing(spec, plan.rate, options.interval, second_moments=True)
        job = Job(
            couplings=plan.codes,
            biases=np.zeros((1, spec.cells), dtype=np.int64),
            temperature=_temperature(unit, plan, settle, spacing, account),
            settle_cycles=settle,
            interval_cycles=spacing,
            samples=options.samples,
        )
        products, sums, clipped = _accumulate(unit, job, account)
        step = spec.adc_step**2 / spec.temperature_value(job.temperature)
        count = options.samples
        centred = products[:n, :n] - np.outer(sums[:n], sums[:n]) / count
        raw = centred * (step / (count - 1))
        account.flops(4 * n * n)
        worst = int(clipped[:n].max())
        tolerated = 1.0 + tolerated_part(spec) * count
        if worst <= tolerated:
            value = raw.copy()
            value.flat[:: n + 1] -= step / 12.0
            _lift_quiet(value, matrix, step)
            # ‖Σ/T‖ is 1/λ_min as the array has it, widened by the noise of few samples
            slowest = largest_eigenvalue(value)
            account.flops(8 * n * n)
            seen = (1.0 + math.sqrt(n / count)) ** 2 / slowest if slowest > 0.0 else 1.0
            if seen >= 0.5 * plan.rate or attempt == MAX_ATTEMPTS - 1:
                account.clipped += int(clipped[:n].sum())
                spaced = spacing * spec.clock_s / spec.tau_s
                return Sampled(value, raw, plan, count, spaced, step)
            rate = seen
        else:
            rate = plan.rate / 4.0
            if job.temperature == 1 and attempt > 0:
                break
        account.reruns += 1
        if options.guard == "clipping" and not plan.checked:
            plan = plan_with("lanczos")
            if plan.shrinkage:
                continue
        plan = replace(plan, rate=min(rate, plan.rate))
    raise Persistent(
        f"{worst} of {options.samples} samples of a cell clip, down to temperature code "
        f"{job.temperature}"
    )


def _lift_quiet(value: Floats, matrix: Floats, step: float) -> None:
    """Lift diagonal entries to 1/A_ii, which those of an inverse exceed, where the ADC hides them.

    A cell quieter than half a step rests on one code nearly always, so that little or nothing is
    left of its variance after Sheppard's correction. Louder cells are left as they were sampled,
    for noise that is cut off at one side is a bias.
    """
    diagonal = value.diagonal()
    if diagonal.min() < 0.25 * step:
        lifted = np.maximum(diagonal, 1.0 / matrix.diagonal())
        value.flat[:: len(value) + 1] = np.where(diagonal < 0.25 * step, lifted, diagonal)


def tolerated_part(spec: UnitSpec) -> float:
    """Part of a cell's samples that may count as clipped.

    What counts is the outermost codes, and a coarse ADC has some that are not clipped among them:
    the highest code of 3 bits begins at 5/8 of full scale. At `COARSE_HEADROOM` there are as many
    as a Gaussian has beyond the outermost decision levels.
    """
    levels = (1.0 - 0.5 * spec.adc_step, 1.0 - 1.5 * spec.adc_step)
    beyond = sum(0.5 * math.erfc(COARSE_HEADROOM * level / math.sqrt(2.0)) for level in levels)
    return max(CLIPPED_PART, beyond)


def _accumulate(unit: Unit, job: Job, account: Account) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Products (cells, cells), sums (cells,) and clip counts of a job of any number of samples."""
    if job.samples <= MAX_SAMPLES:
        readout = unit.run(job)
        account.enter(unit.spec, readout)
        return _moments(readout)
    parts = []
    for first in range(0, job.samples, MAX_SAMPLES):
        part = replace(job, samples=min(MAX_SAMPLES, job.samples - first))
        parts.append(_accumulate(unit, part, account))
    products, sums, clipped = (sum(column) for column in zip(*parts, strict=True))
    return products, sums, clipped


def _moments(readout: Readout) -> tuple[Floats, Floats, NDArray[np.int64]]:
    assert readout.products is not None
    return readout.products.astype(float), readout.sums[0].astype(float), readout.clipped[0]


def _temperature(unit: Unit, plan: Program, settle: int, spacing: int, account: Account) -> int:
    """Temperature code at which the noisiest cell keeps `HEADROOM` below the rail.

    (A⁻¹)_ii ≤ 1/λ_min, so T = λ_min/headroom² is safe. (A⁻¹)_ii ≥ 1, so the quietest cell then has
    σ ≥ √T; where that is less than an ADC step, a short pilot finds the highest temperature
    instead.
    """
    spec = unit.spec
    full = spec.temperature_full_scale
    safe = min(plan.rate / HEADROOM**2, full)
    if safe < spec.adc_step**2:
        trial = min(1.0 / COARSE_HEADROOM**2, full)
        while trial > safe:
            job = Job(
                couplings=plan.codes,
                biases=np.zeros((1, spec.cells), dtype=np.int64),
                temperature=max(spec.temperature_code(trial), 1),
                settle_cycles=settle,
                interval_cycles=spacing,
                samples=PILOT_SAMPLES,
            )
            products, sums, clipped = _accumulate(unit, job, account)
            if clipped.max() <= 1:
                variance = (products.diagonal() - sums**2 / PILOT_SAMPLES).max()
                variance *= spec.adc_step**2 / PILOT_SAMPLES
                account.flops(4 * spec.cells)
                # three sigma of the pilot's own error
                margin = 1.0 + 3.0 * math.sqrt(2.0 / PILOT_SAMPLES)
                room = 1.0 / (COARSE_HEADROOM**2 * max(variance, spec.adc_step**2 / 12) * margin)
                safe = max(safe, trial * min(room, 4.0))
                break
            trial /= 4.0
    return max(spec.temperature_code(min(safe, full)), 1)
