"""What K-FAC says that a step cost the host, against what it did."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from thermokron.host.kfac import KFAC
from thermokron.model import PHASES, NumericUnit, UnitSpec

SCRIPT = Path(__file__).with_name("counted_products.py")

#: Settings, what makes their products, and at least how many of them there are in a first step.
SETTINGS = {
    # 2mn(m+n) of both layers
    "exact": ({"cells": None, "method": "inverse"}, "torch", 2 * 64 * 65 * 129 + 2 * 10 * 65 * 75),
    "eigen": ({"cells": None, "damping_mode": "exact"}, "torch", 4 * 64 * 65 * 129),
    "inverse": ({"cells": 65, "method": "inverse"}, "torch", 2 * 64 * 65 * 129),
    "solve": ({"cells": 65, "method": "solve"}, "numpy", 2 * 65 * 65 * 16),  # the guard's Lanczos
    "solve, in blocks": ({"cells": 16, "method": "solve"}, "numpy", 65**3 // 3),  # complements
    "inverse, in blocks": ({"cells": 16, "method": "inverse"}, "numpy", 65**3 // 3),
}


@pytest.fixture(scope="module")
def products() -> dict[str, list[dict[str, int]]]:
    """Products made, and operations counted, in each of two steps, by name of the settings."""
    settings = [{"width": 64} | each for each, *_ in SETTINGS.values()]
    command = [sys.executable, str(SCRIPT), json.dumps(settings)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(zip(SETTINGS, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("name", SETTINGS)
def test_no_product_goes_uncounted(products, name) -> None:
    settings, made_by, least = SETTINGS[name]
    for step in products[name]:
        assert step["numpy"] + step["torch"] <= step["counted"]
    assert products[name][0][made_by] >= least
    if settings["cells"] is None:
        assert products[name][0]["numpy"] == 0


def test_a_solution_on_the_unit_makes_no_product_but_the_guards(products) -> None:
    """In the second step the guard takes over what it found, and nothing is left that multiplies
    matrices; norms of what is rounded, and of right-hand sides, are all."""
    _, second = products["solve"]
    entries = 65 * 65 + 64 * 64 + 65 * 65 + 10 * 10 + 2 * (64 * 65 + 10 * 65)
    assert second["torch"] == 0
    assert second["numpy"] <= 2 * entries
    assert second["counted"] < 20 * entries


def stepped(method: str, unit: NumericUnit | None = None, width: int = 96):
    torch.manual_seed(0)
    model = nn.Linear(width, width, bias=False)
    kfac = KFAC(model, unit, lr=0.1, damping=0.03, method=method, kl_clip=None)
    model(torch.randn(32, width)).square().mean().backward()
    return kfac.step()


def test_exact_steps_count_as_textbooks_do() -> None:
    """n³ an inverse and 4n³ the apply; or n³/3 a Cholesky factor and 2n³ each substitution."""
    n = 96
    assert stepped("inverse").digital_flops == pytest.approx(2 * n**3 + 4 * n**3, rel=0.05)
    assert stepped("solve").digital_flops == pytest.approx((2 / 3 + 4) * n**3, rel=0.05)


def test_bytes_and_seconds_are_those_of_the_jobs() -> None:
    """Of two solves with 96 columns on 96 cells, 96 a start, nothing run again."""
    spec = UnitSpec(cells=96, rhs_depth=96)
    unit = NumericUnit(spec, seed=0)
    jobs = []
    run = unit.run
    unit.run = lambda job, **options: jobs.append(job) or run(job, **options)
    metrics = stepped("solve", unit)
    assert metrics.runs == len(jobs)
    cycles = [spec.phase_cycles(job) for job in jobs]
    for phase in PHASES:
        expected = sum(each[phase] for each in cycles) * spec.clock_s
        assert getattr(metrics, f"{phase}_seconds") == pytest.approx(expected)
    columns = sum(len(job.biases) for job in jobs)
    # codes of two bytes, whose vectors fill their beats
    assert metrics.bytes_from_unit == 2 * columns * 96
    # the couplings of both factors once each, a byte a code
    assert metrics.bytes_to_unit == 2 * columns * 96 + 2 * spec.coupling_count
    moved = metrics.bytes_from_unit + metrics.bytes_to_unit
    assert metrics.port_seconds == pytest.approx(moved / 8 * spec.clock_s)
    logged = metrics.as_dict()
    assert logged["bytes_to_unit"] == metrics.bytes_to_unit
    assert logged["load_seconds"] == metrics.load_seconds
