"""Functions of a symmetric matrix, f(A) x, for a forecast: O(n²) each, whatever f.

Matrices of up to `EXACT` rows are diagonalised, some 9n³ operations, as Lanczos takes more for what
one plan asks: at 256 rows 4 to 8 billion operations instead of 3 to 6. Beyond, every vector has a
Krylov space of its own, f(A) x ≈ |x| V f(T) e₁ with AV ≈ VT (Higham, Functions of Matrices, 2008,
section 13.2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from thermokron.host.linalg.arrays import Floats

__all__ = ["Function", "Functions", "diagonalised"]

#: Rows up to which a matrix is diagonalised.
EXACT = 512
#: Lanczos steps at most, and every how many it is looked whether they are enough.
STEPS, LOOK = 384, 8
#: Eigenvalues are at least this: what rounding has made indefinite has no forecast worth the name.
LEAST_RATE = 1e-9
#: Vectors whose Krylov spaces stand for those of all noise.
NOISES = 64

Function = Callable[[Floats], Floats]


def diagonalised(n: int) -> bool:
    """Whether a matrix of so many rows is, or has Krylov spaces."""
    return n <= EXACT


@dataclass(frozen=True)
class _Space:
    """Krylov spaces of p vectors: bases (p, k, n), Ritz values (p, k) and vectors (p, k, k)."""

    lengths: Floats
    basis: Floats
    rates: Floats
    weights: Floats

    def of(self, function: Function) -> Floats:
        """f(A) x for each: V f(T) e₁ = V S f(θ) Sᵀ e₁."""
        heads = np.einsum("pij,pj->pi", self.weights, function(self.rates) * self.weights[:, 0])
        whole: Floats = (heads[:, None] @ self.basis)[:, 0] * self.lengths
        return whole


class Functions:
    """Functions of a symmetric positive definite matrix.

    Parameters
    ----------
    matrix : (n, n) float
    precision : float
        To which 1/λ, the worst of the functions asked for, is right where the matrix is not
        diagonalised: the last component of its solutions, relative to the right-hand sides.

    Attributes
    ----------
    flops : int
        Spent so far.
    """

    def __init__(self, matrix: Floats, precision: float = 1e-3) -> None:
        self.matrix, self.precision = np.asarray(matrix, np.float64), precision
        self.flops = 0
        n = len(self.matrix)
        self._modes: tuple[Floats, Floats] | None = None
        self._noise: _Space | None = None
        if diagonalised(n):
            rates, vectors = np.linalg.eigh(self.matrix)
            self._modes = np.maximum(rates, LEAST_RATE), vectors
            self.flops += 9 * n**3

    def of(self, rows: Floats, function: Function) -> Floats:
        """f(A) x for each of (p, n) rows x, f taking eigenvalues of any shape."""
        if self._modes is not None:
            rates, vectors = self._modes
            self.flops += 4 * rows.size * len(rates)
            image: Floats = ((rows @ vectors) * function(rates)) @ vectors.T
            return image
        space = self._lanczos(rows)
        self.flops += 2 * space.basis.size
        return space.of(function)

    def inverse(self, rows: Floats) -> Floats:
        """A⁻¹ x for each of (p, n) rows x."""
        return self.of(rows, lambda rates: 1.0 / rates)

    def drawn(self, count: int, function: Function, rng: np.random.Generator) -> Floats:
        """(count, n) draws from N(0, f(A)²).

        Of a large matrix they are mixtures of `NOISES`, so that Krylov spaces are found once.
        """
        n = len(self.matrix)
        if self._modes is not None:
            return self.of(rng.standard_normal((count, n)), function)
        if self._noise is None:
            self._noise = self._lanczos(np.random.default_rng(n).standard_normal((NOISES, n)))
        mixing = rng.standard_normal((count, NOISES)) / np.sqrt(NOISES)
        self.flops += 2 * self._noise.basis.size + 2 * count * NOISES * n
        mixed: Floats = mixing @ self._noise.of(function)
        return mixed

    def measure(self, rows: Floats) -> tuple[Floats, Floats]:
        """Rates θ and weights ω, flat, with Σ xᵀ f(A) x = Σ ω f(θ) over all rows x.

        Golub & Meurant's Gauss quadrature where the matrix is not diagonalised.
        """
        if self._modes is not None:
            rates, vectors = self._modes
            self.flops += 2 * rows.size * len(rates)
            return rates, ((rows @ vectors) ** 2).sum(axis=0)
        space = self._lanczos(rows)
        return space.rates.ravel(), (space.weights[:, 0] ** 2 * space.lengths**2).ravel()

    def _lanczos(self, rows: Floats) -> _Space:
        """Fully reorthogonalised."""
        p, n = rows.shape
        most = min(n, STEPS)
        basis = np.zeros((p, most, n))
        lengths = np.sqrt((rows**2).sum(axis=1, keepdims=True))
        basis[:, 0] = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0.0)
        alpha, beta = np.zeros((p, most)), np.zeros((p, most))
        for k in range(most):
            step = basis[:, k] @ self.matrix
            known = basis[:, : k + 1]
            parts = known @ step[:, :, None]
            alpha[:, k] = parts[:, k, 0]
            step -= (parts.transpose(0, 2, 1) @ known)[:, 0]
            beta[:, k] = np.sqrt((step**2).sum(axis=1))
            last = k + 1 == most
            if last or (k + 1) % LOOK == 0:
                tridiagonal = np.zeros((p, k + 1, k + 1))
                at = np.arange(k + 1)
                tridiagonal[:, at, at] = alpha[:, : k + 1]
                tridiagonal[:, at[1:], at[:-1]] = tridiagonal[:, at[:-1], at[1:]] = beta[:, :k]
                rates, weights = np.linalg.eigh(tridiagonal)
                rates = np.maximum(rates, LEAST_RATE)
                solution = np.einsum("pij,pj->pi", weights, weights[:, 0] / rates)
                left = beta[:, k] * np.abs(solution[:, k])
                self.flops += 9 * p * (k + 1) ** 3
                if last or (left < self.precision).all():
                    break
            small = beta[:, k, None] > 1e-12
            basis[:, k + 1] = np.divide(
                step, beta[:, k, None], out=np.zeros_like(step), where=small
            )
        k += 1
        self.flops += p * (2 * n * n * k + 2 * n * k * k)
        return _Space(lengths, basis[:, :k].copy(), rates, weights)
