"""The simulated unit when things go wrong, and how it starts and ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from thermokron.host import CosimUnit, open_unit
from thermokron.model import ArrayPhysics, Job, NumericUnit, UnitFault, UnitSpec
from thermokron.sim import (
    SIMULATORS,
    AccessRefused,
    FrontEndFlaws,
    SimulationError,
    SimulatorDied,
    SimulatorLink,
    missing,
)
from thermokron.sim.protocol import Kind, pack_numbers

SPEC = UnitSpec(cells=3, lanes=1, adc_timeout_cycles=30)
JOB = Job(
    couplings=SPEC.coupling_codes(np.eye(3) * 0.9),
    biases=np.array([[40, 0, -500]]),
    temperature=200,
    settle_cycles=20,
    interval_cycles=17,
    samples=40,
)
LONG = Job(
    couplings=JOB.couplings,
    biases=JOB.biases,
    temperature=3,
    settle_cycles=2**32 - 1,
    interval_cycles=17,
    samples=1,
)


def opened(simulator: str, waves: Path | None = None) -> CosimUnit:
    if reason := missing(simulator):
        pytest.skip(reason)
    unit = open_unit("cosim", SPEC, seed=4, simulator=simulator, waves=waves)
    assert isinstance(unit, CosimUnit)
    return unit


@pytest.fixture(scope="module", params=SIMULATORS)
def unit(request: pytest.FixtureRequest) -> Iterator[CosimUnit]:
    with opened(request.param) as unit:
        yield unit


def assert_usable(unit: CosimUnit) -> None:
    """The unit still returns what the numeric engine does."""
    assert unit.run(JOB, stream=7) == NumericUnit(SPEC, seed=4).run(JOB, stream=7)


# ---- faults of the surroundings, after each of which the unit goes on ------------------------


def test_an_adc_that_never_answers(unit: CosimUnit) -> None:
    unit.link.misbehave(FrontEndFlaws(silent_from=5))
    before = unit.stream
    with pytest.raises(UnitFault, match="adc_timeout"):
        unit.run(JOB)
    assert unit.stream == before  # a run that failed does not count
    unit.link.misbehave(FrontEndFlaws())
    assert_usable(unit)


def test_an_adc_that_never_lets_go(unit: CosimUnit) -> None:
    unit.link.misbehave(FrontEndFlaws(stuck_from=5))
    with pytest.raises(UnitFault, match="adc_stuck"):
        unit.run(JOB)
    unit.link.misbehave(FrontEndFlaws())
    assert_usable(unit)


def test_slow_converters_change_no_integers(unit: CosimUnit) -> None:
    unit.link.misbehave(FrontEndFlaws(latency_cycles=6, stall=0.5, seed=3))
    found = unit.run(JOB, stream=7)
    unit.link.misbehave(FrontEndFlaws())
    expected = NumericUnit(SPEC, seed=4).run(JOB, stream=7)
    assert np.array_equal(found.sums, expected.sums)
    assert np.array_equal(found.products, expected.products)
    # DACs that are not ready are waited for; the grid of samples does not move
    assert found.cycles["load"] > expected.cycles["load"]
    assert found.cycles["settle"] == expected.cycles["settle"]


@pytest.mark.parametrize(
    ("settle", "interval", "message"),
    [
        (JOB.settle_cycles + 3, JOB.interval_cycles, "sample 0 rose 20 cycles .* 3 cycles early"),
        (JOB.settle_cycles, JOB.interval_cycles - 2, "sample 1 rose 37 cycles .* 2 cycles late"),
    ],
)
def test_a_strobe_off_the_grid_says_when_and_by_how_much(
    unit: CosimUnit, settle: int, interval: int, message: str
) -> None:
    link, honest = unit.link, unit.link.expect
    grid = {"settle_cycles": settle, "interval_cycles": interval}
    link.expect = lambda job, stream: honest(replace(job, **grid), stream)  # type: ignore[method-assign]
    try:
        with pytest.raises(SimulationError, match=rf"at [\d.]+ ns: CONVST for {message}"):
            unit.run(JOB)
    finally:
        del link.expect  # type: ignore[method-assign]
    assert_usable(unit)


# ---- what the unit refuses -------------------------------------------------------------------


def test_a_register_write_while_running_is_refused(unit: CosimUnit) -> None:
    samples = unit._map.registers["samples"].address
    unit._start(JOB, 7)
    with pytest.raises(AccessRefused, match=rf"write to {samples:#x} refused \(SLVERR\)"):
        unit.link.write(samples, [1])
    clipped = unit._map.windows["clipped"].address
    with pytest.raises(AccessRefused, match=f"read of {clipped:#x} refused"):
        unit.link.read([(clipped, 1)])
    # the run has not noticed
    assert unit._finish(JOB) == NumericUnit(SPEC, seed=4).run(JOB, stream=7)


def test_an_abort_ends_the_run_and_leaves_no_trace(unit: CosimUnit) -> None:
    unit._start(JOB, 7)
    assert not unit.link.wait_interrupt(150)  # in the midst of sampling
    unit.abort()
    with pytest.raises(UnitFault, match="aborted"):
        unit._finish(JOB)
    assert_usable(unit)


def test_a_reset_in_the_midst_of_a_run(unit: CosimUnit) -> None:
    unit._start(JOB, 7)
    assert not unit.link.wait_interrupt(150)
    unit.link.reset()
    assert_usable(unit)


def test_a_run_that_nobody_announced_is_an_error() -> None:
    with opened("verilator") as unit:
        unit.link.expect = lambda *_: None  # type: ignore[method-assign]
        with pytest.raises(SimulationError, match=r"discharge was released, but no run"):
            unit.run(JOB)


def test_a_link_to_another_unit_is_noticed() -> None:
    if reason := missing("verilator"):
        pytest.skip(reason)
    with open_unit("cosim", SPEC) as unit:
        assert isinstance(unit, CosimUnit)
        other = UnitSpec(cells=3, lanes=1, adc_timeout_cycles=31)
        with pytest.raises(ValueError, match="adc_timeout_cycles = 30, not 31"):
            type(unit).__bases__[0](unit.link, other)


# ---- life and death of the simulator -----------------------------------------------------------


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_a_simulator_killed_in_the_middle_of_a_run(simulator: str) -> None:
    with opened(simulator) as unit:
        process = unit.link.process
        threading.Timer(0.3, process.kill).start()
        begin = time.monotonic()
        with pytest.raises(SimulatorDied, match=r"by SIGKILL\) is gone at WAIT; its log"):
            unit.run(LONG)
        assert time.monotonic() - begin < 5
        with pytest.raises(SimulatorDied):  # and again, not a hang
            unit.run(JOB)
        assert isinstance(unit.link, SimulatorLink)
        folder = unit.link.log.parent
    assert not folder.exists()


def test_a_simulator_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := missing("verilator"):
        pytest.skip(reason)
    monkeypatch.setenv("COCOTB_TOPLEVEL", "nothing")
    monkeypatch.setattr("thermokron.sim.simulators.Build.environment", lambda *_: dict(os.environ))
    with pytest.raises(SimulatorDied, match="did not start"):
        open_unit("cosim", SPEC)


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_a_simulator_whose_host_is_gone(simulator: str) -> None:
    with opened(simulator) as unit:
        unit._start(LONG, 0)
        # the host asks for something long, and vanishes before the answer
        channel = unit.link._channel
        assert channel is not None
        channel.send(Kind.WAIT, pack_numbers(2**31))
        time.sleep(0.2)
        channel.close()
        assert unit.link.process.wait(5) is not None


def test_interrupting_the_host_leaves_an_error_not_a_hang() -> None:
    with opened("verilator") as unit:
        timer = threading.Timer(0.3, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            unit.run(LONG)
        timer.join()
        with pytest.raises(SimulationError, match="earlier request was interrupted"):
            unit.run(JOB)


def test_a_closed_unit_says_so() -> None:
    unit = opened("verilator")
    unit.close()
    unit.close()
    assert unit.link.process.poll() is not None
    with pytest.raises(SimulationError, match="closed"):
        unit.run(JOB)


def test_time_stands_still_while_the_host_thinks() -> None:
    with opened("verilator") as unit:
        before = unit.info()
        time.sleep(0.2)
        after = unit.info()
        assert before == after
        assert after["cycles"] == int(after["seconds"] * SPEC.clock_hz)


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_a_waveform_has_the_voltages_beside_the_pins(simulator: str, tmp_path: Path) -> None:
    path = tmp_path / "run.vcd"
    with opened(simulator, waves=path) as unit:
        assert_usable(unit)
        link = unit.link
    text = path.read_text()
    for name in ("convst", "drdy", "adc_data", "cell_0", "cell_2"):
        assert f" {name} " in text
    real = next(line.split() for line in text.splitlines() if " cell_2 " in line)
    values = [line for line in text.splitlines() if line.startswith("r") and line.endswith(real[3])]
    # a voltage per sample, beside the zeros of discharge
    assert len({float(v.split()[0][1:]) for v in values}) >= JOB.samples
    assert link.save_file is not None
    saved = link.save_file.read_text()
    assert str(path) in saved
    assert "thermokron_unit_simulated.cell_2" in saved


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "analog"}, "engine = 'analog' is unknown; legal: numeric, compiled, cosim"),
        ({"engine": "cosim", "simulator": "vcs"}, "'vcs' is unknown; legal: icarus, verilator"),
        ({"engine": "cosim", "waves": "run.txt"}, "legal endings: .vcd, .fst"),
        ({"engine": "numeric", "waves": "run.vcd"}, "numeric engine has no signals"),
        (
            {"engine": "compiled", "waves": "run.fst"},
            "does not end in .vcd, which engine 'compiled'",
        ),
        ({"engine": "compiled", "timeout_s": 3.0}, "compiled engine waits for nobody"),
        ({"engine": "compiled", "seed": -1}, "seed = -1 is out of range"),
        ({"engine": "cosim", "seed": -1}, "seed = -1 is out of range"),
    ],
)
def test_wrong_names_are_answered_with_the_legal_ones(
    arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        open_unit(spec=SPEC, physics=ArrayPhysics(), **arguments)  # type: ignore[arg-type]


def test_what_is_no_spec_and_no_physics_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="spec = 16 is not a UnitSpec"):
        open_unit("numeric", 16)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"physics = .* is not an ArrayPhysics"):
        open_unit("numeric", SPEC, {"adc_noise": 0.1})  # type: ignore[arg-type]
