"""The kinds of layers that K-FAC covers, one module each."""

from thermokron.host.kfac.layers.attention import Attention, ProjectionLayer
from thermokron.host.kfac.layers.base import KroneckerLayer, Layer
from thermokron.host.kfac.layers.coverage import Coverage, find_layers
from thermokron.host.kfac.layers.norm import NormLayer

__all__ = [
    "Attention",
    "Coverage",
    "KroneckerLayer",
    "Layer",
    "NormLayer",
    "ProjectionLayer",
    "find_layers",
]
