"""Runs side by side: in processes here, or on the workers of a cluster."""

from __future__ import annotations

from contextlib import AbstractContextManager

from thermokron.host.train.cluster import cluster_workers
from thermokron.host.train.processes import Results, processes
from thermokron.model.checks import check_integer

__all__ = ["MAX_JOBS", "Results", "workers"]

#: Processes that train side by side at most.
MAX_JOBS = 256


def workers(jobs: int = 1, cluster: str | None = None) -> AbstractContextManager[Results]:
    """What calls a function on many tasks, side by side, each call on one thread.

        with workers(2) as results:
            for task, result in results(function, tasks):
                ...

    Functions, tasks and results are sent to and fro, so they have to be such as can be pickled.
    What a call raises is raised here. Whoever leaves early, as after Ctrl-C, ends what is under
    way and has nothing else begun.

    Parameters
    ----------
    jobs : int
        Processes of this machine; with one, everything is done in this process.
    cluster : str, optional
        Address of a Dask scheduler, whose workers do the work instead: `cluster_workers`.

    Raises
    ------
    ValueError
        If there are both, or jobs is not within 1 to 256.
    ChildProcessError
        If a process was killed, on a cluster several times by the same task.
    """
    jobs = check_integer("jobs", jobs, 1, MAX_JOBS)
    if cluster is None:
        return processes(jobs)
    if jobs != 1:
        raise ValueError(f"jobs = {jobs} has no effect on a cluster, whose workers do the work")
    return cluster_workers(cluster)
