"""Standard normal numbers with addresses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ALIGNMENT", "Normals"]

#: Where numbers may be asked for: at multiples of this. Philox makes four words at a time, and a
#: word makes two normals.
ALIGNMENT = 8
#: Numbers that are worked on at a time, so that all on the way to them stays in the cache.
SEGMENT = 2**15

_TURN = np.float32(2.0 * math.pi * 2.0**-32)
_HALF, _UNIT, _MINUS_TWO = np.float32(0.5), np.float32(2.0**-32), np.float32(-2.0)


class Normals:
    """An endless sequence of standard normal numbers for each stream of a seed and a purpose.

    Words of 64 random bits come from Philox, which is addressed by key and counter (Salmon et al.,
    SC 2011): no two seeds, purposes or streams share any, and to begin anywhere costs less than the
    numbers for one sample. A word makes two normals by the transform of Box and Muller (Annals of
    Mathematical Statistics 29, 610, 1958): half of its bits are a radius √(-2 ln u), half an angle.

    The transform is worked out in float32, whose logarithm, sine and cosine take a fraction of the
    time of float64's: a number has 24 bits of its own, far beyond what an ADC sees of noise. The
    tails are right up to 6.76, where u = 2^-33 ends them: one number in 7·10^10 would be beyond.

    Not for several threads at once.
    """

    def __init__(self) -> None:
        self._bits = np.random.Philox(key=[0, 0])
        self._state: Any = self._bits.state
        self._radii, self._angles, self._waves = np.empty((3, SEGMENT // 2), np.float32)

    def draw(self, seed: int, purpose: int, streams: range, first: int, out: NDArray[Any]) -> None:
        """Fill a row of `out` for every stream.

        Parameters
        ----------
        seed, purpose : int, 0 to 2^64 - 1
        streams : range of K int, 0 to 2^64 - 1
        first : int
            Address of the first number in its sequence, a multiple of `ALIGNMENT`.
        out : (K, count) float64 or float32
        """
        count = out.shape[1]
        words = (count + 1) // 2
        self._state["state"]["key"][:] = seed, purpose
        together = max(SEGMENT // (2 * words), 1)
        for row in range(0, len(streams), together):
            some = streams[row : row + together]
            if len(some) == 1:
                self._seek(some[0], first)
                for done in range(0, count, SEGMENT):
                    part = out[row : row + 1, done : done + SEGMENT]
                    self._transform(self._bits.random_raw((part.size + 1) // 2), part)
            else:
                drawn = np.empty((len(some), words), np.uint64)
                for each, stream in zip(drawn, some, strict=True):
                    self._seek(stream, first)
                    each[:] = self._bits.random_raw(words)
                self._transform(drawn, out[row : row + together])

    def _seek(self, stream: int, first: int) -> None:
        self._state["state"]["counter"][:] = first // ALIGNMENT, 0, stream, 0
        self._bits.state = self._state

    def _transform(self, words: NDArray[np.uint64], out: NDArray[Any]) -> None:
        """Turn words, (K, ⌈count/2⌉), into normals, (K, count)."""
        halves, size = words.reshape(-1).view(np.uint32), words.size
        radii, angles, waves = self._radii[:size], self._angles[:size], self._waves[:size]
        radii[:] = halves[0::2]
        radii += _HALF  # no logarithm of zero
        radii *= _UNIT
        np.log(radii, out=radii)
        radii *= _MINUS_TWO
        np.sqrt(radii, out=radii)
        angles[:] = halves[1::2].view(np.int32)
        angles *= _TURN
        shape = len(out), -1
        np.cos(angles, out=waves)
        waves *= radii
        out[:, 0::2] = waves.reshape(shape)
        np.sin(angles, out=waves)
        waves *= radii
        out[:, 1::2] = waves.reshape(shape)[:, : out.shape[1] // 2]
