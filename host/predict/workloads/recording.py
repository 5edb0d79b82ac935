"""What torch's operations move and multiply, seen as they are dispatched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from thermokron.host.predict.workloads.workload import Operation

__all__ = ["Recorder"]

aten = torch.ops.aten

#: Operations that move nothing, beside views.
FREE = {
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.empty_permuted,
    aten.new_empty,
    aten.new_empty_strided,
    aten._unsafe_view,
    aten._reshape_alias,
    aten.detach,
    aten.detach_,
    aten.lift_fresh,
}
#: Operations that read of their first tensor no more than they return.
GATHERING = {aten.embedding, aten.index, aten.index_select, aten.gather, aten.take}
#: Operations that write what was not read before.
FILLING = {aten.bernoulli_, aten.fill_, aten.zero_, aten.normal_, aten.uniform_}

Shape = Sequence[int]
#: Products as (m, k, n, blocks) with the bytes read and written.
Products = list[tuple[int, int, int, int, int]]


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation while it is active.

    Attributes
    ----------
    operations : list of Operation
        In their order.
    phase : "forward" or "backward"
        Of the operations to come.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []
        self.phase = "forward"
        self._drawn: Any = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func.overloadpacket
        if packet is aten.bernoulli_:
            self._drawn = out
        # dropout scales what it has drawn, in the same kernel where there are kernels for it
        scales = packet is aten.div_ and args[0] is self._drawn
        if not (func.is_view or packet in FREE or scales):
            self.operations += _operations(packet, self.phase, args, kwargs, out)
        return out


def _operations(packet: Any, phase: str, args: Any, kwargs: Any, out: Any) -> Iterator[Operation]:
    name = str(packet)
    if packet in PRODUCTS:
        for m, k, n, blocks, moved in PRODUCTS[packet](*args, **kwargs, out=out):
            yield Operation("gemm", phase, m, k, n, blocks, moved, name=name)
    elif packet in flop_registry:  # as a cube with as many operations
        flops = flop_registry[packet](*args, **kwargs, out_val=out)
        side = round((flops / 2.0) ** (1.0 / 3.0))
        moved = _moved((*args, *kwargs.values())) + _moved(out)
        yield Operation("gemm", phase, side, side, side, bytes=moved, name=name)
    else:
        moved = _moved(out)
        if packet in GATHERING:
            moved *= 2
            moved += _moved(args[1:])
        elif packet not in FILLING:
            moved += _moved((*args, *kwargs.values()))
        if moved:
            yield Operation("memory", phase, bytes=moved, name=name)


def _moved(values: Any) -> int:
    """Bytes of tensors; what is expanded is there once."""
    total = 0
    for each in tree_leaves(values):
        if isinstance(each, torch.Tensor):
            sides = zip(each.shape, each.stride(), strict=True)
            total += each.element_size() * prod(s for s, stride in sides if stride or not s)
    return total


# ---- products ------------------------------------------------------------------------------------


def _mm(a: Any, b: Any, *, out: Any, **_: Any) -> Products:
    (m, k), n = a.shape, b.shape[1]
    return [(m, k, n, 1, _moved((a, b, out)))]


def _addmm(c: Any, a: Any, b: Any, *, out: Any, **_: Any) -> Products:
    (m, k), n = a.shape, b.shape[1]
    return [(m, k, n, 1, _moved((c, a, b, out)))]


def _bmm(a: Any, b: Any, *, out: Any, **_: Any) -> Products:
    (blocks, m, k), n = a.shape, b.shape[2]
    return [(m, k, n, blocks, _moved((a, b, out)))]


def _baddbmm(c: Any, a: Any, b: Any, *, out: Any, **_: Any) -> Products:
    (blocks, m, k), n = a.shape, b.shape[2]
    return [(m, k, n, blocks, _moved((c, a, b, out)))]


def _convolution(
    x: Any,
    w: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    *,
    out: Any,
) -> Products:
    m, k, n = _patched(x.shape, w.shape, out.shape, transposed, groups)
    return [(m, k, n, groups, _moved((x, w, bias, out)))]


def _convolution_backward(
    g: Any,
    x: Any,
    w: Any,
    bias_sizes: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    output_mask: Sequence[bool],
    *,
    out: Any,
) -> Products:
    m, k, n = _patched(x.shape, w.shape, g.shape, transposed, groups)
    products: Products = []
    if output_mask[0]:
        products.append((k, m, n, groups, _moved((g, w, x))))
    if output_mask[1]:
        products.append((m, n, k, groups, _moved((g, x, w))))
    return products


def _patched(x: Shape, w: Shape, out: Shape, transposed: bool, groups: int) -> tuple[int, int, int]:
    """A group's product of weight and patches: (channels, patch) x (patch, positions)."""
    one, other = (out, x) if transposed else (x, out)
    return w[0] // groups, prod(w[1:]), one[0] * prod(other[2:])


#: Products that an operation makes, by its arguments.
PRODUCTS: dict[Any, Callable[..., Products]] = {
    aten.mm: _mm,
    aten.addmm: _addmm,
    aten.bmm: _bmm,
    aten.baddbmm: _baddbmm,
    aten.convolution: _convolution,
    aten.convolution_backward: _convolution_backward,
}
