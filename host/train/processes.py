"""Processes of this machine that train side by side."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context, parent_process
from typing import Protocol, TypeVar

from thermokron.host.train.signals import Ended, ended_by_signals

__all__ = ["Results", "processes"]

Task = TypeVar("Task")
Result = TypeVar("Result")

#: Tasks that a worker is sent, of which it does one at a time; the others wait here.
AHEAD = 2
#: Seconds that a worker has for cleaning up when its parent is gone.
CLEANING_S = 10.0
#: What BLAS and OpenMP libraries read when they are loaded.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, and end when it does, however it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(CLEANING_S)
    os._exit(1)


def _here(function: Callable[[Task], Result], task: Task) -> Result:
    """In a worker: what is under way when it is told to end is cleaned up."""
    try:
        with ended_by_signals():
            return function(task)
    except Ended:
        os._exit(1)


class Results(Protocol):
    """What a function makes of tasks, each with its result as they come, in any order.

    Tasks are taken from the iterable as there is room for them.
    """

    def __call__(
        self, function: Callable[[Task], Result], tasks: Iterable[Task]
    ) -> Iterator[tuple[Task, Result]]: ...


@contextmanager
def processes(jobs: int) -> Iterator[Results]:
    """Processes of one thread each, so many that work side by side; with one, this process.

    Leaving early, as after Ctrl-C, ends the processes, and so does the end of this one.

    Raises
    ------
    ChildProcessError
        If one of them was killed.
    """
    if jobs == 1:
        yield lambda function, tasks: ((task, function(task)) for task in tasks)
        return
    with _one_thread_each():
        # spawned, as a fork of a process whose libraries have threads may hang
        pool = ProcessPoolExecutor(jobs, get_context("spawn"), _begin_worker)

        def results(
            function: Callable[[Task], Result], tasks: Iterable[Task]
        ) -> Iterator[tuple[Task, Result]]:
            waiting: dict[Future[Result], Task] = {}
            left = iter(tasks)
            while True:
                for task in islice(left, AHEAD * jobs - len(waiting)):
                    waiting[pool.submit(_here, function, task)] = task
                if not waiting:
                    return
                ready, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in ready:
                    yield waiting.pop(future), future.result()

        try:
            yield results
        except BrokenProcessPool:
            raise ChildProcessError(
                "a process that trained was killed, perhaps by the system because memory ran out; "
                "results so far are kept, and the same command goes on from there (with fewer "
                "--jobs, if memory was it)"
            ) from None
        except BaseException:
            for process in list(pool._processes.values()):
                process.terminate()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes begun here have one thread for linear algebra, on whose number sums depend."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
