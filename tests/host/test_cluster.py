"""Studies on a Dask cluster: the same results as here, and what happens when parts of it go."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

distributed = pytest.importorskip("distributed", reason="needs the extra cluster")
dask = pytest.importorskip("dask")

from cluster_tasks import deadly, faulty, killed_once, long, squared  # noqa: E402
from study_plans import QUANTISATION, SMALL, results, written  # noqa: E402

from thermokron.host.cli import main  # noqa: E402
from thermokron.host.studies import Outcome, Run, load_study, run_study  # noqa: E402
from thermokron.host.studies.runs import Store, execute  # noqa: E402
from thermokron.host.train import cluster  # noqa: E402
from thermokron.host.train.workers import workers  # noqa: E402
from thermokron.model import UnitFault  # noqa: E402

LOCAL = {"threads_per_worker": 1, "dashboard_address": ":0"}


@pytest.fixture(scope="module")
def machines() -> Iterator[distributed.LocalCluster]:
    """Two workers, processes as on other machines, and the scheduler in this one."""
    settings = {
        "distributed.worker.profile.enabled": False,  # with it imports take twice as long
        # after which a worker would be given up that is just being killed again
        "distributed.deploy.lost-worker-timeout": "1h",
    }
    with (
        dask.config.set(settings),
        distributed.LocalCluster(n_workers=2, processes=True, **LOCAL) as machines,
    ):
        yield machines


def _within(seconds: float, happens: Callable[[], object]) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.05)


def _files(folder: Path) -> dict[str, dict[str, object]]:
    """What files of runs say, but for the time that it took here or there."""
    found = {}
    for path in (folder / "runs").glob("*.json"):
        record = json.loads(path.read_text())
        del record["checksum"], record["outcome"]["wall_seconds"]
        found[path.name] = record
    return found


# ---- the same results ------------------------------------------------------------------------


def test_a_study_has_the_same_results_as_in_one_process(machines, tmp_path, monkeypatch):
    """To the last bit, however runs end."""
    plan, there = written(tmp_path, SMALL), tmp_path / "there"
    run_study(load_study(plan), tmp_path / "here")
    monkeypatch.setattr("thermokron.host.studies.runs.train", None)  # not in this process
    command = ["study", plan, "-o", str(there), "--cluster", machines.scheduler_address]
    assert main(command) == 0
    assert _files(there) == _files(tmp_path / "here")
    ends = {record["outcome"]["end"] for record in _files(there).values()}
    assert ends == {"finished", "diverged", "refused"}


def test_interrupted_it_keeps_what_was_done_and_goes_on(machines, tmp_path):
    folder = tmp_path / "out"
    many = written(tmp_path, SMALL.replace("seeds = [0]", f"seeds = {list(range(300))}"))
    command = [sys.executable, "-m", "thermokron.host.cli", "study", many, "-o", str(folder)]
    command += ["--cluster", machines.scheduler_address]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        _within(60, lambda: len(results(folder)) >= 4 or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        assert process.stderr.read().strip() == "thermokron: interrupted"
    kept = results(folder)
    assert 4 <= len(kept) < 900
    _within(10, lambda: not machines.scheduler.tasks)
    few = load_study(written(tmp_path, SMALL.replace("seeds = [0]", "seeds = [0, 1, 2]")))
    run_study(few, folder, cluster=machines.scheduler_address)
    assert {name: results(folder)[name] for name in kept} == kept
    assert len(results(folder)) >= 9


def test_a_worker_that_is_killed_costs_its_run_a_retry(machines, tmp_path):
    study = load_study(written(tmp_path, QUANTISATION))
    runs = [run for _, stage in study.stages(Store(tmp_path)) for run in stage]
    here = {run: _told(execute(run)) for run in runs[:8]}
    there: dict[Run, str] = {}
    with workers(cluster=machines.scheduler_address) as results:
        for run, outcome in results(execute, here):
            if not there:  # others are under way, on both workers
                killed = _processes(machines)[0]
                os.kill(killed, signal.SIGKILL)
            there[run] = _told(outcome)
    assert there == here
    _within(20, lambda: len(machines.scheduler.workers) == 2)
    assert killed not in _processes(machines)


def _told(outcome: Outcome) -> str:
    """All that an outcome says, but for the time that it took here or there."""
    return repr({**vars(outcome), "wall_seconds": None})


def _processes(machines: distributed.LocalCluster) -> list[int]:
    with distributed.Client(machines.scheduler_address, set_as_default=False) as client:
        return [*client.run(os.getpid).values()]


def test_a_task_that_was_killed_is_done_by_another_worker(machines, tmp_path):
    tasks = [(tmp_path, number) for number in range(6)]
    with workers(cluster=machines.scheduler_address) as results:
        assert sorted(results(killed_once, tasks)) == [(task, task[1] ** 2) for task in tasks]
    assert (tmp_path / "killed").exists()


def test_a_task_that_kills_worker_after_worker_is_told(machines, monkeypatch):
    monkeypatch.setattr(machines.scheduler, "allowed_failures", 1)
    told = "killed one after the other by the same run.*results so far are kept"
    with (
        pytest.raises(ChildProcessError, match=told),
        workers(cluster=machines.scheduler_address) as results,
    ):
        list(results(deadly, [1]))
    _within(20, lambda: len(machines.scheduler.workers) == 2)


# ---- what is sent, and what comes back -------------------------------------------------------


def test_errors_come_through_as_themselves(machines):
    with workers(cluster=machines.scheduler_address) as results:
        with pytest.raises(UnitFault, match=r"^adc_timeout$"):
            list(results(faulty, [1]))
        with pytest.raises(ValueError, match=r"^number = 0; legal: 1 or more$"):
            list(results(faulty, [0]))
        assert list(results(squared, [3])) == [(3, 9)]  # and it goes on


def test_tasks_are_sent_as_there_is_room(machines):
    taken, most, given = 0, 0, 0

    def tasks() -> Iterator[int]:
        nonlocal taken
        for number in range(200):
            taken += 1
            yield number

    found = {}
    with workers(cluster=machines.scheduler_address) as results:
        for number, square in results(squared, tasks()):
            most = max(most, taken - given)
            given += 1
            found[number] = square
    assert found == {number: number**2 for number in range(200)}
    assert 2 <= most <= 2 * cluster.AHEAD


def test_leaving_early_ends_what_is_under_way_and_begins_nothing(machines, tmp_path):
    def there(what: str) -> set[str]:
        return {path.name for path in tmp_path.glob(f"{what}-*")}

    with workers(cluster=machines.scheduler_address) as results:
        for _ in results(long, [(tmp_path, number) for number in range(20)]):
            _within(20, lambda: len(there("began")) == 2)
            break
    began = there("began")
    _within(5, lambda: len(there("unwanted")) == 2)
    time.sleep(0.3)
    assert there("began") == began


# ---- clusters that are none ------------------------------------------------------------------


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "silent", "no-port", ""])
def test_where_nobody_answers_the_address_is_named(address, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "ANSWER_S", 0.5)
    plan = written(tmp_path, QUANTISATION)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        if address == "silent":  # somebody listens, who is no scheduler
            address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        assert main(["study", plan, "-o", str(tmp_path / "out"), "--cluster", address]) == 2
    assert time.monotonic() - began < 5.0
    told = f"thermokron: error: no Dask scheduler answers at cluster = {address!r} ("
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(told)


def test_another_version_is_refused(machines, monkeypatch):
    """At the beginning, and of a worker that comes later."""
    real = cluster.version
    monkeypatch.setattr(
        cluster, "version", lambda name: "9.9" if name == "thermokron" else real(name)
    )
    told = r"^the {} tcp://\S+ has thermokron \S+, and here is 9\.9; legal: the same on all$"
    with (
        pytest.raises(ValueError, match=told.format("scheduler")),
        workers(cluster=machines.scheduler_address),
    ):
        pass
    monkeypatch.setattr(cluster, "_check_versions", lambda client: None)
    with (
        workers(cluster=machines.scheduler_address) as results,
        pytest.raises(ValueError, match=told.format("worker")),
    ):
        list(results(squared, [1]))


@pytest.mark.parametrize(
    ("theirs", "told"),
    [
        ({"torch": "2.13.0+cu130", "python": "3.11.9.final.0"}, None),
        (
            {"torch": "2.12.1", "python": "3.11.9.final.0"},
            "it has torch 2.12.1, and here is 2.13.0",
        ),
        ({"torch": "2.13.0", "python": "3.12.1.final.0"}, "it has python 3.12, and here is 3.11"),
        ({"torch": None, "python": "3.11.9.final.0"}, "it has no torch, and here is 2.13.0"),
    ],
)
def test_what_has_to_be_the_same_of_versions(theirs, told):
    ours = {"torch": "2.13.0", "python": "3.11"}
    if told is None:
        cluster._check_same("it", theirs, ours)
        return
    with pytest.raises(ValueError, match=told):
        cluster._check_same("it", theirs, ours)


def test_a_worker_of_several_threads_is_refused():
    several = LOCAL | {"threads_per_worker": 2}
    with (
        distributed.LocalCluster(n_workers=1, processes=False, **several) as threads,
        workers(cluster=threads.scheduler_address) as results,
        pytest.raises(
            ValueError, match=r"has 2 threads.*legal: 1, as of: dask worker --nthreads 1"
        ),
    ):
        list(results(squared, [1]))


def test_a_cluster_without_workers_is_told_and_waited_for(monkeypatch):
    monkeypatch.setattr(cluster, "LOOK_S", 0.1)
    with distributed.LocalCluster(n_workers=0, processes=False, **LOCAL) as empty:
        with workers(cluster=empty.scheduler_address) as results:
            later = threading.Timer(0.5, empty.scale, (1,))
            later.start()
            with pytest.warns(UserWarning, match="has no worker; waiting for: dask worker") as told:
                found = sorted(results(squared, range(9)))
        later.join()
    assert found == [(number, number**2) for number in range(9)]
    assert len(told) == 1


def test_a_scheduler_that_goes_is_named():
    lonely = distributed.LocalCluster(n_workers=0, processes=False, **LOCAL)
    address = lonely.scheduler_address
    with workers(cluster=address) as results:
        later = threading.Timer(0.5, lonely.close)
        later.start()
        with (
            pytest.raises(ConnectionError, match=f"{address} has gone.*results so far are kept"),
            pytest.warns(UserWarning, match="has no worker"),
        ):
            list(results(squared, [1]))
    later.join()


def test_processes_here_and_a_cluster_are_one_too_many():
    with pytest.raises(ValueError, match="jobs = 2 has no effect on a cluster"):
        workers(2, "tcp://127.0.0.1:1")
