"""The host: engines, thermodynamic linear algebra, K-FAC, training, and the command line."""

from thermokron.host.calibration import Calibrated, Calibration, calibrate
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
    "Calibrated",
    "Calibration",
    "CompiledUnit",
    "CosimUnit",
    "Link",
    "Pool",
    "RegisterUnit",
    "StatisticalUnit",
    "StreamLink",
    "calibrate",
    "open_pool",
    "open_unit",
]
