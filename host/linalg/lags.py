"""Samples of a mode that follow each other closely: an AR(1) process, ρ = e^(-λΔ).

x stands for λΔ, the sampling interval in the mode's own time constants, N for the samples.
"""

from __future__ import annotations

import numpy as np

from thermokron.host.linalg.arrays import Floats

__all__ = ["of_mean", "scatter"]

#: Where Nx is less, differences vanish in rounding: of the mean's variance from that of a sample,
#: and of the scatter from its limit, by half a percent.
SHORT, SHORT_SCATTER = 1e-5, 0.02


def of_mean(x: Floats, count: int) -> Floats:
    """Variance of the mean of N samples over that of one: (1 + 2 Σ_j (1 - j/N) ρ^j)/N."""
    x = np.maximum(x, SHORT / count)
    decay, near, all_of = np.exp(-x), -np.expm1(-x), -np.expm1(-x * count)
    part: Floats = (1.0 + 2.0 * decay / near * (1.0 - all_of / (count * near))) / count
    return part


def scatter(x: Floats, count: int) -> Floats:
    """Relative variance of a covariance of N samples, their mean subtracted; from N = 2.

    That of two independent modes of the same rate, and half of a mode's own variance's. With R the
    samples' correlations and H = 1 - 11ᵀ/N it is tr(HRHR)/tr(HR)², by Isserlis' theorem; 1/(N - 1)
    where they are independent, coth(x)/N as N grows, 0.4 where all fall within a small part of the
    time constant.
    """
    x = np.maximum(x, SHORT_SCATTER / count)
    decay, near = np.exp(-x), -np.expm1(-x)
    once = decay * -np.expm1(-x * count) / near  # Σ ρ^t, t = 1 … N
    twice = decay**2 * -np.expm1(-2.0 * x * count) / -np.expm1(-2.0 * x)
    # rows of R sum to (1 + ρ - ρ^(t+1) - ρ^(N-t))/(1 - ρ)
    rows = count * (1.0 + decay) ** 2 - 4.0 * (1.0 + decay) * once + 2.0 * twice
    rows += 2.0 * count * np.exp(-x * (count + 1))
    mean = of_mean(x, count)
    squares = of_mean(2.0 * x, count) + mean**2 - 2.0 / count**3 * rows / near**2
    relative: Floats = squares / (1.0 - mean) ** 2
    return relative
