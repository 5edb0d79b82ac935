"""Operations that compute more than they move, to be timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from thermokron.host.kfac.curvature.layers.conv import patches
from thermokron.host.predict.machines.digital import PATCHES, ROWS

__all__ = ["computing"]

#: Matrices have so many rows and columns; 512 at least.
SIDE = 1024

Action = Callable[[], object]


def computing(generator: torch.Generator) -> Iterator[tuple[str, Action]]:
    """Names of operations, as `Recorder` has them, and what does each once."""
    x = torch.randn(SIDE, SIDE, generator=generator)
    g = torch.randn(SIDE, SIDE, generator=generator)
    yield from _pointwise(x, g)
    yield from _normalising(x, g)
    yield from _of_images(*(each.view(-1, 64, 32, 32) for each in (x, g)))


def _pointwise(x: torch.Tensor, g: torch.Tensor) -> Iterator[tuple[str, Action]]:
    aten: Any = torch.ops.aten
    for name in ("tanh", "gelu", "sigmoid", "exp", "relu"):
        yield f"aten.{name}", partial(getattr(aten, name), x)
    yield "aten.tanh_backward", lambda: aten.tanh_backward(g, x)
    yield "aten.gelu_backward", lambda: aten.gelu_backward(g, x)
    yield "aten.threshold_backward", lambda: aten.threshold_backward(g, x, 0)
    yield "aten.bernoulli_", lambda: x.clone().bernoulli_(0.9)


def _normalising(x: torch.Tensor, g: torch.Tensor) -> Iterator[tuple[str, Action]]:
    aten: Any = torch.ops.aten
    for name in ("_softmax", "_safe_softmax"):
        yield f"aten.{name}", lambda: aten._softmax(x, -1, False)
    yield (
        "aten._softmax_backward_data",
        lambda: aten._softmax_backward_data(g, x, -1, torch.float32),
    )
    yield "aten._log_softmax", lambda: aten._log_softmax(x, -1, False)
    ones = torch.ones(SIDE)
    _, mean, scale = aten.native_layer_norm(x, [SIDE], ones, ones, 1e-5)
    yield "aten.native_layer_norm", lambda: aten.native_layer_norm(x, [SIDE], ones, ones, 1e-5)
    yield (
        "aten.native_layer_norm_backward",
        lambda: aten.native_layer_norm_backward(
            g, x, [SIDE], mean, scale, ones, ones, [True, True, True]
        ),
    )


def _of_images(images: torch.Tensor, gi: torch.Tensor) -> Iterator[tuple[str, Action]]:
    """The last two are what K-FAC does with convolutions."""
    aten: Any = torch.ops.aten
    w = torch.ones(64)
    norm = (w, w, None, None)
    _, mean, scale = aten.native_batch_norm(images, *norm, True, 0.1, 1e-5)
    yield (
        "aten.native_batch_norm",
        lambda: aten.native_batch_norm(images, *norm, True, 0.1, 1e-5),
    )
    yield (
        "aten.native_batch_norm_backward",
        lambda: aten.native_batch_norm_backward(
            gi, images, w, None, None, mean, scale, True, 1e-5, [True, True, True]
        ),
    )
    pooled, places = aten.max_pool2d_with_indices(images, [2, 2], [2, 2])
    yield (
        "aten.max_pool2d_with_indices",
        lambda: aten.max_pool2d_with_indices(images, [2, 2], [2, 2]),
    )
    yield (
        "aten.max_pool2d_with_indices_backward",
        lambda: aten.max_pool2d_with_indices_backward(
            pooled, images, [2, 2], [2, 2], [0, 0], [1, 1], False, places
        ),
    )
    few = images[:4]
    convolution = torch.nn.Conv2d(64, 64, 3, padding=1)
    yield PATCHES, lambda: patches(convolution, few)
    yield ROWS, lambda: images.flatten(2).mT.flatten(0, 1)
