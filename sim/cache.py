"""A folder of things that take long to make: generated Verilog, compiled simulators.

Every entry is a folder that appears in one step when it is complete, so a reader never sees
half an entry, a failure leaves none, and several processes that want the same one wait for
the first. Deleting the cache, or any part of it, is always safe.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["cache_dir", "cached", "digest"]


def cache_dir() -> Path:
    """Where the cache is: $THERMOKRON_CACHE, or thermokron/ in the user's cache folder."""
    if path := os.environ.get("THERMOKRON_CACHE"):
        return Path(path).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "thermokron"


def digest(*ingredients: Any) -> str:
    """A key for JSON-able ingredients: 24 hexadecimal digits of their SHA-256."""
    return hashlib.sha256(json.dumps(ingredients).encode()).hexdigest()[:24]


def cached(kind: str, name: str, fill: Callable[[Path], None]) -> Path:
    """The cache's folder `kind/name`; `fill` is called with an empty folder if it is not there.

    The name has to hold a `digest` of all that the contents depend on.
    """
    target = cache_dir() / kind / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(f"{kind}-{name}"):
            if not target.exists():
                work = Path(tempfile.mkdtemp(prefix="unfinished-", dir=target.parent))
                try:
                    fill(work)
                    work.rename(target)
                finally:
                    shutil.rmtree(work, ignore_errors=True)
    return target


@contextlib.contextmanager
def _lock(name: str) -> Iterator[None]:
    folder = cache_dir() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
