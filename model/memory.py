"""Matrices in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["symmetric", "transposed"]


def transposed(matrix: NDArray[Any]) -> NDArray[Any]:
    """A copy of the transpose, in C order.

    Columns whose distance in memory is a large power of two fall on the same lines of the cache: at
    1,024 rows that takes NumPy seven times as long. So they are moved apart first.
    """
    rows, columns = matrix.shape
    if matrix.flags.c_contiguous and columns % 64 == 0:
        apart = np.empty((rows, columns + 16), matrix.dtype)[:, :columns]
        apart[...] = matrix
        matrix = apart
    return np.array(matrix.T, order="C")


def symmetric(matrix: NDArray[Any]) -> bool:
    """Whether a square matrix equals its transpose, entry by entry."""
    return np.array_equal(matrix, transposed(matrix))
