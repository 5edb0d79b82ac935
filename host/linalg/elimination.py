"""Matrices larger than the array: block elimination, every pivot a matrix on the array.

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
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from thermokron.host.linalg.arrays import Floats, Kind
from thermokron.host.linalg.covariance import SETTLING_BIAS
from thermokron.host.linalg.programmed import Programmed
from thermokron.host.linalg.reading import Reading
from thermokron.host.linalg.refinement import refined
from thermokron.host.linalg.refusals import Indefinite
from thermokron.host.linalg.result import Account
from thermokron.host.linalg.rounding import Guard, equilibrated
from thermokron.host.linalg.sampled import Sampled
from thermokron.host.linalg.settling import Settle
from thermokron.host.linalg.spectrum import smallest_eigenvalue
from thermokron.model import Unit
from thermokron.model.memory import transposed

__all__ = ["Complements", "Pivot", "Reduction", "eliminate"]

#: How elimination finds P⁻¹Q: see `Reduction`.
Complements = Literal["auto", "covariance", "means"]

#: Samples per column of a mean solve at least.
LEAST_SHARE = 8
#: Rounding of the couplings, relative to λ_min, that mean solves need not be refined for; and how
#: often they are at most: couplings of few bits take several passes.
FINE, MOST_PASSES = 0.03, 6


@dataclass(frozen=True)
class Reduction:
    """How elimination finds W = P⁻¹Q.

    Attributes
    ----------
    complements : "means", "covariance" or "auto"
        "covariance": P⁻¹ as sampled, times Q; its error, about √(c/N), is an error of S relative to
        QᵀW, and so harmless only while that is below λ_min. "means": each column of W as a mean of
        the array, whose error does not grow with the condition number. "auto": means where
        λ_min < √(cells/samples).
    samples : int
        Of an inverse; and of all columns of W together, but for `LEAST_SHARE` a column.
    settle : float or str
        Before means are read.
    interval : float
        Between samples, in τ/λ_min, if the unit can follow.
    tolerance : float
        Of the residual of means, relative to Q, to which they are refined where couplings are
        coarse.
    guard : str
        Of the pivots' rounding, see `program`.
    draw : int or None
        Of the first pivot's rounding at random, which that of the next follows; None: the nearest.
    """

    complements: Complements = "means"
    samples: int = 1000
    settle: Settle = SETTLING_BIAS
    interval: float = 2.0
    tolerance: float = 0.01
    guard: Guard = "lanczos"
    draw: int | None = None


@dataclass(frozen=True)
class Pivot:
    """One step of the elimination; the rows that come after the block are its `rest`.

    Attributes
    ----------
    block : slice
        The rows eliminated.
    array : Programmed
        The pivot P.
    row : (c, rest) float
        Q: what couples the block to its rest.
    reduced : (c, rest) float
        W = P⁻¹Q.
    sampled : Sampled or None
        The pivot's inverse, as P is scaled, if W is that times Q; None if W was solved for.
    """

    block: slice
    array: Programmed
    row: Floats
    reduced: Floats
    sampled: Sampled | None

    @property
    def rest(self) -> slice:
        """The rows that come after."""
        return slice(self.block.stop, None)

    def state_dict(self) -> dict[str, Any]:
        """What `load` makes the same of."""
        return {
            "block": (self.block.start, self.block.stop),
            "array": self.array.state_dict(),
            "row": self.row,
            "reduced": self.reduced,
            "sampled": None if self.sampled is None else vars(self.sampled),
        }

    @classmethod
    def load(cls, unit: Unit, state: dict[str, Any], kind: Kind) -> Self:
        """What `state_dict` was made of."""
        sampled = state["sampled"]
        return cls(
            slice(*state["block"]),
            Programmed.load(unit, state["array"], kind),
            state["row"],
            state["reduced"],
            None if sampled is None else Sampled(**sampled),
        )


def eliminate(
    unit: Unit,
    matrix: Floats,
    bound: float | None,
    kind: Kind,
    reduction: Reduction,
    account: Account,
    earlier: tuple[Pivot, ...] = (),
) -> tuple[Pivot, ...]:
    """Eliminate an (n, n) matrix of unit diagonal over blocks of at most `cells` rows each.

    Parameters
    ----------
    unit : Unit
        Holds the pivots, one after the other.
    matrix : (n, n) float
        Symmetric, unit diagonal, positive definite.
    bound : float or None
        Lower bound on its λ_min; without it Lanczos estimates one, O(n²) a step.
    kind, reduction, account
        What it was given as, how to eliminate, and where to enter costs.
    earlier : tuple of Pivot
        Those of the matrix before, in a sequence: how strongly their columns could be driven.

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
    by_means = reduction.complements == "means" or (
        reduction.complements == "auto"
        and (not unit.spec.second_moments or bound < math.sqrt(cells / reduction.samples))
    )
    remaining = matrix.copy()
    pivots: list[Pivot] = []
    doubt = 0.0  # relative error of the last pivot's inverse
    count = math.ceil(n / cells)
    edges = [i * n // count for i in range(count + 1)]
    olds: Iterable[Pivot | None] = itertools.chain(earlier, itertools.repeat(None))
    for (start, stop), old in zip(itertools.pairwise(edges), olds, strict=False):
        block, rest = slice(start, stop), slice(stop, n)
        corner, slowest = remaining[block, block], 1.0
        if start:
            corner, slowest = _repaired(corner, matrix[block, block], bound, doubt, account)
        elif not given:  # the estimate may be above what the first block shows
            corner, slowest = _repaired(corner, corner, bound, 0.0, account)
        array = Programmed(
            unit,
            *equilibrated(corner, bound, account),
            guard=reduction.guard,
            kind=kind,
            interval=reduction.interval,
            doubtful=start > 0,
            draw=None if reduction.draw is None else reduction.draw + len(pivots),
        )
        if old is not None:
            array.means.recall(old.array.means)
        account.add(array.cost)
        row = remaining[block, rest].copy()
        sampled = reduced = None
        if not by_means:
            sampled, reduced = _multiplied(array, row, reduction, account)
        elif stop < n:
            reduced = _solved(array, row, reduction, account)
        if reduced is None:
            reduced = row
        doubt = _doubt(array, sampled) + doubt * (1.0 - float(corner.diagonal().min())) / slowest
        if stop < n:
            complement = remaining[rest, rest] - row.T @ reduced
            remaining[rest, rest] = 0.5 * (complement + complement.T)
            c, r = row.shape
            account.flops(2 * c * r * r + 3 * r * r)
        pivots.append(Pivot(block, array, row, reduced, sampled))
    return tuple(pivots)


def _multiplied(
    array: Programmed, row: Floats, reduction: Reduction, account: Account
) -> tuple[Sampled, Floats]:
    """P⁻¹ as sampled, and W = P⁻¹Q."""
    sampled = array.covariance(reduction.samples, reduction.interval, account)
    inverse = sampled.value * (array.inverse_scale[:, None] * array.inverse_scale)
    account.flops(2 * inverse.size + 2 * len(inverse) * row.size)
    return sampled, inverse @ row


def _solved(array: Programmed, row: Floats, reduction: Reduction, account: Account) -> Floats:
    """W = P⁻¹Q, a column of Q being a bias vector."""
    # as much time on all columns together as on an inverse
    share = max(math.ceil(reduction.samples / row.shape[1]), LEAST_SHARE)
    refine = MOST_PASSES if array.plan.size > FINE * array.plan.rate else 0

    def once(right: Floats, account: Account) -> Reading:
        return array.read(
            right, account, samples=share, settle=reduction.settle, interval=reduction.interval
        )

    rows = transposed(row)
    rows *= array.inverse_scale
    solved = refined(once, array.matrix, rows, refine, account, enough=reduction.tolerance)
    account.flops(2 * row.size)
    return (solved.value * array.inverse_scale).T


def _doubt(array: Programmed, sampled: Sampled | None) -> float:
    """Relative error of a pivot's inverse, generously.

    Three times the spectral norm that sampling makes typical, and rounding's share. Means are held
    for as wrong as a complement can be.
    """
    if sampled is None:
        return 1.0
    sampling = (1.0 + math.sqrt(len(sampled.value) / sampled.samples)) ** 2 - 1.0
    return 3.0 * sampling + min(array.plan.size / array.plan.rate, 0.5)


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
