"""Folders that do not stay behind, however the process that made them ends."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from thermokron.model.files import FolderInUse, claimed

__all__ = ["Scratch"]


class Scratch:
    """A folder of this process, for as long as it lives.

    It is claimed; what a process that was killed has left is removed when the next one makes such a
    folder beside it.

    Parameters
    ----------
    parent : Path, optional
        Where to make it; the folder for temporary files if not given, where only its owner can
        look into it.
    prefix : str
        What its name begins with; sixteen hexadecimal digits follow.

    Attributes
    ----------
    folder : Path
    """

    def __init__(self, parent: Path | None = None, prefix: str = "thermokron-scratch-") -> None:
        mode = 0o777 if parent else 0o700
        parent = parent or Path(tempfile.gettempdir())
        _remove_dead(parent, prefix)
        name = prefix + secrets.token_hex(8)
        self.folder = parent / name
        self._owner = os.getpid()
        self._claim = ExitStack()
        newborn = parent / f".{name}"  # it has its name when it is claimed, and not before
        newborn.mkdir(mode)
        try:
            self._claim.enter_context(claimed(newborn))
            newborn.rename(self.folder)
        except BaseException:
            shutil.rmtree(newborn, ignore_errors=True)
            raise

    def remove(self) -> None:
        """Remove the folder, unless this process is a child of the one that made it."""
        if os.getpid() == self._owner:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._claim.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def _remove_dead(parent: Path, prefix: str) -> None:
    """Remove this user's folders whose process is gone."""
    name = re.compile(re.escape(prefix) + "[0-9a-f]{16}")
    for folder in parent.glob(f"{prefix}*"):
        with suppress(OSError, FolderInUse):
            about = folder.lstat()
            ours = name.fullmatch(folder.name) and about.st_uid == os.geteuid()
            if ours and folder.is_dir() and not folder.is_symlink():
                with claimed(folder):
                    shutil.rmtree(folder, ignore_errors=True)
