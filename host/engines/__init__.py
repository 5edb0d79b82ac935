"""What executes a run: `open_unit` and `open_pool`, and the engines behind them."""

from thermokron.host.engines.compiled import CompiledUnit
from thermokron.host.engines.cosim import CosimUnit
from thermokron.host.engines.opening import ENGINES, open_unit
from thermokron.host.engines.pool import Pool, open_pool
from thermokron.host.engines.statistical import StatisticalUnit

__all__ = [
    "ENGINES",
    "CompiledUnit",
    "CosimUnit",
    "Pool",
    "StatisticalUnit",
    "open_pool",
    "open_unit",
]
