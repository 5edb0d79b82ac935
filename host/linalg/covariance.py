"""The inverse of one array-sized matrix: the covariance of the array's fluctuations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from thermokron.host.calibration import Corrections
from thermokron.host.linalg.arrays import Floats
from thermokron.host.linalg.refusals import Persistent
from thermokron.host.linalg.result import Account
from thermokron.host.linalg.rounding import Rounded
from thermokron.host.linalg.spectrum import largest_eigenvalue
from thermokron.model import Job, Readout, Unit, UnitSpec, covariance_settling
from thermokron.model.spec import MAX_INTERVAL_CYCLES, MAX_SAMPLES, MAX_SETTLE_CYCLES

__all__ = [
    "HEADROOM",
    "SETTLING_BIAS",
    "Estimator",
    "Sampled",
    "check_estimator",
    "sample_inverse",
    "spacing_cycles",
    "tolerated_part",
]

#: How an inverse is made of a covariance, see `Programmed.inv`.
Estimator = Literal["unbiased", "quadratic"]

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


def check_estimator(estimator: Any) -> None:
    """Refuse an unknown name."""
    legal = get_args(Estimator)
    if estimator not in legal:
        raise ValueError(f"estimator = {estimator!r} is unknown; legal: {', '.join(legal)}")


def spacing_cycles(spec: UnitSpec, rate: float, interval: float, *, second_moments: bool) -> int:
    """Clock cycles between samples: `interval` in units of τ/λ, if the unit can follow."""
    wanted = math.ceil(interval * spec.tau_s * spec.clock_hz / rate)
    return min(max(wanted, spec.shortest_interval(second_moments)), MAX_INTERVAL_CYCLES)


@dataclass(frozen=True)
class Sampled:
    """A sampled inverse of a matrix with unit diagonal.

    Attributes
    ----------
    value : (n, n) float64
        The inverse, symmetric.
    raw : (n, n) float64
        The same with ADC noise on the diagonal: what the sampling error scales with.
    rate : float
        Lower bound or estimate of the λ_min of the matrix that was sampled.
    samples : int
        Samples taken.
    spacing : float
        Sampling interval in units of τ.
    adc_variance : float
        The square of one ADC step, in the units of `value`.
    uncertain : (n, n) float64 or None
        The variance that errors of the unit's calibration add.
    """

    value: Floats
    raw: Floats
    rate: float
    samples: int
    spacing: float
    adc_variance: float
    uncertain: Floats | None = None

    def correlation(self) -> Floats:
        """Factor, (n, n), on the variance of independent samples' covariance.

        The exact factor is a mean of coth((λ_k+λ_l)Δ/2τ) over modes, weighted by their part in
        the entry. coth is convex, so it is at least the coth of the mean rate, which is
        (1/X_ii + 1/X_jj)/2, and at most that of the slowest mode; this is the mean of the two.
        """
        rate = 1.0 / np.maximum(self.value.diagonal(), 1.0)
        slowest = min(self.rate, float(rate.min()))
        factor: Floats = 0.5 * (
            1.0 / np.tanh(0.5 * self.spacing * (rate[:, None] + rate))
            + 1.0 / math.tanh(self.spacing * slowest)
        )
        return factor

    def effective_samples(self) -> float:
        """How many independent samples would tell as much about the inverse as a whole."""
        # a mode meets all the others: coth((λ_k+λ_l)Δ/2), with the mean rate for λ_l. Rates 1/X_ii
        # are means of modes already; of these and the slowest the mean
        rates = 1.0 / np.maximum(self.value.diagonal(), 1.0)
        pairs = 0.5 * (rates + rates.mean())
        slowest = 0.5 * (min(self.rate, float(rates.min())) + float(rates.mean()))
        common = float((1.0 / np.tanh(self.spacing * pairs)).mean())
        factor = 0.5 * (common + 1.0 / math.tanh(self.spacing * slowest))
        return (self.samples - 1) / factor

    def shortening(self) -> float:
        """N/(N+n+1), see `Programmed.inv`."""
        count = self.effective_samples()
        return count / (count + len(self.value) + 1)

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
        if self.uncertain is not None:
            variance += self.uncertain
        return np.sqrt(variance)


def sample_inverse(
    unit: Unit,
    job: Job,
    matrix: Floats,
    plan: Rounded,
    *,
    samples: int,
    interval: float,
    account: Account,
    corrections: Corrections | None = None,
    look: Callable[[], tuple[Job, Rounded]] | None,
) -> Sampled:
    """Sample the inverse of an SPD matrix with unit diagonal and at most `cells` rows.

    Reruns where samples clip, or where the result shows a mode much slower than assumed.

    Parameters
    ----------
    unit : Unit
    job : Job
        The program: its couplings are used.
    matrix : (n, n) float
        What they stand for.
    plan : Rounded
        What is known of the couplings.
    samples : int
    interval : float
        Between samples, in τ/λ_min, if the accumulator can follow.
    account : Account
    corrections : Corrections, optional
        What is known of the device.
    look : callable or None
        Programs the matrix anew under a guard, if none has looked at it; called once, if samples
        clip.

    Raises
    ------
    Persistent
        If samples still clip at the lowest temperature or after `MAX_ATTEMPTS` runs.
    """
    spec, n = unit.spec, len(matrix)
    for attempt in range(MAX_ATTEMPTS):
        settling = covariance_settling(plan.rate, SETTLING_BIAS) * spec.tau_s * spec.clock_hz
        settle = min(max(math.ceil(settling), 1), MAX_SETTLE_CYCLES)
        spacing = spacing_cycles(spec, plan.rate, interval, second_moments=True)
        biases = np.zeros((1, spec.cells), dtype=np.int16)
        if corrections is not None:
            biases[0, :n] = corrections.no_bias
        job = job.with_biases(
            biases,
            settle_cycles=settle,
            interval_cycles=spacing,
            samples=samples,
            second_moments=True,
        )
        code = _temperature(unit, plan, job, account)
        job = job.with_biases(job.biases, temperature=code)
        products, sums, clipped = _accumulate(unit, job, account)
        step = spec.adc_step**2 / spec.temperature_value(code)
        centred = products[:n, :n] - np.outer(sums[:n], sums[:n]) / samples
        raw = centred * (step / (samples - 1))
        conversion: Floats | float = step / 12.0
        if corrections is not None:
            raw = corrections.covariance(raw)
            heat = spec.temperature_value(code)
            conversion = corrections.conversion(spec.adc_step**2 / 12.0) / heat
        account.flops(4 * n * n)
        worst = int(clipped[:n].max())
        tolerated = 1.0 + tolerated_part(spec) * samples
        if worst <= tolerated:
            value = raw.copy()
            value.flat[:: n + 1] -= conversion
            _lift_quiet(value, matrix, step)
            uncertain = None
            if corrections is not None:
                value, spent = corrections.equalised(value, plan.codes)
                account.flops(spent + 2 * n * n)
                uncertain = corrections.covariance_variance(value)
            # ‖Σ/T‖ is 1/λ_min as the array has it, widened by the noise of few samples
            slowest = largest_eigenvalue(value)
            account.flops(8 * n * n)
            seen = (1.0 + math.sqrt(n / samples)) ** 2 / slowest if slowest > 0.0 else 1.0
            if seen >= 0.5 * plan.rate or attempt == MAX_ATTEMPTS - 1:
                account.clipped += int(clipped[:n].sum())
                spaced = spacing * spec.clock_s / spec.tau_s
                return Sampled(value, raw, plan.rate, samples, spaced, step, uncertain)
            rate = seen
        else:
            rate = plan.rate / 4.0
            if code == 1 and attempt > 0:
                break
        account.reruns += 1
        if look is not None:
            job, plan = look()
            look = None
            if plan.shrinkage:
                continue
        plan = replace(plan, rate=min(rate, plan.rate))
    raise Persistent(
        f"{worst} of {samples} samples of a cell clip, down to temperature code {code}"
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
    jobs = [
        job.with_biases(job.biases, samples=min(MAX_SAMPLES, job.samples - first))
        for first in range(0, job.samples, MAX_SAMPLES)
    ]
    parts = []
    for part, readout in zip(jobs, unit.run_many(jobs), strict=True):
        account.enter(unit.spec, part, readout)
        parts.append(_moments(readout))
    products, sums, clipped = (sum(column[1:], column[0]) for column in zip(*parts, strict=True))
    return products, sums, clipped


def _moments(readout: Readout) -> tuple[Floats, Floats, NDArray[np.int64]]:
    assert readout.products is not None
    return readout.products.astype(float), readout.sums[0].astype(float), readout.clipped[0]


def _temperature(unit: Unit, plan: Rounded, job: Job, account: Account) -> int:
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
            pilot = job.with_biases(
                job.biases,
                temperature=max(spec.temperature_code(trial), 1),
                samples=PILOT_SAMPLES,
            )
            products, sums, clipped = _accumulate(unit, pilot, account)
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
