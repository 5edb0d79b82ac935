"""What the tests of clusters have workers do, found by them under this name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from thermokron.host.train.cluster import check_wanted
from thermokron.model import UnitFault

__all__ = ["deadly", "faulty", "killed_once", "long", "squared"]


def squared(number: int) -> int:
    return number**2


def faulty(number: int) -> int:
    raise UnitFault("adc_timeout") if number else ValueError(f"number = {number}; legal: 1 or more")


def killed_once(task: tuple[Path, int]) -> int:
    """Kills the worker that begins the task of the number 2 first."""
    folder, number = task
    if number == 2 and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def deadly(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def long(task: tuple[Path, int]) -> int:
    """Takes a minute, and says when it began and how it ended."""
    folder, number = task
    if number == 0:
        return 0
    (folder / f"began-{number}").touch()
    try:
        for _ in range(600):
            time.sleep(0.1)
            check_wanted()
    except RuntimeError:
        (folder / f"unwanted-{number}").touch()
        raise
    return number
