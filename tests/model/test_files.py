"""Files are whole or not there; folders are one writer's at a time."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from thermokron.model.files import FolderInUse, claimed, digest, write_whole

HOLD = """
import sys, time
from pathlib import Path
from thermokron.model.files import claimed

with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_what_is_written_is_utf8_whole_and_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    assert write_whole(path, "τ") == path
    assert path.read_bytes() == b"\xcf\x84"
    path.chmod(0o640)
    write_whole(path, b"2")
    assert path.read_bytes() == b"2"
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(path.parent) == ["a.txt"]


def test_a_symbolic_link_keeps_being_one(tmp_path: Path) -> None:
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to("target")
    for content in ("1", "2"):
        write_whole(link, content)
        assert link.is_symlink()
        assert target.read_text() == content


def test_what_is_no_file_is_written_into() -> None:
    assert write_whole(Path(os.devnull), "gone") == Path(os.devnull)
    assert not Path(os.devnull).is_file()


def test_a_full_disk_names_the_file_and_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_whole(tmp_path / "a.txt", "old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_whole(path, "new")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_many_writers_leave_one_whole_file(tmp_path: Path) -> None:
    path, texts = tmp_path / "a.txt", [str(i) * 50_000 for i in range(8)]
    threads = [threading.Thread(target=write_whole, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_is_one_writers_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with claimed(folder):
        with pytest.raises(FolderInUse, match="another run is writing there"), claimed(folder):
            pass
        (folder / "kept").touch()
    with claimed(folder):
        pass
    assert (folder / "kept").exists()
    with claimed(tmp_path / "c" / "d"):
        pass
    assert os.listdir(tmp_path) == ["a"]  # nothing was written in the other


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(FolderInUse), claimed(tmp_path):
            pass
        process.kill()
        process.wait()
    with claimed(tmp_path):
        pass


def test_a_digest_stands_for_values_and_not_for_their_order() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest("a", 1) != digest("a", 2)
    assert len(digest("a", digits=16)) == 16
