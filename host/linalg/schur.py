"""Matrices larger than the array: block elimination with sampled pivot inverses.

    M = [[P, Q], [Qᵀ, R]],   W = P⁻¹Q,   S = R - QᵀW,
    M⁻¹ = [[P⁻¹ + W S⁻¹ Wᵀ, -W S⁻¹], [-S⁻¹ Wᵀ, S⁻¹]]

with P of array size, and S treated the same way. Each complement is at least as well conditioned
as M (S⁻¹ is a block of M⁻¹), so one lower bound on λ_min serves all pivots; but the error of a
pivot's inverse grows on its way through the later complements.

To first order, an error ε in one pivot's inverse changes M⁻¹ by Fᵀ ε F, where F is the product of
that pivot with its rows of the complement's inverse, carried on to the earlier rows like any other
right-hand side. With Isserlis' theorem for ε the variance of entry (i, j) is

    Σ_pivots (H_ii H_jj + H_ij²)/N,   H = Fᵀ P⁻¹ F.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from thermokron.host.linalg.arrays import Floats
from thermokron.host.linalg.inverse import Options, Sampled, sample_inverse
from thermokron.host.linalg.program import KEEP, Indefinite
from thermokron.host.linalg.result import Account
from thermokron.host.linalg.spectrum import norm_bound, smallest_eigenvalue
from thermokron.model import Unit

__all__ = ["Elimination", "Pivot", "eliminate"]


@dataclass(frozen=True)
class Pivot:
    """One step of the elimination; the rows that come after the block are its `rest`.

    Attributes
    ----------
    block : slice
        The rows eliminated.
    sampled : Sampled
        Inverse of the pivot, scaled to unit diagonal.
    scale : (c,) float64
        Square roots of the pivot's diagonal.
    inverse : (c, c) float64
        Inverse of the pivot itself.
    row : (c, rest) float64
        Q: what couples the block to its rest.
    reduced : (c, rest) float64
        W = P⁻¹Q.
    """

    block: slice
    sampled: Sampled
    scale: Floats
    inverse: Floats
    row: Floats
    reduced: Floats


@dataclass(frozen=True)
class Elimination:
    """A block factorisation of M from sampled pivots: an approximate inverse to apply or form."""

    pivots: tuple[Pivot, ...]
    size: int

    def inverse(self, account: Account) -> Floats:
        """M⁻¹, (n, n)."""
        whole = np.empty((self.size, self.size))
        for pivot in reversed(self.pivots):
            block, rest = pivot.block, slice(pivot.block.stop, None)
            c, r = pivot.row.shape
            across = -pivot.reduced @ whole[rest, rest]
            whole[block, rest] = across
            whole[rest, block] = across.T
            corner = pivot.inverse - across @ pivot.reduced.T
            whole[block, block] = 0.5 * (corner + corner.T)
            account.flops(2 * c * r * r + 2 * c * c * r + 3 * c * c)
        return whole

    def solve(self, right: Floats, account: Account) -> Floats:
        """M⁻¹ right for (n, k) right-hand sides: 2n²k flops."""
        state = right.copy()
        for pivot in self.pivots:
            rest = slice(pivot.block.stop, None)
            state[rest] -= pivot.reduced.T @ state[pivot.block]
        for pivot in reversed(self.pivots):
            rest = slice(pivot.block.stop, None)
            state[pivot.block] = pivot.inverse @ state[pivot.block] - pivot.reduced @ state[rest]
        account.flops(2 * right.size * self.size)
        return state

    def influences(self, whole: Floats) -> list[Floats]:
        """F of each pivot, (c, n), given the inverse."""
        found = []
        for i, pivot in enumerate(self.pivots):
            block, rest = pivot.block, slice(pivot.block.stop, None)
            influence = np.zeros((len(pivot.inverse), self.size))
            towards = pivot.row @ whole[rest, rest]
            influence[:, block] = np.eye(len(pivot.inverse)) + towards @ pivot.reduced.T
            influence[:, rest] = -towards
            for earlier in reversed(self.pivots[:i]):
                after = slice(earlier.block.stop, None)
                influence[:, earlier.block] = -influence[:, after] @ earlier.reduced.T
            found.append(influence)
        return found

    def standard_error(self, whole: Floats) -> Floats:
        """One sigma per entry of the inverse, (n, n)."""
        variance = np.zeros((self.size, self.size))
        for pivot, influence in zip(self.pivots, self.influences(whole), strict=True):
            sampled = pivot.sampled
            raw = sampled.raw / (pivot.scale[:, None] * pivot.scale)
            spread = influence.T @ raw @ influence
            diagonal = spread.diagonal()
            factor = float(sampled.correlation().max()) / (sampled.samples - 1)
            variance += factor * (diagonal[:, None] * diagonal + spread**2)
        return np.sqrt(variance)


def eliminate(
    unit: Unit, matrix: Floats, bound: float | None, options: Options, account: Account
) -> Elimination:
    """Factorise an (n, n) matrix of unit diagonal over blocks of at most `cells` rows.

    Parameters
    ----------
    unit : Unit
        Inverts the pivots, one after the other.
    matrix : (n, n) float64
        Symmetric, unit diagonal, positive definite.
    bound : float or None
        Lower bound on its λ_min; without it Lanczos estimates one, O(n²) a step.
    options, account
        As for `sample_inverse`.

    Raises
    ------
    Indefinite
        If the matrix, or a complement beyond its sampling error, is not positive definite.
    """
    n, cells = len(matrix), unit.spec.cells
    given = bound is not None
    if n > cells and bound is None:
        ritz = smallest_eigenvalue(matrix)
        account.flops(ritz.flops)
        if ritz.value <= 0.0:
            raise Indefinite(ritz.vector, ritz.value)
        bound = max(ritz.lower, 0.25 * ritz.value)
    remaining = matrix.copy() if n > cells else matrix
    pivots: list[Pivot] = []
    # relative error of the pivots' inverses so far: sampling, three times its spectral norm's
    # expectation, and rounding
    doubt = 0.0
    count = math.ceil(n / cells)
    edges = [i * n // count for i in range(count + 1)]
    for start, stop in itertools.pairwise(edges):
        block, rest, c = slice(start, stop), slice(stop, n), stop - start
        corner = remaining[block, block]
        if n <= cells:
            sampled = sample_inverse(unit, corner, bound, options, account)
            scale = np.ones(c)
            inverse = sampled.value
        else:
            assert bound is not None
            diagonal = corner.diagonal()
            scale = np.sqrt(np.maximum(diagonal, bound))
            scaled = corner / (scale[:, None] * scale)
            repaired = bool((diagonal < bound).any())
            scaled.flat[:: c + 1] = 1.0
            least = min(bound / float(scale.max()) ** 2, 1.0)
            subtracted = (matrix[block, block] - corner) / (scale[:, None] * scale)
            account.flops(4 * c * c)

            def forgive(
                vector: Floats,
                curvature: float,
                least: float = least,
                subtracted: Floats = subtracted,
                start: int = start,
                doubt: float = min(doubt, 1.0),
            ) -> bool:
                nonlocal repaired
                if start == 0:  # a block of the matrix itself: no excuse but a poor estimate
                    return not given and curvature > 0.0
                taken = float(vector @ subtracted @ vector)
                repaired |= curvature < KEEP * least
                return least - curvature <= doubt * taken

            sampled = sample_inverse(unit, scaled, least, options, account, forgive=forgive)
            account.repairs += repaired
            inverse = sampled.value / (scale[:, None] * scale)
        doubt = max(
            doubt,
            3.0 * ((1.0 + math.sqrt(c / sampled.samples)) ** 2 - 1.0)
            + min(norm_bound(sampled.program.rounding) / sampled.program.rate, 0.5),
        )
        row = remaining[block, rest].copy()
        reduced = inverse @ row
        if stop < n:
            complement = remaining[rest, rest] - row.T @ reduced
            remaining[rest, rest] = 0.5 * (complement + complement.T)
            r = n - stop
            account.flops(2 * c * c * r + 2 * c * r * r + 3 * r * r)
        pivots.append(Pivot(block, sampled, scale, inverse, row, reduced))
    return Elimination(tuple(pivots), n)
