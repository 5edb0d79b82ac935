"""Pins as fast as cocotb lets them be: integers in, integers out.

`int(handle.value)` and `handle.value = v` go through a string and several objects per access.
The functions here make the call below them once per pin, and are ten times as fast, which is
what a component that wakes twice per sample is made of.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from cocotb.handle import _GPISetAction
from cocotb.triggers import ReadWrite

__all__ = ["SETTLES_FIRST", "integer_reader", "integer_writer", "settled"]

#: Whether a wake on a signal's edge finds all other signals settled, as in Verilator, which
#: evaluates the design first. An event-driven simulator wakes in the midst of the time step.
SETTLES_FIRST = os.environ.get("COCOTB_TRUST_INERTIAL_WRITES") == "1"


async def settled() -> None:
    """After a wake on a signal's edge: wait until what it changed has settled too."""
    if not SETTLES_FIRST:
        await ReadWrite()


def integer_reader(handle: Any) -> Callable[[], int]:
    """A function that reads a vector of up to 32 bits as an unsigned integer.

    X and Z read as 0, so it is for signals that a handshake has declared valid, not for
    checking that one is driven.
    """
    read: Callable[[], int] = handle._handle.get_signal_val_long
    mask = (1 << _width(handle)) - 1

    def unsigned() -> int:
        return read() & mask

    return unsigned


def integer_writer(handle: Any) -> Callable[[int], None]:
    """A function that deposits an unsigned integer on a vector of any width."""
    width, deposit = _width(handle), _GPISetAction.DEPOSIT.value
    if not SETTLES_FIRST:

        def scheduled(value: int) -> None:  # cocotb has to put writes off to the right phase
            handle.value = value

        return scheduled
    if width <= 32:
        write = handle._handle.set_signal_val_int
        return lambda value: write(deposit, value)
    write_text, form = handle._handle.set_signal_val_binstr, f"0{width}b"
    return lambda value: write_text(deposit, format(value, form))


def _width(handle: Any) -> int:
    return len(handle) if hasattr(handle, "__len__") else 1
