"""How long the array settles before it is read, and what that does to what is read.

From x = 0 under a bias b the mean of the array is A⁻¹(1 - e^(-At/τ))b after a time t: every mode of
rate λ lacks e^(-λt/τ) of its end. As t → 0 that is t b, a scaled gradient where b is one; as t → ∞
it is A⁻¹b (arXiv 2405.13817 has the interpolation). In between it acts like damping: the inverse of
a small λ is held at t, those of large ones are exact.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from thermokron.host.linalg.arrays import Floats
from thermokron.model import UnitSpec, mean_settling
from thermokron.model.spec import MAX_SETTLE_CYCLES

__all__ = ["Settle", "Settling", "check_settle", "settled"]

#: A relative bias left, or a time such as "5tau".
Settle = float | str

_TIME = re.compile(r"\s*([0-9.eE+-]+)\s*(?:tau|τ)\s*")
LEGAL = 'between 0 and 1, the part left undone, or a time from 1e-6 to 1e9 such as "5tau"'


def check_settle(settle: Settle) -> Settle:
    """`settle` if it is legal.

    Raises
    ------
    TypeError, ValueError
        If it is neither a relative bias in (0, 1) nor a time such as "5tau".
    """
    if isinstance(settle, str):
        if _time(settle) is None:
            raise ValueError(f"settle = {settle!r} is no time; legal: {LEGAL}")
    elif isinstance(settle, bool) or not isinstance(settle, int | float | np.floating):
        raise TypeError(f"settle = {settle!r} is neither number nor text; legal: {LEGAL}")
    elif not 0.0 < settle < 1.0:
        raise ValueError(f"settle = {settle!r} is out of range; legal: {LEGAL}")
    return settle


def _time(text: str) -> float | None:
    match = _TIME.fullmatch(text)
    try:
        time = float(match[1]) if match else math.nan
    except ValueError:
        return None
    return time if 1e-6 <= time <= 1e9 else None


@dataclass(frozen=True)
class Settling:
    """How long the array settled, and the filter that this is.

    Attributes
    ----------
    time : float, in τ
        From the end of discharge to the first reading, whole clock cycles.
    rate : float
        λ of the slowest mode, as known or estimated, of the matrix as it was programmed.
    readings : int
        Of which the mean was taken; the array goes on settling between them.
    interval : float, in τ
        Between them.
    """

    time: float
    rate: float
    readings: int = 1
    interval: float = 0.0

    @property
    def bias(self) -> float:
        """The part of the slowest mode that is left undone."""
        return 1.0 - float(self.filter(self.rate))

    def filter(self, eigenvalues: ArrayLike) -> Floats:
        """What was applied to modes of these rates λ, any shape.

        1 - e^(-λt) for a reading at t, in τ, and for N of them, Δ apart, the mean of theirs:
        1 - e^(-λt) (1 - e^(-NλΔ))/(N (1 - e^(-λΔ))). Rates are eigenvalues of the matrix on the
        array: M scaled to unit diagonal.
        """
        rates = np.asarray(eigenvalues, dtype=np.float64)
        undone = np.exp(np.minimum(-rates * self.time, 700.0))
        if self.readings > 1:
            step = np.expm1(np.minimum(-rates * self.interval, 700.0))
            whole = np.expm1(np.minimum(-rates * self.interval * self.readings, 700.0))
            near = np.abs(step) > 1e-12
            undone *= np.divide(whole, self.readings * step, out=np.ones_like(step), where=near)
        passed: Floats = 1.0 - undone
        return passed

    def __str__(self) -> str:
        return f"settled for {self.time:.3g} τ, {self.bias:.1%} left at rate {self.rate:.3g}"


def settled(spec: UnitSpec, rate: float, settle: Settle) -> tuple[int, Settling]:
    """Clock cycles of settling for a slowest mode of `rate`, and what they come to."""
    time = _time(settle) if isinstance(settle, str) else mean_settling(rate, settle)
    assert time is not None
    cycle = spec.clock_s / spec.tau_s
    cycles = min(max(math.ceil(time / cycle * (1 - 1e-12)), 1), MAX_SETTLE_CYCLES)
    return cycles, Settling(cycles * cycle, rate)
