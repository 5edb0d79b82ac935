"""A sampled inverse, and how far sampling and the ADC have moved it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from thermokron.host.linalg.arrays import Floats
from thermokron.host.linalg.lags import scatter

__all__ = ["OF_SLOWEST", "Sampled", "slow_rates"]

#: Slope of the converter below which it is not known: cells quieter than 0.22 of its step.
LEAST_SLOPE = 0.2
#: The slowest mode's part in what closely spaced samples do to an entry. The exact variances of
#: inverses of random matrices are then 0.96 to 1.17 times those found, on average over entries, at
#: condition numbers from 3 to 300 and intervals from 0.05 to 2.
OF_SLOWEST = 0.25


def slow_rates(value: Floats, rate: float) -> tuple[Floats, float]:
    """Mean rates of cells' modes, (n,), of an inverse, and that of the slowest.

    An entry is a sum over modes, of a function of their rates that is convex. It is at least that
    of the mean rate, which of X_ii is 1/X_ii, at most that of the slowest; `OF_SLOWEST` is the
    latter's part in what is taken for it. (A has unit diagonal, so that X_ii ≥ 1.)
    """
    rates = 1.0 / np.maximum(value.diagonal(), 1.0)
    return rates, min(rate, float(rates.min()))


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

    def scatter(self) -> Floats:
        """Relative variance of entries, (n, n): what 1/(N - 1) is of independent samples."""
        rates, slowest = slow_rates(self.value, self.rate)
        between = scatter(0.5 * self.spacing * (rates[:, None] + rates), self.samples)
        slow = scatter(np.array(self.spacing * slowest), self.samples)
        whole: Floats = between + OF_SLOWEST * (slow - between)
        return whole

    def effective_samples(self) -> float:
        """How many independent samples would tell as much about the inverse as a whole."""
        # a mode meets all the others, at the sum of both rates, with the mean rate for the other's.
        # Rates 1/X_ii are means of modes already; of these and the slowest the mean
        rates, slowest = slow_rates(self.value, self.rate)
        mean = float(rates.mean())
        common = scatter(0.5 * self.spacing * (rates + mean), self.samples).mean()
        slow = scatter(np.array(0.5 * self.spacing * (slowest + mean)), self.samples)
        return float(2.0 / (common + slow))

    def shortening(self) -> float:
        """N/(N+n+1), see `Programmed.inv`."""
        count = self.effective_samples()
        return count / (count + len(self.value) + 1)

    def variance(self) -> Floats:
        """(n, n): (X_ii X_jj + X_ij²)/N, N as of `scatter`, and what a coarse ADC misses.

        (Isserlis' theorem for Gaussian x.) A few samples are a poor measure of their own error: it
        is small where they happen to be. So the variances X_ii are drawn towards their mean, by
        as much as their scatter exceeds the truth's (James & Stein), and X_ij² is short of what
        noise has added to it.

        Where the ADC step exceeds 1.5 σ, Sheppard's correction fails by
        (q²/π² + 4σ²) exp(-2π²σ²/q²), and the converter's mean slope is no longer 1 but
        g = 1 - 2 exp(-2π²σ²/q²), so that covariances shrink by g_i g_j; both are the first terms
        of Fourier series in 1/q, and are added as far as they can be told from the result.
        """
        scattered = self.scatter()
        diagonal = np.maximum(self.raw.diagonal(), 1.0)  # (A⁻¹)_ii ≥ 1/A_ii
        diagonal = _drawn_together(diagonal, scattered.diagonal())
        own = diagonal[:, None] * diagonal
        common = np.maximum((self.raw**2 - scattered * own) / (1.0 + scattered), 0.0)
        common.flat[:: len(common) + 1] = diagonal**2
        variance: Floats = (own + common) * scattered
        spread = np.maximum(self.value.diagonal(), 0.0)
        faded = np.exp(-2.0 * math.pi**2 * spread / self.adc_variance)
        slope = np.maximum(1.0 - 2.0 * faded, LEAST_SLOPE)
        missed = self.raw * (1.0 / (slope[:, None] * slope) - 1.0)
        missed.flat[:: len(missed) + 1] = (self.adc_variance / math.pi**2 + 4.0 * spread) * faded
        variance += missed**2
        if self.uncertain is not None:
            variance += self.uncertain
        return variance


def _drawn_together(diagonal: Floats, scattered: Floats) -> Floats:
    """Sampled variances, (n,), whose relative variances are 2 `scattered`, towards their mean."""
    n, mean = len(diagonal), float(diagonal.mean())
    noise = 2.0 * float(scattered.mean()) * mean**2
    if n == 1:
        return diagonal
    own = max(float(diagonal.var(ddof=1)) - noise, 0.0)
    drawn: Floats = mean + (diagonal - mean) * (own / (own + noise))
    return drawn
