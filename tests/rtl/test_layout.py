"""Where results lie in their windows, for every number of cells and every divisor of it."""

from __future__ import annotations

import numpy as np
import pytest

from thermokron.model import UnitSpec
from thermokron.rtl.layout import product_index, result_depth, sum_index


def lane_and_word(index, depth: int):
    """The windows show the lanes' memories one after the other, padded to a power of two."""
    stride = 1
    while stride < depth:
        stride *= 2
    lane, word = index // stride, index % stride
    assert (word < depth).all(), "a word that no lane has"
    return lane, word


@pytest.mark.parametrize("cells", [*range(2, 129), 192, 251, 256])
def test_every_sum_and_product_is_where_the_accumulator_leaves_it(cells: int) -> None:
    """Follows the rings: after f and d rotations lane l has cells lF + f and lF + f + d."""
    i, j = np.indices((cells, cells))
    for lanes in (d for d in range(1, cells + 1) if cells % d == 0):
        spec = UnitSpec(cells=cells, lanes=lanes, rhs_depth=3)
        folds, diagonals = cells // lanes, cells // 2 + 1
        sum_depth, product_depth = result_depth(spec)

        lane, word = lane_and_word(product_index(spec), product_depth)
        fold, diagonal = word // diagonals, word % diagonals
        x = lane * folds + fold
        y = (x + diagonal) % cells
        assert (((x == i) & (y == j)) | ((x == j) & (y == i))).all()
        assert lane.max() < lanes

        index = sum_index(spec, 3)
        lane, word = lane_and_word(index, sum_depth)
        assert (lane * folds + word % folds == np.arange(cells)).all()
        assert (word // folds == np.arange(3)[:, None]).all()
