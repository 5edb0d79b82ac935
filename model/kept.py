"""Programmed arrays that are kept, for their decomposition is what a run costs besides samples."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from typing import Any

from numpy.typing import NDArray

from thermokron.model.array import NoiseArray
from thermokron.model.chain import CHUNK
from thermokron.model.physics import ArrayPhysics
from thermokron.model.spec import UnitSpec

__all__ = ["KeptArrays"]

#: Programmed arrays that are kept at most, in numbers; the last one always is.
KEPT = 2**26


class KeptArrays:
    """The arrays of one device, by the couplings that they were programmed with.

    Jobs that solve with one matrix have its couplings in common, as one object.
    """

    def __init__(self, spec: UnitSpec, physics: ArrayPhysics) -> None:
        self._spec, self._physics = spec, physics
        self._arrays: OrderedDict[int, tuple[weakref.ref[Any], NoiseArray]] = OrderedDict()

    def programmed(self, couplings: NDArray[Any], temperature: int) -> NoiseArray:
        """The array with these coupling codes; decomposed anew only where it is not at hand."""
        key = id(couplings)
        owner, array = self._arrays.pop(key, (None, None))
        # an id may be another's by now, and says nothing in a copy of this object
        if owner is None or array is None or owner() is not couplings:
            for dead in [i for i, (those, _) in self._arrays.items() if those() is None]:
                del self._arrays[dead]  # no job can ask for it any more
            owner = weakref.ref(couplings)
            array = NoiseArray(self._spec, self._physics, couplings, temperature)
        array = array.at(temperature)
        self._arrays[key] = owner, array
        numbers = _numbers(self._spec.cells, self._physics)
        while len(self._arrays) > 1 and len(self._arrays) * numbers > KEPT:
            self._arrays.popitem(last=False)
        return array

    def __getstate__(self) -> dict[str, Any]:
        # what is kept is for this process, and for these jobs
        return vars(self) | {"_arrays": OrderedDict()}


def _numbers(cells: int, physics: ArrayPhysics) -> int:
    """About how many numbers a programmed array holds: its matrices, and its law's."""
    if physics.beyond_modes:
        instants = 0 if physics.adc_skew_s is physics.adc_jitter_s is None else 3
        states = (physics.states_per_cell + instants) * cells
        return cells * cells + 3 * states * states + 2 * states * cells
    return cells * (3 * cells + 2 * CHUNK**2)
