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
from thermokron.host.linalg.means import MeanSolver, Solved, refined
from thermokron.host.linalg.program import Indefinite
from thermokron.host.linalg.result import Account
from thermokron.host.linalg.spectrum import norm_bound, smallest_eigenvalue
from thermokron.model import Unit

__all__ = ["Elimination", "Pivot", "eliminate", "refined_solve"]

#: Samples per column of a mean solve at least.
LEAST_SHARE = 8
#: Rounding of the couplings, relative to λ_min, that mean solves need not be refined for.
FINE = 0.03


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
    solver : MeanSolver or None
        What has solved for W, scaled like `sampled`; None if W is `inverse` times Q.
    """

    block: slice
    sampled: Sampled
    scale: Floats
    inverse: Floats
    row: Floats
    reduced: Floats
    solver: MeanSolver | None


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

    def solve(self, right: Floats, samples: int, account: Account) -> tuple[Floats, Floats]:
        """M⁻¹ right for (n, k) right-hand sides, and the variance of its entries.

        Forward substitution and P⁻¹ of each block by the mean of the array, then back
        substitution: about 4n²k flops. It needs the pivots' solvers.
        """
        state, variance = right.copy(), np.zeros_like(right)
        for pivot in self.pivots:
            assert pivot.solver is not None
            block, rest = pivot.block, slice(pivot.block.stop, None)
            state[rest] -= pivot.reduced.T @ state[block]
            scale = pivot.scale[:, None]
            solved = pivot.solver.solve(state[block] / scale, samples, 0, account)
            state[block] = solved.value / scale
            variance[block] = solved.variance / scale**2
        for pivot in reversed(self.pivots):
            block, rest = pivot.block, slice(pivot.block.stop, None)
            state[block] -= pivot.reduced @ state[rest]
            variance[block] += pivot.reduced**2 @ variance[rest]
        account.flops(2 * right.size * self.size)
        return state, variance

    def influences(self, whole: Floats) -> list[Floats]:
        """F of each pivot, (c, n), given the inverse."""
        found = []
        for i, pivot in enumerate(self.pivots):
            block, rest = pivot.block, slice(pivot.block.stop, None)
            influence = np.zeros((len(pivot.inverse), self.size))
            influence[:, block] = np.eye(len(pivot.inverse))
            if pivot.solver is None:  # else W, and the complements, know nothing of the error
                towards = pivot.row @ whole[rest, rest]
                influence[:, block] += towards @ pivot.reduced.T
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
    unit: Unit,
    matrix: Floats,
    bound: float | None,
    options: Options,
    account: Account,
    *,
    exactly: bool = False,
) -> Elimination:
    """Factorise an (n, n) matrix of unit diagonal over blocks of at most `cells` rows each.

    Parameters
    ----------
    unit : Unit
        Inverts the pivots, one after the other.
    matrix : (n, n) float64
        Symmetric, unit diagonal, positive definite.
    bound : float or None
        Lower bound on its λ_min; without it Lanczos estimates one, O(n²) a step.
    options, account
        As for `sample_inverse`. `options.complements` says how W = P⁻¹Q is found. "covariance":
        P⁻¹ as sampled, times Q; its error, about √(c/N), is an error of S relative to QᵀW, and so
        harmless only while that is below λ_min. "means": each column of W as a mean of the array,
        with once refined residuals, in about twice the hardware time; what is sampled no longer
        depends on it, and the error does not grow with the condition number. "auto": means where
        λ_min < √(cells/samples).
    exactly : bool
        Whether means are refined in any case, not only where the couplings' rounding asks for it:
        for factors that are used as such, rather than for the noisy inverse.

    Raises
    ------
    Indefinite
        If the matrix, or a complement beyond its sampling error, is not positive definite.
    """
    n, cells = len(matrix), unit.spec.cells
    given = bound is not None
    if bound is None:
        ritz = smallest_eigenvalue(matrix)
        account.flops(ritz.flops)
        if ritz.value <= 0.0:
            raise Indefinite(ritz.vector, ritz.value)
        bound = max(ritz.lower, 0.25 * ritz.value)
    remaining = matrix.copy()
    pivots: list[Pivot] = []
    doubt = 0.0  # relative error of the last pivot's inverse
    count = math.ceil(n / cells)
    by_means = options.complements == "means" or (
        options.complements == "auto" and bound < math.sqrt(cells / options.samples)
    )
    edges = [i * n // count for i in range(count + 1)]
    for start, stop in itertools.pairwise(edges):
        block, rest, c = slice(start, stop), slice(stop, n), stop - start
        corner = remaining[block, block]
        slowest = 1.0
        if start:
            corner, slowest = _repaired(corner, matrix[block, block], bound, doubt, account)
        elif not given:  # the estimate may be above what the first block shows
            corner, slowest = _repaired(corner, corner, bound, 0.0, account)
        least = min(bound / float(corner.diagonal().max()), 1.0)
        scale = np.sqrt(corner.diagonal())
        outer = scale[:, None] * scale
        scaled = corner / outer
        scaled.flat[:: c + 1] = 1.0
        sampled = sample_inverse(unit, scaled, least, options, account, doubtful=start > 0)
        inverse = sampled.value / outer
        account.flops(3 * c * c)
        doubt = _doubt(sampled) + doubt * (1.0 - float(corner.diagonal().min())) / slowest
        row = remaining[block, rest].copy()
        solver = None
        if by_means:
            solver = MeanSolver(unit, scaled, sampled, options.interval)
        if stop == n:
            reduced = row
        elif solver is None:
            reduced = inverse @ row
            account.flops(2 * c * row.size)
        else:
            # as much time on all columns together as on the inverse
            share = max(math.ceil(options.samples / (n - stop)), LEAST_SHARE)
            coarse = norm_bound(sampled.program.rounding) > FINE * sampled.program.rate
            passes = int(coarse or exactly)
            solved = solver.solve(row / scale[:, None], share, passes, account)
            reduced = solved.value / scale[:, None]
        if stop < n:
            complement = remaining[rest, rest] - row.T @ reduced
            remaining[rest, rest] = 0.5 * (complement + complement.T)
            r = n - stop
            account.flops(2 * c * r * r + 3 * r * r)
        pivots.append(Pivot(block, sampled, scale, inverse, row, reduced, solver))
    return Elimination(tuple(pivots), n)


def _doubt(sampled: Sampled) -> float:
    """Relative error of a pivot's inverse, generously.

    Three times the spectral norm that sampling makes typical, and rounding's share.
    """
    sampling = (1.0 + math.sqrt(len(sampled.value) / sampled.samples)) ** 2 - 1.0
    rounding = norm_bound(sampled.program.rounding) / sampled.program.rate
    return 3.0 * sampling + min(rounding, 0.5)


def _repaired(
    corner: Floats, original: Floats, bound: float, doubt: float, account: Account
) -> tuple[Floats, float]:
    """The block of a complement, with what noise has pushed below `bound` lifted back to it.

    Also returns its smallest eigenvalue then.

    λ_min of a complement is not below the matrix's, so a Ritz value θ < bound is an error; adding
    (bound - θ) yyᵀ is the least change that mends it.

    Raises
    ------
    Indefinite
        If a deficit exceeds `doubt` times yᵀ(original - corner)y, what elimination took away.
    """
    ritz = smallest_eigenvalue(corner)
    account.flops(ritz.flops)
    low = int(np.count_nonzero(ritz.values < bound))
    if not low:
        return corner, max(ritz.lower, bound)
    vectors = ritz.weights[:, :low].T @ ritz.basis
    deficits = bound - ritz.values[:low]
    c = len(corner)
    account.flops(2 * len(ritz.basis) * c * low + 4 * c * c * low)
    worst = vectors[0]
    if deficits[0] > bound + min(doubt, 1.0) * (worst @ original @ worst - ritz.values[0]):
        raise Indefinite(worst, float(ritz.values[0]))
    account.repairs += 1
    lifted: Floats = corner + (vectors.T * deficits) @ vectors
    return lifted, bound


def refined_solve(
    elimination: Elimination,
    matrix: Floats,
    right: Floats,
    samples: int,
    refine: int,
    account: Account,
) -> Solved:
    """Solve A x = b for (n, k) right-hand sides with `refine` refinements.

    Errors of the factors shrink by the same factor from pass to pass; the last two steps show it,
    and what it leaves of the last step is added to the variance.
    """

    def once(residual: Floats) -> tuple[Floats, Floats]:
        return elimination.solve(residual, samples, account)

    return refined(once, matrix, right, refine, account, observe=True)
