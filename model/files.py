"""Files that are whole whenever they are there, and folders that are one process's at a time."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["FolderInUse", "check_writable", "claimed", "digest", "naming_file", "write_whole"]


class FolderInUse(BlockingIOError):
    """A folder is another process's, or another thread's, as long as that writes there."""


def digest(*ingredients: Any, digits: int = 24) -> str:
    """A name for JSON-able ingredients: hexadecimal digits of their SHA-256."""
    text = json.dumps(ingredients, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """An `OSError` from here on names this file, whatever it was about (a disk that is full)."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def write_whole(path: Path, content: str | bytes) -> Path:
    """Write a file that replaces an older one as a whole, and return its path.

    Whatever happens, one of both is there and complete: what is written goes to a file of a unique
    name beside it, to the disk, and only then into place. A symbolic link keeps being one. Text
    becomes UTF-8; folders are made as needed; an older file's mode is kept.

    Raises
    ------
    OSError
        If it cannot be written; it names the file, and nothing is left behind.
    """
    data = content.encode() if isinstance(content, str) else content
    target = Path(os.path.realpath(path))
    draft = target.with_name(f".thermokron-{secrets.token_hex(8)}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    with naming_file(path):
        if target.exists() and not target.is_file():  # /dev/stdout, a pipe
            target.write_bytes(data)
            return path
        mode = target.stat().st_mode & 0o777 if target.exists() else None
        try:
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
                if mode is not None:
                    os.fchmod(file.fileno(), mode)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(target)
        except BaseException:
            with suppress(OSError):
                draft.unlink()
            raise
        sync_folder(target.parent)
    return path


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk."""
    with suppress(OSError):  # not every file system can, nor may every folder be looked into
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a folder, made as needed, for as long as the block runs; nothing stays of an empty one.

    The claim goes with the process, however that ends. File systems that know no locks allow all.

    Raises
    ------
    FolderInUse
        If it is held already.
    OSError
        If it is no folder, or cannot be made.
    """
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            reason = "another run is writing there; wait for it, or choose another folder"
            raise FolderInUse(errno.EWOULDBLOCK, reason, str(folder)) from None
        except OSError:
            pass
        yield
    finally:
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        os.close(handle)


def check_writable(path: Path) -> None:
    """Try whether a file can be written, folders included, and leave nothing behind.

    Raises
    ------
    OSError
        If it cannot; it names what is in the way.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():  # /dev/null
        return
    missing = [folder for folder in path.parents if not folder.exists()]
    trial = path.with_name(f".thermokron-{secrets.token_hex(8)}.trial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with naming_file(path):
            trial.touch()
    finally:
        with suppress(OSError):
            trial.unlink()
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
