"""A search that takes seconds."""

from __future__ import annotations

from pathlib import Path

TINY = """
title = "A tiny search"
trials = 8
generation = 4
seeds = [0]
check_seeds = [5]
within = 0.5
config = { network = "mlp", hidden = [4], epochs = 1, batch_size = 256 }

[space]
cells = [12, 36, 72]
folds = [1, 3]
coupling_bits = { from = 3, to = 8 }
tau_ns = { from = 2.0, to = 100.0, log = true }
settle = { from = 0.05, to = 0.95, log = true }
ports = [1, 16]
units = [1, 2]
"""


def written(folder: Path, text: str, name: str = "tiny.toml") -> str:
    """A plan's path, once it is there."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)
