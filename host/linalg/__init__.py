"""Thermodynamic linear algebra: inverses and linear systems, sampled from the array.

    >>> unit = NumericUnit(UnitSpec(cells=16), seed=0)
    >>> result = inv(unit, M, lambda_min=damping)
    >>> result.value, result.standard_error, result.hardware_seconds

`inv` reads a covariance: about ten percent at 1,000 samples. `solve` reads means, which the same
time makes a hundred times more exact, and refines them.
"""

from thermokron.host.linalg.api import inv, solve
from thermokron.host.linalg.arrays import NotPositiveDefinite
from thermokron.host.linalg.program import GUARDS, Guard
from thermokron.host.linalg.result import Result

__all__ = ["GUARDS", "Guard", "NotPositiveDefinite", "Result", "inv", "solve"]
