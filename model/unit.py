"""What a unit is asked (`Job`), what it answers (`Readout`), and what it is (`Unit`)."""

from __future__ import annotations

import copy
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from thermokron.model.checks import check_integer, fields_from_json
from thermokron.model.memory import symmetric
from thermokron.model.spec import PHASES, UnitSpec

__all__ = ["BaseUnit", "Job", "Readout", "Unit", "UnitFault"]


class UnitFault(RuntimeError):
    """A run that the unit could not finish; the message is the reason. No data was returned."""


def _integers(name: str, value: Any, ndim: int) -> NDArray[Any]:
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
    array = _integers(name, value, ndim)
    if array.dtype.kind == "u":
        array = array.astype(np.int64)
    elif array.flags.writeable or not array.flags.owndata:
        array = array.copy()  # a job does not change under its owner's feet
    array.setflags(write=False)
    return array


def _counts(name: str, value: Any, ndim: int) -> NDArray[np.int64]:
    # a view: who has made them hands them over
    array = _integers(name, value, ndim).astype(np.int64, copy=False).view()
    array.setflags(write=False)
    return array


def _largest(codes: NDArray[np.signedinteger]) -> int:
    """The largest magnitude of integers; np.abs fails at -2^63."""
    return max(int(codes.max()), -int(codes.min()))


class _JsonFields:
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
class Job(_JsonFields):
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Readout(_JsonFields):
    """What a run returns: exact integers in ADC codes. Arrays are handed over, not copied.

    Attributes
    ----------
    sums : (K, n) int64
        Σx over the samples of each bias vector.
    products : (n, n) int64, symmetric, or None
        Σxxᵀ, if the job asked for second moments.
    clipped : (K, n) int64
        Samples whose code was either rail.
    cycles : dict of str to int
        Clock cycles by phase: "load", "discharge", "settle", "sample".

    Raises
    ------
    ValueError
        If an array is not of integers, shapes disagree, or `cycles` has other phases.
    """

    sums: NDArray[np.int64]
    products: NDArray[np.int64] | None
    clipped: NDArray[np.int64]
    cycles: Mapping[str, int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "sums", _counts("sums", self.sums, 2))
        object.__setattr__(self, "clipped", _counts("clipped", self.clipped, 2))
        if self.products is not None:
            object.__setattr__(self, "products", _counts("products", self.products, 2))
        n = self.sums.shape[1]
        for name, array, shape in (
            ("clipped", self.clipped, self.sums.shape),
            ("products", self.products, (n, n)),
        ):
            if array is not None and array.shape != shape:
                raise ValueError(
                    f"{name} have shape {array.shape}, sums of shape {self.sums.shape} want {shape}"
                )
        if set(self.cycles) != set(PHASES):
            raise ValueError(f"cycles has the phases {sorted(self.cycles)}; legal: {list(PHASES)}")
        object.__setattr__(self, "cycles", {p: int(self.cycles[p]) for p in PHASES})

    @property
    def total_cycles(self) -> int:
        """Clock cycles from START to DONE."""
        return sum(self.cycles.values())


@runtime_checkable
class Unit(Protocol):
    """What executes jobs. Same seed, same job, same stream: the same integers from every engine.

    Each bias vector starts from discharge and draws from a generator seeded by
    (seed, stream). `run(job, stream=s)` gives its bias vectors the streams s, s+1, …; without
    `stream` the unit's own running count of discharges is used, and advanced when the run
    has ended well, so that aborts and read-outs change nothing. Threads may share a unit, which
    executes one job at a time; a process that was forked opens its own.
    """

    spec: UnitSpec
    seed: int
    stream: int

    def run(self, job: Job, *, stream: int | None = None) -> Readout:
        """Execute one job; `ValueError` if the unit cannot do it, `UnitFault` if it failed."""
        ...

    def run_many(self, jobs: Iterable[Job]) -> Iterator[Readout]:
        """Execute jobs in order, loading the next one while the array samples if it can."""
        ...

    def close(self) -> None:
        """Release what the unit holds; a second call does nothing."""
        ...


def check_unit(unit: Any) -> Unit:
    """`unit` if it is one, or a `TypeError` that says where units come from."""
    if not isinstance(unit, BaseUnit) and not isinstance(unit, Unit):  # the first is quicker
        raise TypeError(f"unit = {unit!r} is not a unit; open one with thermokron.host.open_unit")
    return unit


def check_owner(process: int) -> None:
    """`RuntimeError` if this process is not the one that opened a unit."""
    if os.getpid() != process:
        raise RuntimeError(
            f"the unit belongs to process {process}, which opened it, and this is process "
            f"{os.getpid()}: both would draw the same noise, or take each other's answers; open a "
            "unit here, with a seed of its own"
        )


#: What a copy of a unit has of its own.
OF_THIS_OBJECT = ("_lock", "_running")


class BaseUnit:
    """What engines have in common: the check at the border, the stream count, the context.

    A unit is its process's: any other, as a child that was forked or that a unit was sent to, is
    refused by every method that runs something.
    """

    def __init__(self, spec: UnitSpec, seed: int) -> None:
        self.spec = spec
        self.seed = check_integer("seed", seed, 0, 2**63 - 1)
        self.stream = 0
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._running = False

    def run(self, job: Job, *, stream: int | None = None) -> Readout:
        """Execute one job (see `Unit.run`).

        Raises
        ------
        RuntimeError
            In another process than the one that opened the unit, or while it runs a job of this
            thread, as in what makes the jobs of `run_many`.
        """
        self.spec.check(job)
        if stream is not None:
            stream = check_integer("stream", stream, 0, 2**63 - 1)
        with self._turn():
            readout = self._execute(job, self.stream if stream is None else stream)
            if stream is None:
                self.stream += len(job.biases)
        return readout

    @contextmanager
    def _turn(self, *, wait: bool = True) -> Iterator[None]:
        """One job at a time, so that no two have streams in common."""
        check_owner(self._process)
        if not self._lock.acquire(blocking=wait):
            raise UnitFault("the request met a run in flight, of another thread; ask after it")
        try:
            if self._running:
                raise RuntimeError("the unit is running a job already, and runs one at a time")
            self._running = True
            try:
                yield
            finally:
                self._running = False
        finally:
            self._lock.release()

    def run_many(self, jobs: Iterable[Job]) -> Iterator[Readout]:
        """Execute jobs in order (see `Unit.run_many`)."""
        for job in jobs:
            yield self.run(job)

    def close(self) -> None:
        """Release what the unit holds."""

    def _execute(self, job: Job, stream: int) -> Readout:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in OF_THIS_OBJECT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.RLock(), _running=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
