"""Several matrices, one after the other on the same array: leading dimensions as NumPy has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from thermokron.host.linalg.arrays import library
from thermokron.host.linalg.result import Account, Result

__all__ = ["Stack", "bounds_of", "each_of"]

T = TypeVar("T")


class Stack:
    """Matrices M, (..., n, n), with the methods of `Programmed`: what `program` makes of them.

    They share the array, one after the other; a result has the value of all, and what all cost.

    Attributes
    ----------
    shape : tuple of int
        Of M.
    matrices : tuple of Programmed, Eliminated or Dithered
        In the order of M's entries; or of others with their methods and attributes.
    cost : Account
        What programming them cost.
    """

    def __init__(self, batch: tuple[int, ...], matrices: Sequence[Any]) -> None:
        self.batch, self.matrices = batch, tuple(matrices)
        self.shape: tuple[int, ...] = (*batch, *self.matrices[0].shape)
        self.cost = Account()
        for matrix in self.matrices:
            self.cost.add(matrix.cost)

    def solve(self, B: Any, **options: Any) -> Result:
        """Solve each with its own B: (n,), (n, k), or (..., n, k) as `numpy.linalg` broadcasts."""
        shape, n = tuple(np.shape(B)), self.shape[-1]
        if len(shape) < 2:
            return self._all(lambda _, matrix: matrix.solve(B, **options))
        try:
            right = library(B).broadcast_to(B, (*self.batch, *shape[-2:]))
        except (ValueError, RuntimeError):
            raise ValueError(
                f"B has shape {shape}; M, {self.shape}, wants ({n},), ({n}, k), or ({n}, k) behind "
                f"what broadcasts to {self.batch}"
            ) from None
        return self._all(lambda index, matrix: matrix.solve(right[index], **options))

    def inv(self, **options: Any) -> Result:
        """M⁻¹, (..., n, n), each as `Programmed.inv` makes it."""
        return self._all(lambda _, matrix: matrix.inv(**options))

    def sample(self, count: int, b: Any = None, **options: Any) -> Result:
        """Draws, (..., count, n), each as `Programmed.sample` makes them."""
        return self._all(lambda _, matrix: matrix.sample(count, b, **options))

    def _all(self, one: Callable[[tuple[int, ...], Any], Result]) -> Result:
        matrices = iter(self.matrices)
        results = each_of(self.batch, lambda index: one(index, next(matrices)))
        return Result.stacked(self.batch, results)

    def __repr__(self) -> str:
        return f"<Stack of {len(self.matrices)}, the first: {self.matrices[0]!r}>"


def bounds_of(lambda_min: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """`lambda_min` for each of a stack of matrices of this shape, (..., n, n)."""
    try:
        return np.broadcast_to(lambda_min, shape[:-2])
    except ValueError:
        raise ValueError(
            f"lambda_min has shape {np.shape(lambda_min)}; legal for M, {shape}: a number, or "
            f"what broadcasts to {shape[:-2]}"
        ) from None


def each_of(batch: tuple[int, ...], one: Callable[[tuple[int, ...]], T]) -> list[T]:
    """`one` for every index of the batch, in order; an error says for which."""
    made = []
    for index in np.ndindex(batch):
        try:
            made.append(one(index))
        except Exception as error:
            error.add_note(f"It is M[{', '.join(map(str, index))}] of a stack {batch}.")
            raise
    return made
