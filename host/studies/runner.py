"""Run what a study still needs, in processes of one thread each."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from signal import SIG_IGN, SIGINT

from thermokron.host.studies.plan import Study
from thermokron.host.studies.runs import Outcome, Run, Store, execute
from thermokron.model.checks import check_integer

__all__ = ["Listener", "run_study"]

#: Called after each run with the stage, the runs of the stage done, those there are, and a remark.
Listener = Callable[[str, int, int, str], None]

#: What BLAS and OpenMP libraries read when they are loaded.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def run_study(
    study: Study,
    folder: Path,
    *,
    jobs: int = 1,
    listen: Listener = lambda stage, done, total, remark: None,
) -> list[Path]:
    """Run all that has no result yet, then write tables and plots.

    Results go to `folder/runs`, one file per training run, as they come; what is there already is
    not run again, so an interrupted study goes on where it was, and a plan that has grown runs
    only what is new. Results do not depend on `jobs`.

    Parameters
    ----------
    study : Study
        From `load_study`.
    folder : Path
        Where results are kept and reports are written.
    jobs : int
        Processes that train side by side, each on one thread.
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
    """
    jobs = check_integer("jobs", jobs, 1, 256)
    store = Store(folder / "runs")
    with _workers(jobs) as outcomes:
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


@contextmanager
def _workers(jobs: int) -> Iterator[Callable[[list[Run]], Iterator[tuple[Run, Outcome]]]]:
    """What executes runs, and gives outcomes as they come.

    Leaving early, as after Ctrl-C, ends the processes.
    """
    if jobs == 1:
        yield lambda runs: ((run, execute(run)) for run in runs)
        return
    with _one_thread_each():
        # spawned, as a fork of a process whose libraries have threads may hang
        pool = ProcessPoolExecutor(jobs, get_context("spawn"), signal.signal, (SIGINT, SIG_IGN))

        def outcomes(runs: list[Run]) -> Iterator[tuple[Run, Outcome]]:
            waiting = {pool.submit(execute, run): run for run in runs}
            while waiting:
                ready, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in ready:
                    yield waiting.pop(future), future.result()

        try:
            yield outcomes
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
