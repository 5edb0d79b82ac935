"""Thermodynamic linear algebra: a matrix on the array, to solve with, invert and sample.

    >>> unit = NumericUnit(UnitSpec(cells=16), seed=0)
    >>> M = program(unit, matrix, lambda_min=damping)
    >>> M.solve(B).value, M.inv(samples=1000).value, M.sample(100).value

`inv` reads a covariance: about ten percent at 1,000 samples. `solve` reads means, which the same
time makes a hundred times more exact; one reading of each column is within a few percent, and costs
the host a few operations per number. The functions `inv` and `solve` are short uses of `program`,
with more samples and refinement; `plan` finds how a wanted accuracy is had soonest, and what it
costs, which a `tolerance` has them do.
"""

from thermokron.host.linalg.activity import Activity
from thermokron.host.linalg.api import inv, solve
from thermokron.host.linalg.blocks import Eliminated
from thermokron.host.linalg.dithered import Dithered
from thermokron.host.linalg.loading import load
from thermokron.host.linalg.planned import Plan
from thermokron.host.linalg.planning import Unreachable, plan
from thermokron.host.linalg.positive import positive
from thermokron.host.linalg.programmed import Programmed
from thermokron.host.linalg.programming import program
from thermokron.host.linalg.refusals import Clipping, NotConverged, NotPositiveDefinite
from thermokron.host.linalg.result import Account, Result
from thermokron.host.linalg.rounding import GUARDS, Guard
from thermokron.host.linalg.settling import Settle, Settling, check_settle
from thermokron.host.linalg.stack import Stack

__all__ = [
    "GUARDS",
    "Account",
    "Activity",
    "Clipping",
    "Dithered",
    "Eliminated",
    "Guard",
    "NotConverged",
    "NotPositiveDefinite",
    "Plan",
    "Programmed",
    "Result",
    "Settle",
    "Settling",
    "Stack",
    "Unreachable",
    "check_settle",
    "inv",
    "load",
    "plan",
    "positive",
    "program",
    "solve",
]
