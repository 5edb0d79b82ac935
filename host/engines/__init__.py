"""What executes a run: `open_unit`, and the engines behind it."""

from thermokron.host.engines.compiled import CompiledUnit
from thermokron.host.engines.cosim import CosimUnit
from thermokron.host.engines.opening import ENGINES, open_unit
from thermokron.host.engines.statistical import StatisticalUnit

__all__ = ["ENGINES", "CompiledUnit", "CosimUnit", "StatisticalUnit", "open_unit"]
