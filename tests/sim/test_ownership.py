"""A co-simulated unit after a fork, and among threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from thermokron.host import CosimUnit, open_unit
from thermokron.model import Job, NumericUnit, UnitFault, UnitSpec
from thermokron.sim import SimulationError, missing

SPEC = UnitSpec(cells=3, lanes=1, adc_timeout_cycles=30)


def job(seed: int) -> Job:
    factors = np.random.default_rng(seed).standard_normal((3, 6))
    matrix = factors @ factors.T
    scale = 1.01 * np.sqrt(np.diag(matrix))
    return Job(
        couplings=SPEC.coupling_codes(matrix / scale[:, None] / scale),
        biases=np.array([[40, 0, -500]]),
        temperature=200,
        settle_cycles=20,
        interval_cycles=17,
        samples=40,
    )


LONG = Job(
    couplings=job(0).couplings,
    biases=job(0).biases,
    temperature=3,
    settle_cycles=2**32 - 1,
    interval_cycles=17,
    samples=1,
)


@pytest.fixture
def unit() -> Iterator[CosimUnit]:
    if reason := missing("verilator"):
        pytest.skip(reason)
    with open_unit("cosim", SPEC, seed=4) as unit:
        assert isinstance(unit, CosimUnit)
        yield unit


def assert_in_a_child(act: Callable[[], object]) -> None:
    """`act` returns true in a child that is forked, and that ends as an interpreter does."""
    child = os.fork()
    if child == 0:
        try:
            status = 0 if act() else 1
        except BaseException:
            status = 2
        # finalizers are run as at the end of a process; pytest's own end is not this child's
        import weakref

        weakref.finalize._exitfunc()  # type: ignore[attr-defined]
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def refused(act: Callable[[], object]) -> bool:
    try:
        act()
    except RuntimeError as error:
        return "belongs to process" in str(error)
    return False


def test_a_child_that_uses_it_is_refused_and_the_parent_goes_on(unit: CosimUnit) -> None:
    reference = NumericUnit(SPEC, seed=4)
    first, second = job(1), job(2)
    assert unit.run(first) == reference.run(first)
    for act in (
        lambda: unit.run(second),
        lambda: next(iter(unit.run_many([second]))),
        lambda: unit.info(),
        lambda: unit.link.reset(),
        lambda: unit.abort(),
    ):
        assert_in_a_child(lambda act=act: refused(act))  # type: ignore[misc]
    assert unit.run(first) == reference.run(first)
    assert unit.run(second) == reference.run(second)


def test_a_child_that_closes_it_or_ends_leaves_the_simulator_alone(unit: CosimUnit) -> None:
    folder = unit.link.log.parent
    assert_in_a_child(lambda: unit.close() is None)
    assert_in_a_child(lambda: True)
    assert folder.exists()
    assert unit.link.process.poll() is None
    assert unit.run(job(1)) == NumericUnit(SPEC, seed=4).run(job(1))


CHILD_LIVES_ON = """
import os, sys, time
from thermokron.host import open_unit
from thermokron.model import UnitSpec

unit = open_unit("cosim", UnitSpec(cells=3, lanes=1, adc_timeout_cycles=30))
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
print(unit.link.process.pid, child, flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_simulator_notices_its_hosts_end_though_a_child_of_it_lives() -> None:
    if reason := missing("verilator"):
        pytest.skip(reason)
    host = subprocess.Popen([sys.executable, "-c", CHILD_LIVES_ON], stdout=subprocess.PIPE)
    assert host.stdout is not None
    simulator, child = map(int, host.stdout.readline().split())
    host.wait()
    host.stdout.close()
    try:
        deadline = time.monotonic() + 20
        while os.path.exists(f"/proc/{simulator}"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(child, 0)  # it lives
    finally:
        os.kill(child, signal.SIGKILL)


def test_threads_take_turns(unit: CosimUnit) -> None:
    jobs, answers = [job(seed) for seed in range(3)], []

    def work(mine: Job) -> None:
        for _ in range(4):
            answers.append(unit.run(mine).to_json())
        answers.extend(readout.to_json() for readout in unit.run_many([mine] * 3))

    threads = [threading.Thread(target=work, args=[mine]) for mine in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    numeric = NumericUnit(SPEC, seed=4)
    legal = {numeric.run(j, stream=s).to_json(): s for j in jobs for s in range(21)}
    assert sorted(legal[answer] for answer in answers) == list(range(21))


def test_a_request_that_meets_another_says_so(unit: CosimUnit) -> None:
    def run() -> None:
        with pytest.raises(SimulationError):  # closed in the end
            unit.run(LONG)

    thread = threading.Thread(target=run)
    thread.start()
    deadline = time.monotonic() + 10
    while unit.link._asked != "WAIT":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(SimulationError, match="INFO met another request in flight, WAIT"):
        unit.link.info()
    for ask in (unit.info, unit.abort):
        with pytest.raises(UnitFault, match="met a run in flight, of another thread"):
            ask()
    unit.close()
    thread.join(10)
    assert not thread.is_alive()


def test_what_other_threads_ask_does_not_disturb_a_run(unit: CosimUnit) -> None:
    done, refused = threading.Event(), []

    def ask() -> None:
        while not done.is_set():
            try:
                unit.info()
            except UnitFault as fault:
                refused.append(fault)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        numeric = NumericUnit(SPEC, seed=4)
        for seed in range(20):
            assert unit.run(job(seed)) == numeric.run(job(seed))
    finally:
        done.set()
        thread.join()
    assert refused


def test_jobs_that_run_others_while_they_are_made_are_refused(unit: CosimUnit) -> None:
    def jobs() -> Iterator[Job]:
        yield job(1)
        unit.run(job(2))
        yield job(3)

    readouts = unit.run_many(jobs())
    assert next(readouts) == NumericUnit(SPEC, seed=4).run(job(1))
    with pytest.raises(RuntimeError, match="the unit is running a job already"):
        next(readouts)
    assert unit.run(job(2)) == NumericUnit(SPEC, seed=4).run(job(2), stream=1)
