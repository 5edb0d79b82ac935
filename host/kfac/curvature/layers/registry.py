"""Which layer class knows the curvature of which module class."""

from __future__ import annotations

import torch

from thermokron.host.kfac.curvature.layers.base import Layer
from thermokron.host.kfac.curvature.layers.conv import ConvLayer
from thermokron.host.kfac.curvature.layers.embedding import EmbeddingLayer
from thermokron.host.kfac.curvature.layers.linear import LinearLayer
from thermokron.host.kfac.curvature.layers.norm import NormLayer
from thermokron.host.kfac.curvature.layers.others import ChannelNormLayer, Conv1DLayer

__all__ = ["known_class", "layer_class_of", "register_layer"]

nn = torch.nn

#: Module classes, or their full names, which need not be imported for it.
_KNOWN: dict[type[nn.Module] | str, type[Layer]] = {
    nn.Linear: LinearLayer,
    nn.Conv1d: ConvLayer,
    nn.Conv2d: ConvLayer,
    nn.Conv3d: ConvLayer,
    nn.Embedding: EmbeddingLayer,
    nn.LayerNorm: NormLayer,
    nn.RMSNorm: NormLayer,
    nn.GroupNorm: NormLayer,
    nn.BatchNorm1d: NormLayer,
    nn.BatchNorm2d: NormLayer,
    nn.BatchNorm3d: NormLayer,
    "transformers.pytorch_utils.Conv1D": Conv1DLayer,
    "timm.layers.norm.LayerNorm": NormLayer,
    "timm.layers.norm.LayerNorm2d": ChannelNormLayer,
}


def register_layer(module_class: type[nn.Module], layer_class: type[Layer]) -> None:
    """Have K-FAC cover modules of a class by a layer class, in every `KFAC` made from now on.

        register_layer(MyLinear, LinearLayer)      # computes what torch.nn.Linear does
        register_layer(MyLayer, MyKroneckerLayer)  # a subclass of KroneckerLayer or Layer

    Subclasses of `module_class` are covered too, unless they have a forward of their own: those
    may compute anything.

    Parameters
    ----------
    module_class : type of torch.nn.Module
        What is covered.
    layer_class : type of Layer
        Called with the module's name and a list of modules that share their parameters.

    Raises
    ------
    TypeError
        If either is no such class.
    """
    for name, given, base in (
        ("module_class", module_class, nn.Module),
        ("layer_class", layer_class, Layer),
    ):
        if not (isinstance(given, type) and issubclass(given, base)):
            raise TypeError(
                f"{name} = {given!r} is out of range; legal: a subclass of {base.__name__}"
            )
    _KNOWN[module_class] = layer_class


def layer_class_of(module: nn.Module) -> type[Layer] | None:
    """What covers a module, if anything does, by its class and the parameters that it has."""
    known = known_class(module)
    # a subclass may bypass forward
    if known is None or type(module).forward is not known.forward:
        return None
    found = _registered(known)
    return found if found is not None and found.fits(module) else None


def known_class(module: nn.Module) -> type[nn.Module] | None:
    """The next registered class that a module is of, itself or by inheritance."""
    return next((each for each in type(module).__mro__ if _registered(each) is not None), None)


def _registered(module_class: type) -> type[Layer] | None:
    return _KNOWN.get(module_class) or _KNOWN.get(
        f"{module_class.__module__}.{module_class.__qualname__}"
    )
