"""What a unit is asked (`Job`), and what it has in common with the answer."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from thermokron.model.checks import check_integer, fields_from_json
from thermokron.model.memory import symmetric

__all__ = ["Job", "JsonFields", "integers"]


def integers(name: str, value: Any, ndim: int) -> NDArray[Any]:
    """A value as an array of integers that fit int64; `ValueError` if it is none of `ndim`."""
    array = np.asarray(value)
    if array.dtype.kind not in "iu" or array.ndim != ndim or array.size == 0:
        raise ValueError(
            f"{name} must be a non-empty {ndim}-dimensional array of integers, "
            f"got {array.dtype} of shape {array.shape}"
        )
    if array.dtype.kind == "u" and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name} hold {array.max()}, which does not fit 64 bits signed")
    return array


def _codes(name: str, value: Any, ndim: int) -> NDArray[np.signedinteger]:
    array = integers(name, value, ndim)
    if array.dtype.kind == "u":
        array = array.astype(np.int64)
    elif array.flags.writeable or not array.flags.owndata:
        array = array.copy()  # a job does not change under its owner's feet
    array.setflags(write=False)
    return array


def _largest(codes: NDArray[np.signedinteger]) -> int:
    """The largest magnitude of integers; np.abs fails at -2^63."""
    return max(int(codes.max()), -int(codes.min()))


class JsonFields:
    """JSON round trip and equality for dataclasses that hold NumPy arrays."""

    def to_json(self) -> str:
        """The object as one JSON object, arrays as nested lists."""

        def plain(value: Any) -> Any:
            if isinstance(value, np.ndarray):
                return value.tolist()
            return dict(value) if isinstance(value, Mapping) else value

        return json.dumps({f.name: plain(getattr(self, f.name)) for f in fields(self)})  # type: ignore[arg-type]

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`; unknown or missing fields are a `ValueError`."""
        return cls(**fields_from_json(cls, text))

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(
            np.array_equal(a, b)
            if isinstance(a, np.ndarray) or isinstance(b, np.ndarray)
            else a == b
            for f in fields(self)  # type: ignore[arg-type]
            for a, b in [(getattr(self, f.name), getattr(other, f.name))]
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True, eq=False)
class Job(JsonFields):
    """One program for a unit, in the codes that the hardware understands.

    Attributes
    ----------
    couplings : (n, n) int, symmetric
        Codes of the coupling matrix, in whichever signed type they were given.
    biases : (K, n) int
        Codes of K bias vectors, run one after the other, each from discharge.
    temperature : int
        Code of the noise temperature.
    settle_cycles : int
        Clock cycles from the end of discharge to the first sample.
    interval_cycles : int
        Clock cycles between samples.
    samples : int
        Samples per bias vector.
    second_moments : bool
        Whether Σxxᵀ is accumulated too; then K is 1.

    Whether a particular unit can do it is for `UnitSpec.check` to say.

    Raises
    ------
    ValueError
        If a shape is wrong, the couplings are not symmetric, or K > 1 with second moments.
    """

    couplings: NDArray[np.signedinteger]
    biases: NDArray[np.signedinteger]
    temperature: int
    settle_cycles: int
    interval_cycles: int
    samples: int
    second_moments: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "couplings", _codes("couplings", self.couplings, 2))
        object.__setattr__(self, "biases", _codes("biases", self.biases, 2))
        n = len(self.couplings)
        if self.couplings.shape != (n, n):
            raise ValueError(f"couplings have shape {self.couplings.shape}; legal: square")
        if not symmetric(self.couplings):
            i, j = np.argwhere(self.couplings != self.couplings.T)[0]
            raise ValueError(
                f"couplings are not symmetric: entry ({i}, {j}) is {self.couplings[i, j]}, "
                f"({j}, {i}) is {self.couplings[j, i]}"
            )
        self._check_rest()

    def _check_rest(self) -> None:
        """All but the couplings."""
        n = len(self.couplings)
        if self.biases.shape[1] != n:
            raise ValueError(f"biases have shape {self.biases.shape}, the couplings want (K, {n})")
        if not isinstance(self.second_moments, bool):
            raise TypeError(f"second_moments = {self.second_moments!r} is not a bool")
        if self.second_moments and len(self.biases) != 1:
            raise ValueError(
                f"biases hold {len(self.biases)} vectors; a job with second moments has 1"
            )
        for name in ("temperature", "settle_cycles", "interval_cycles", "samples"):
            object.__setattr__(self, name, check_integer(name, getattr(self, name), 0, 2**32 - 1))

    @classmethod
    def symmetric(cls, couplings: NDArray[np.signedinteger], **others: Any) -> Job:
        """A job whose couplings its maker knows to be symmetric, and hands over.

        They are neither looked at nor copied; arguments and errors otherwise as of `Job`.
        """
        if others.keys() != PROGRAM | {"biases"}:
            raise TypeError(f"Job.symmetric takes every field of Job; got {sorted(others)}")
        couplings.setflags(write=False)
        job = cls.__new__(cls)
        for name, value in others.items():
            object.__setattr__(job, name, value)
        object.__setattr__(job, "couplings", couplings)
        object.__setattr__(job, "biases", _codes("biases", others["biases"], 2))
        job._check_rest()
        return job

    def with_biases(self, biases: Any, **others: Any) -> Job:
        """The same couplings for other bias vectors, and `others` of the fields where given.

        The couplings, which both have as one object, are not looked at again: O(Kn), not O(n²).
        By that object engines know that they have them already.
        """
        if unknown := others.keys() - PROGRAM:
            raise TypeError(f"with_biases has no use for {', '.join(sorted(unknown))}")
        job = copy.copy(self)
        for name, value in (others | {"biases": _codes("biases", biases, 2)}).items():
            object.__setattr__(job, name, value)
        job._check_rest()
        return job

    @cached_property
    def largest_coupling(self) -> int:
        """The largest magnitude of a coupling code."""
        return _largest(self.couplings)

    @property
    def largest_bias(self) -> int:
        """The largest magnitude of a bias code."""
        return _largest(self.biases)


#: Fields of a job beside its codes.
PROGRAM = {f.name for f in fields(Job)} - {"couplings", "biases"}
