"""BLAS on one thread, and how many threads there are for what is around it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from threadpoolctl import ThreadpoolController

__all__ = ["single_threaded_blas", "threads_at_hand"]

_blas_lock = threading.RLock()
# threads that BLAS had before it was held at one; 0 while it is not held
_blas_had = 0
# a child of a process whose other thread is sampling would wait for that thread, which it has not
os.register_at_fork(
    before=_blas_lock.acquire,
    after_in_parent=_blas_lock.release,
    after_in_child=_blas_lock.release,
)


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    # NumPy's, which alone takes part in sampling, is loaded by now
    return ThreadpoolController().select(user_api="blas")


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Hold BLAS at one thread, because its results depend on their number.

    Cheap when nested. The setting is the process's, so one thread at a time is let in; and only
    one thread may change it, so a library that holds it in another thread is an error.

    Raises
    ------
    RuntimeError
        If BLAS keeps more than one thread.
    """
    global _blas_had
    with _blas_lock:
        if _blas_had:
            yield
            return
        libraries = _blas().lib_controllers
        # what limits one, limits all
        had = min((library.num_threads for library in libraries), default=_processors())
        with _blas().limit(limits=1):
            if any(library.num_threads != 1 for library in libraries):
                raise RuntimeError("another thread holds the thread limit of BLAS; try again later")
            _blas_had = had
            try:
                yield
            finally:
                _blas_had = 0


def threads_at_hand() -> int:
    """Threads that a job may use while it holds `single_threaded_blas`, which it must.

    As many as BLAS had, because that follows what people say of threads: OMP_NUM_THREADS,
    OPENBLAS_NUM_THREADS, the limits of threadpoolctl. Never more than this process has processors.
    """
    return max(1, min(_blas_had, _processors()))


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
