"""Pools: several units that are one, with results that do not depend on how many there are."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from thermokron.host import Pool, linalg, open_pool
from thermokron.host.engines import pool as pool_module
from thermokron.host.engines.pool import TASK_STREAMS, makespan
from thermokron.host.kfac import KFAC
from thermokron.model import BaseUnit, Job, NumericUnit, Readout, Unit, UnitFault, UnitSpec
from thermokron.sim import missing

SPEC = UnitSpec(cells=8, rhs_depth=4)
SIZES = (1, 2, 3)
RNG = np.random.default_rng(5)
DATA = RNG.normal(size=(6, 40, 8))
MATRICES = list(DATA.swapaxes(1, 2) @ DATA / 40 + 0.1 * np.eye(8))
RIGHT = RNG.normal(size=(8, 30))


def job(vectors: int = 1, samples: int = 40, spec: UnitSpec = SPEC) -> Job:
    return Job(
        couplings=spec.coupling_codes(np.eye(spec.cells) * 0.9),
        biases=np.arange(vectors * spec.cells).reshape(vectors, spec.cells),
        temperature=200,
        settle_cycles=40,
        interval_cycles=spec.shortest_interval(),
        samples=samples,
        second_moments=False,
    )


JOBS = [job(vectors, 10 * vectors) for vectors in (1, 3, 2, 4, 1, 2, 3)]


def numeric(units: int, seed: int = 3) -> Pool:
    return open_pool("numeric", SPEC, units=units, seed=seed)


class Scripted(BaseUnit):
    """A numeric unit that fails, or waits, as it is told."""

    def __init__(self, before: Callable[[Job], None] = lambda job: None) -> None:
        super().__init__(SPEC, 3)
        self.inner, self.before = NumericUnit(SPEC, seed=3), before
        self.closed = 0

    def _execute(self, job: Job, stream: int) -> Readout:
        self.before(job)
        return self.inner.run(job, stream=stream)

    def close(self) -> None:
        self.closed += 1


class Unclosable(Scripted):
    """A unit that cannot be closed."""

    def close(self) -> None:
        raise OSError("the waveform could not be written")


# ---- the same for any number of units ------------------------------------------------------------


@pytest.mark.parametrize("units", SIZES)
def test_jobs_are_those_of_one_unit(units: int) -> None:
    with NumericUnit(SPEC, seed=3) as one, numeric(units) as pool:
        assert isinstance(pool, Unit)
        assert (pool.spec, pool.seed, pool.stream) == (SPEC, 3, 0)
        assert pool.run(JOBS[0]) == one.run(JOBS[0])
        assert list(pool.run_many(JOBS)) == list(one.run_many(JOBS))
        assert pool.run(JOBS[1], stream=7) == one.run(JOBS[1], stream=7)
        assert pool.stream == one.stream == 1 + sum(len(each.biases) for each in JOBS)
        assert list(pool.run_many([])) == []


@pytest.mark.parametrize("units", SIZES)
def test_jobs_between_those_that_are_ahead(units: int) -> None:
    """What runs while others are handed out takes the streams that it would of one unit."""
    with NumericUnit(SPEC, seed=3) as one, numeric(units) as pool:
        found: list[list[Readout]] = []
        for unit in (one, pool):
            seen = []
            for number, readout in enumerate(unit.run_many(iter(JOBS))):
                seen.append(readout)
                if number in (1, 2, 5):
                    seen.append(unit.run(job(2)))
            found.append(seen)
        assert found[0] == found[1]
        first = next(pool.run_many(JOBS))  # and those that nobody asks for leave no trace
        assert pool.stream == one.stream + 1
        assert first == one.run(JOBS[0])


@pytest.mark.parametrize("units", SIZES)
def test_linear_algebra_is_that_of_one_unit(units: int) -> None:
    """One matrix's jobs are made from the same streams; many columns go side by side."""
    calls: list[Callable[[Unit], Any]] = [
        lambda unit: linalg.inv(unit, MATRICES[0], samples=300),
        lambda unit: linalg.inv(unit, MATRICES[0], samples=2**20 + 10),
        lambda unit: linalg.solve(unit, MATRICES[1], RIGHT, samples=8, refine=1),
        lambda unit: linalg.program(unit, MATRICES[2]).sample(21),
        lambda unit: linalg.inv(unit, 0.5 * np.eye(19) + 0.5, samples=200),
    ]
    with NumericUnit(SPEC, seed=3) as one, numeric(units) as pool:
        for call in calls:
            mine, theirs = call(pool), call(one)
            assert np.array_equal(mine.value, theirs.value)
            assert mine.seconds == theirs.seconds
            assert pool.stream == one.stream


def test_tasks_have_streams_of_their_own() -> None:
    def task(pool: Pool, number: int) -> tuple[np.ndarray, int, int]:
        begin = pool.stream
        # so many jobs as nobody knows before, and some in a map of its own
        value = linalg.inv(pool, MATRICES[number], samples=100 + number).value
        (more,) = pool.map([lambda: linalg.solve(pool, MATRICES[number], RIGHT).value])
        readouts = list(pool.run_many(JOBS[:number]))
        return (
            np.concatenate([value, more, *(each.sums for each in readouts)], axis=None),
            begin,
            pool.stream - begin,
        )

    results = []
    for units in SIZES:
        with numeric(units) as pool:
            pool.run(JOBS[3])
            found = pool.map([partial(task, pool, number) for number in range(6)])
            assert [begin for _, begin, _ in found] == [TASK_STREAMS * n for n in range(1, 7)]
            assert min(used for *_, used in found) > 1
            assert pool.stream == 7 * TASK_STREAMS
            assert pool.map([]) == []
            assert pool.stream == 7 * TASK_STREAMS
            results.append((found, pool.run(JOBS[0])))
    for found, after in results[1:]:
        assert after == results[0][1]
        for (values, *rest), (expected, *others) in zip(found, results[0][0], strict=True):
            assert np.array_equal(values, expected)
            assert rest == others
    values = [values[:64] for values, *_ in results[0][0]]
    assert len({each.tobytes() for each in values}) == 6


def test_a_task_goes_on_where_a_saved_state_stands() -> None:
    with numeric(2) as whole:
        whole.map([partial(whole.run, each) for each in JOBS])
        seed, stream = whole.seed, whole.stream
        expected = whole.map([partial(whole.run, each) for each in JOBS])
    with numeric(3, seed) as resumed:
        resumed.stream = stream
        assert resumed.map([partial(resumed.run, each) for each in JOBS]) == expected


def test_a_task_does_not_leave_its_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "TASK_STREAMS", 8)
    with numeric(2) as pool:
        assert len(pool.map([lambda: [pool.run(job(4)) for _ in range(2)]])[0]) == 2
        with pytest.raises(RuntimeError, match="a task has 8 discharges, and these are more"):
            pool.map([lambda: [pool.run(job(4)) for _ in range(3)]])


def network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(12, 10), torch.nn.Tanh(), torch.nn.Linear(10, 9), torch.nn.Linear(9, 4)
    )


class Training:
    """A network trained by K-FAC on a unit."""

    def __init__(self, unit: Unit, **options: Any) -> None:
        self.model = network()
        self.kfac = KFAC(self.model, unit, lr=0.1, damping=0.05, kl_clip=0.01, **options)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(32, 12, generator=generator)
        self.metrics: list[Any] = []

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            outputs = self.model(self.inputs)
            torch.nn.functional.cross_entropy(outputs, torch.arange(32) % 4).backward()
            self.metrics.append(self.kfac.step())
            self.optimizer.step()

    def weights(self) -> np.ndarray:
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()]).numpy()


@pytest.mark.parametrize(
    "options",
    [{"method": "solve"}, {"method": "inverse", "samples": 60, "inverse_interval": 2}],
    ids=["solve", "inverse"],
)
def test_training_does_not_depend_on_how_many(options: dict[str, Any]) -> None:
    found = []
    for units in SIZES:
        with numeric(units) as pool:
            training = Training(pool, **options)
            training.advance(4)
            found.append((training, pool.stream))
    (first, stream), *others = found
    for training, count in others:
        assert np.array_equal(training.weights(), first.weights())
        assert count == stream
        for mine, theirs in zip(training.metrics, first.metrics, strict=True):
            assert (mine.hardware_seconds, mine.runs, mine.digital_flops, mine.inversions) == (
                theirs.hardware_seconds, theirs.runs, theirs.digital_flops, theirs.inversions
            )  # fmt: skip
    one, two, three = ([m.makespan_seconds for m in t.metrics] for t, _ in found)
    assert one == pytest.approx([m.hardware_seconds for m in first.metrics])
    for a, b, c in zip(one, two, three, strict=True):
        assert c <= b < a or a == b == c == 0.0
    with NumericUnit(SPEC, seed=3) as unit:
        alone = Training(unit, **options)
        alone.advance(1)
    assert alone.metrics[0].makespan_seconds == alone.metrics[0].hardware_seconds


def test_training_resumes_on_another_number_of_units() -> None:
    with numeric(2) as pool:
        whole = Training(pool)
        whole.advance(2)
        state = whole.kfac.state_dict()
        weights = {name: value.clone() for name, value in whole.model.state_dict().items()}
        whole.advance(2)
    with numeric(3) as pool:
        resumed = Training(pool)
        resumed.kfac.load_state_dict(state)
        resumed.model.load_state_dict(weights)
        resumed.advance(2)
    assert np.array_equal(resumed.weights(), whole.weights())


def test_statistical_units_return_the_same() -> None:
    found = []
    for units in SIZES:
        with open_pool("statistical", SPEC, units=units, seed=3) as pool:
            inverses = pool.map([partial(linalg.inv, pool, M, samples=50) for M in MATRICES])
            found.append([linalg.solve(pool, MATRICES[0], RIGHT, refine=1), *inverses])
    for others in found[1:]:
        for mine, theirs in zip(found[0], others, strict=True):
            assert np.array_equal(mine.value, theirs.value)


def test_compiled_units_return_the_same() -> None:
    with numeric(1) as one, open_pool("compiled", SPEC, units=2, seed=3) as pool:
        assert list(pool.run_many(JOBS)) == list(one.run_many(JOBS))
        inverses = [
            unit.map([partial(linalg.inv, unit, M, samples=40) for M in MATRICES])
            for unit in (one, pool)
        ]
        for mine, theirs in zip(*inverses, strict=True):
            assert np.array_equal(mine.value, theirs.value)


# ---- side by side --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["map", "run_many"])
def test_units_work_side_by_side(how: str) -> None:
    """Each job waits for the others: with fewer units at work none would end."""
    barrier = threading.Barrier(3, timeout=20)
    with Pool([Scripted(lambda job: barrier.wait() and None) for _ in range(3)]) as pool:
        if how == "map":
            pool.map([partial(pool.run, job())] * 6)
        else:
            assert len(list(pool.run_many([job()] * 6))) == 6


def test_linear_algebra_in_tasks_goes_side_by_side() -> None:
    barrier = threading.Barrier(2, timeout=20)

    def meet(job: Job) -> None:
        if not job.second_moments:
            return
        barrier.wait()

    with Pool([Scripted(meet) for _ in range(2)]) as pool:
        pool.map([partial(linalg.inv, pool, M, samples=50) for M in MATRICES[:4]])


def test_a_makespan_is_that_of_tasks_in_order() -> None:
    for units, expected in ((1, 10.0), (2, 7.0), (3, 6.0)):
        with numeric(units) as pool:
            assert makespan(len(pool.units), [3.0, 1.0, 1.0, 5.0, 0.0]) == expected
            assert makespan(len(pool.units), []) == 0.0


# ---- what goes wrong -----------------------------------------------------------------------------


def test_a_fault_names_the_unit_and_leaves_the_streams() -> None:
    def fail(job: Job) -> None:
        raise UnitFault("adc_timeout: no conversion")

    with Pool([Scripted(fail)] * 2) as pool:
        for call in (
            lambda: pool.run(job()),
            lambda: list(pool.run_many(JOBS)),
            lambda: pool.map([partial(pool.run, job())] * 3),
        ):
            with pytest.raises(UnitFault, match=r"unit [12] of 2: adc_timeout: no conversion"):
                call()
        assert pool.stream == 0


@pytest.mark.parametrize("units", SIZES)
def test_the_first_error_in_order_is_raised(units: int) -> None:
    """A job that cannot be done comes after the read-outs of those before it."""
    wrong = job(5)  # more bias vectors than fit
    with numeric(units) as pool:
        seen: list[Readout] = []
        with pytest.raises(ValueError, match="biases"):
            seen.extend(pool.run_many([*JOBS[:4], wrong, JOBS[0]]))
        assert len(seen) == 4
        assert pool.stream == sum(len(each.biases) for each in JOBS[:4])

        def task(number: int) -> int:
            time.sleep(0.02 * (5 - number))  # later ones fail sooner
            if number >= 2:
                raise KeyError(number)
            return number

        stream = pool.stream
        with pytest.raises(KeyError, match="2"):
            pool.map([partial(task, number) for number in range(6)])
        assert pool.stream == stream
        assert pool.map([partial(task, number) for number in range(2)]) == [0, 1]


def test_jobs_must_not_be_made_by_running_others() -> None:
    with numeric(2) as pool:

        def jobs() -> Iterator[Job]:
            yield JOBS[0]
            pool.run(JOBS[1])
            yield JOBS[2]

        with pytest.raises(RuntimeError, match="is running a job already"):
            list(pool.run_many(jobs()))


@pytest.mark.parametrize(
    ("units", "error"), [(0, ValueError), (-1, ValueError), (1025, ValueError),
                         (True, TypeError), ("2", TypeError), (2.0, TypeError)],
)  # fmt: skip
def test_wrong_numbers_of_units_are_refused(units: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"units = {units!r} is .*; legal: 1 to 1024"):
        open_pool("numeric", SPEC, units=units)


def test_other_arguments_are_those_of_a_unit() -> None:
    with pytest.raises(ValueError, match="engine = 'analog' is unknown"):
        open_pool("analog", SPEC, units=2)
    with pytest.raises(ValueError, match="timeout_s: the numeric engine waits for nobody"):
        open_pool("numeric", SPEC, units=2, timeout_s=3)
    with pytest.raises(TypeError, match="spec = 8 is not a UnitSpec"):
        open_pool("numeric", 8, units=2)  # type: ignore[arg-type]


def test_all_are_closed_when_one_cannot_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Scripted] = []

    def open_one(*_: Any, **__: Any) -> Scripted:
        if len(opened) == 2:
            raise OSError("no third one")
        opened.append(Scripted())
        return opened[-1]

    monkeypatch.setattr(pool_module, "open_unit", open_one)
    with pytest.raises(OSError, match="no third one"):
        open_pool("numeric", SPEC, units=3)
    assert [unit.closed for unit in opened] == [1, 1]


def test_all_are_closed_though_one_fails() -> None:
    units = [Scripted() for _ in range(3)]
    units[1] = Unclosable()
    before = threading.active_count()
    pool = Pool(units)
    pool.map([partial(pool.run, job())] * 3)
    assert threading.active_count() > before
    with pytest.raises(OSError, match="waveform"):
        pool.close()
    assert (units[0].closed, units[2].closed) == (1, 1)
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="the pool is closed"):
        pool.map([lambda: 1])


def test_ctrl_c_ends_all() -> None:
    """The main thread hears it, and tasks at work end, those of others before them too."""
    begun = threading.Semaphore(0)

    def for_long(job: Job) -> None:
        begun.release()
        for _ in range(6000):
            time.sleep(0.01)

    def press() -> None:
        begun.acquire(timeout=10)
        begun.acquire(timeout=10)
        os.kill(os.getpid(), signal.SIGINT)

    with Pool([Scripted(for_long) for _ in range(2)]) as pool:
        for call in (
            lambda: pool.map([partial(pool.run, job())] * 4),
            lambda: list(pool.run_many([job()] * 4)),
        ):
            threading.Thread(target=press).start()
            start = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                call()
            assert time.monotonic() - start < 30.0
            assert pool.stream == 0
        for unit in pool.units:
            unit.before = lambda job: None  # type: ignore[attr-defined]
        assert len(pool.map([partial(pool.run, job())] * 4)) == 4, "it can be used again"


def test_a_dead_simulator_is_named() -> None:
    if reason := missing("verilator"):
        pytest.skip(reason)
    with open_pool("cosim", SPEC, units=2, seed=3) as pool, numeric(1) as one:
        assert list(pool.run_many(JOBS)) == list(one.run_many(JOBS))
        pool.units[1].link.process.kill()  # type: ignore[attr-defined]
        with pytest.raises(UnitFault, match=r"unit 2 of 2: .*SIGKILL"):
            pool.map([partial(pool.run, job(samples=4000))] * 4)
        processes = [unit.link.process for unit in pool.units]  # type: ignore[attr-defined]
    assert all(process.poll() is not None for process in processes)


def test_it_is_shown_in_a_word() -> None:
    with numeric(2) as pool:
        assert repr(pool) == "<Pool of 2 NumericUnit, seed 3>"
