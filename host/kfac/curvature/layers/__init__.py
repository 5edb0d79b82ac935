"""The kinds of layers that K-FAC covers, one module each."""

from thermokron.host.kfac.curvature.layers.attention import Attention, ProjectionLayer
from thermokron.host.kfac.curvature.layers.base import Layer, full_precision
from thermokron.host.kfac.curvature.layers.coverage import Choice, Coverage, find_layers
from thermokron.host.kfac.curvature.layers.diagonal import DiagonalLayer, FreeLayer
from thermokron.host.kfac.curvature.layers.kronecker import KroneckerLayer
from thermokron.host.kfac.curvature.layers.linear import LinearLayer
from thermokron.host.kfac.curvature.layers.norm import NormLayer
from thermokron.host.kfac.curvature.layers.registry import register_layer

__all__ = [
    "Attention",
    "Choice",
    "Coverage",
    "DiagonalLayer",
    "FreeLayer",
    "KroneckerLayer",
    "Layer",
    "LinearLayer",
    "NormLayer",
    "ProjectionLayer",
    "find_layers",
    "full_precision",
    "register_layer",
]
