"""A folder of things that take long to make: generated Verilog, compiled simulators.

Every entry is a folder that appears in one step when it is complete and on the disk, so a reader
never sees half an entry, a failure leaves none, and several processes that want the same one wait
for the first. An entry has a list of its files with their checksums, and one that lacks a file or
has another is made anew: deleting the cache, or any part of it, is always safe.

A cache may be shared by users. What one has made the others read; an entry that others than its
owner may write to is refused by name, as it holds programs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from thermokron.model.files import sync_folder
from thermokron.sim.scratch import Scratch

__all__ = ["cache_dir", "cached"]

#: The list of an entry's files.
MANIFEST = "manifest.json"
#: Begins the names of folders that are no entries yet, or not any more.
UNFINISHED = "unfinished-"
#: How long to wait for another process that makes the same entry.
PATIENCE_S = 1800.0


def cache_dir() -> Path:
    """Where the cache is: $THERMOKRON_CACHE, or thermokron/ in the user's cache folder."""
    if path := os.environ.get("THERMOKRON_CACHE"):
        return Path(path).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(base or Path.home() / ".cache").absolute() / "thermokron"
    except RuntimeError:  # a user without an entry in passwd, as in containers
        reason = "there is no home directory; set THERMOKRON_CACHE to a folder"
        raise FileNotFoundError(errno.ENOENT, reason, "~/.cache") from None


def cached(kind: str, name: str, fill: Callable[[Path], None]) -> Path:
    """The cache's folder `kind/name`; `fill` is called with an empty folder if it is not there.

    The name has to hold a `digest` of all that the contents depend on.

    Raises
    ------
    PermissionError
        If the entry is another user's, and others may write to it.
    TimeoutError
        If another process has been making the entry for half an hour.
    """
    target = cache_dir() / kind / name
    if _whole(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(f"{kind}-{name}"):
        if _whole(target):
            return target
        with Scratch(target.parent, UNFINISHED) as work:
            try:
                fill(work.folder)
                _seal(work.folder)
            except OSError as error:  # a full disk, which names nothing, or not what will be there
                if error.filename is None or str(work.folder) in str(error.filename):
                    error.filename = str(target)
                raise
            _install(work.folder, target)
    return target


def _install(entry: Path, target: Path) -> None:
    """Put a finished entry in place of a damaged one, or of none."""
    if target.exists():
        with Scratch(target.parent, UNFINISHED) as old:  # out of the readers' way in one step
            target.rename(old.folder / target.name)
    try:
        entry.rename(target)
    except OSError:
        if not _whole(target):  # whose lock was deleted: the other has made it too
            raise
    sync_folder(target.parent)


# ---- what an entry consists of ----------------------------------------------------------------


def _files(entry: Path) -> Iterator[Path]:
    for path in sorted(entry.rglob("*")):
        if path.is_file() and path != entry / MANIFEST:
            yield path


def _described(path: Path) -> list[Any]:
    """What a file has to be: its checksum, and whether it can be executed."""
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    return [checksum, bool(path.stat().st_mode & stat.S_IXUSR)]


def _seal(entry: Path) -> None:
    """List what `fill` has left, and bring it to the disk."""
    listed = {str(path.relative_to(entry)): _described(path) for path in _files(entry)}
    (entry / MANIFEST).write_text(json.dumps(listed, indent=1), encoding="utf-8")
    for path in [*_files(entry), entry / MANIFEST]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    for folder in [entry, *(path for path in entry.rglob("*") if path.is_dir())]:
        sync_folder(folder)


def _whole(entry: Path) -> bool:
    """Whether an entry is there with all its parts as they were made."""
    if not entry.is_dir():
        return False
    try:
        _check_owner(entry)
        listed = json.loads((entry / MANIFEST).read_text(encoding="utf-8"))
        return bool(listed) and all(
            _described(entry / name) == about for name, about in listed.items()
        )
    except PermissionError:
        raise
    except (OSError, ValueError, AttributeError):
        return False


def _check_owner(entry: Path) -> None:
    for path in [entry, *entry.rglob("*")]:
        about = path.lstat()
        open_to_others = about.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not path.is_symlink()
        if about.st_uid != os.geteuid() and open_to_others:
            raise PermissionError(
                errno.EPERM,
                f"belongs to another user (uid {about.st_uid}) and others may write to it; delete "
                "it, or choose another cache with THERMOKRON_CACHE",
                str(path),
            )


@contextlib.contextmanager
def _lock(name: str) -> Iterator[None]:
    folder = cache_dir() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    # to be read only, so that another user's will do
    handle = os.open(folder / name, os.O_RDONLY | os.O_CREAT, 0o666)
    deadline = time.monotonic() + PATIENCE_S
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        errno.ETIMEDOUT,
                        f"another process has been making this for {PATIENCE_S:g} s; `fuser` names "
                        "it",
                        str(folder / name),
                    ) from None
                time.sleep(0.05)
        yield
    finally:
        os.close(handle)
