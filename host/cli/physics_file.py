"""A simulated array's deviations, from a file that a command is given."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from thermokron.model import ArrayPhysics

__all__ = ["physics_from"]


def physics_from(path: Path | None) -> ArrayPhysics:
    """Fields of `ArrayPhysics` as JSON; those left out are ideal, as all are without a file.

    Raises
    ------
    ValueError
        If it holds anything else; the message names the file.
    """
    if path is None:
        return ArrayPhysics.ideal()
    try:
        content = path.read_text(encoding="utf-8")
        try:
            given = json.loads(content)
        except (json.JSONDecodeError, RecursionError):
            given = None
        if isinstance(given, dict):  # else `from_json` says what is wrong with it
            content = json.dumps(asdict(ArrayPhysics.ideal()) | given)
        return ArrayPhysics.from_json(content)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
