"""What a unit answers (`Readout`), and what it is (`Unit`)."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from thermokron.model.checks import check_integer
from thermokron.model.job import Job, JsonFields, integers
from thermokron.model.spec import PHASES, UnitSpec

__all__ = ["BaseUnit", "Readout", "Unit", "UnitFault"]


class UnitFault(RuntimeError):
    """A run that the unit could not finish; the message is the reason. No data was returned."""


def _counts(name: str, value: Any, ndim: int) -> NDArray[np.int64]:
    # a view: who has made them hands them over
    array = integers(name, value, ndim).astype(np.int64, copy=False).view()
    array.setflags(write=False)
    return array


@dataclass(frozen=True, kw_only=True, eq=False)
class Readout(JsonFields):
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
