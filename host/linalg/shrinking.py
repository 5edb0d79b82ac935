"""Couplings shrunk by the least part that leaves a rounded matrix positive definite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from thermokron.host.linalg.arrays import Floats
from thermokron.host.linalg.codes import nearest
from thermokron.host.linalg.result import Account
from thermokron.host.linalg.spectrum import Ritz, norm_bound, smallest_eigenvalue
from thermokron.model import UnitSpec

__all__ = ["KEEP", "Guard", "Shrinking", "factorisable", "lanczos"]

Guard = Literal["lanczos", "norm", "cholesky", "clipping", "none"]

#: What must be left of λ_min after rounding; below this the couplings are shrunk.
KEEP = 0.5
#: Part of the shrinking that may be too much, and how often less is tried at most.
CLOSE, HALVINGS = 0.1, 3


@dataclass(frozen=True)
class Shrinking:
    """A matrix of unit diagonal whose off-diagonal entries are to be shrunk before rounding.

    (1-s) A + s I has the eigenvalues (1-s) λ + s, so s = (wanted - λ)/(1 - λ) lifts λ to what is
    wanted. Rounding anew moves λ again, either way: with 4 bits and n = 65 by as much as s does.
    Hence attempts: upwards until the guard is content, by what λ lacks; then halfway back, three
    times at most, as what it lacks with one rounding is often twice what it lacks with another. A
    matrix like it tells little of how far to go.

    Attributes
    ----------
    spec : UnitSpec
    matrix : (n, n) float
        A.
    bound, least : float
        Lower bounds on A's λ_min: of which `KEEP` is to be left, and what is certain.
    guard : str
        "norm", "cholesky", or anything else for Lanczos.
    account : Account
        Where operations are entered.
    weights, uniform : (n, n) float or None
        As of `thermokron.host.linalg.codes.codes_of`.
    """

    spec: UnitSpec
    matrix: Floats
    bound: float
    least: float
    guard: Guard
    account: Account
    weights: Floats | None = None
    uniform: Floats | None = None

    def least_part(self) -> tuple[NDArray[np.int16], float, float]:
        """Codes, a lower bound on their λ_min, and the s that was found."""
        certain, shortest = self._certain(), 0.5 / self.spec.coupling_max
        failed, part = 0.0, min(shortest, certain)
        codes, rate, lacking = self._attempt(part, certain)
        while rate is None:
            failed, shortest = part, 1.2 * shortest
            part = min(1.0 - (1.0 - part) * (1.0 - min(max(lacking, shortest), 0.9)), certain)
            codes, rate, lacking = self._attempt(part, certain)
        for _ in range(HALVINGS):
            if part - failed <= CLOSE * part:
                break
            less = 0.5 * (failed + part)
            others, slower, _ = self._attempt(less, certain)
            if slower is None:
                failed = less
            else:
                codes, rate, part = others, slower, less
        return codes, rate, part

    def _certain(self) -> float:
        """The s that no rounding can defeat, as |E_ij| ≤ step/2 off the diagonal, or step where it
        is at random, has a norm of at most (n-1) times that."""
        farthest = 0.5 if self.uniform is None else 1.0
        worst = farthest * (len(self.matrix) - 1) / self.spec.coupling_max
        lacking = KEEP * self.bound + worst - self.least
        return min(lacking / (1.0 - self.least), 1.0) if self.least < 1.0 else 0.0

    def _attempt(
        self, part: float, certain: float
    ) -> tuple[NDArray[np.int16], float | None, float]:
        """Codes, their rate if the guard is content, and by what to shrink further if not."""
        n, wanted = len(self.matrix), KEEP * self.bound
        shrunk = self.matrix * (1.0 - part)
        shrunk.flat[:: n + 1] = 1.0
        codes, whole, rounding = nearest(self.spec, shrunk, True, self.weights, self.uniform)
        self.account.flops(7 * n * n)
        if part >= certain:
            return codes, wanted, 0.0
        if self.guard == "cholesky":
            return codes, factorisable(whole, wanted, self.account), 0.0
        if self.guard == "norm":
            rate = self.least + part * (1.0 - self.least) - norm_bound(rounding)
        else:
            rate = lanczos(whole, self.account).lower
        if rate >= wanted:
            return codes, rate, 0.0
        return codes, None, (wanted - rate) / (1.0 - rate)


def lanczos(matrix: Floats, account: Account) -> Ritz:
    """Ritz values and vectors, counted."""
    ritz = smallest_eigenvalue(matrix)
    account.flops(ritz.flops)
    return ritz


def factorisable(matrix: Floats, rate: float, account: Account) -> float | None:
    """`rate` if the matrix less `rate` on its diagonal has a Cholesky factor, else None."""
    n = len(matrix)
    account.flops(n**3 / 3 + n)
    try:
        np.linalg.cholesky(matrix - rate * np.eye(n))
    except np.linalg.LinAlgError:
        return None
    return rate
