"""Functions of a symmetric matrix, f(A) x, for a forecast: O(n²) each, whatever f.

Small matrices are diagonalised once, some 9n³ operations, which up to `EXACT` rows is less than
Lanczos takes for what one forecast asks. Beyond, every vector has a Krylov space of its own,
f(A) x ≈ |x| V f(T) e₁ with AV ≈ VT (Higham, Functions of Matrices, 2008, section 13.2).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from thermokron.host.linalg.arrays import Floats

__all__ = ["EXACT", "Function", "Functions"]

#: Rows up to which a matrix is diagonalised.
EXACT = 192
#: Lanczos steps at most, and every how many it is looked whether they are enough: then 1/λ, the
#: worst of the functions asked for, is right to `PRECISION` by the size of its last component.
STEPS, LOOK, PRECISION = 384, 8, 1e-4
#: Eigenvalues are at least this: what rounding has made indefinite has no forecast worth the name.
LEAST_RATE = 1e-9

Function = Callable[[Floats], Floats]


class Functions:
    """Functions of a symmetric positive definite matrix.

    Parameters
    ----------
    matrix : (n, n) float

    Attributes
    ----------
    flops : int
        Spent so far.
    """

    def __init__(self, matrix: Floats) -> None:
        self.matrix = np.asarray(matrix, np.float64)
        self.flops = 0
        n = len(self.matrix)
        self._modes: tuple[Floats, Floats] | None = None
        if n <= EXACT:
            rates, vectors = np.linalg.eigh(self.matrix)
            self._modes = np.maximum(rates, LEAST_RATE), vectors
            self.flops += 9 * n**3

    def of(self, rows: Floats, function: Function) -> Floats:
        """f(A) x for each of (p, n) rows x, f taking eigenvalues of any shape."""
        p, n = rows.shape
        if self._modes is not None:
            rates, vectors = self._modes
            self.flops += 4 * p * n * n
            image: Floats = ((rows @ vectors) * function(rates)) @ vectors.T
            return image
        basis, rates, weights = self._lanczos(rows)
        # V f(T) e₁ = V S f(θ) Sᵀ e₁
        heads = np.einsum("pij,pj->pi", weights, function(rates) * weights[:, 0])
        self.flops += 2 * basis.size
        whole: Floats = np.einsum("pi,pin->pn", heads, basis) * _lengths(rows)
        return whole

    def inverse(self, rows: Floats) -> Floats:
        """A⁻¹ x for each of (p, n) rows x."""
        return self.of(rows, lambda rates: 1.0 / rates)

    def measure(self, rows: Floats) -> tuple[Floats, Floats]:
        """Rates θ and weights ω, flat, with Σ xᵀ f(A) x = Σ ω f(θ) over all rows x.

        Golub & Meurant's Gauss quadrature where the matrix is not diagonalised.
        """
        if self._modes is not None:
            rates, vectors = self._modes
            self.flops += 2 * rows.size * len(rates)
            return rates, ((rows @ vectors) ** 2).sum(axis=0)
        _, rates, weights = self._lanczos(rows)
        return rates.ravel(), (weights[:, 0] ** 2 * _lengths(rows) ** 2).ravel()

    def _lanczos(self, rows: Floats) -> tuple[Floats, Floats, Floats]:
        """Bases (p, k, n), Ritz values (p, k) and vectors (p, k, k), fully reorthogonalised."""
        p, n = rows.shape
        most = min(n, STEPS)
        basis = np.zeros((p, most, n))
        lengths = _lengths(rows)
        basis[:, 0] = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0.0)
        alpha, beta = np.zeros((p, most)), np.zeros((p, most))
        for k in range(most):
            step = basis[:, k] @ self.matrix
            alpha[:, k] = (step * basis[:, k]).sum(axis=1)
            known = basis[:, : k + 1]
            for _ in range(2):
                step -= np.einsum("pi,pin->pn", np.einsum("pin,pn->pi", known, step), known)
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
                if last or (left < PRECISION).all():
                    break
            small = beta[:, k, None] > 1e-12
            basis[:, k + 1] = np.divide(
                step, beta[:, k, None], out=np.zeros_like(step), where=small
            )
        k += 1
        self.flops += p * (2 * n * n * k + 4 * n * k * k)
        return basis[:, :k], rates, weights


def _lengths(rows: Floats) -> Floats:
    lengths: Floats = np.sqrt((rows**2).sum(axis=1, keepdims=True))
    return lengths
