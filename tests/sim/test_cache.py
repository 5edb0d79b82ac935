"""The cache: the damaged is made anew, what others may change is refused, nothing dead stays."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from thermokron.host import open_unit
from thermokron.model import UnitSpec
from thermokron.sim import SIMULATORS, missing
from thermokron.sim import cache as cache_module
from thermokron.sim.cache import cached


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("THERMOKRON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Fill:
    """Fills an entry, and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, folder: Path) -> None:
        self.times += 1
        (folder / "deep").mkdir()
        (folder / "deep" / "text").write_text("abc")
        (folder / "tool").write_text("#!/bin/sh\n")
        (folder / "tool").chmod(0o755)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a byte": lambda entry: (entry / "deep" / "text").write_text("abd"),
    "cut short": lambda entry: (entry / "deep" / "text").write_text(""),
    "a missing file": lambda entry: (entry / "deep" / "text").unlink(),
    "a missing folder": lambda entry: shutil.rmtree(entry / "deep"),
    "not to be executed": lambda entry: (entry / "tool").chmod(0o644),
    "no list": lambda entry: (entry / "manifest.json").unlink(),
    "a damaged list": lambda entry: (entry / "manifest.json").write_text("{"),
    "a list of nothing": lambda entry: (entry / "manifest.json").write_text("{}"),
    "a list that is none": lambda entry: (entry / "manifest.json").write_text("[1]"),
    "no entry": shutil.rmtree,
    "no kind": lambda entry: shutil.rmtree(entry.parent),
    "no locks": lambda entry: shutil.rmtree(entry.parents[1] / "locks"),
    "nothing": lambda entry: shutil.rmtree(entry.parents[1]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_made_anew(damage: str, cache: Path) -> None:
    fill = Fill()
    entry = cached("test", "x", fill)
    assert cached("test", "x", fill) == entry
    assert fill.times == 1
    DAMAGE[damage](entry)
    assert cached("test", "x", fill) == entry
    assert fill.times == (1 if damage == "no locks" else 2)
    assert (entry / "deep" / "text").read_text() == "abc"
    assert os.access(entry / "tool", os.X_OK)
    assert sorted(path.name for path in entry.parent.iterdir()) == ["x"]


@pytest.mark.slow
@pytest.mark.parametrize("simulator", SIMULATORS)
def test_a_simulator_whose_files_are_damaged_is_built_again(simulator: str, cache: Path) -> None:
    if reason := missing(simulator):
        pytest.skip(reason)
    spec = UnitSpec(cells=2)
    open_unit("cosim", spec, simulator=simulator).close()
    for kind in ("builds", "verilog"):
        (entry,) = (cache / kind).iterdir()
        for path in [path for path in entry.iterdir() if path.name != "manifest.json"]:
            path.write_bytes(path.read_bytes()[:-100])
    open_unit("cosim", spec, simulator=simulator).close()


def test_a_second_user_can_read_what_the_first_has_made(cache: Path) -> None:
    before = os.umask(0o022)
    try:
        entry = cached("test", "x", Fill())
    finally:
        os.umask(before)
    for path in [cache, *entry.parents[:1], entry, *entry.rglob("*")]:
        mode = path.stat().st_mode & 0o777
        assert mode == (0o755 if path.is_dir() or path.name == "tool" else 0o644), path


@pytest.mark.parametrize("part", ["", "tool"])
def test_what_is_anothers_and_others_may_write_to_is_refused(
    part: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = cached("test", "x", Fill())
    ours = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: ours + 1)
    assert cached("test", "x", Fill()) == entry  # another's, who alone can change it
    (entry / part).chmod(0o777)
    with pytest.raises(PermissionError, match=f"another user .uid {ours}. and others") as caught:
        cached("test", "x", Fill())
    assert caught.value.filename == str(entry / part)
    monkeypatch.undo()
    monkeypatch.setenv("THERMOKRON_CACHE", str(cache))
    assert cached("test", "x", Fill()) == entry  # one's own may be open


DIES = """
import os, sys
from thermokron.sim.cache import cached

def fill(folder):
    print(folder, flush=True)
    (folder / "half").write_text("1")
    if sys.argv[2] == "die":
        os.kill(os.getpid(), 9)
    import time
    time.sleep(60)

cached("test", sys.argv[1], fill)
"""


def test_dead_builds_are_swept_and_living_ones_are_not(cache: Path) -> None:
    command = [sys.executable, "-c", DIES]
    subprocess.run([*command, "dead", "die"], check=False, stdout=subprocess.DEVNULL)
    assert len(list((cache / "test").glob("unfinished-*"))) == 1
    with subprocess.Popen([*command, "living", "live"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().decode().strip())
        mine = cache / "test" / "unfinished-notes"
        mine.mkdir()  # somebody's, and no build of ours
        cached("test", "x", Fill())
        assert set((cache / "test").glob("unfinished-*")) == {folder, mine}
        process.kill()


def test_what_another_makes_is_not_waited_for_without_end(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "PATIENCE_S", 0.5)
    command = [sys.executable, "-c", DIES, "x", "live"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        begin = time.monotonic()
        with pytest.raises(TimeoutError, match=r"for 0\.5 s; `fuser` names it") as caught:
            cached("test", "x", Fill())
        assert time.monotonic() - begin < 5
        assert caught.value.filename == str(cache / "locks" / "test-x")
        process.kill()


def test_an_entry_deleted_while_its_simulator_runs_is_not_missed(
    cache: Path, tmp_path: Path
) -> None:
    if reason := missing("icarus"):
        pytest.skip(reason)
    waves = tmp_path / "run.vcd"
    with open_unit("cosim", UnitSpec(cells=2), simulator="icarus", waves=waves):
        shutil.rmtree(cache)
    assert waves.with_suffix(".gtkw").exists()
