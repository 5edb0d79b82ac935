"""Small plans, that of docs/studies.md among them, and what they left."""

from __future__ import annotations

import re
from pathlib import Path

_PAGE = (Path(__file__).parents[2] / "docs" / "studies.md").read_text(encoding="utf-8")
COMPARISON = re.findall(r"```text\n(kind = .*?)```", _PAGE, re.DOTALL)[0]

QUANTISATION = """
kind = "quantisation"
title = "A tiny grid"
seeds = [0]
target = 2.0
keeps = 2.0
config = { network = "mlp", hidden = [4], epochs = 1, samples = 50 }
unit = { cells = 65 }
rival = { network = "mlp", hidden = [4], epochs = 1 }
coupling_bits = [4, 8]
adc_bits = [3]
equilibrate = [true, false]
guards = ["lanczos", "none"]
fixed_adc_bits = 8
samples_coupling_bits = [8]
samples = [20, 50]
damping_coupling_bits = [4]
damped = [{ damping = 0.1, lr = 0.1 }]
"""

#: Three runs of one epoch, of which two end badly at their first steps.
SMALL = """
kind = "comparison"
title = "Small"
seeds = [0]
tuning_seeds = []
targets = [1.0]

[[networks]]
name = "small"
config = { network = "mlp", hidden = [4] }
epochs = 1
unit = { cells = 65 }

[[contenders]]
name = "fine"
config = { optimizer = "adam" }

[[contenders]]
name = "too fast"
config = { optimizer = "sgd", lr = 1e36 }

[[contenders]]
name = "refused"
config = { optimizer = "kfac", samples = 50, damping = 0.01, guard = "none", equilibrate = false }
unit = { coupling_bits = 3 }
"""


def written(folder: Path, text: str, name: str = "tiny.toml") -> str:
    """A plan's path, once it is there."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def results(folder: Path) -> dict[str, int]:
    """Files of runs, and when they were written."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "runs").glob("*.json")}
