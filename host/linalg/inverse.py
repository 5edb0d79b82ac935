"""A sampled inverse as the user gets it: what rounding did to it, and whether it is definite.

The array samples the inverse of the matrix as programmed, A + E. To first order that is off by
-A⁻¹E A⁻¹, where the host knows E. It is in the error bar always; to take it off costs two products
of n x n matrices, X + X E X. What a unit's flaws did the residual 1 - X A shows, which the error
bar believes; it is worked out when that is asked for.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal, get_args

import numpy as np

from thermokron.host.linalg.arrays import Floats, Restore
from thermokron.host.linalg.definite import Definiteness
from thermokron.host.linalg.reading import Equation
from thermokron.host.linalg.refusals import NotConverged
from thermokron.host.linalg.result import Account, Result
from thermokron.host.linalg.sampled import Sampled
from thermokron.host.linalg.spread import Parts, excess

__all__ = ["Correct", "Inverse", "check_correct", "inverse_of", "rounding_variance"]

#: Products with a vector that tell whether to take it off.
PROBES = 10
#: What may be taken off an inverse digitally.
Correct = Literal["rounding"]


def check_correct(correct: Any) -> None:
    """Refuse an unknown name."""
    if correct is not None and correct not in get_args(Correct):
        legal = ", ".join(("None", *map(repr, get_args(Correct))))
        raise ValueError(f"correct = {correct!r} is unknown; legal: {legal}")


@dataclass(frozen=True)
class Inverse:
    """A sampled inverse, and what it is of.

    Attributes
    ----------
    sampled : Sampled
    equation : Equation
        The matrix, and its codes.
    correct : "rounding" or None
        Whether what rounding did is taken off.
    """

    sampled: Sampled
    equation: Equation
    correct: Correct | None = None

    def guarded(self, account: Account) -> Inverse:
        """The same, or without the correction where its first order is no smaller than the zeroth.

        That is where the largest eigenvalue of X E, by a few products with a vector, is 1 or more.
        """
        if self.correct is None:
            return self
        n = len(self.sampled.value)
        probe = np.random.default_rng(0).standard_normal(n)
        largest = 0.0
        for _ in range(PROBES):
            probe = self._moved @ probe
            largest = float(np.linalg.norm(probe)) or 1e-300
            probe /= largest
        account.flops(PROBES * 2 * n * n)
        if largest < 1.0:
            return self
        warnings.warn(
            f"correct = {self.correct!r} is left out: rounding moves the inverse by "
            f"{largest:.2g} of itself, of which the first order says nothing. More coupling bits "
            "help, dither, or more damping of the matrix",
            NotConverged,
            stacklevel=4,
        )
        return replace(self, correct=None)

    def result(self, outer: Floats, restore: Restore, account: Account) -> Result:
        """What the user gets, whose units entries come to times `outer`."""
        value = self.value(account)
        return Result.of(
            value * outer,
            partial(self._deviation, outer),
            restore,
            account,
            definiteness=Definiteness(
                value, self.equation.matrix, outer, self.sampled.samples <= len(value)
            ),
        )

    def _deviation(self, outer: Floats) -> Floats:
        deviation: Floats = np.sqrt(self.variance()) * outer
        return deviation

    @cached_property
    def rounding(self) -> Floats:
        """E, (n, n); of several roundings O(n³) operations each."""
        return self.equation.rounding

    @cached_property
    def _moved(self) -> Floats:
        """X E, of as much of E as is known without more than n² operations."""
        moved: Floats = self.sampled.value @ self.equation.known_rounding
        return moved

    def value(self, account: Account) -> Floats:
        """A⁻¹, (n, n)."""
        if self.correct is None:
            return self.sampled.value
        n = len(self.sampled.value)
        account.flops(4 * n**3 + 3 * n * n)
        found = self.sampled.value + self._moved @ self.sampled.value
        value: Floats = 0.5 * (found + found.T)
        return value

    @cached_property
    def left(self) -> Floats:
        """What rounding has left in the matrix that the value is the inverse of, (n, n).

        E, or where its first order is taken off E X E, of which X has that much less. Of several
        roundings, whose mean has a second order that is as large, to no order.
        """
        if self.equation.merged:
            left: Floats = self.equation.matrix @ self._off @ self.equation.matrix
            return left
        return self.rounding if self.correct is None else self.rounding @ self._moved

    @cached_property
    def _off(self) -> Floats:
        """A⁻¹ less what the value expects, (n, n), digitally."""
        expected = inverse_of(self.equation.effective)
        if self.correct is not None:
            expected = expected + expected @ self.equation.known_rounding @ expected
        off: Floats = inverse_of(self.equation.matrix) - expected
        return off

    def variance(self) -> Floats:
        """(n, n): of sampling, the ADC, and what rounding has left; O(n³).

        Samples of a corrected inverse vary as (1 + X E) x does. What is left there is not of
        random signs, as E X E is definite, so that only the shape of its variance is that of
        random ones, the size its own; and so of what several roundings have in common.
        """
        value, raw = self.sampled.value, self.sampled.raw
        variance, rounded = self.sampled.variance(), rounding_variance(value, self.left)
        if self.correct is not None:
            whole = np.eye(len(raw)) + self._moved
            moved = whole @ raw @ whole.T
            variance = variance * (_isserlis(moved) / _isserlis(raw))
        whole_of_it = max(float(rounded.sum()), 1e-300)
        if self.equation.merged:
            rounded *= float((self._off**2).sum()) / whole_of_it
        elif self.correct is not None:
            size = float(((value @ self.left @ value) ** 2).sum())
            rounded *= max(size / whole_of_it, 1.0)
        return variance + rounded + self._flaws(variance, rounded)

    def _flaws(self, variance: Floats, rounded: Floats) -> Floats:
        """(n, n): what the residual 1 - X A shows beyond these, as of `excess`.

        Where gains are wrong, an error is in proportion to its entry; where noise powers are, a sum
        of X_ik X_jk; where couplings are, as rounding leaves it. Noise looks a little like any of
        these: what is added has to gain more likelihood than three numbers would by themselves
        (Akaike, IEEE Trans. Autom. Control 19, 1974).
        """
        value = self.value(Account())
        matrix = self.equation.matrix.astype(np.float64)
        error = self.equation.exact(np.eye(len(value)) - value @ matrix)
        square, known = value**2, variance + rounded
        flaws = (square, square @ square, rounding_variance(value, matrix))
        seen, base, *shapes = (Parts(each, each) for each in (error**2, known, *flaws))
        added = excess(seen, base, shapes)
        added = 0.5 * (added + added.T)
        worse, better = (np.log(each) + error**2 / each for each in (known, known + added))
        gained = np.triu(worse - better).sum()
        return added if gained > 2.0 * len(flaws) else np.zeros_like(added)


def inverse_of(matrix: Floats) -> Floats:
    """Digitally, in double precision."""
    inverse: Floats = np.linalg.inv(matrix.astype(np.float64, copy=False))
    return inverse


def _isserlis(covariance: Floats) -> Floats:
    diagonal = covariance.diagonal()
    whole: Floats = diagonal[:, None] * diagonal + covariance**2
    return whole


def rounding_variance(inverse: Floats, rounding: Floats) -> Floats:
    """Of X E X, (n, n), the signs of the symmetric E's entries taken for random.

    Σ_kl X_ik² E_kl² X_jl² + Σ_k≠l E_kl² X_ik X_jk X_il X_jl, in the second of which the mean of
    E_kl² is taken for each. Signs are known; but as an error bar |X E X| would be one sigma
    exactly, never more, whatever the problem.
    """
    n, squared, square = len(inverse), inverse**2, rounding**2
    mean = (square.sum() - square.trace()) / max(n * (n - 1), 1)
    twice = np.maximum((inverse @ inverse) ** 2 - squared @ squared, 0.0)
    variance: Floats = squared @ square @ squared + mean * twice
    return variance
