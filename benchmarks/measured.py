"""What the benchmarks have in common: rounds in turn, medians with their spread, tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

__all__ = ["in_turn", "spread", "table"]

#: Rounds of a measurement at least.
ROUNDS = 5


def in_turn(
    what: Mapping[str, Callable[[], float]], rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """What each of these returns, all once a round: so that a busy machine is so for all."""
    found: dict[str, list[float]] = {name: [] for name in what}
    for _ in range(rounds):
        for name, measure in what.items():
            found[name].append(measure())
    return found


def spread(values: Sequence[float], digits: int = 3) -> str:
    """The median of figures, and the least and the largest of them."""
    low, middle, high = (
        f"{value:.{digits}g}" for value in (min(values), statistics.median(values), max(values))
    )
    return f"{middle} ({low} to {high})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column has the names."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
