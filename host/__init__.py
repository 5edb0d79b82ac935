"""The host: engines, thermodynamic linear algebra, K-FAC, training, and the command line."""

from thermokron.host.driver import Link, RegisterUnit, StreamLink
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
    "StreamLink",
    "open_pool",
    "open_unit",
]
