"""Tables in Markdown, numbers as people write them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from thermokron.model.files import write_whole

__all__ = ["markdown", "median", "number", "write"]


def median(values: Iterable[float]) -> float:
    """The median; NaN counts as the worst."""
    return statistics.median(math.inf if math.isnan(value) else value for value in values)


def number(value: float, digits: int = 3) -> str:
    """Three significant digits, "never" for infinity."""
    if not math.isfinite(value):
        return "never"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
        return f"{value:.{decimals}f}"
    return f"{value:.{digits - 1}e}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is aligned left and the others right."""
    lines = [head, ["---", *(["--:"] * (len(head) - 1))], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write(path: Path, *paragraphs: str) -> Path:
    """Write paragraphs but empty ones, an empty line between them; the path."""
    return write_whole(path, "\n\n".join(text.strip() for text in paragraphs if text) + "\n")
