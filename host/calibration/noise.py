"""What unequal noise does to a covariance, and how it is taken off.

For κ_i⁻¹ dz_i = -(A z)_i dt + √(2 T f_i/κ_i) dW_i the covariance Z at equilibrium obeys Lyapunov's

    κ A Z + Z A κ = 2 T κ f,

which T A⁻¹ solves for f = 1. So Z = T (A⁻¹ + X), where κ A X + X A κ = 2 κ (f - 1): X is linear in
f - 1, and with B = κ^½ A κ^½ and X = κ^½ Y κ^½ it is B Y + Y B = 2 (f - 1).
"""

from __future__ import annotations

import numpy as np

from thermokron.host.calibration.values import Floats

__all__ = ["exact_excess", "scaled_excess"]


def exact_excess(matrix: Floats, noise: Floats, rates: Floats) -> Floats:
    """X of A (n, n), f (n,) and κ (n,): in B's eigenbasis, about 13n³ operations."""
    root = np.sqrt(rates)
    values, vectors = np.linalg.eigh(matrix * root * root[:, None])
    turned = (vectors.T * (2.0 * (noise - 1.0))) @ vectors
    turned /= np.add.outer(values, values)
    excess: Floats = (vectors @ turned @ vectors.T) * root * root[:, None]
    return excess


def scaled_excess(inverse: Floats, noise: Floats) -> Floats:
    """½ ((f - 1) Z + Z (f - 1)) of Z = T (A⁻¹ + X) as it was measured over T: O(n²).

    Z less this is Z_ij over the mean of f_i and f_j, to first order. It is exact where cells are
    alone, and to first order in what couples them: between modes λ and μ it takes off
    (λ + μ)²/(4 λ μ) times what is there.
    """
    mean = 0.5 * np.add.outer(noise, noise)
    excess: Floats = inverse * (1.0 - 1.0 / mean)
    return excess
