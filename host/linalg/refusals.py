"""What can be wrong with a matrix, as it was given or as the unit has it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

__all__ = ["Indefinite", "NotPositiveDefinite", "Persistent", "refusals"]


class NotPositiveDefinite(ValueError):
    """A matrix is not positive definite, as given or as the unit has it."""


class Persistent(ValueError):
    """Samples clip however low the temperature is, or however weak the bias."""


class Indefinite(ValueError):
    """A matrix's curvature yᵀAy along a unit `vector` is negative, or below the bound on λ_min."""

    def __init__(self, vector: NDArray[np.float64], curvature: float) -> None:
        super().__init__(f"curvature {curvature:g}")
        self.vector, self.curvature = vector, curvature


@contextmanager
def refusals(bound: float | None) -> Iterator[None]:
    """What goes wrong with a matrix, in terms of M."""
    try:
        yield
    except Persistent as error:
        raise NotPositiveDefinite(
            f"M is not positive definite as far as the unit can tell: {error}"
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
