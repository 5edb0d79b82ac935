"""What a process owes the terminal it runs in: closed pipes and other encodings."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["patient_streams"]


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
