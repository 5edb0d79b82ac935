"""Whether a sampled inverse is positive definite, and the nearest matrix that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from thermokron.host.linalg.arrays import Floats
from thermokron.host.linalg.schulz import Polished, newton_schulz
from thermokron.host.linalg.spectrum import LANCZOS_STEPS, norm_bound, smallest_eigenvalue

__all__ = ["Definiteness", "Several"]


@dataclass(frozen=True)
class Definiteness:
    """Whether a sampled inverse, (n, n), is positive definite, and the nearest that is.

    Attributes
    ----------
    value : (n, n) float
        In the array's units.
    matrix : (n, n) float
        What it is the inverse of.
    outer : (n, n) float
        What turns entries into the user's units.
    singular : bool
        Whether it is known not to be: the covariance of no more samples than rows.
    """

    value: Floats
    matrix: Floats
    outer: Floats
    singular: bool = False

    def indefinite(self) -> tuple[bool, int]:
        """Whether it is not, as far as is seen, and the operations that took.

        By Cholesky's factorisation, n³/3, or Lanczos, which may miss it, whichever costs less.
        """
        n = len(self.value)
        if self.singular:
            return True, 0
        if n > 6 * LANCZOS_STEPS:
            ritz = smallest_eigenvalue(self.value)
            return ritz.value <= 0.0, ritz.flops
        try:
            np.linalg.cholesky(self.value)
        except np.linalg.LinAlgError:
            return True, round(n**3 / 3)
        return False, round(n**3 / 3)

    def nearest(self) -> tuple[Definiteness, int]:
        """The same of the nearest matrix, in Frobenius norm, that can be an inverse.

        Eigenvalues below 1/‖A‖, which those of A⁻¹ are not, become that (Higham, Linear Algebra
        Appl. 103, 1988): some 11n³ operations, which are returned too. In the user's units it is
        positive definite as well.
        """
        n = len(self.value)
        values, vectors = np.linalg.eigh(self.value.astype(np.float64))
        least = 1.0 / norm_bound(self.matrix)
        nearest = (vectors * np.maximum(values, least)) @ vectors.T
        nearest = 0.5 * (nearest + nearest.T)
        return replace(self, value=nearest, singular=False), 11 * n**3

    def polished(self, rtol: float) -> tuple[Definiteness, list[Polished]]:
        """The same of the inverse to a residual of `rtol`, from the nearest that is definite."""
        start, flops = self.nearest() if self.indefinite()[0] else (self, 0)
        found = newton_schulz(start.value, self.matrix, rtol)
        found = replace(found, error=found.error * self.outer, flops=found.flops + flops)
        return replace(self, value=found.value, singular=False), [found]


@dataclass(frozen=True)
class Several:
    """The same of a stack of inverses, (..., n, n): one that is not definite, and none is."""

    batch: tuple[int, ...]
    parts: Sequence[Definiteness | Several]

    @property
    def value(self) -> Floats:
        """In the user's units, so that `outer` is 1."""
        whole = np.stack([part.value * part.outer for part in self.parts])
        return whole.reshape(*self.batch, *whole.shape[1:])

    @property
    def outer(self) -> float:
        return 1.0

    def indefinite(self) -> tuple[bool, int]:
        """Whether any is not, and the operations that took."""
        found = [part.indefinite() for part in self.parts]
        return any(bad for bad, _ in found), sum(flops for _, flops in found)

    def nearest(self) -> tuple[Several, int]:
        """The same of the nearest to each that is not, and operations."""
        parts: list[Definiteness | Several] = []
        total = 0
        for part in self.parts:
            if part.indefinite()[0]:
                nearest, flops = part.nearest()
                parts.append(nearest)
                total += flops
            else:
                parts.append(part)
        return replace(self, parts=parts), total

    def polished(self, rtol: float) -> tuple[Several, list[Polished]]:
        """The same of each to a residual of `rtol`."""
        parts: list[Definiteness | Several] = []
        found: list[Polished] = []
        for part in self.parts:
            better, own = part.polished(rtol)
            parts.append(better)
            found += own
        return replace(self, parts=parts), found
