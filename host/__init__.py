"""The host: engines, thermodynamic linear algebra, K-FAC, training, and the command line."""

from thermokron.host.driver import Link, RegisterUnit
from thermokron.host.engines import (
    ENGINES,
    CompiledUnit,
    CosimUnit,
    Pool,
    StatisticalUnit,
    open_pool,
    open_unit,
)

__all__ = [
    "ENGINES",
    "CompiledUnit",
    "CosimUnit",
    "Link",
    "Pool",
    "RegisterUnit",
    "StatisticalUnit",
    "open_pool",
    "open_unit",
]
