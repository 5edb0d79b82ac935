"""The kinds of layers that K-FAC covers, one module each."""

from thermokron.host.kfac.curvature.layers.attention import Attention, ProjectionLayer
from thermokron.host.kfac.curvature.layers.base import KroneckerLayer, Layer
from thermokron.host.kfac.curvature.layers.coverage import Coverage, find_layers
from thermokron.host.kfac.curvature.layers.norm import NormLayer

__all__ = [
    "Attention",
    "Coverage",
    "KroneckerLayer",
    "Layer",
    "NormLayer",
    "ProjectionLayer",
    "find_layers",
]
