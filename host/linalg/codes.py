"""Coupling codes of a matrix with unit diagonal: the nearest, or one of two at random.

Rounded up with a probability that is what the code below lacks, a coupling has the mean that is
wanted: E[code] = value (stochastic rounding). What many such matrices give, merged, has lost the
first order of rounding; arXiv 2401.16231 has that for any imprecision that can be drawn anew.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from thermokron.host.linalg.arrays import Floats
from thermokron.model import UnitSpec
from thermokron.model.memory import symmetric

__all__ = ["codes_of", "drawn", "nearest"]


def drawn(n: int, draw: int) -> Floats:
    """What decides which way couplings are rounded: uniform in [0, 1), (n, n), symmetric."""
    upper = np.triu(np.random.default_rng(draw).random((n, n)))
    uniform: Floats = upper + np.triu(upper, 1).T
    return uniform


def codes_of(
    spec: UnitSpec,
    matrix: Floats,
    doubtful: bool,
    weights: Floats | None,
    uniform: Floats | None = None,
) -> tuple[NDArray[np.int16], Floats]:
    """Codes, symmetric, and what they add to the matrix, in steps of a code.

    The nearest, or where `uniform` is given those that it draws. A `doubtful` matrix, such as a
    complement that has become indefinite, may have entries beyond 1, as one may that a calibrated
    device has to be asked for.
    """
    top = spec.coupling_max
    scaled = matrix * matrix.dtype.type(top)
    if weights is not None:
        weights = weights.astype(matrix.dtype, copy=False)
        scaled *= weights
        doubtful = True
    wanted = np.clip(scaled, -top, top) if doubtful else scaled
    codes = np.empty(matrix.shape, np.int16)
    if uniform is None:
        np.rint(wanted, out=codes, casting="unsafe")
    else:  # a double's rounding may carry the sum to the next integer
        np.minimum(np.floor(wanted + uniform), top, out=codes, casting="unsafe")
    if not symmetric(codes):
        # halves of a matrix that differ by rounding errors may round to different codes
        lower = np.tril_indices(len(codes), -1)
        codes[lower] = codes.T[lower]
    added = np.subtract(codes, scaled, out=scaled)
    return codes, added if weights is None else added / weights


def nearest(
    spec: UnitSpec,
    matrix: Floats,
    doubtful: bool,
    weights: Floats | None,
    uniform: Floats | None = None,
) -> tuple[NDArray[np.int16], Floats, Floats]:
    """As of `codes_of`: codes, what they stand for, and what they add to the matrix."""
    codes, rounding = codes_of(spec, matrix, doubtful, weights, uniform)
    step = matrix.dtype.type(1.0 / spec.coupling_max)
    rounding *= step
    return codes, codes * step if weights is None else matrix + rounding, rounding
