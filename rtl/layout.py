"""Where codes and results stand in a unit's memories, as the register windows show them.

Pure arithmetic on a `UnitSpec`, shared by the gateware's documentation and the host's driver.

Codes are kept in words of `dac_lanes`, as they go to the DACs. Every row of the coupling matrix
begins with a whole word: row i has the columns from i // dac_lanes · dac_lanes on. With one lane
that is the packed upper triangle. A bias vector begins at a power of two.

Lane l owns the cells lF … lF+F-1 (F = n/lanes) and one memory. In the windows the memories
stand one after the other, each padded to a power of two; word w of lane l has the index
l·2^⌈log2 depth⌉ + w. Products are stored by cyclic diagonal: word f·D + d of lane l is
Σ x_i x_j with i = lF + f and j = (i + d) mod n. Sums and clip counts: word k·F + f of lane l
belongs to cell lF + f under bias vector k.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from thermokron.model import UnitSpec

__all__ = [
    "bias_stride",
    "coupling_cells",
    "coupling_index",
    "padded",
    "product_index",
    "product_pairs",
    "result_depth",
    "span",
    "sum_index",
]


def span(count: int) -> range:
    """Values of a counter of `count` states, at least one bit: no Verilog wire has width zero."""
    return range(max(count, 2))


def result_depth(spec: UnitSpec) -> tuple[int, int]:
    """Words per lane of the sums (and clip counts), and of the products."""
    return spec.rhs_depth * spec.folds, spec.folds * spec.diagonals


def padded(depth: int) -> int:
    """`depth` rounded up to a power of two."""
    return 1 << (depth - 1).bit_length()


@lru_cache(maxsize=32)
def coupling_cells(
    spec: UnitSpec,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Row and column of every coupling code in its memory, and whether it is of the triangle."""
    n, lanes = spec.cells, spec.dac_lanes
    rows, columns = np.indices((n, -(-n // lanes) * lanes))
    kept = columns >= rows // lanes * lanes
    rows, columns = rows[kept], columns[kept]
    return rows, columns, (columns >= rows) & (columns < n)


def coupling_index(spec: UnitSpec) -> NDArray[np.int64]:
    """(n, n) symmetric indices of the couplings in their window."""
    rows, columns, used = coupling_cells(spec)
    index = np.zeros((spec.cells, spec.cells), np.int64)
    index[rows[used], columns[used]] = index[columns[used], rows[used]] = np.flatnonzero(used)
    return index


def bias_stride(spec: UnitSpec) -> int:
    """Codes from one bias vector to the next in the window."""
    return max(padded(spec.cells), spec.dac_lanes)


def sum_index(spec: UnitSpec, vectors: int) -> NDArray[np.int64]:
    """(vectors, n) indices of Σx entries in their window; the same for clip counts."""
    lane, fold = np.divmod(np.arange(spec.cells), spec.folds)
    vector = np.arange(vectors)[:, None]
    return lane * padded(result_depth(spec)[0]) + vector * spec.folds + fold


def product_pairs(spec: UnitSpec) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(n, n) first cell and diagonal under which the product of a pair of cells is kept.

    Of the two cyclic distances the shorter one is stored; at distance n/2 (even n) both ends hold
    the same value, and the lower cell's is read.
    """
    n = spec.cells
    i, j = np.indices((n, n))
    offset = (j - i) % n
    swap = (2 * offset > n) | ((2 * offset == n) & (i > j))
    return np.where(swap, j, i), np.where(swap, n - offset, offset)


def product_index(spec: UnitSpec) -> NDArray[np.int64]:
    """(n, n) symmetric indices of Σxxᵀ entries in their window."""
    first, diagonal = product_pairs(spec)
    lane, fold = np.divmod(first, spec.folds)
    stride = padded(result_depth(spec)[1])
    return np.asarray(lane * stride + fold * spec.diagonals + diagonal, dtype=np.int64)
