"""Kronecker-factored curvature: a preconditioner whose matrix inverses can come from a unit."""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "thermokron.host.kfac needs torch; install it with: pip install 'thermokron[train]'",
        name=error.name,
    ) from None

from thermokron.host.kfac.curvature.layers import register_layer
from thermokron.host.kfac.kfac import KFAC
from thermokron.host.kfac.metrics import StepMetrics
from thermokron.host.kfac.solve.damping import LevenbergMarquardt
from thermokron.host.kfac.solve.inverses import Inverse, Inverter, Thermodynamic, diagonal, exact
from thermokron.host.kfac.solve.relative import Relative
from thermokron.host.kfac.solve.trust import TrustRegion

__all__ = [
    "KFAC",
    "Inverse",
    "Inverter",
    "LevenbergMarquardt",
    "Relative",
    "StepMetrics",
    "Thermodynamic",
    "TrustRegion",
    "diagonal",
    "exact",
    "register_layer",
]
