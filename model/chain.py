"""AR(1) chains of many modes side by side, in blocks that do not wait for each other."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["CHUNK", "Chain"]

#: Samples of a chunk at most, whose scan is a product with a matrix.
CHUNK = 16
#: Weights of a past draw below this part of the present one do not change a sample, and are zero.
NEGLIGIBLE = 1e-20
#: An unstable mode is held here: far beyond every rail, and finite.
BEYOND_ALL_RAILS = 1e100
#: A weight is held here: what is older still outweighs what is held, and keeps its sign.
MOST_WEIGHT = 1e120


class Chain:
    """y_j = ρ y_(j-1) + w_j for every mode, in blocks of `count` chunks of `length` samples.

    A chunk's samples are a triangular Toeplitz matrix of powers of ρ times its inputs, for which
    BLAS takes less time than a recursion's passes over memory. What a chunk begins with is known
    from the last rows of these products alone: for the chunks of a block as if nothing had been
    before (`ends`), then from block to block (`finals`), then for all (`complete`). Only the second
    step, of a few numbers, is in the order of time; and no sample depends on who does what when.

    Arrays are laid out (K, blocks, n, length, count): time runs along the last axis but one, and
    then along the last, so that products and sums run along memory.

    Parameters
    ----------
    rates : (n,) float64
        λ of each mode, ascending, so that the slowest come first.
    interval : float
        Time between samples, in units of τ.
    """

    def __init__(self, rates: NDArray[np.float64], interval: float) -> None:
        self._rates, self._interval = rates, interval
        self._powers = self._weights(np.arange(1.0, CHUNK + 1))
        self._unstable = bool(rates[0] < 0.0)
        #: Whether a sample depends on the one before.
        self.remembers = bool(self._powers[0, 0] > 0.0)
        self._chunks: dict[tuple[int, int], NDArray[np.float64]] = {}

    def _weights(self, samples: NDArray[np.float64]) -> NDArray[np.float64]:
        """ρ^samples of every mode, (n, samples)."""
        exponents = -self._rates[:, None] * (self._interval * samples)
        weights: NDArray[np.float64] = np.exp(np.minimum(exponents, math.log(MOST_WEIGHT)))
        weights[weights < NEGLIGIBLE] = 0.0
        return weights

    @cached_property
    def _toeplitz(self) -> NDArray[np.float64]:
        """What turns inputs of a chunk into samples, (n, CHUNK, CHUNK)."""
        n = len(self._powers)
        row = np.concatenate([np.zeros((n, CHUNK - 1)), np.ones((n, 1)), self._powers], axis=1)
        steps = np.arange(CHUNK)
        matrices: NDArray[np.float64] = row[:, CHUNK - 1 + steps[:, None] - steps]
        return matrices

    def _far(self, length: int, count: int) -> NDArray[np.float64]:
        """ρ^(length·m), m = 1 … count, (n, count)."""
        if (kept := self._chunks.get((length, count))) is None:
            kept = self._weights(length * np.arange(1.0, count + 1))
            self._chunks[length, count] = kept
        return kept

    def ends(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """The last state of each chunk, (K, blocks, n, count), had its block begun at zero."""
        *_, length, count = inputs.shape
        if not self.remembers:
            return inputs[..., -1, :].copy()
        ends: NDArray[np.float64] = (self._toeplitz[:, length - 1 : length, :length] @ inputs)[
            ..., 0, :
        ]
        self._hold(ends)
        far, shift = self._far(length, count), 1
        while shift < count and far[0, shift - 1] > 0.0:  # by doubling
            ends[..., shift:] += far[:, shift - 1, None] * ends[..., :-shift]
            self._hold(ends)
            shift *= 2
        return ends

    def finals(
        self, ends: NDArray[np.float64], last: NDArray[np.float64], length: int
    ) -> NDArray[np.float64]:
        """The last state of each block, (K, blocks, n), given the one before the first, (K, n)."""
        finals = ends[..., -1].copy()
        weights = self._far(length, ends.shape[-1])[:, -1]
        if weights[0] > 0.0:
            for block in range(finals.shape[1]):
                finals[:, block] += weights * last
                self._hold(finals[:, block])
                last = finals[:, block]
        return finals

    def complete(
        self,
        inputs: NDArray[np.float64],
        ends: NDArray[np.float64],
        finals: NDArray[np.float64],
        last: NDArray[np.float64],
        out: NDArray[np.float64],
    ) -> None:
        """Write all states to `out`, given what `ends` and `finals` returned; `inputs` are lost."""
        *_, length, count = inputs.shape
        before = last[:, None]  # each block
        if finals.shape[1] > 1:
            before = np.concatenate([before, finals[:, :-1]], axis=1)
        # the first of a chunk remembers the last of the one before, and a block's all before it
        firsts, decay = inputs[..., 0, :], self._powers[:, :1]
        firsts[..., :1] += decay * before[..., None]
        if count > 1:
            firsts[..., 1:] += decay * ends[..., :-1]
            far = self._far(length, count)
            if reach := int(np.count_nonzero(far[0, :-1])):
                decay = np.minimum(decay * far[:, :reach], MOST_WEIGHT)
                firsts[..., 1 : 1 + reach] += decay * before[..., None]
        self._hold(firsts)
        np.matmul(self._toeplitz[:, :length, :length], inputs, out=out)
        self._hold(out)

    def _hold(self, states: NDArray[np.float64]) -> None:
        if self._unstable:
            np.clip(states, -BEYOND_ALL_RAILS, BEYOND_ALL_RAILS, out=states)
