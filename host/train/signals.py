"""The end of a process that is asked to end, with time to clean up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Ended", "ended_by_signals"]


class Ended(BaseException):
    """The process was asked to end, by SIGTERM or SIGHUP.

    Attributes
    ----------
    signal : signal.Signals
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM, as batch systems send it, and SIGHUP, of a terminal that is closed, raise `Ended`.

    So whatever was begun is left as after Ctrl-C. A signal that is ignored, as SIGHUP is under
    `nohup`, or that has a handler already, is left alone.
    """

    def end(number: int, _: Any) -> None:
        for name in installed:  # once: what cleans up is not to be interrupted
            signal.signal(name, signal.SIG_IGN)
        raise Ended(number)

    installed = []
    if threading.current_thread() is threading.main_thread():
        for name in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(name) is signal.SIG_DFL:
                signal.signal(name, end)
                installed.append(name)
    try:
        yield
    finally:
        for name in installed:
            signal.signal(name, signal.SIG_DFL)
