"""Run what a study still needs, in processes of one thread each."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path

from thermokron.host.studies.plan import Study
from thermokron.host.studies.runs import Outcome, Run, Store, execute
from thermokron.host.terminal import Ended, ended_by_signals
from thermokron.model.checks import check_integer
from thermokron.model.files import claimed, write_whole

__all__ = ["Listener", "run_study"]

#: Called after each run with the stage, the runs of the stage done, those there are, and a remark.
Listener = Callable[[str, int, int, str], None]

#: Seconds that a worker has for cleaning up when its parent is gone.
CLEANING_S = 10.0
#: What BLAS and OpenMP libraries read when they are loaded.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def run_study(
    study: Study,
    folder: Path,
    *,
    jobs: int = 1,
    timeout_s: float | None = None,
    listen: Listener = lambda stage, done, total, remark: None,
) -> list[Path]:
    """Run all that has no result yet, then write tables and plots.

    Results go to `folder/runs`, one file per training run, as they come; what is there already is
    not run again, so an interrupted study goes on where it was, and a plan that has grown runs
    only what is new. Results do not depend on `jobs`. The folder is of one study, whose name
    `folder/study.json` remembers.

    Parameters
    ----------
    study : Study
        From `load_study`.
    folder : Path
        Where results are kept and reports are written.
    jobs : int
        Processes that train side by side, each on one thread.
    timeout_s : float, optional
        How long a simulator may give no sign of life, see `open_unit`.
    listen : callable
        Hears of progress.

    Returns
    -------
    list of Path
        What was written: tables as Markdown, and plots.

    Raises
    ------
    UnitFault, ValueError
        If a run fails, other than by diverging; results so far are kept.
    ValueError
        If the folder is another study's, or holds a file that is not a result.
    FolderInUse
        If the study is running there already.
    ChildProcessError
        If a process that trained was killed; results so far are kept.
    """
    jobs = check_integer("jobs", jobs, 1, 256)
    with claimed(folder):
        _claim(folder, study)
        return _run(study, folder, jobs, timeout_s, listen)


def _run(
    study: Study, folder: Path, jobs: int, timeout_s: float | None, listen: Listener
) -> list[Path]:
    store = Store(folder / "runs")
    with _workers(jobs, timeout_s) as outcomes:
        for stage, runs in study.stages(store):
            unique = {run.key: run for run in runs}
            missing = list(store.missing(list(unique.values())))
            done, total = len(unique) - len(missing), len(unique)
            listen(stage, done, total, "")
            for run, outcome in outcomes(missing):
                store.put(run, outcome)
                done += 1
                listen(stage, done, total, f"{run.label}: loss {outcome.final_loss:.2g}")
    return study.report(store, folder)


def _claim(folder: Path, study: Study) -> None:
    """Note whose folder it is, as two studies would replace each other's tables."""
    path, mine = folder / "study.json", {"name": study.name, "title": study.title}
    if not path.exists():
        write_whole(path, json.dumps(mine) + "\n")
        return
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        owner = {"name": record["name"], "title": record["title"]}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} does not name a study ({error!r}); delete it") from None
    if owner != mine:
        raise ValueError(
            f"{folder} holds the study {owner['name']!r}, {owner['title']!r}, not {study.name!r}, "
            f"{study.title!r}; give another folder with -o, or delete {path} to replace its tables"
        )


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


def _execute_here(run: Run, timeout_s: float | None) -> Outcome:
    """In a worker: what is under way when it is told to end is cleaned up."""
    try:
        with ended_by_signals():
            return execute(run, timeout_s)
    except Ended:
        os._exit(1)


@contextmanager
def _workers(
    jobs: int, timeout_s: float | None
) -> Iterator[Callable[[list[Run]], Iterator[tuple[Run, Outcome]]]]:
    """What executes runs, and gives outcomes as they come.

    Leaving early, as after Ctrl-C, ends the processes, and so does the end of this one.
    """
    if jobs == 1:
        yield lambda runs: ((run, execute(run, timeout_s)) for run in runs)
        return
    with _one_thread_each():
        # spawned, as a fork of a process whose libraries have threads may hang
        pool = ProcessPoolExecutor(jobs, get_context("spawn"), _begin_worker)

        def outcomes(runs: list[Run]) -> Iterator[tuple[Run, Outcome]]:
            waiting = {pool.submit(_execute_here, run, timeout_s): run for run in runs}
            while waiting:
                ready, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in ready:
                    yield waiting.pop(future), future.result()

        try:
            yield outcomes
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
