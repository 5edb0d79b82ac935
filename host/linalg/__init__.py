"""Thermodynamic linear algebra: inverses and linear systems, sampled from the array."""

from thermokron.host.linalg.api import inv, solve
from thermokron.host.linalg.result import Result

__all__ = ["Result", "inv", "solve"]
