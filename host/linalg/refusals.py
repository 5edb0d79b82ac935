"""What can be wrong with a matrix, as it was given or as the unit has it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Clipping",
    "Indefinite",
    "NotConverged",
    "NotPositiveDefinite",
    "Persistent",
    "refusals",
]


class NotPositiveDefinite(ValueError):
    """A matrix is not positive definite, as given or as the unit has it."""


class Clipping(NotPositiveDefinite):
    """Readings clip in any case, of a matrix that a guard has found positive definite.

    Either the guard was wrong, or the matrix is not what the unit has, or the unit is not what its
    spec says; the message names what was seen and all that it may mean.
    """


class Persistent(ValueError):
    """Samples clip however low the temperature is, or however weak the bias.

    `rate` is the λ_min that was reckoned with, `spread` the standard deviation that the loudest
    cell then has at the lowest temperature, in full scales.
    """

    def __init__(self, seen: str, rate: float, coldest: float) -> None:
        super().__init__(seen)
        self.rate, self.spread = rate, math.sqrt(coldest / rate)


class NotConverged(UserWarning):
    """A residual that was asked for was not reached."""


class Indefinite(ValueError):
    """A matrix's curvature yᵀAy along a unit `vector` is negative, or below the bound on λ_min."""

    def __init__(self, vector: NDArray[np.float64], curvature: float) -> None:
        super().__init__(f"curvature {curvature:g}")
        self.vector, self.curvature = vector, curvature


@contextmanager
def refusals(bound: float | None, guarded: bool = True) -> Iterator[None]:
    """What goes wrong with a matrix, in terms of M.

    A `guarded` one has been looked at when readings clip in any case.
    """
    try:
        yield
    except Persistent as error:
        unit = (
            f"the unit's couplings are off by {error.rate:.2g} or more (spectral norm, of 1 on the "
            f"diagonal); its lowest temperature is too hot (at code 1 the loudest cell should have "
            f"a standard deviation of {error.spread:.2g} full scales; 0.2 fit the ADC); or offsets "
            f"and noise of its own fill the ADC's range"
        )
        if not guarded:
            raise NotPositiveDefinite(
                f"M is not positive definite as far as the unit can tell: {error}, and guard = "
                f"'none' has not looked at its rounding. Or {unit}"
            ) from None
        raise Clipping(
            f"{error}, though M, scaled to unit diagonal and rounded to couplings, has a smallest "
            f"eigenvalue of about {error.rate:.2g}. It may be that {unit}; or M is not positive "
            f"definite, and the estimate of its smallest eigenvalue, or lambda_min, too high"
        ) from None
    except Indefinite as error:
        curvature = f"{error.curvature:.3g}"
        if error.curvature < 0.0 or bound is None:
            raise NotPositiveDefinite(
                "M is not positive definite: scaled to unit diagonal, it has a direction y with "
                f"yᵀMy/yᵀy = {curvature}"
            ) from None
        raise ValueError(
            "lambda_min is not a lower bound on M's smallest eigenvalue: scaled to unit diagonal, "
            f"λ_min should be at least {bound:.3g}, but a direction y has yᵀMy/yᵀy = {curvature}"
        ) from None
