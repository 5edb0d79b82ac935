"""Newton and Schulz's iteration for an inverse: products alone, each step squares what is left."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from thermokron.host.linalg.arrays import Floats

__all__ = ["Polished", "newton_schulz"]

#: Steps at most: a start that is scaled to converge gains a factor of two at first.
MOST = 60
#: Of products of a vector, to find the norm of X A; and what that may be. It converges below 2.
PROBES, LARGEST = 20, 1.5


@dataclass(frozen=True)
class Polished:
    """An inverse of A, (n, n), and what is left of it.

    Attributes
    ----------
    value : (n, n) float
        X.
    residual : float
        ‖1 - A X‖/√n, Frobenius.
    error : (n, n) float
        X (1 - A X), which A⁻¹ is off by to first order.
    steps, flops : int
        The steps taken, 4n³ operations each, and all operations.
    """

    value: Floats
    residual: float
    error: Floats
    steps: int
    flops: int


def newton_schulz(start: Floats, matrix: Floats, rtol: float) -> Polished:
    """X ← X (2 - A X) from a rough inverse of a positive definite A until its residual is `rtol`.

    Schulz, Z. angew. Math. Mech. 13, 1933. It converges where eigenvalues of X A are above 0, as
    those of a definite X are, and below 2, to which a start is scaled. It ends, too, where a step
    no longer helps.
    """
    A, X, n = matrix.astype(np.float64), start.astype(np.float64), len(start)
    probe = np.random.default_rng(0).standard_normal(n)
    largest = 0.0
    for _ in range(PROBES):
        probe = X @ (A @ probe)
        largest = float(np.linalg.norm(probe))
        probe /= largest
    X *= min(1.0, LARGEST / largest)
    flops, best = PROBES * 4 * n * n, np.inf
    for steps in range(MOST + 1):
        left = np.eye(n) - A @ X
        residual = float(np.linalg.norm(left)) / np.sqrt(n)
        error = X @ left
        flops += 4 * n**3
        if residual <= rtol or (residual >= 0.999 * best and residual < 0.5) or steps == MOST:
            break
        best = residual
        X = X + 0.5 * (error + error.T)
    return Polished(X, residual, error, steps, flops)
