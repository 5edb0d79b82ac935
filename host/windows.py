"""What passes a unit's register windows: codes in, and results out, as words of 32 bits."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thermokron.model import PHASES, Readout, UnitSpec
from thermokron.rtl.layout import bias_stride, coupling_cells, product_index, sum_index
from thermokron.rtl.regmap import RegisterMap, register_map

__all__ = ["bias_words", "coupling_words", "cycle_words", "phase_counts", "read_plan"]


def coupling_words(spec: UnitSpec, couplings: NDArray[Any]) -> NDArray[Any]:
    """The codes (n, n) in the order of their window; what is not of the triangle is 0."""
    rows, columns, used = coupling_cells(spec)
    codes = np.zeros(len(rows), couplings.dtype)
    codes[used] = couplings[rows[used], columns[used]]
    return codes


def bias_words(spec: UnitSpec, biases: NDArray[Any]) -> NDArray[np.int64]:
    """The codes (K, n) in the order of their window, up to the last one."""
    vectors, n = biases.shape
    padded = np.zeros((vectors, bias_stride(spec)), np.int64)
    padded[:, :n] = biases
    return padded.ravel()[: padded.size - (padded.shape[1] - n)]


class ReadPlan:
    """Which words a read-out of one kind needs, in one burst, and what they mean."""

    def __init__(
        self, spec: UnitSpec, vectors: int, second_moments: bool, words: tuple[int, int, int]
    ) -> None:
        registers: RegisterMap = register_map(spec)
        self._spec = spec
        self._parts: dict[str, tuple[slice, NDArray[np.int64], tuple[int, ...]]] = {}
        self._cycles = count = cycle_words(registers)[1]
        ranges = [np.array([cycle_words(registers)])]
        sums = sum_index(spec, vectors)
        results = {"sums": sums, "clipped": sums}
        if second_moments:
            results["products"] = product_index(spec)
        for (name, index), width in zip(results.items(), words, strict=False):
            if not width:
                continue
            window = registers.windows[name]
            entries, position = np.unique(index, return_inverse=True)
            at = window.address + 4 * window.entry_words * entries
            if width == window.entry_words:  # neighbours as one range
                begins = np.flatnonzero(np.diff(entries, prepend=-2) != 1)
                counts = np.diff(begins, append=len(entries)) * width
                ranges.append(np.stack([at[begins], counts], axis=1))
            else:  # the low words alone
                ranges.append(np.stack([at, np.ones_like(at)], axis=1))
            part = slice(count, count := count + width * len(entries))
            self._parts[name] = part, position.ravel(), index.shape
        self.ranges = np.concatenate(ranges).astype(np.uint32)

    def readout(self, words: NDArray[np.uint32]) -> Readout:
        """The read-out that the words of `ranges` are."""

        def entries(name: str) -> NDArray[np.int64]:
            part, position, shape = self._parts[name]
            found = words[part].astype("<u4")
            wide = len(found) == 2 * (int(position.max()) + 1)
            values = found.view("<i8" if wide else "<i4").astype(np.int64)
            return values[position].reshape(shape)

        sums = entries("sums")
        if "clipped" in self._parts:
            clipped = entries("clipped")
        else:
            rails = (sums == self._spec.adc_min) | (sums == self._spec.adc_max)
            clipped = rails.astype(np.int64)
        return Readout(
            sums=sums,
            products=entries("products") if "products" in self._parts else None,
            clipped=clipped,
            cycles=phase_counts(words[: self._cycles]),
        )


def cycle_words(registers: RegisterMap) -> tuple[int, int]:
    """Address and count of the words that count the cycles of the phases, which are neighbours."""
    first, last = (registers.registers[f"cycles_{PHASES[i]}"] for i in (0, -1))
    return first.address, (last.address + 4 * last.words - first.address) // 4


def phase_counts(words: NDArray[np.uint32]) -> dict[str, int]:
    """Cycles by phase, of these words."""
    return dict(zip(PHASES, words.astype("<u4").view("<u8").tolist(), strict=True))


@lru_cache(maxsize=256)
def read_plan(
    spec: UnitSpec, vectors: int, second_moments: bool, words: tuple[int, int, int]
) -> ReadPlan:
    """The plan for a read-out of so many vectors; `words` of `UnitSpec.result_words`."""
    return ReadPlan(spec, vectors, second_moments, words)
