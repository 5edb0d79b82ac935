"""No wait without an end: what is asked of a simulator has a deadline."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from thermokron.host import CosimUnit, open_unit
from thermokron.host.cli import main
from thermokron.model import Job, NumericUnit, UnitSpec
from thermokron.sim import SIMULATORS, SimulationError, SimulatorDied, SimulatorSilent, missing

SPEC = UnitSpec(cells=3, lanes=1, adc_timeout_cycles=30)
JOB = Job(
    couplings=SPEC.coupling_codes(np.eye(3) * 0.9),
    biases=np.array([[40, 0, -500]]),
    temperature=200,
    settle_cycles=20,
    interval_cycles=17,
    samples=40,
)


def opened(simulator: str, *, patience_s: float = 30.0) -> CosimUnit:
    """A unit that says every half a second that it goes on; so patient with it is the host."""
    if reason := missing(simulator):
        pytest.skip(reason)
    unit = open_unit("cosim", SPEC, seed=4, simulator=simulator, timeout_s=2)
    assert isinstance(unit, CosimUnit)
    unit.link._timeout_s = patience_s
    return unit


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_a_stopped_simulator_is_a_named_error(simulator: str) -> None:
    with opened(simulator, patience_s=1) as unit:
        process = unit.link.process
        os.kill(process.pid, signal.SIGSTOP)
        begin = time.monotonic()
        with pytest.raises(
            SimulatorSilent,
            match=rf"{simulator}, process {process.pid}\) gave no sign of life for \d s at WRITE, "
            r"which asks for \d+ clock cycles; a clock cycle took .* µs so far; it is stopped "
            r"\(SIGSTOP\).* raise timeout_s = 1 .*--timeout",
        ):
            unit.run(JOB)
        assert time.monotonic() - begin < 5
        with pytest.raises(SimulationError, match=r"was not answered in time \(WRITE\); close"):
            unit.run(JOB)
        folder = unit.link.log.parent
    assert process.poll() is not None
    assert not folder.exists()


def test_a_simulator_stopped_in_the_midst_of_a_long_run() -> None:
    """Its limit is of seconds without a sign of life, not of what all the cycles may take."""
    with opened("verilator", patience_s=1) as unit:
        pid = unit.link.process.pid
        stop = f"import os, time; time.sleep(0.5); os.kill({pid}, {signal.SIGSTOP})"
        with subprocess.Popen([sys.executable, "-c", stop]):
            begin = time.monotonic()
            with pytest.raises(SimulatorSilent, match="at WAIT"):
                unit.run(replace(JOB, settle_cycles=2**32 - 1))
            assert time.monotonic() - begin < 10


def test_a_stopped_simulator_is_closed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thermokron.sim.link.STOP_TIMEOUT_S", 0.5)
    unit = opened("verilator")
    os.kill(unit.link.process.pid, signal.SIGSTOP)
    begin = time.monotonic()
    unit.close()
    assert time.monotonic() - begin < 5
    assert unit.link.process.poll() == -signal.SIGKILL


def test_a_long_run_says_that_it_goes_on() -> None:
    """Longer than the limit, without an error."""
    with opened("icarus", patience_s=2) as unit:
        link, long = unit.link, replace(JOB, settle_cycles=250_000)
        begin = time.monotonic()
        assert unit.run(long) == NumericUnit(SPEC, seed=4).run(long)
        link._asked = "WAIT"
        assert time.monotonic() - begin > link._allowed(10**6)
        link._asked = None


def test_a_simulator_that_is_stopped_for_a_while_is_waited_for() -> None:
    with opened("verilator") as unit:
        pid = unit.link.process.pid
        os.kill(pid, signal.SIGSTOP)
        go_on = f"import os, time; time.sleep(1); os.kill({pid}, {signal.SIGCONT})"
        with subprocess.Popen([sys.executable, "-c", go_on]):
            assert unit.run(JOB) == NumericUnit(SPEC, seed=4).run(JOB)


HOST = """
import sys, time
from thermokron.host import open_unit
from thermokron.model import UnitSpec

with open_unit("cosim", UnitSpec(cells=3, lanes=1, adc_timeout_cycles=30), timeout_s=2) as unit:
    print(unit.link.process.pid, flush=True)
    print(unit.link.wait_interrupt(3_000_000), flush=True)
"""


def test_a_host_that_was_stopped_itself_blames_nobody() -> None:
    """Its clock goes on while it is stopped, but the answer is there."""
    if reason := missing("verilator"):
        pytest.skip(reason)
    with subprocess.Popen([sys.executable, "-c", HOST], stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout is not None
        host.stdout.readline()
        time.sleep(0.2)
        os.kill(host.pid, signal.SIGSTOP)
        time.sleep(3)
        os.kill(host.pid, signal.SIGCONT)
        assert host.stdout.readline() == "False\n"
        assert host.wait(20) == 0


def test_a_job_that_is_suspended_as_a_whole_goes_on() -> None:
    """As schedulers do it: host and simulator are stopped, and go on, together."""
    if reason := missing("verilator"):
        pytest.skip(reason)
    with subprocess.Popen([sys.executable, "-c", HOST], stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout is not None
        both = host.pid, int(host.stdout.readline())
        time.sleep(0.2)
        for end in (signal.SIGSTOP, signal.SIGCONT):
            for process in both:
                os.kill(process, end)
            time.sleep(4 if end is signal.SIGSTOP else 0)
        assert host.stdout.readline() == "False\n"
        assert host.wait(20) == 0


def test_the_limit_follows_what_cycles_cost() -> None:
    with opened("verilator") as unit:
        link = unit.link
        unit.run(JOB)
        link._cycles, link._seconds = 1000, 2.0  # a very slow simulation
        assert link._allowed(500) == pytest.approx(30 + 10 * 500 * 2e-3)
        assert link._allowed(0) == 30


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), 1e9])
def test_a_limit_that_is_none_is_refused(timeout_s: float) -> None:
    if reason := missing("verilator"):
        pytest.skip(reason)
    with pytest.raises(ValueError, match=r"timeout_s = .* is out of range; legal: 1 to 1e\+06"):
        open_unit("cosim", SPEC, timeout_s=timeout_s)


def test_an_engine_that_waits_for_nobody_takes_no_limit() -> None:
    with pytest.raises(ValueError, match="timeout_s: the numeric engine waits for nobody"):
        open_unit("numeric", SPEC, timeout_s=5)


def test_the_command_line_has_the_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    train = ["train", "digits", "-o", str(tmp_path / "out")]
    assert main([*train, "--timeout", "60"]) == 2
    assert "timeout = 60.0 has no effect" in capsys.readouterr().err
    assert main([*train, "--engine", "cosim", "--timeout", "0"]) == 2
    assert "timeout_s = 0.0 is out of range; legal: 1 to 1e+06" in capsys.readouterr().err
    assert main(["cosim", "--bench", "array", "-o", str(tmp_path), "--timeout", "0"]) == 2
    assert "timeout = 0.0 is out of range" in capsys.readouterr().err


def test_a_death_is_still_a_death() -> None:
    with opened("verilator") as unit:
        unit.link.process.kill()
        with pytest.raises(SimulatorDied, match="killed by SIGKILL"):
            unit.run(JOB)
