"""Offsets of mean readings that no calibration knows, and how they are taken off."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np

from thermokron.host.calibration import Corrections
from thermokron.host.linalg.arrays import Floats
from thermokron.host.linalg.result import Account
from thermokron.model import Job, Unit, UnitSpec

__all__ = ["Offsets", "averaging", "blank", "check_offsets"]

#: What is done about them, see `Programmed.solve`.
Offsets = Literal["kept", "blank", "chopped"]
#: Readings without bias that are averaged, at most: of one alone the noise would double.
BLANKS = 16


def check_offsets(offsets: Any, spec: UnitSpec) -> None:
    """Refuse what is unknown, or what the unit cannot do."""
    legal = get_args(Offsets)
    if offsets not in legal:
        raise ValueError(f"offsets = {offsets!r} is unknown; legal: {', '.join(legal)}")
    if offsets == "chopped" and spec.rhs_depth < 2:
        raise ValueError(
            "offsets = 'chopped' takes two bias vectors a start, and the unit has rhs_depth = 1; "
            "legal: kept, blank"
        )


def averaging(offsets: Offsets, spec: UnitSpec) -> float:
    """Variance of what is read over that of one mean reading."""
    blanks = min(spec.rhs_depth, BLANKS)
    return {"kept": 1.0, "chopped": 0.5, "blank": 1.0 + 1.0 / blanks}[offsets]


def blank(
    unit: Unit, job: Job, size: int, known: Corrections | None, account: Account, **program: Any
) -> Floats:
    """Mean readings (size,) without bias, in full scales, of a job's couplings."""
    spec = unit.spec
    biases = np.zeros((min(spec.rhs_depth, BLANKS), spec.cells), np.int16)
    if known is not None:
        biases[:, :size] = known.no_bias
    job = job.with_biases(biases, **program)
    readout = unit.run(job)
    account.enter(spec, job, readout)
    account.flops(biases.size)
    rest: Floats = readout.sums[:, :size].mean(axis=0) * (spec.adc_step / job.samples)
    if known is not None:
        rest = known.means(rest, 1.0)
    return rest
