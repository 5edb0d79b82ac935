"""Slopes, lines of tables, and matrices of given eigenvalues, for `asymptotics.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from thermokron.model import UnitSpec

__all__ = ["FINE", "FITTED", "HEAD", "KAPPAS", "Row", "hadamard", "half", "one", "slopes"]

#: The largest of what varies, at which slopes are fitted.
FITTED = 3


@dataclass(frozen=True)
class Row:
    """One exponent: as it is in the limit, as the expression has it, and as it was measured."""

    what: str
    symbol: str
    variable: str
    limit: float
    at: Sequence[float]
    expected: Sequence[float]
    counted: Sequence[float]
    claim: str = ""

    def line(self) -> list[str]:
        """Of the table."""
        low, high = (f"{edge:g}" for edge in (self.at[-FITTED:][0], self.at[-1]))
        pairs = list(zip(self.counted, self.expected, strict=True))[-FITTED:]
        apart = max(abs(c / e - 1.0) for c, e in pairs)
        return [
            self.what,
            self.symbol,
            self.variable,
            f"{self.limit:.0f}",
            slopes(self.at, self.expected),
            slopes(self.at, self.counted),
            f"{100 * apart:.1f}%",
            f"{low} to {high}",
            self.claim,
        ]


HEAD = ["", "symbol", "in", "limit", "symbol, here", "measured", "apart", "at", "within O(n²κ²)"]


def slopes(at: Sequence[float], values: Sequence[float]) -> str:
    """The exponent over the largest, by least squares; where it bends, of first and last step."""
    x, y = np.log(at[-FITTED:]), np.log(values[-FITTED:])
    each = np.diff(y) / np.diff(x)
    spread = f" ({each[0]:.2f} to {each[-1]:.2f})" * bool(np.ptp(each) > 0.02)
    return f"{np.polyfit(x, y, 1)[0]:.2f}{spread}"


def hadamard(n: int, rates: np.ndarray, seed: int) -> np.ndarray:
    """A matrix of unit diagonal with these eigenvalues, of mean 1; n is a power of two."""
    turned = np.ones((1, 1))
    while len(turned) < n:
        turned = np.block([[turned, turned], [turned, -turned]])
    rng = np.random.default_rng(seed)
    turned = turned * rng.choice([-1.0, 1.0], n)[:, None] / math.sqrt(n)
    matrix = (turned * rng.permutation(rates)) @ turned.T
    matrix = 0.5 * (matrix + matrix.T)
    np.fill_diagonal(matrix, 1.0)
    return matrix


def half(n: int, kappa: float) -> np.ndarray:
    """Eigenvalues of which half are 1/κ and the others 2 - 1/κ: tr M⁻¹ is about nκ/2."""
    return np.repeat([1.0 / kappa, 2.0 - 1.0 / kappa], n // 2)


def one(n: int, kappa: float) -> np.ndarray:
    """Eigenvalues of which a single one is 1/κ: tr M⁻¹ is about n + κ."""
    return np.array([1.0 / kappa] + [(n - 1.0 / kappa) / (n - 1)] * (n - 1))


#: Couplings and converters that do not tell, and a clock by which settling is whole cycles.
FINE = UnitSpec(cells=256, coupling_bits=16, adc_bits=16, rhs_depth=256, tau_s=2e-6)
KAPPAS = (4, 8, 16, 32, 64)
