"""What the host does for a unit: matrices programmed, columns scaled and read, blocks eliminated.

Passes over memory more than arithmetic: a dozen a matrix, for damping, scaling, rounding and
guarding, and a dozen a batch of columns; docs/first-order.md has them measured.
"""

from __future__ import annotations

from thermokron.host.predict.hardware.demand import blocks
from thermokron.host.predict.hardware.technology import Technology
from thermokron.host.predict.workloads.workload import Block, Operation

__all__ = ["inverted_operations", "programming_operations", "solving_operations"]

#: Passes over a matrix, over columns, and over what was sampled: moments to an inverse, unscaled.
#: Each is a kernel.
MATRIX_PASSES, COLUMN_PASSES, SAMPLED_PASSES = 12, 12, 8


def programming_operations(block: Block, technology: Technology) -> tuple[Operation, ...]:
    """Both factors of a block put on the array; of those larger than it, what elimination takes."""
    made: list[Operation] = []
    for rows, _ in block.dense:
        made.append(_passes(MATRIX_PASSES, rows * rows, block.blocks))
        left = rows
        for size in blocks(technology, rows)[:-1]:
            left -= size
            made.append(_product(left, size, left, block.blocks))
            made.append(_product(size, size, left, block.blocks))  # a residual
    return tuple(made)


def solving_operations(block: Block, technology: Technology) -> tuple[Operation, ...]:
    """Columns of the gradient to the array and back; with substitution, where it goes in blocks."""
    made: list[Operation] = []
    for rows, columns in block.dense:
        made.append(_passes(COLUMN_PASSES, rows * columns, block.blocks))
        if len(blocks(technology, rows)) > 1:
            made.append(_product(columns, rows, rows, block.blocks))
    return tuple(made)


def inverted_operations(block: Block, technology: Technology) -> tuple[Operation, ...]:
    """Sampled moments of both factors made inverses, and put together where they went in blocks."""
    made: list[Operation] = []
    for rows, _ in block.dense:
        made.append(_passes(SAMPLED_PASSES, rows * rows, block.blocks))
        left = rows
        for size in blocks(technology, rows)[:-1]:
            left -= size
            made.append(_product(size, left, left, block.blocks))
            made.append(_product(size, left, size, block.blocks))
    return tuple(made)


def _passes(passes: int, numbers: int, count: int) -> Operation:
    return Operation("memory", "program", bytes=4 * numbers, count=passes * count)


def _product(m: int, k: int, n: int, count: int) -> Operation:
    return Operation.product("program", m, k, n, count=count)
