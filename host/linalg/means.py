"""Linear systems of array size: the mean of the array's fluctuations under a bias.

Under a bias b the array settles to x ~ N(A⁻¹b, T A⁻¹). Noise is then only a nuisance, apart from
dithering the ADC, so the temperature is the lowest that does; a mean of N samples is √(2/N)·x/σ
times more exact than a covariance. What remains is the rounding of the couplings, and residuals
that are solved for again ("refinement", as in any text on numerical linear algebra) remove it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from thermokron.host.linalg.arrays import Floats
from thermokron.host.linalg.inverse import HEADROOM, Persistent, Sampled, timing, tolerated_part
from thermokron.host.linalg.result import Account
from thermokron.model import Job, Unit

__all__ = ["MeanSolver", "Solved", "refined"]

#: What the predicted solution may fill of the ADC's range, less the noise.
FILL = 0.7
#: What the loudest cell's noise may take of it, and what it gets where that would be more: quiet
#: cells then dither a coarse ADC less than they should.
MOST_NOISE, ENOUGH_NOISE = 0.9, 0.5
#: Halvings of a column's bias before clipping counts as persistent.
MAX_HALVINGS = 8


@dataclass(frozen=True)
class Solved:
    """Solutions, and the variance of their entries.

    Attributes
    ----------
    value : (n, k) float64
        x.
    variance : (n, k) float64
        Sampling noise, ADC and bias quantisation, and the couplings' rounding as far as the last
        refinement has left it.
    residual : (n, k) float64
        b - A x.
    """

    value: Floats
    variance: Floats
    residual: Floats


class MeanSolver:
    """Solves A x = b for one array-sized A of unit diagonal whose inverse has been sampled.

    The sampled inverse, however rough, says how far each solution will swing, hence how strongly
    the biases may be driven, and how noisy each cell is.

    Parameters
    ----------
    unit : Unit
        Of at least n cells.
    matrix : (n, n) float64
        A.
    sampled : Sampled
        From `sample_inverse`; its program is used again.
    interval : float
        Sampling interval in units of τ/λ_min.
    """

    def __init__(self, unit: Unit, matrix: Floats, sampled: Sampled, interval: float) -> None:
        spec = unit.spec
        self.unit, self.matrix, self.sampled = unit, matrix, sampled
        rate = sampled.program.rate
        self.settle_cycles, self.interval_cycles = timing(
            spec, rate, interval, second_moments=False
        )
        gain = np.maximum(sampled.value.diagonal(), 1.0)
        # the dither: one ADC step for the quietest cell, which has (A⁻¹)_ii ≥ 1
        dither, loudest = spec.adc_step**2, float(gain.max())
        if HEADROOM * math.sqrt(dither * loudest) > MOST_NOISE:
            dither = (ENOUGH_NOISE / HEADROOM) ** 2 / loudest
        self.code = max(spec.temperature_code(min(dither, spec.temperature_full_scale)), 1)
        self.spread = spec.temperature_value(self.code) * gain
        spacing = self.interval_cycles * spec.clock_s / spec.tau_s
        # between the least it can be (coth is convex) and the most, as for the covariance
        correlation = 0.5 / np.tanh(0.5 * spacing / gain) + 0.5 / math.tanh(0.5 * spacing * rate)
        self.sample_variance = (self.spread + spec.adc_step**2 / 12.0) * correlation
        # what dithering leaves of the ADC's rounding, which averaging cannot remove
        step = spec.adc_step
        lasting = step**2 / 12.0 * np.exp(-4.0 * math.pi**2 * self.spread / step**2)
        bias_step = 1.0 / spec.bias_max
        rounding = bias_step**2 / 12.0 * (sampled.value**2).sum(axis=1)
        self.fixed_variance = lasting + rounding

    def solve(self, right: Floats, samples: int, refine: int, account: Account) -> Solved:
        """Solve for (n, k) right-hand sides with `refine` refinements.

        About 4n²k flops a pass. Where a pass would make a column's residual larger, for coarse
        couplings and large condition numbers, it is shortened to what makes it smallest.

        Raises
        ------
        Persistent
            If a column's samples clip however weak its bias.
        """
        plan = self.sampled.program

        def once(residual: Floats) -> tuple[Floats, Floats]:
            step, variance = self._once(residual, samples, account)
            missed = self.sampled.value @ (plan.rounding @ step)
            return step, variance + missed**2

        return refined(once, self.matrix, right, refine, account)

    def _once(self, right: Floats, samples: int, account: Account) -> tuple[Floats, Floats]:
        """One pass over all columns: solutions (n, k) and their variance."""
        spec, (n, k) = self.unit.spec, right.shape
        largest = np.abs(right).max(axis=0)
        swing = np.abs(self.sampled.value @ right).max(axis=0)
        account.flops(2 * n * n * k)
        noise = HEADROOM * math.sqrt(float(self.spread.max()))
        room = max(FILL * (1.0 - noise), 0.1)
        value, variance = np.zeros((n, k)), np.zeros((n, k))
        pending = np.flatnonzero(largest > 0.0)
        drive = np.zeros(k)
        drive[pending] = np.minimum(1.0 / largest[pending], room / swing[pending])
        tolerated = 1.0 + tolerated_part(spec) * samples
        for _ in range(MAX_HALVINGS):
            clipping: list[int] = []
            for first in range(0, len(pending), spec.rhs_depth):
                columns = pending[first : first + spec.rhs_depth]
                biases = np.zeros((len(columns), spec.cells), dtype=np.int64)
                biases[:, :n] = spec.bias_codes((right[:, columns] * drive[columns]).T)
                job = Job(
                    couplings=self.sampled.program.codes,
                    biases=biases,
                    temperature=self.code,
                    settle_cycles=self.settle_cycles,
                    interval_cycles=self.interval_cycles,
                    samples=samples,
                    second_moments=False,
                )
                readout = self.unit.run(job)
                account.enter(spec, readout)
                clipped = readout.clipped[:, :n]
                good = clipped.max(axis=1) <= tolerated
                kept = columns[good]
                factor = spec.adc_step / samples / drive[kept]
                value[:, kept] = readout.sums[good, :n].T * factor
                scaled = self.sample_variance / samples + self.fixed_variance
                variance[:, kept] = scaled[:, None] / drive[kept] ** 2
                account.clipped += int(clipped[good].sum())
                account.flops(2 * n * len(kept))
                clipping += columns[~good].tolist()
            if not clipping:
                return value, variance
            pending = np.array(clipping)
            drive[pending] *= 0.5
            account.reruns += 1
        raise Persistent(f"samples of {len(pending)} right-hand sides clip, however weak the bias")


def refined(
    once: Callable[[Floats], tuple[Floats, Floats]],
    matrix: Floats,
    right: Floats,
    refine: int,
    account: Account,
    *,
    observe: bool = False,
) -> Solved:
    """Iterative refinement of a solver that gives (n, k) solutions and their variance.

    With `observe`, the solver's variance knows nothing of its lasting errors: what they leave of
    the last step is then judged by how much smaller it was than the one before.
    """
    n, k = right.shape
    value, residual = np.zeros((n, k)), right
    before: Floats | None = None
    for _ in range(refine + 1):
        step, variance = once(residual)
        image = matrix @ step
        along, length = (image * residual).sum(axis=0), (image * image).sum(axis=0)
        # ‖r - αAs‖² = ‖r‖² - 2α·along + α²·length is below ‖r‖² for α = 1 if 2·along > length
        best = np.divide(along, length, out=np.zeros(k), where=length > 0.0)
        part = np.where(2.0 * along > length, 1.0, best)
        value = value + part * step
        residual = right - matrix @ value
        variance = variance * part**2 + ((1.0 - part) * step) ** 2
        reach = (step * step).sum(axis=0)
        if observe and before is not None:
            ratio = np.divide(reach, before, out=np.ones(k), where=before > reach)
            variance += ratio * step**2
        before = reach
        account.flops(4 * n * n * k + 7 * n * k)
    return Solved(value, variance, residual)
