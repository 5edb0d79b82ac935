"""From a matrix with unit diagonal to coupling codes that are safe to program.

Rounding to codes adds E, |E_ij| ≤ step/2, to the matrix A. Weyl's inequality makes
λ_min(A) - ‖E‖ a rigorous bound for what is programmed, but a timid one: at 5 bits and n = 64
the Frobenius norm of E is 0.95, its spectral norm 0.27, and the shift of λ_min of a K-FAC factor
0.06. So the bound comes first, as it is nearly free, and Lanczos on the *rounded* matrix where
the bound does not decide.

Matrices that follow each other in training are alike, and so are their roundings. Where these are
small beside λ_min, what Lanczos found of one matrix holds for those after it: with 8 bits their
λ_min is 0.95 times what was found, or more, measured on networks. It looks again at every
`LOOK_EVERY`-th. Where roundings are large, as with 5 bits, it looks at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from thermokron.host.linalg.arrays import Floats
from thermokron.host.linalg.codes import codes_of, drawn, nearest
from thermokron.host.linalg.refusals import Indefinite
from thermokron.host.linalg.result import Account
from thermokron.host.linalg.shrinking import KEEP, Guard, Shrinking, factorisable, lanczos
from thermokron.host.linalg.spectrum import Ritz, norm_bound
from thermokron.model import UnitSpec

__all__ = ["GUARDS", "Guard", "Rounded", "equilibrated", "rounded"]

GUARDS: tuple[str, ...] = get_args(Guard)
#: Those that let a rounded matrix pass unseen.
TRUSTING = ("clipping", "none")

#: Matrices of a sequence for which a guard's finding holds, by what factor the bound on λ_min and
#: the norm of the rounding may differ from those of the one that was looked at, and what the
#: spectral norm that random roundings of that size have may be, relative to λ_min, which they move
#: by a small part of that norm only.
LOOK_EVERY, ALIKE, SMALL = 16, 1.2, 1.5


@dataclass(frozen=True)
class Rounded:
    """Codes for the array, and what is known of the matrix that they stand for.

    Attributes
    ----------
    codes : (n, n) int16
        Coupling codes.
    rate : float
        Lower bound or estimate of the programmed matrix's λ_min: the slowest mode relaxes at
        rate/τ.
    checked : bool
        Whether a guard has found the programmed matrix positive definite.
    shrinkage : float
        Part by which off-diagonal entries were shrunk.
    bound : float
        The lower bound on the wanted matrix's λ_min, as given or estimated.
    looked : float
        That of the matrix that a guard last looked at.
    size : float
        Frobenius norm of what rounding added to it.
    age : int
        Matrices since then.
    """

    codes: NDArray[np.int16]
    rate: float
    checked: bool
    shrinkage: float
    bound: float
    looked: float
    size: float
    age: int = 0


def equilibrated(
    matrix: Floats, bound: float | None, account: Account, *, whole: bool = False
) -> tuple[Floats, Floats, float | None]:
    """A = D^-½ M D^-½, the diagonal of D^½, and a lower bound on λ_min(A).

    D is M's diagonal, so that A's is exactly 1; or, of the `whole`, its largest entry for all.
    """
    n, diagonal = len(matrix), matrix.diagonal()
    scale = np.sqrt(np.full_like(diagonal, diagonal.max()) if whole else diagonal)
    inverse = 1.0 / scale
    scaled = matrix * inverse[:, None]
    scaled *= inverse
    if not whole:
        scaled.flat[:: n + 1] = 1.0
    account.flops(2 * n * n + 2 * n)
    if bound is not None:
        bound = min(bound / float(diagonal.max()), 1.0)  # A ≥ λ_min D⁻¹
    return scaled, scale, bound


def rounded(
    spec: UnitSpec,
    matrix: Floats,
    bound: float | None,
    guard: Guard,
    account: Account,
    *,
    enough: float = 0.0,
    doubtful: bool = False,
    like: Rounded | None = None,
    weights: Floats | None = None,
    draw: int | None = None,
) -> Rounded:
    """Choose the codes for one array-sized matrix.

    Parameters
    ----------
    spec : UnitSpec
        The unit, of at least n cells.
    matrix : (n, n) float64 or float32
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
    like : Rounded, optional
        The matrix before, in a sequence: what was found of it is taken over, if it still holds.
    weights : (n, n) float, optional
        What a calibrated device wants for a coupling of 1, in full scales of code; 1 on the
        diagonal. Codes are then those whose effect is nearest to the matrix.
    draw : int, optional
        Rounds at random, up or down, so that the mean of codes is what is wanted; which draw.

    Raises
    ------
    Indefinite
        If the matrix itself, not its rounding, has a direction of too little curvature.
    """
    n = len(matrix)
    uniform = None if draw is None else drawn(n, draw)
    if like is not None and bound is not None and not doubtful:
        known = _as_before(spec, matrix, bound, like, account, weights, uniform)
        if known is not None:
            return known
    codes, whole, rounding = nearest(spec, matrix, doubtful, weights, uniform)
    error = norm_bound(rounding)
    size = math.sqrt(float(np.vdot(rounding, rounding)))
    account.flops(5 * n * n)
    # |λ_min(A) - λ_min(A+E)| ≤ ‖E‖ ≤ error
    certain = bound is not None and error <= KEEP * bound
    ritz: Ritz | None = None
    wanted = bound is None or bound < enough or doubtful
    if wanted or (guard == "lanczos" and not certain):
        ritz = lanczos(whole, account)
    least = bound  # what is certain of λ_min(A)
    if bound is None:
        assert ritz is not None
        least = ritz.lower - error
        if error > KEEP * least:
            own = lanczos(matrix, account)
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
        rate = factorisable(whole, KEEP * bound, account)
    elif ritz is not None and ritz.lower >= KEEP * bound:
        rate = ritz.lower
    shrinkage = 0.0
    if rate is None:
        shrinking = Shrinking(spec, matrix, bound, least, guard, account, weights, uniform)
        codes, rate, shrinkage = shrinking.least_part()
        account.shrinkage = max(account.shrinkage, shrinkage)
    checked = certain or guard not in TRUSTING
    return Rounded(codes, min(rate, 1.0), checked, shrinkage, bound, bound, size)


def _as_before(
    spec: UnitSpec,
    matrix: Floats,
    bound: float,
    like: Rounded,
    account: Account,
    weights: Floats | None,
    uniform: Floats | None,
) -> Rounded | None:
    """Codes by what was found of the matrix before; None if that may not hold any more.

    λ_min is as far above the bound as that of the matrix before.
    """
    n = len(matrix)
    if like.age + 1 >= LOOK_EVERY or not like.checked or like.shrinkage or len(like.codes) != n:
        return None
    # (Wigner's semicircle: independent entries of that Frobenius norm)
    spectral = 2.0 * like.size / math.sqrt(n)
    if spectral > SMALL * like.rate or not 1.0 / ALIKE < bound / like.looked < ALIKE:
        return None
    codes, added = codes_of(spec, matrix, False, weights, uniform)
    size = math.sqrt(float(np.vdot(added, added))) / spec.coupling_max
    account.flops(4 * matrix.size)
    if size > ALIKE * like.size:
        return None
    rate = min(like.rate * bound / like.bound, 1.0)
    return Rounded(codes, rate, True, 0.0, bound, like.looked, like.size, like.age + 1)
