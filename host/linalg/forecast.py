"""What an inverse by covariance will be off by, and what it costs: formulas of sampling theory.

With X = (A + E)⁻¹ as programmed and W = D^-½, N samples Δ apart scatter about W X W by

    ((tr WXW)² + ‖WXW‖²) c̄/N,   c̄/N = Σ_kl s_k s_l c_kl / (Σ_k s_k)²,   s_k = g_k/λ_k,

c_kl being the relative variance of a covariance of two modes (`lags.scatter`, at the mean of their
rates), and g_k what of WW is in mode k. It is exact where every c_kl is the same, as of independent
samples. Norms and traces of large matrices are those of a few random ±1 vectors z: zᵀWXWz is on
average the trace (Hutchinson), |WXWz|² the squared norm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from thermokron.host.linalg.arrays import Floats
from thermokron.host.linalg.covariance import (
    COARSE_HEADROOM,
    PILOT_SAMPLES,
    SETTLING_BIAS,
    safe_temperature,
    spacing_cycles,
)
from thermokron.host.linalg.functions import Functions, diagonalised
from thermokron.host.linalg.inverse import Correct
from thermokron.host.linalg.lags import scatter
from thermokron.host.linalg.programmed import Programmed
from thermokron.host.linalg.rehearsal import Task
from thermokron.host.linalg.result import Account
from thermokron.host.linalg.sampled import LEAST_SLOPE
from thermokron.host.linalg.standin import Call
from thermokron.model import covariance_settling
from thermokron.model.spec import MAX_SAMPLES, MAX_SETTLE_CYCLES

__all__ = ["MOST_SAMPLES", "Covariance", "Parts"]

#: Random vectors for norms and traces of a large matrix.
PROBES = 12
#: Rates and weights of modes, in classes of equal weight, for sums over pairs.
CLASSES = 64
#: Samples that are asked of a plan at most: a thousand runs.
MOST_SAMPLES = 2**30


@dataclass(frozen=True)
class Parts:
    """Relative errors, Frobenius, of what does not depend on each other.

    Attributes
    ----------
    sampling, rounding, adc, settling : float
        Of noise, of coupling codes, of the codes of ADC and biases, and of what was not waited for.
    """

    sampling: float
    rounding: float
    adc: float
    settling: float

    @property
    def error(self) -> float:
        """Of all."""
        return float(np.linalg.norm(tuple(vars(self).values())))


class Covariance:
    """Forecasts for the inverse of one task's matrix, which fits the array.

    Parameters
    ----------
    task : Task
    programmed : Programmed
        The same matrix on any unit of the spec.
    """

    def __init__(self, task: Task, programmed: Programmed) -> None:
        self.task, self.programmed = task, programmed
        self.rate = programmed.plan.rate
        self._rounding: dict[Correct | None, float] = {}
        self._spreads: dict[Correct | None, tuple[float, float]] = {}
        self.array = Functions(programmed.equation.effective)
        n = len(task.matrix)
        if diagonalised(n):
            self.probes: Floats = np.eye(n)
            self.weight = 1.0
        else:
            signs = np.random.default_rng(n).integers(0, 2, (PROBES, n))
            self.probes = 2.0 * signs.astype(np.float64) - 1.0
            self.weight = 1.0 / PROBES

    @property
    def flops(self) -> int:
        """Digital operations so far, of functions of A + E and of A."""
        return self.array.flops + self.task.own.flops

    def _sum(self, first: Floats, second: Floats) -> float:
        return self.weight * float((first * second).sum())

    @cached_property
    def _own(self) -> Floats:
        """D^-½ z."""
        own: Floats = self.probes / self.task.weights
        return own

    @cached_property
    def _error(self) -> Floats:
        """E."""
        return self.programmed.equation.rounding

    @cached_property
    def _inverse(self) -> Floats:
        """X D^-½ z."""
        return self.array.inverse(self._own)

    @cached_property
    def _exact(self) -> Floats:
        """A⁻¹ D^-½ z."""
        return self.task.own.inverse(self._own)

    @cached_property
    def _size(self) -> float:
        """‖M⁻¹‖²."""
        return self._norm(self._exact)

    def _norm(self, image: Floats) -> float:
        outer = image / self.task.weights
        return self._sum(outer, outer)

    def rounding(self, correct: Correct | None) -> float:
        """What rounded couplings do, relative to M⁻¹."""
        if correct not in self._rounding:
            self._rounding[correct] = self._rounded(correct)
        return self._rounding[correct]

    def _rounded(self, correct: Correct | None) -> float:
        value = self._inverse
        if correct is not None:  # X + X E X
            value = value + self.array.inverse(value @ self._error)
        return math.sqrt(self._norm(value - self._exact) / self._size)

    @cached_property
    def temperature(self) -> float:
        """T in full scales squared; where the ADC is coarse, what a pilot run is likely to find."""
        spec = self.task.spec
        safe = safe_temperature(spec, self.rate)
        if safe < spec.adc_step**2:
            margin = 1.0 + 3.0 * math.sqrt(2.0 / PILOT_SAMPLES)
            found = 1.0 / (COARSE_HEADROOM**2 * margin * float(self._diagonal.max()))
            safe = min(max(safe, found), spec.temperature_full_scale)
        return spec.temperature_value(max(spec.temperature_code(safe), 1))

    @cached_property
    def _diagonal(self) -> Floats:
        """Of X; an upper bound of a large matrix's, where only the largest is asked for."""
        n = len(self.task.matrix)
        if not diagonalised(n):
            return np.full(n, 1.0 / self.rate)
        diagonal: Floats = (self._inverse * self.task.weights[:, None]).diagonal()
        return diagonal

    @cached_property
    def _coarseness(self) -> float:
        """What an ADC takes for less than it is, relative to M⁻¹, see `Sampled.variance`."""
        step, n = self.task.spec.adc_step**2 / self.temperature, len(self.task.matrix)
        spread = self._diagonal if diagonalised(n) else np.ones(n)
        faded = np.exp(-2.0 * math.pi**2 * spread / step)
        slope = np.maximum(1.0 - 2.0 * faded, LEAST_SLOPE)
        if not diagonalised(n):
            return float(1.0 / slope[0] ** 2 - 1.0)
        missed = self._inverse * (slope * slope[:, None] - 1.0)
        return math.sqrt(self._norm(missed) / self._size)

    @cached_property
    def _modes(self) -> tuple[Floats, Floats]:
        """Rates in classes, and what each has of Σ s_k, 1 in all."""
        rates, weights = self.array.measure(self._own)
        shares = weights / rates
        order = np.argsort(rates)
        rates, shares = rates[order], shares[order] / shares.sum()
        if len(rates) <= CLASSES:
            return rates, shares
        edges = np.minimum((np.cumsum(shares) * CLASSES).astype(int), CLASSES - 1)
        sums = np.bincount(edges, shares, CLASSES)
        means = np.bincount(edges, shares * rates, CLASSES)
        some = sums > 0.0
        return means[some] / sums[some], sums[some].astype(np.float64)

    def _scattered(self, samples: int, spacing: float) -> float:
        """c̄/N."""
        rates, shares = self._modes
        pairs = scatter(0.5 * spacing * (rates[:, None] + rates), samples)
        return float(shares @ pairs @ shares)

    def _spread(self, correct: Correct | None) -> tuple[float, float]:
        """(tr WXW)² + ‖WXW‖² relative to ‖M⁻¹‖², and what ADC noise adds to it."""
        if correct not in self._spreads:
            self._spreads[correct] = self._spread_of(correct)
        return self._spreads[correct]

    def _spread_of(self, correct: Correct | None) -> tuple[float, float]:
        scale = self.task.weights
        if correct is None:
            image = self._inverse
        else:  # to first order δ(X + XEX) = (1 + XE) δX (1 + EX)
            left = self._own + self._inverse @ self._error
            right = self.array.inverse(left)
            image = right + self.array.inverse(right @ self._error)
        trace, norm = self._sum(self._own, image), self._norm(image)
        noise = self.task.spec.adc_step**2 / 12.0 / self.temperature
        own = scale**-2.0
        more = (trace + noise * own.sum()) ** 2 - trace**2
        more += 2.0 * noise * trace * float(own.mean()) + noise**2 * float((own**2).sum())
        return (trace**2 + norm) / self._size, more / self._size

    def interval_cycles(self, interval: float) -> int:
        """Clock cycles between samples, `interval` being in τ/λ_min."""
        return spacing_cycles(self.task.spec, self.rate, interval, second_moments=True)

    def parts(self, samples: int, interval: float, correct: Correct | None) -> Parts:
        """What an inverse of so many samples is off by."""
        spec = self.task.spec
        spacing = self.interval_cycles(interval) * spec.clock_s / spec.tau_s
        scattered = self._scattered(samples, spacing)
        whole, noise = self._spread(correct)
        # the slowest mode's variance, of which every sample leaves less
        unsettled = SETTLING_BIAS / samples / -math.expm1(-2.0 * self.rate * spacing)
        return Parts(
            math.sqrt(whole * scattered),
            self.rounding(correct),
            math.hypot(math.sqrt(noise / max(samples - 1, 1)), self._coarseness),
            unsettled,
        )

    def lasting(self, correct: Correct | None) -> float:
        """What is left however many samples there are."""
        return math.hypot(self.rounding(correct), self._coarseness)

    def samples(self, target: float, interval: float, correct: Correct | None) -> int | None:
        """The least number that brings the error down to a target; None if none does."""
        if self.lasting(correct) >= target:
            return None
        low = high = max(len(self.task.matrix) + 1, 2)  # fewer are singular for sure
        while self.parts(high, interval, correct).error > target:
            low, high = high, 2 * high
            if high > MOST_SAMPLES:
                return None
        while high - low > max(low // 100, 1):
            middle = (low + high) // 2
            fits = self.parts(middle, interval, correct).error <= target
            low, high = (low, middle) if fits else (middle, high)
        return high

    def cost(self, samples: int, interval: float, correct: Correct | None) -> Account:
        """Of so many, in several runs if there are more than one has."""
        spec, n = self.task.spec, len(self.task.matrix)
        account = Account(samples=samples)
        account.add(self.programmed.cost)
        settling = covariance_settling(self.rate, SETTLING_BIAS) * spec.tau_s * spec.clock_hz
        program = {
            "settle_cycles": min(max(math.ceil(settling), 1), MAX_SETTLE_CYCLES),
            "interval_cycles": self.interval_cycles(interval),
            "second_moments": True,
        }
        for first in range(0, samples, MAX_SAMPLES):
            count = min(MAX_SAMPLES, samples - first)
            biases = np.zeros((1, spec.cells), np.int16)
            job = self.programmed.job.with_biases(biases, samples=count, **program)
            Call(job, 1).enter(spec, account)
        account.flops(14 * n * n + (4 * n**3 + 3 * n * n) * (correct is not None))
        return account
