"""What a process owes the terminal it runs in: closed pipes, other encodings, the end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["Ended", "ended_by_signals", "patient_streams"]


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


class _Patient:
    """A text stream that takes what nobody reads any more, and what its encoding has not."""

    def __init__(self, stream: Any, name: str) -> None:
        self._stream, self._name = stream, name
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, act: Callable[..., Any], *arguments: str) -> None:
        try:
            act(*arguments)
        except OSError as error:
            # the rest goes nowhere: the interpreter flushes at its end, too
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
            if not isinstance(error, BrokenPipeError):
                error.filename = f"standard {self._name}"
                raise


@contextmanager
def patient_streams() -> Iterator[None]:
    """Standard output and error whose reader may leave (`| head`) without ending the work."""
    before = sys.stdout, sys.stderr
    # a process may have none, as some daemons do
    if sys.stdout is not None:
        sys.stdout = _Patient(sys.stdout, "output")
    if sys.stderr is not None:
        sys.stderr = _Patient(sys.stderr, "error")
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
