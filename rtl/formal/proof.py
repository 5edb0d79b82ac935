"""What a proof is: a block with its properties, how they are proved, and what breaks them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from thermokron.rtl.formal.copies import Broken
from thermokron.rtl.formal.harness import Harness

__all__ = ["Proof"]


@dataclass(frozen=True)
class Proof:
    """Properties of one block that are proved together.

    Parameters
    ----------
    name : str
        What it is called by.
    about : str
        The block and its sizes.
    build : Callable
        Makes the block and its properties.
    mode : "induction" or "bounded"
        Proved for ever, each cycle following from the `depth` before it; or for the first
        `depth` cycles after reset.
    depth : int
        See `mode`.
    seconds : float
        About how long it takes, broken copies included, on a laptop's core.
    copies : tuple of Broken
        Each property is among the `breaks` of at least one.
    long : bool
        Only `make formal-long` proves it.
    cycles : int
        Within how many cycles copies break, and what can be reached is reached.
    """

    name: str
    about: str
    build: Callable[[], Harness]
    mode: Literal["bounded", "induction"]
    depth: int
    seconds: float
    copies: tuple[Broken, ...]
    long: bool = False
    cycles: int = 20
