"""Run what a study still needs, in processes of one thread each, here or on a cluster."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Protocol

from thermokron.host.studies.plan import Study
from thermokron.host.studies.runs import Store, execute
from thermokron.host.train.workers import Results, workers
from thermokron.model.files import claimed, write_whole

__all__ = ["Listener", "claim", "run_study"]

#: Called after each run with the stage, the runs of the stage done, those there are, and a remark.
Listener = Callable[[str, int, int, str], None]


class Named(Protocol):
    """What has a folder of its own."""

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...


def run_study(
    study: Study,
    folder: Path,
    *,
    jobs: int = 1,
    cluster: str | None = None,
    timeout_s: float | None = None,
    listen: Listener = lambda stage, done, total, remark: None,
) -> list[Path]:
    """Run all that has no result yet, then write tables and plots.

    Results go to `folder/runs`, one file per training run, as they come; what is there already is
    not run again, so an interrupted study goes on where it was, and a plan that has grown runs
    only what is new. Results do not depend on `jobs` or `cluster`. The folder is of one study,
    whose name `folder/study.json` remembers.

    Parameters
    ----------
    study : Study
        From `load_study`.
    folder : Path
        Where results are kept and reports are written.
    jobs : int
        Processes that train side by side, each on one thread.
    cluster : str, optional
        Address of a Dask scheduler, on whose workers to train instead.
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
        If the folder is another study's, or holds a file that is not a result; or if the cluster's
        packages are others than here.
    FolderInUse
        If the study is running there already.
    ChildProcessError
        If a process that trained was killed; results so far are kept.
    ConnectionError
        If no scheduler answers at the address, or it has gone since.
    """
    side_by_side = workers(jobs, cluster)
    with claimed(folder):
        claim(folder, study)
        return _run(study, folder, side_by_side, timeout_s, listen)


def _run(
    study: Study,
    folder: Path,
    side_by_side: AbstractContextManager[Results],
    timeout_s: float | None,
    listen: Listener,
) -> list[Path]:
    store = Store(folder / "runs")
    with side_by_side as results:
        for stage, runs in study.stages(store):
            unique = {run.key: run for run in runs}
            missing = list(store.missing(list(unique.values())))
            done, total = len(unique) - len(missing), len(unique)
            listen(stage, done, total, "")
            for run, outcome in results(partial(execute, timeout_s=timeout_s), missing):
                store.put(run, outcome)
                done += 1
                listen(stage, done, total, f"{run.label}: loss {outcome.final_loss:.2g}")
    return study.report(store, folder)


def claim(folder: Path, study: Named) -> None:
    """Note whose folder it is, as two studies would replace each other's tables.

    Raises
    ------
    ValueError
        If it is another's.
    """
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
