"""Where the moment accumulator leaves its results, as the register windows show them.

Pure arithmetic on a `UnitSpec`, shared by the gateware's documentation and the host's driver.

Lane l owns the cells lF … lF+F-1 (F = n/lanes) and one memory. In the windows the memories
stand one after the other, each padded to a power of two; word w of lane l has the index
l·2^⌈log2 depth⌉ + w. Products are stored by cyclic diagonal: word f·D + d of lane l is
Σ x_i x_j with i = lF + f and j = (i + d) mod n. Sums and clip counts: word k·F + f of lane l
belongs to cell lF + f under bias vector k.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from thermokron.model import UnitSpec

__all__ = ["padded", "product_index", "result_depth", "span", "sum_index"]


def span(count: int) -> range:
    """Values of a counter of `count` states, at least one bit: no Verilog wire has width zero."""
    return range(max(count, 2))


def result_depth(spec: UnitSpec) -> tuple[int, int]:
    """Words per lane of the sums (and clip counts), and of the products."""
    return spec.rhs_depth * spec.folds, spec.folds * spec.diagonals


def padded(depth: int) -> int:
    """`depth` rounded up to a power of two."""
    return 1 << (depth - 1).bit_length()


def sum_index(spec: UnitSpec, vectors: int) -> NDArray[np.int64]:
    """(vectors, n) indices of Σx entries in their window; the same for clip counts."""
    lane, fold = np.divmod(np.arange(spec.cells), spec.folds)
    vector = np.arange(vectors)[:, None]
    return lane * padded(result_depth(spec)[0]) + vector * spec.folds + fold


def product_index(spec: UnitSpec) -> NDArray[np.int64]:
    """(n, n) symmetric indices of Σxxᵀ entries in their window."""
    n = spec.cells
    i, j = np.indices((n, n))
    offset = (j - i) % n
    # of the two cyclic distances the shorter one is stored; at distance n/2 (even n) both
    # ends hold the same value, and the lower cell's is read
    swap = (2 * offset > n) | ((2 * offset == n) & (i > j))
    first = np.where(swap, j, i)
    diagonal = np.where(swap, n - offset, offset)
    lane, fold = np.divmod(first, spec.folds)
    stride = padded(result_depth(spec)[1])
    return np.asarray(lane * stride + fold * spec.diagonals + diagonal, dtype=np.int64)
