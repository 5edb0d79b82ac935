"""BLAS on one thread, and how many threads there are for what is around it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

from threadpoolctl import ThreadpoolController

__all__ = ["single_threaded_blas", "threads_at_hand"]

# how deep each thread is in `single_threaded_blas`, and the threads that are in it
_depth = threading.local()
_gate = threading.Condition(threading.RLock())
_inside = 0
# threads that BLAS had before it was held at one, and what gives them back
_blas_had = 0
_restore: Callable[[], None] | None = None


def _before_fork() -> None:
    # a child of a process whose other thread is sampling would wait for that thread, which it has
    # not: it begins where none is
    _gate.acquire()
    mine = int(_depth_here() > 0)
    _gate.wait_for(lambda: _inside == mine)


os.register_at_fork(
    before=_before_fork, after_in_parent=_gate.release, after_in_child=_gate.release
)


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    # NumPy's, which alone takes part in sampling, is loaded by now
    return ThreadpoolController().select(user_api="blas")


def _depth_here() -> int:
    return getattr(_depth, "value", 0)


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Hold BLAS at one thread, because its results depend on their number.

    Cheap when nested. The setting is the process's: it lasts until the last of all threads that
    want it so has left.

    Raises
    ------
    RuntimeError
        If BLAS keeps more than one thread, as where a library holds it in another thread.
    """
    if not _depth_here():
        _enter()
    _depth.value = _depth_here() + 1
    try:
        yield
    finally:
        _depth.value -= 1
        if not _depth.value:
            _leave()


def _enter() -> None:
    global _inside, _blas_had, _restore
    with _gate:
        if not _inside:
            libraries = _blas().lib_controllers
            # what limits one, limits all
            had = min((library.num_threads for library in libraries), default=_processors())
            limit = _blas().limit(limits=1)
            if any(library.num_threads != 1 for library in libraries):
                raise RuntimeError("another thread holds the thread limit of BLAS; try again later")
            _blas_had, _restore = had, limit.restore_original_limits
        _inside += 1


def _leave() -> None:
    global _inside, _blas_had, _restore
    with _gate:
        _inside -= 1
        if not _inside:
            assert _restore is not None
            _yield_control(force=True)  # the thread that came first may have left long ago
            _restore()
            _yield_control()
            _blas_had, _restore = 0, None
        _gate.notify_all()


def _yield_control(*, force: bool = False) -> None:
    """Let any thread set the limit, which threadpoolctl since 3.7 keeps to the one that did."""
    for library in _blas().lib_controllers:
        if (clear := getattr(library, "clear_controlling_thread", None)) is not None:
            clear(force=force)


def threads_at_hand() -> int:
    """Threads that a job may use while it holds `single_threaded_blas`, which it must.

    As many as BLAS had, because that follows what people say of threads: OMP_NUM_THREADS,
    OPENBLAS_NUM_THREADS, the limits of threadpoolctl. Never more than this process has processors,
    and only a share of them where several threads hold it, each with a job of its own.
    """
    return max(1, min(_blas_had, _processors()) // max(_inside, 1))


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
