"""Simulations in odd places, and what they leave behind there: nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from thermokron.host import open_unit
from thermokron.model import UnitSpec
from thermokron.sim import SIMULATORS, BenchFailure, SimulatorDied, missing
from thermokron.sim.benches.catalogue import run_block_bench
from thermokron.sim.cache import cache_dir
from thermokron.sim.scratch import Scratch

SPEC = UnitSpec(cells=3, lanes=1, adc_timeout_cycles=30)
START = """
from thermokron.host import open_unit
from thermokron.model import UnitSpec

for simulator in {simulators}:
    spec = UnitSpec(cells=3, lanes=1, adc_timeout_cycles=30)
    open_unit("cosim", spec, simulator=simulator).close()
print("started and closed")
"""
#: What a user's shell may hold.
SHELL = {
    "COCOTB_TEST_FILTER": "nothing_of_this_name",
    "COCOTB_TESTCASE": "nothing",
    "COCOTB_TEST_MODULES": "nowhere",
    "COCOTB_RANDOM_SEED": "x",
    "GPI_USERS": "nobody",
    "GPI_EXTRA": "/no/library",
    "TOPLEVEL": "nothing",
    "MODULE": "nowhere",
    "MAKEFLAGS": "-n",
    "CXXFLAGS": "-fno-such-option",
    "CPPFLAGS": "-fno-such-option",
    "LDFLAGS": "-Wl,--no-such-option",
    "VERILATOR_ROOT": "/nowhere",
    "OBJCACHE": "/no/ccache",
    "PYTEST_PLUGINS": "nowhere",
}


def started(simulators: tuple[str, ...] = SIMULATORS, **environment: str) -> str:
    """What a process prints that starts simulators in such an environment."""
    here = tuple(name for name in simulators if not missing(name))
    if not here:
        pytest.skip("no simulator is installed")
    done = subprocess.run(
        [sys.executable, "-c", START.format(simulators=here)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files of this process and its children."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_a_terminal_without_utf8_and_temporary_files_under_a_long_name(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert started(TMPDIR=str(folder), **ascii_only) == "started and closed\n"
    assert not list(folder.iterdir())


def test_a_cache_and_a_temporary_folder_with_spaces_and_what_shells_hold(tmp_path: Path) -> None:
    """A user's own simulations and builds have variables by the same names."""
    folder, cache = tmp_path / "tem po;ra#ry's$", tmp_path / "ca c;h#e's$"
    folder.mkdir()
    if (cache_dir() / "runtime").exists():  # it takes seconds, and has a space in its way no less
        shutil.copytree(cache_dir() / "runtime", cache / "runtime")
    started(("verilator",), TMPDIR=str(folder), THERMOKRON_CACHE=str(cache), **SHELL)
    assert not list(folder.iterdir())
    assert not list((cache / "builds").glob("unfinished-*"))


@pytest.mark.slow
def test_an_environment_with_spaces(tmp_path: Path) -> None:
    """Its own packages, linked from this one's."""
    environment = tmp_path / "en vi ron ment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    (there,) = environment.glob("lib/*/site-packages")
    here = Path(pytest.__file__).parents[1]
    for item in here.iterdir():
        if not (there / item.name).exists():
            (there / item.name).symlink_to(item)
    done = subprocess.run(
        [str(environment / "bin" / "python"), "-c", START.format(simulators=("verilator",))],
        env=os.environ | {"THERMOKRON_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "started and closed\n", done.stderr


def test_benches_take_no_filter_from_the_users_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := missing("icarus"):
        pytest.skip(reason)
    monkeypatch.setenv("COCOTB_TEST_FILTER", "nothing_of_this_name")
    assert run_block_bench("sampler", "icarus").tests


# ---- nothing left behind -----------------------------------------------------------------------

HOST = """
import sys, time
from thermokron.host import open_unit
from thermokron.model import UnitSpec

spec = UnitSpec(cells=3, lanes=1, adc_timeout_cycles=30)
with open_unit("cosim", spec, simulator=sys.argv[1]) as unit:
    print(unit.link.process.pid, flush=True)
    if sys.argv[2] == "running":
        unit.link.wait_interrupt(2**31)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("end", "doing", "simulator"),
    [
        (signal.SIGTERM, "idle", "verilator"),
        (signal.SIGHUP, "running", "icarus"),
        (signal.SIGKILL, "running", "verilator"),
    ],
)
def test_a_host_that_is_ended_leaves_nothing(
    end: signal.Signals, doing: str, simulator: str, temporary: Path
) -> None:
    """A program of the user's own, which handles no signals."""
    if reason := missing(simulator):
        pytest.skip(reason)
    command = [sys.executable, "-c", HOST, simulator, doing]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as host:
        assert host.stdout is not None
        process = int(host.stdout.readline())
        assert list(temporary.iterdir())
        time.sleep(0.1)
        host.send_signal(end)
        host.wait(20)
    deadline = time.monotonic() + 20
    while os.path.exists(f"/proc/{process}") or list(temporary.iterdir()):
        assert time.monotonic() < deadline, list(temporary.iterdir())
        time.sleep(0.02)


def test_a_command_that_is_ended_says_so_and_leaves_nothing(
    temporary: Path, tmp_path: Path
) -> None:
    if reason := missing("icarus"):
        pytest.skip(reason)
    command = [sys.executable, "-m", "thermokron.host.cli", "cosim", "--sim", "icarus"]
    with subprocess.Popen(
        [*command, "--bench", "unit"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as host:
        assert host.stderr is not None
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("build/cosim/*/simulation.log")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        host.terminate()
        assert host.wait(20) == 128 + signal.SIGTERM
        assert host.stderr.read().strip().endswith("thermokron: ended by SIGTERM")
    assert not list(temporary.iterdir())


def test_a_start_that_fails_leaves_nothing(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := missing("verilator"):
        pytest.skip(reason)
    with monkeypatch.context() as patched:
        patched.setattr("thermokron.sim.simulators.Build.environment", lambda *_: {})
        with pytest.raises(SimulatorDied, match="did not start"):
            open_unit("cosim", SPEC)
    assert not list(temporary.iterdir())
    monkeypatch.setattr("thermokron.sim.simulators.Build.command", lambda *_: ["/no/program"])
    with pytest.raises(FileNotFoundError, match="/no/program"):
        open_unit("cosim", SPEC)
    assert not list(temporary.iterdir())


def test_a_bench_that_fails_leaves_nothing(temporary: Path) -> None:
    if reason := missing("icarus"):
        pytest.skip(reason)
    with pytest.raises(BenchFailure, match="no test ran; its log ends:"):
        run_block_bench("sampler", "icarus", tests="nothing_of_this_name")
    with pytest.raises(BenchFailure, match=r"stopped after 0\.1 s.*--timeout"):
        run_block_bench("sampler", "icarus", timeout_s=0.1)
    assert not list(temporary.iterdir())


def test_what_the_dead_have_left_is_removed_and_nothing_else(temporary: Path) -> None:
    dead = temporary / ("thermokron-scratch-" + "0" * 16)
    dead.mkdir()
    (dead / "link").touch()
    others = [temporary / "thermokron-results", temporary / "thermokron-scratch-of-mine"]
    for folder in others:
        folder.mkdir()
    with Scratch() as living:
        with Scratch():
            assert living.folder.exists()
        assert sorted(temporary.iterdir()) == sorted([living.folder, *others])
        assert living.folder.stat().st_mode & 0o777 == 0o700
