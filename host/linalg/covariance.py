"""The inverse of one array-sized matrix: the covariance of the array's fluctuations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from thermokron.host.calibration import Corrections
from thermokron.host.linalg.arrays import Floats
from thermokron.host.linalg.lags import of_mean, scatter
from thermokron.host.linalg.refusals import Persistent
from thermokron.host.linalg.result import Account
from thermokron.host.linalg.rounding import Rounded
from thermokron.host.linalg.sampled import OF_SLOWEST, Sampled
from thermokron.host.linalg.spectrum import largest_eigenvalue
from thermokron.model import Job, Readout, Unit, UnitSpec, covariance_settling
from thermokron.model.spec import MAX_INTERVAL_CYCLES, MAX_SAMPLES, MAX_SETTLE_CYCLES

__all__ = [
    "HEADROOM",
    "SETTLING_BIAS",
    "Estimator",
    "check_estimator",
    "safe_temperature",
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
#: Runs of one matrix before it is given up.
MAX_ATTEMPTS = 6
#: Part of a standard error that is not worth correcting for; steps of the correction, which depends
#: on what it corrects.
NEGLIGIBLE, RESTORING = 0.02, 4
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
    spec, n, least = unit.spec, len(matrix), plan.rate
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
            spaced = spacing * spec.clock_s / spec.tau_s
            _restore_mean(value, raw, plan.rate, samples, spaced, account)
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
                return Sampled(value, raw, plan.rate, samples, spaced, step, uncertain)
            rate = seen
        else:
            rate = plan.rate / 4.0
            if code == 1 and attempt > 0:
                break
        account.reruns += 1
        if look is not None:
            job, plan = look()
            look, least = None, plan.rate
            if plan.shrinkage:
                continue
        plan = replace(plan, rate=min(rate, plan.rate))
    raise Persistent(
        f"{worst} of {samples} samples of a cell clip, down to temperature code {code}",
        least,
        spec.temperature_value(1),
    )


def _restore_mean(
    value: Floats, raw: Floats, rate: float, samples: int, spacing: float, account: Account
) -> None:
    """Give back, in place, the variance that the subtracted mean has taken along.

    Of mode k the mean of N samples has the part c_k of its variance (`lags.of_mean`), so that
    Σ (x - x̄)²/(N - 1) expects N (1 - c_k)/(N - 1) of it: 1 for independent samples, less for
    correlated ones. An entry is a mixture of modes; its part is taken from the mean of its cells'
    rates and from the slowest mode, as its error is. Left alone where it would move the
    slowest mode by less than `NEGLIGIBLE` of its own standard error.
    """

    def kept(rates: Floats) -> Floats:
        part: Floats = (1.0 - of_mean(rates * spacing, samples)) * samples / (samples - 1)
        return part

    lost = 1.0 - float(kept(np.array(rate)))
    if lost < NEGLIGIBLE * math.sqrt(2.0 * float(scatter(np.array(rate * spacing), samples))):
        return
    plain = value.copy()
    for _ in range(RESTORING):
        rates = np.clip(1.0 / np.maximum(value.diagonal(), 1.0), min(rate, 1.0), 1.0)
        part = kept(0.5 * (rates[:, None] + rates))
        part -= OF_SLOWEST * (part - (1.0 - lost))
        np.divide(plain, part, out=value)
        account.flops(20 * value.size)
    raw += value - plain


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


def safe_temperature(spec: UnitSpec, rate: float) -> float:
    """T, in full scales squared, at which no cell of a matrix of that λ_min comes near the rail."""
    return min(rate / HEADROOM**2, spec.temperature_full_scale)


def _temperature(unit: Unit, plan: Rounded, job: Job, account: Account) -> int:
    """Temperature code at which the noisiest cell keeps `HEADROOM` below the rail.

    (A⁻¹)_ii ≤ 1/λ_min, so T = λ_min/headroom² is safe. (A⁻¹)_ii ≥ 1, so the quietest cell then has
    σ ≥ √T; where that is less than an ADC step, a short pilot finds the highest temperature
    instead.
    """
    spec = unit.spec
    full = spec.temperature_full_scale
    safe = safe_temperature(spec, plan.rate)
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
