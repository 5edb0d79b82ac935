"""A unit is its process's, and runs one job at a time."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

from thermokron.model import BaseUnit, Job, NumericUnit, UnitSpec
from thermokron.model.threads import single_threaded_blas

SPEC = UnitSpec(cells=4)
JOB = Job(
    couplings=np.eye(4, dtype=int) * SPEC.coupling_max,
    biases=np.zeros((1, 4), int),
    temperature=200,
    settle_cycles=50,
    interval_cycles=20,
    samples=40,
)


def in_a_child(act) -> str:
    """What `act` returns, or raises, in a child of this process; fails if it takes 30 s."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = act()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write, str(said).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as pipe:
        killer = threading.Timer(30, os.kill, (child, 9))
        killer.start()
        text = pipe.read()
        killer.cancel()
    os.waitpid(child, 0)
    return text


def test_a_child_is_refused_and_the_parent_does_not_notice() -> None:
    unit, reference = NumericUnit(SPEC, seed=1), NumericUnit(SPEC, seed=1)
    unit.run(JOB)
    reference.run(JOB)
    for act in (lambda: unit.run(JOB), lambda: unit.run(JOB, stream=3)):
        text = in_a_child(act)
        assert text.startswith(f"RuntimeError: the unit belongs to process {os.getpid()}, which")
    assert "belongs" in in_a_child(lambda: next(iter(unit.run_many([JOB]))))
    assert unit.run(JOB) == reference.run(JOB)
    # one of its own works there
    assert in_a_child(lambda: NumericUnit(SPEC, seed=2).run(JOB).to_json()) == (
        NumericUnit(SPEC, seed=2).run(JOB).to_json()
    )


def test_a_unit_that_is_sent_to_another_process_is_refused_there() -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        sent = pool.submit(BaseUnit.run, NumericUnit(SPEC), JOB)
        with pytest.raises(RuntimeError, match="belongs to process"):
            sent.result(120)


def test_a_child_begun_while_another_thread_samples_does_not_wait_for_it() -> None:
    inside, done = threading.Event(), threading.Event()

    def hold() -> None:
        with single_threaded_blas():
            inside.set()
            done.wait(0.5)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()
    assert in_a_child(lambda: NumericUnit(SPEC, seed=2).run(JOB).total_cycles).isdigit()
    done.set()
    thread.join()


def test_children_sample_with_threads_of_their_own() -> None:
    """Those begun after a run with several threads, and while another thread has such a run."""
    job = JOB.with_biases(JOB.biases, samples=300_000)
    unit = NumericUnit(SPEC, seed=2)
    expected = unit.run(job, stream=0)
    for _ in range(3):
        thread = threading.Thread(target=unit.run, args=[job])
        thread.start()
        found = in_a_child(lambda: NumericUnit(SPEC, seed=2).run(job, stream=0).to_json())
        thread.join()
        assert found == expected.to_json()


SCRIPT = """
import sys
from thermokron.model import Job, NumericUnit, UnitSpec
unit = NumericUnit(UnitSpec.from_json(sys.argv[1]))
unit.run(Job.from_json(sys.argv[2]))
print("done", flush=True)
"""


def test_threads_do_not_keep_a_process_from_ending() -> None:
    job = JOB.with_biases(JOB.biases, samples=300_000)
    arguments = [sys.executable, "-c", SCRIPT, SPEC.to_json(), job.to_json()]
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "done\n"


def test_no_two_answers_share_their_noise_whatever_threads_do() -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        unit, answers = NumericUnit(SPEC, seed=1), []

        def work() -> None:
            answers.extend(unit.run(JOB).to_json() for _ in range(60))

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert len(set(answers)) == len(answers) == 180
    assert unit.stream == 180
    expected = NumericUnit(SPEC, seed=1)
    assert set(answers) == {expected.run(JOB).to_json() for _ in range(180)}


def test_a_copy_in_this_process_has_turns_of_its_own() -> None:
    unit = NumericUnit(SPEC, seed=1)
    with unit._turn():
        copied = pickle.loads(pickle.dumps(unit))
        assert copied.run(JOB) == NumericUnit(SPEC, seed=1).run(JOB)
        with pytest.raises(RuntimeError, match="running a job already"):
            unit.run(JOB)
    assert unit.run(JOB, stream=0) == copied.run(JOB, stream=0)
