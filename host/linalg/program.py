"""From a matrix with unit diagonal to coupling codes that are safe to program.

Rounding to codes adds E, |E_ij| ≤ step/2, to the matrix A. Weyl's inequality makes
λ_min(A) - ‖E‖ a rigorous bound for what is programmed, but a timid one: at 5 bits and n = 64
the Frobenius norm of E is 0.95, its spectral norm 0.27, and the shift of λ_min of a K-FAC factor
0.06. So the bound comes first, as it is nearly free, and Lanczos on the *rounded* matrix where
the bound does not decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from thermokron.host.linalg.arrays import Floats
from thermokron.host.linalg.result import Account
from thermokron.host.linalg.spectrum import Ritz, norm_bound, smallest_eigenvalue
from thermokron.model import UnitSpec

__all__ = ["GUARDS", "Guard", "Indefinite", "Program", "program"]

Guard = Literal["lanczos", "norm", "cholesky", "clipping", "none"]
GUARDS: tuple[str, ...] = get_args(Guard)
#: Those that let a rounded matrix pass unseen.
TRUSTING = ("clipping", "none")

#: What must be left of λ_min after rounding; below this the couplings are shrunk.
KEEP = 0.5


class Indefinite(ValueError):
    """A matrix's curvature yᵀAy along a unit `vector` is negative, or below the bound on λ_min."""

    def __init__(self, vector: Floats, curvature: float) -> None:
        super().__init__(f"curvature {curvature:g}")
        self.vector, self.curvature = vector, curvature


@dataclass(frozen=True)
class Program:
    """Codes for the array, and what is known of the matrix that they stand for.

    Attributes
    ----------
    codes : (cells, cells) int64
        Coupling codes, padded with an identity that exchanges nothing with the rest.
    rounding : (n, n) float64
        E, what rounding and shrinking added to the wanted matrix.
    rate : float
        Lower bound or estimate of the programmed matrix's λ_min: the slowest mode relaxes at
        rate/τ.
    checked : bool
        Whether a guard has found the programmed matrix positive definite.
    shrinkage : float
        Part by which off-diagonal entries were shrunk.
    """

    codes: NDArray[np.int64]
    rounding: Floats
    rate: float
    checked: bool
    shrinkage: float


def program(
    spec: UnitSpec,
    matrix: Floats,
    bound: float | None,
    guard: Guard,
    account: Account,
    *,
    enough: float = 0.0,
    doubtful: bool = False,
) -> Program:
    """Choose the codes for one array-sized matrix.

    Parameters
    ----------
    spec : UnitSpec
        The unit, of at least n cells.
    matrix : (n, n) float64
        Symmetric, unit diagonal.
    bound : float or None
        Lower bound on its λ_min. Without it Lanczos estimates one.
    guard : str
        "norm": the O(n²) bound alone. "lanczos": where that does not decide, λ_min of the rounded
        matrix by Lanczos. "cholesky": by factorisation, n³/3. "clipping", "none": trust the
        rounding, for good or until samples clip is for the caller.
    account : Account
        Where flops and shrinkage are entered.
    enough : float
        A λ_min beyond which nothing is gained by knowing it better (the sampling interval cannot
        become shorter); below it Lanczos is run for the sake of the hardware time.
    doubtful : bool
        For a matrix known with errors, which `bound` may not hold for: Lanczos looks at it in any
        case, and it is shrunk where needed rather than refused.

    Raises
    ------
    Indefinite
        If the matrix itself, not its rounding, has a direction of too little curvature.
    """
    n = len(matrix)
    codes, rounding = _rounded(spec, matrix)
    error = norm_bound(rounding)
    account.flops(5 * n * n)
    # |λ_min(A) - λ_min(A+E)| ≤ ‖E‖ ≤ error
    certain = bound is not None and error <= KEEP * bound
    ritz: Ritz | None = None
    wanted = bound is None or bound < enough or doubtful
    if wanted or (guard == "lanczos" and not certain):
        ritz = _lanczos(matrix + rounding, account)
    least = bound  # what is certain of λ_min(A)
    if bound is None:
        assert ritz is not None
        least = ritz.lower - error
        if error > KEEP * least:
            own = _lanczos(matrix, account)
            if own.value <= 0.0:
                raise Indefinite(own.vector, own.value)
            least = max(own.lower, 0.25 * own.value)
        bound = least
        certain = error <= KEEP * bound
    elif ritz is not None and ritz.value < bound:
        account.flops(2 * n * n + 2 * n)
        curvature = float(ritz.vector @ matrix @ ritz.vector)
        if curvature < 0.99 * bound:
            if not doubtful:
                raise Indefinite(ritz.vector, curvature)
            least, certain = min(bound, ritz.lower - error), False
    assert least is not None

    rate: float | None = None
    if certain:
        rate = max(bound - error, 0.8 * bound) if ritz is None else max(bound - error, ritz.lower)
    elif guard in TRUSTING:
        rate = KEEP * bound if ritz is None else max(ritz.lower, KEEP * bound)
    elif guard == "cholesky":
        rate = _factorisable(matrix + rounding, KEEP * bound, account)
    elif ritz is not None and ritz.lower >= KEEP * bound:
        rate = ritz.lower
    shrinkage = 0.0
    if rate is None:
        codes, rounding, rate, shrinkage = _shrunk(spec, matrix, bound, least, guard, account)
        account.shrinkage = max(account.shrinkage, shrinkage)
    if n < spec.cells:
        whole = np.diag(np.full(spec.cells, spec.coupling_max, dtype=np.int64))
        whole[:n, :n] = codes
        codes = whole
    return Program(codes, rounding, min(rate, 1.0), certain or guard not in TRUSTING, shrinkage)


def _rounded(spec: UnitSpec, matrix: Floats) -> tuple[NDArray[np.int64], Floats]:
    scaled = matrix * spec.coupling_max
    # a Schur complement that has become indefinite may hold entries beyond ±1
    nearest = np.rint(np.minimum(np.maximum(scaled, -spec.coupling_max), spec.coupling_max))
    return nearest.astype(np.int64), (nearest - scaled) / spec.coupling_max


def _lanczos(matrix: Floats, account: Account) -> Ritz:
    ritz = smallest_eigenvalue(matrix)
    account.flops(ritz.flops)
    return ritz


def _factorisable(matrix: Floats, rate: float, account: Account) -> float | None:
    """`rate` if the matrix less `rate` on its diagonal has a Cholesky factor, else None."""
    n = len(matrix)
    account.flops(n**3 / 3 + n)
    try:
        np.linalg.cholesky(matrix - rate * np.eye(n))
    except np.linalg.LinAlgError:
        return None
    return rate


def _shrunk(
    spec: UnitSpec, matrix: Floats, bound: float, least: float, guard: Guard, account: Account
) -> tuple[NDArray[np.int64], Floats, float, float]:
    """Codes, rounding, rate and s of the least shrinking that the guard accepts.

    (1-s) A + s I has the eigenvalues (1-s) λ + s, so s = (wanted - λ)/(1 - λ) lifts λ to what is
    wanted. Rounding anew moves λ again, hence the attempts. The last is what no rounding can
    defeat: |E_ij| ≤ step/2 off the diagonal has a norm of at most (n-1)·step/2.
    """
    n = len(matrix)
    wanted = KEEP * bound
    off = matrix - np.eye(n)
    shrinkage, step = 0.0, 0.5 / spec.coupling_max
    worst = 0.5 * (n - 1) / spec.coupling_max
    certain = min((wanted + worst - least) / (1.0 - least), 1.0) if least < 1.0 else 0.0
    while True:
        shrinkage = min(1.0 - (1.0 - shrinkage) * (1.0 - min(step, 0.9)), certain)
        shrunk = np.eye(n) + (1.0 - shrinkage) * off
        codes, rounding = _rounded(spec, shrunk)
        account.flops(7 * n * n)
        whole = shrunk + rounding
        rate: float | None
        if shrinkage >= certain:
            rate = wanted
        elif guard == "norm":
            rate = least + shrinkage * (1.0 - least) - norm_bound(rounding)
            if rate < wanted:
                step = max((wanted - rate) / (1.0 - rate), step)
                rate = None
        elif guard == "cholesky":
            rate = _factorisable(whole, wanted, account)
            step *= 1.5
        else:
            rate = _lanczos(whole, account).lower
            if rate < wanted:
                step = max((wanted - rate) / (1.0 - rate), 1.2 * step)
                rate = None
        if rate is not None:
            return codes, whole - matrix, rate, shrinkage
