"""Several units of one specification that work side by side, and are one unit to their user."""

from __future__ import annotations

import ctypes
import heapq
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue
from typing import Any, TypeVar

from thermokron.host.engines.opening import open_unit
from thermokron.model import ArrayPhysics, BaseUnit, Job, Readout, UnitFault, UnitSpec
from thermokron.model.checks import check_integer

__all__ = ["Pool", "makespan", "open_pool"]

#: Streams that every task of `Pool.map` has to itself: more than discharges in any, and 2^35 tasks.
TASK_STREAMS = 2**28
MOST_UNITS = 1024
#: Seconds after which Ctrl-C is heard at the latest, by who waits for units.
HEARING_S = 0.5

T = TypeVar("T")


def open_pool(
    engine: str,
    spec: UnitSpec,
    physics: ArrayPhysics | None = None,
    *,
    units: int,
    seed: int = 0,
    simulator: str = "verilator",
    timeout_s: float | None = None,
    dtype: str | None = None,
    device: str | None = None,
) -> Pool:
    """Open several units that work side by side; close them, or use the pool as a context manager.

    The pool is a unit itself, and takes its place everywhere. Results do not depend on how many
    units it has, bit for bit.

    Parameters
    ----------
    engine, spec, physics, seed, simulator, timeout_s, dtype, device
        As for `open_unit`, and the same for every unit: they have one seed, so that it does not
        matter which one draws the noise of a stream.
    units : int
        How many, 1 to 1,024.

    Raises
    ------
    ValueError, TypeError
        As for `open_unit`, and if `units` is no integer, or out of range.
    thermokron.sim.SimulatorMissing
        If the simulator or the compiler is not installed.

    Whatever is raised, units that were opened before are closed.

    Examples
    --------
    >>> with open_pool("compiled", UnitSpec(cells=16), units=4) as pool:   # doctest: +SKIP
    ...     inverses = pool.map([partial(linalg.inv, pool, M) for M in matrices])
    """
    units = check_integer("units", units, 1, MOST_UNITS)
    with ExitStack() as opened:
        pool = Pool(
            [
                opened.enter_context(
                    open_unit(
                        engine,
                        spec,
                        physics,
                        seed=seed,
                        simulator=simulator,
                        timeout_s=timeout_s,
                        dtype=dtype,
                        device=device,
                    )
                )
                for _ in range(units)
            ]
        )
        opened.pop_all()
    return pool


class Pool(BaseUnit):
    """Units that work side by side, as `open_pool` opens them.

    `run` is one unit's, whichever is free. `run_many` runs as many jobs at a time as there are
    units, and `map` as many tasks. Streams are allotted in the order of jobs and tasks, before they
    begin, so that results do not depend on the number of units: those of `run` and `run_many` are a
    single unit's. Each task has 2^28 streams to itself, of which the first is the next multiple of
    that number; a saved state is seed and stream, as of any unit.

    A thread a unit: engines spend their time in compiled code or wait for a process of their own.

    Attributes
    ----------
    units : tuple of BaseUnit
        Which the pool owns, and closes.
    stream : int
        The running count of discharges; within a task, the task's own.
    """

    def __init__(self, units: Sequence[BaseUnit]) -> None:
        self._task = threading.local()
        self._count = 0
        super().__init__(units[0].spec, units[0].seed)
        self.units = tuple(units)
        self._free: SimpleQueue[int] = SimpleQueue()
        for number in range(len(units)):
            self._free.put(number)
        self._threads = ThreadPoolExecutor(len(units), thread_name_prefix="thermokron-unit")
        # threads at work, for Ctrl-C, which only the main thread hears
        self._working: set[int] = set()
        self._guard = threading.Lock()

    @property
    def stream(self) -> int:
        """The running count of discharges; within a task, the task's own."""
        lane = self._lane
        return self._count if lane is None else lane.stream

    @stream.setter
    def stream(self, stream: int) -> None:
        lane = self._lane
        if lane is None:
            self._count = stream
        else:
            lane.stream = stream

    @property
    def _lane(self) -> _Lane | None:
        """Of the task that this thread works on."""
        return getattr(self._task, "lane", None)

    # ---- jobs ---------------------------------------------------------------------------------

    def run(self, job: Job, *, stream: int | None = None) -> Readout:
        """Execute one job on one unit (see `Unit.run`); within a task, on the task's."""
        lane = self._lane
        return super().run(job, stream=stream) if lane is None else lane.run(job, stream)

    def _execute(self, job: Job, stream: int, over: threading.Event | None = None) -> Readout:
        return self._on_a_unit(lambda unit: unit.run(job, stream=stream), over)

    def run_many(self, jobs: Iterable[Job]) -> Iterator[Readout]:
        """Execute jobs in order, as many at a time as there are units (see `Unit.run_many`).

        So many are taken from `jobs` ahead; what goes wrong with one is raised after the read-outs
        of those before it have been handed out. Jobs that run meanwhile come before those whose
        read-outs have not been handed out: these are run again.
        """
        if self._lane is not None:
            yield from super().run_many(jobs)
            return
        iterator = iter(jobs)
        begun: deque[tuple[Job, int, Future[Readout]]] = deque()
        over = threading.Event()
        try:
            ahead = self._next(iterator)
            while begun or ahead is not None:
                stream = self.stream + sum(len(job.biases) for job, *_ in begun)
                while isinstance(ahead, Job) and len(begun) < len(self.units):
                    begun.append((ahead, stream, self._submit(self._execute, ahead, stream, over)))
                    stream += len(ahead.biases)
                    ahead = self._next(iterator)
                if not begun:
                    assert isinstance(ahead, Exception)
                    raise ahead
                job, stream, future = begun[0]
                readout = None
                with self._turn():
                    if stream == self.stream:
                        readout = _result(future)
                        self.stream += len(job.biases)
                begun.popleft()
                yield self.run(job) if readout is None else readout
        finally:
            self._end([future for *_, future in begun], over)

    def _next(self, jobs: Iterator[Job]) -> Job | Exception | None:
        """The next job, what is wrong with it, or None at the end."""
        try:
            with self._turn():  # jobs that are made by running others would depend on what is ahead
                job = next(jobs, None)
            if job is not None:
                self.spec.check(job)
            return job
        except Exception as error:
            return error

    # ---- tasks --------------------------------------------------------------------------------

    def map(self, tasks: Iterable[Callable[[], T]]) -> list[T]:
        """Call tasks side by side, each of which has a unit to itself; their results in order.

        Whatever a task runs on this pool, by `linalg` too, runs on its unit, and draws from streams
        of its own. Tasks are called in other threads, and must not share what they change. A task
        that calls `map` has those tasks called one after the other.

        Raises
        ------
        UnitFault
            If a unit failed; the message says which.
        Exception
            Whatever the first task in order raises that fails. Those that have not begun are not
            called then, and the count of streams is as before.
        RuntimeError
            If the pool is closed, or another process's.
        """
        tasks = list(tasks)
        if self._lane is not None:
            return [task() for task in tasks]
        with self._turn():
            first = -(-self.stream // TASK_STREAMS)
            end = first + len(tasks)
            lanes = range(first * TASK_STREAMS, end * TASK_STREAMS, TASK_STREAMS)
            futures: list[Future[T]] = []
            over = threading.Event()
            try:
                for task, stream in zip(tasks, lanes, strict=True):
                    futures.append(self._submit(self._in_lane, task, stream, over))
                results = [_result(future) for future in futures]
            finally:
                self._end(futures, over)
            if tasks:
                self.stream = end * TASK_STREAMS
        return results

    def _in_lane(self, task: Callable[[], T], stream: int, over: threading.Event) -> T:
        def call(unit: BaseUnit) -> T:
            self._task.lane = _Lane(unit, stream)
            try:
                return task()
            finally:
                self._task.lane = None

        return self._on_a_unit(call, over)

    # ---- threads ------------------------------------------------------------------------------

    def _submit(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        try:
            return self._threads.submit(work, *arguments)
        except RuntimeError:
            raise RuntimeError("the pool is closed; open another one") from None

    def _on_a_unit(self, call: Callable[[BaseUnit], T], over: threading.Event | None) -> T:
        """Call with a unit that nobody else has meanwhile, unless it is all over."""
        number = self._free.get()
        try:
            with self._heard(over):
                return call(self.units[number])
        except UnitFault as error:
            raise UnitFault(f"unit {number + 1} of {len(self.units)}: {error}") from error
        finally:
            self._free.put(number)

    @contextmanager
    def _heard(self, over: threading.Event | None) -> Iterator[None]:
        """Let `_end` reach this thread; `CancelledError` if it has been called."""
        thread = threading.get_ident()
        with self._guard:
            if over is not None and over.is_set():
                raise CancelledError
            self._working.add(thread)
        try:
            yield
        finally:
            with self._guard:
                self._working.discard(thread)

    def _end(self, futures: Sequence[Future[Any]], over: threading.Event) -> None:
        """Begin none of these any more, and wait until none is at work.

        Ctrl-C, which the main thread alone hears, is passed on to all threads that are. It may come
        between the submission of work and its being noted as a future: `over` holds for that, too.
        """
        over.set()
        for future in futures:
            future.cancel()
        if isinstance(sys.exception(), KeyboardInterrupt):
            with self._guard:
                for thread in self._working - {threading.get_ident()}:
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(
                        ctypes.c_ulong(thread), ctypes.py_object(KeyboardInterrupt)
                    )
                self._working.clear()
        wait(futures)

    def close(self) -> None:
        """End all work, and close every unit, though one fails; a second call does nothing."""
        self._threads.shutdown(cancel_futures=True)
        with ExitStack() as each:
            for unit in self.units:
                each.callback(unit.close)

    def __repr__(self) -> str:
        return f"<Pool of {len(self.units)} {type(self.units[0]).__name__}, seed {self.seed}>"


class _Lane:
    """A task's unit, and its streams."""

    def __init__(self, unit: BaseUnit, stream: int) -> None:
        self._unit, self.stream = unit, stream
        self._end = stream + TASK_STREAMS

    def run(self, job: Job, stream: int | None) -> Readout:
        """`Unit.run`."""
        if stream is not None:
            return self._unit.run(job, stream=stream)
        if self.stream + len(job.biases) > self._end:
            raise RuntimeError(f"a task has {TASK_STREAMS} discharges, and these are more")
        readout = self._unit.run(job, stream=self.stream)
        self.stream += len(job.biases)
        return readout


def _result(future: Future[T]) -> T:
    """What `future.result()` returns, and Ctrl-C that comes when a lock is about to be waited for.

    Such a lock does not hear of it.
    """
    while not future.done():
        wait([future], timeout=HEARING_S)
    return future.result()


def makespan(units: int, seconds: Iterable[float]) -> float:
    """How long tasks of so many seconds of hardware take on so many units.

    Of tasks in order, each begun on the unit that is free first: a figure of the hardware, which
    does not depend on what the host's threads did.
    """
    ends = [0.0] * units
    for each in seconds:
        heapq.heapreplace(ends, ends[0] + each)
    return max(ends)
