"""The host: engines, thermodynamic linear algebra, K-FAC, training, and the command line."""

from thermokron.host.driver import Link, RegisterUnit
from thermokron.host.engines import (
    ENGINES,
    CompiledUnit,
    CosimUnit,
    StatisticalUnit,
    open_unit,
)

__all__ = [
    "ENGINES",
    "CompiledUnit",
    "CosimUnit",
    "Link",
    "RegisterUnit",
    "StatisticalUnit",
    "open_unit",
]
