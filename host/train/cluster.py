"""Workers of a Dask cluster, on other machines, that train side by side."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from platform import python_version
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from thermokron.host.train.processes import AHEAD, Result, Results, Task

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["check_wanted", "cluster_workers"]

#: Seconds in which a scheduler answers, and after which the workers are looked at again.
ANSWER_S, LOOK_S = 5.0, 5.0
#: Packages on whose versions results depend; "python" without its last number.
DECISIVE = ("thermokron", "python", "torch", "numpy", "scipy")
#: Packages of the scheduler, which only hands on what it is sent.
SPEAKS = ("thermokron", "python", "distributed", "dask")

_HERE = threading.local()


@contextmanager
def cluster_workers(address: str) -> Iterator[Results]:
    """The workers of a cluster, of one thread each.

    A task whose worker has gone is given to another, as often as the scheduler allows. Workers may
    come later. Tasks go to the cluster as it has room for them. Leaving early, as after Ctrl-C,
    takes all of them back; one that is under way ends at its next `check_wanted`.

    Parameters
    ----------
    address : str
        Of the Dask scheduler, such as "tcp://host:8786".

    Raises
    ------
    ModuleNotFoundError
        If Dask is not installed here.
    ConnectionError
        If no scheduler answers there, or it has gone since.
    ValueError
        If scheduler or workers have other versions of a package than are installed here, or a
        worker has several threads.
    ChildProcessError
        If several workers in turn were killed by the same task.
    """
    client = _connected(address)
    log = logging.getLogger("distributed.client")
    level = log.level
    log.setLevel(logging.CRITICAL)  # what it has to say of a lost connection is raised, too
    try:
        _check_versions(client)
        yield _Cluster(client, address).results
    finally:
        client.close()
        log.setLevel(level)


def check_wanted() -> None:
    """Raise `Unwanted` in a task on a cluster whose result nobody waits for any more.

    Elsewhere it does nothing. A thread cannot be ended from outside, so long tasks ask.
    """
    wanted = getattr(_HERE, "wanted", None)
    if wanted is not None and not wanted():
        raise Unwanted("this task was cancelled, or who asked for it has gone")


class Unwanted(RuntimeError):
    """Nobody waits for the result."""


# ---- here ------------------------------------------------------------------------------------


def _connected(address: str) -> Client:
    try:
        from distributed import Client
        from distributed.versions import VersionMismatchWarning
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"a cluster needs {error.name}; install it with: pip install 'thermokron[cluster]'",
            name=error.name,
        ) from None
    try:
        if not address:  # for which Dask would begin a cluster of its own
            raise ValueError("the address is empty")
        with ThreadPoolExecutor(1) as aside:  # this thread may have an event loop of its own
            aside.submit(asyncio.run, _answered(address)).result()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VersionMismatchWarning)  # a mismatch is an error below
            return Client(address, timeout=ANSWER_S, set_as_default=False, name="thermokron")
    except Exception as error:  # whatever Dask makes of what answers there, and is none
        reason = str(error) or f"nothing came in {ANSWER_S:g} s"
        raise ConnectionError(
            f"no Dask scheduler answers at cluster = {address!r} ({reason}); `dask scheduler` "
            "begins one and says its address"
        ) from error


async def _answered(address: str) -> None:
    """Connect, once: a client that cannot tries again, and hangs when it ends."""
    from distributed.core import connect
    from distributed.security import Security

    options = Security().get_connection_args("client")
    comm = await asyncio.wait_for(connect(address, timeout=ANSWER_S, **options), ANSWER_S)
    await comm.close()


def _versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Of this process, None for what is not installed."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = python_version() if package == "python" else version(package)
        except PackageNotFoundError:
            found[package] = None
    return {package: _decisive(package, found[package]) for package in found}


def _decisive(package: str, found: str | None) -> str | None:
    """The part of a version that has to be the same: of torch not whether it knows CUDA."""
    if found is None:
        return None
    return ".".join(found.split(".")[:2]) if package == "python" else found.partition("+")[0]


def _check_same(who: str, theirs: Mapping[str, str | None], ours: Mapping[str, str | None]) -> None:
    """`ValueError` if somebody has another version of a package of ours."""
    for package, here in ours.items():
        there = _decisive(package, theirs.get(package))
        if there != here:
            has = f"has no {package}" if there is None else f"has {package} {there}"
            raise ValueError(f"{who} {has}, and here is {here}; legal: the same on all")


def _check_versions(client: Client) -> None:
    found = client.get_versions(packages=[name for name in DECISIVE if name != "python"])
    scheduler = client.scheduler.address
    _check_same(f"the scheduler {scheduler}", found["scheduler"]["packages"], _versions(SPEAKS))
    for worker, theirs in found["workers"].items():
        _check_same(f"the worker {worker}", theirs["packages"], _versions((*DECISIVE, *SPEAKS)))


class _Cluster:
    """What is sent to a cluster, and what comes back."""

    def __init__(self, client: Client, address: str) -> None:
        self.client, self.address = client, address
        self.versions = _versions(DECISIVE)
        self.room, self.looked = 0, -LOOK_S
        self.warned = False

    def results(
        self, function: Callable[[Task], Result], tasks: Iterable[Task]
    ) -> Iterator[tuple[Task, Result]]:
        """`Results` of the workers."""
        waiting: dict[str, tuple[Future, Task]] = {}  # a future that nobody has is cancelled
        ended: SimpleQueue[Future] = SimpleQueue()
        left = iter(tasks)
        while True:
            self._look()
            for task in islice(left, max(self.room - len(waiting), 0)):
                future = self._sent(function, task)
                waiting[future.key] = future, task
                future.add_done_callback(ended.put)
            if not waiting:
                return
            try:
                future = ended.get(timeout=LOOK_S)
            except Empty:
                continue
            result: Result = self._result(future)
            yield waiting.pop(future.key)[1], result

    def _look(self) -> None:
        """Who works, from time to time."""
        if time.monotonic() < self.looked + LOOK_S:
            return
        try:
            threads = self.client.nthreads()
        except OSError as error:
            raise self._gone(str(error)) from error
        for worker, count in threads.items():
            _check_threads(worker, count)
        if not threads and not self.warned:
            warnings.warn(
                f"the cluster at {self.address} has no worker; waiting for: "
                f"dask worker {self.address} --nthreads 1",
                stacklevel=4,
            )
        self.warned = not threads
        self.room = AHEAD * max(len(threads), 1)
        self.looked = time.monotonic()

    def _sent(self, function: Callable[[Task], Result], task: Task) -> Future:
        from distributed.protocol.pickle import dumps

        # as bytes, so that the scheduler need not load what they are made of
        work = dumps((function, task))
        key = f"thermokron-{uuid4().hex}"
        return self.client.submit(_there, work, self.versions, key=key, pure=False)

    def _result(self, future: Future) -> Any:
        from distributed import KilledWorker
        from distributed.client import FutureCancelledError

        try:
            return future.result()
        except FutureCancelledError as error:
            raise self._gone(error.reason) from None
        except KilledWorker as error:
            raise ChildProcessError(
                f"workers of the cluster at {self.address} were killed one after the other by the "
                f"same run, perhaps because memory ran out ({error}); results so far are kept, and "
                "the same command goes on from there"
            ) from None

    def _gone(self, reason: str) -> ConnectionError:
        return ConnectionError(
            f"the Dask scheduler at {self.address} has gone, or took a run back ({reason}); "
            "results so far are kept, and the same command goes on from there"
        )


# ---- on a worker -----------------------------------------------------------------------------


def _there(work: bytes, ours: dict[str, str | None]) -> Any:
    """Do what was sent, in a worker."""
    from distributed import get_worker
    from distributed.protocol.pickle import loads

    worker = get_worker()
    # it may have come after the others were looked at
    _check_same(f"the worker {worker.address}", _versions(ours), ours)
    _check_threads(worker.address, worker.state.nthreads)
    key = worker.get_current_task()

    def wanted() -> bool:
        task = worker.state.tasks.get(key)
        return task is not None and task.state != "cancelled"

    _HERE.wanted = wanted
    try:
        function, task = loads(work)
        return function(task)
    finally:
        del _HERE.wanted


def _check_threads(worker: str, count: int) -> None:
    if count != 1:
        raise ValueError(
            f"the worker {worker} has {count} threads, which would share one generator and one "
            "BLAS; legal: 1, as of: dask worker --nthreads 1 --nworkers N"
        )
