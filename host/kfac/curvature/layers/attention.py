"""The projections inside `torch.nn.MultiheadAttention`.

Its forward hands raw weights to one fused function, so that a hook sees neither what enters the
projections nor what leaves them. While K-FAC watches a module in training, `Attention` computes
the same function with each projection as a step of its own: the output projection through the
submodule `out_proj`, where the hook of a linear layer sees it, and the three of the input with a
call back. In eval mode the module runs as torch wrote it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from thermokron.host.kfac.curvature.layers.base import Sums
from thermokron.host.kfac.curvature.layers.linear import LinearLayer

__all__ = ["Attention", "LastMoments", "ProjectionLayer"]

F = torch.nn.functional
PARTS = ("query", "key", "value")
WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias")


class LastMoments:
    """Σ a aᵀ of the last inputs of an attention module's projections, which are often the same."""

    def __init__(self) -> None:
        self._inputs: torch.Tensor | None = None
        self._key: tuple[object, ...] = ()
        self._moments: tuple[torch.Tensor, int] | None = None

    def of(
        self, inputs: torch.Tensor, reduce: bool, make: Callable[[], tuple[torch.Tensor, int]]
    ) -> tuple[torch.Tensor, int]:
        """Those of `inputs`, made unless they are what was asked for last."""
        key = (inputs.data_ptr(), inputs._version, inputs.shape, inputs.stride(), reduce)
        if self._moments is None or key != self._key:
            # the inputs are held, so that nothing else gets their memory while the key counts
            self._inputs, self._key, self._moments = inputs, key, make()
        return self._moments

    def forget(self) -> None:
        """Let go of everything."""
        self._inputs = self._moments = None


class ProjectionLayer(LinearLayer):
    """One of the three input projections of an attention module, a linear layer of its own.

    Parameters
    ----------
    name : str
        The attention module's name; the layer is called `name.query_proj` and so on.
    module : torch.nn.MultiheadAttention
        Whose weights are packed in `in_proj_weight`, or separate where key and value have other
        sizes than the query.
    part : "query", "key" or "value"
        Which projection.
    last : LastMoments
        One for the three of them: in self-attention their inputs are the same.
    """

    def __init__(
        self, name: str, module: torch.nn.MultiheadAttention, part: str, last: LastMoments
    ) -> None:
        self._last = last
        index, size = PARTS.index(part), module.embed_dim
        self._part = slice(index * size, (index + 1) * size)
        self._packed = module.in_proj_weight is not None
        self._key = "in_proj_weight" if self._packed else f"{part[0]}_proj_weight"
        self.keys = self._key, "in_proj_bias"
        super().__init__(f"{name}.{part}_proj" if name else f"{part}_proj", [module])
        bias = module.in_proj_bias
        self.has_bias = bias is not None and bias.requires_grad
        self.sequence_first = frozenset([module])  # inside

    @property
    def weight(self) -> torch.nn.Parameter:
        return getattr(self.module, self._key)  # type: ignore[no-any-return]

    @property
    def sizes(self) -> tuple[int, int]:
        return self.weight.shape[1] + self.has_bias, self._part.stop - self._part.start

    @property
    def bias(self) -> torch.nn.Parameter | None:
        return self.module.in_proj_bias if self.has_bias else None  # type: ignore[return-value]

    def input_moments(
        self, module: torch.nn.Module, prepared: torch.Tensor, reduce: bool
    ) -> tuple[torch.Tensor, int]:
        make = partial(super().input_moments, module, prepared, reduce)
        return self._last.of(prepared, reduce, make)

    def take(self) -> Sums:
        self._last.forget()
        return super().take()

    def stacked(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat([part.reshape(len(part), -1) for part in self._parts(tensors)], dim=1)

    def set_gradient(self, value: torch.Tensor) -> None:
        inputs = value.shape[-1] - self.has_bias
        gradients = [p.grad for p in self.parameters]
        present = [g for g in gradients if g is not None]
        for target, new in zip(
            self._parts(present), (value[:, :inputs], value[:, inputs:]), strict=False
        ):
            target.copy_(new.reshape(target.shape))

    def _parts(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """This projection's rows of weight and bias: the bias is always packed."""
        parts = [tensors[0][self._part] if self._packed else tensors[0]]
        return parts + [bias[self._part] for bias in tensors[1:]]


class Attention:
    """Makes an attention module compute its projections where they can be seen.

    Parameters
    ----------
    module : torch.nn.MultiheadAttention
        Gets a forward of its own until `close`; several may watch one module.
    projected : callable
        Called with "query", "key" or "value", the projection's input (L, N, entries) and output.
    """

    def __init__(
        self,
        module: torch.nn.MultiheadAttention,
        projected: Callable[[str, torch.Tensor, torch.Tensor], None],
    ) -> None:
        self.projected = projected
        self._stage = _stage_of(module) or _Stage(module)
        self._stage.listeners.append(self)

    @staticmethod
    def covers(module: torch.nn.Module) -> bool:
        """Whether the module is torch's attention, unchanged."""
        return (
            isinstance(module, torch.nn.MultiheadAttention)
            and type(module).forward is torch.nn.MultiheadAttention.forward
            and ("forward" not in vars(module) or _stage_of(module) is not None)
            # parametrized ones are no parameters
            and all(key in module._parameters for key in WEIGHTS)
        )

    def close(self) -> None:
        """Watch no more; the last one gives the module its own forward back."""
        self._stage.listeners.remove(self)
        if not self._stage.listeners:
            self._stage.module.__dict__.pop("forward", None)


class _Stage:
    """An attention module's forward while it is watched."""

    def __init__(self, module: torch.nn.MultiheadAttention) -> None:
        self.module = module
        self.listeners: list[Attention] = []
        module.forward = self.forward  # type: ignore[method-assign]

    def __deepcopy__(self, memo: Any) -> _Stage:
        return _empty_stage(copy.deepcopy(self.module, memo))

    def __reduce__(self) -> Any:
        return _empty_stage, (self.module,)

    def forward(self, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        """`torch.nn.MultiheadAttention.forward`; its arguments and results."""
        nested = any(t.is_nested for t in (query, key, value))
        if nested or not (self.module.training and self.listeners):
            original = torch.nn.MultiheadAttention.forward
            return original(self.module, query, key, value, *args, **kwargs)
        return self._attend(query, key, value, *args, **kwargs)

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        module = self.module
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is a hint that needs attn_mask beside it")
        batched = query.ndim == 3
        if not batched:
            query, key, value = (t[:, None] for t in (query, key, value))
            if key_padding_mask is not None:
                key_padding_mask = key_padding_mask[None]
        elif module.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = (
            self._project(part, x) for part, x in zip(PARTS, (query, key, value), strict=True)
        )
        length, batch, size = q.shape
        mask = _mask(attn_mask, key_padding_mask, batch, module.num_heads, q.dtype)
        if module.bias_k is not None and module.bias_v is not None:
            k = torch.cat([k, module.bias_k.expand(-1, batch, -1)])
            v = torch.cat([v, module.bias_v.expand(-1, batch, -1)])
            mask = None if mask is None else F.pad(mask, (0, 1))
        if module.add_zero_attn:
            k, v = (F.pad(t, (0, 0, 0, 0, 0, 1)) for t in (k, v))
            mask = None if mask is None else F.pad(mask, (0, 1))
        # (L, N, heads * d) -> (N, heads, L, d)
        q, k, v = (
            t.reshape(len(t), batch, module.num_heads, -1).permute(1, 2, 0, 3) for t in (q, k, v)
        )
        dropout = module.dropout if module.training else 0.0
        weights = None
        if need_weights:
            scores = q / math.sqrt(q.shape[-1]) @ k.mT
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = F.dropout(weights, dropout) if dropout else weights
            mixed = weights @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        output = module.out_proj(mixed.permute(2, 0, 1, 3).reshape(length, batch, size))
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if not batched:
            return output[:, 0], None if weights is None else weights[0]
        return output.transpose(0, 1) if module.batch_first else output, weights

    def _project(self, part: str, x: torch.Tensor) -> torch.Tensor:
        module, index = self.module, PARTS.index(part)
        bias = None if module.in_proj_bias is None else module.in_proj_bias.chunk(3)[index]
        if module.in_proj_weight is not None:
            weight = module.in_proj_weight.chunk(3)[index]
        else:
            weight = getattr(module, f"{part[0]}_proj_weight")
        output = F.linear(x, weight, bias)
        for listener in self.listeners:
            listener.projected(part, x, output)
        return output


def _stage_of(module: torch.nn.Module) -> _Stage | None:
    stage = getattr(vars(module).get("forward"), "__self__", None)
    return stage if isinstance(stage, _Stage) else None


def _empty_stage(module: torch.nn.MultiheadAttention) -> _Stage:
    """What a copy of a watched module has: nobody listens."""
    stage = object.__new__(_Stage)
    stage.module, stage.listeners = module, []
    return stage


def _mask(
    attn_mask: torch.Tensor | None,
    key_padding_mask: torch.Tensor | None,
    batch: int,
    heads: int,
    dtype: torch.dtype,
) -> torch.Tensor | None:
    """Both masks as one that is added to the scores, broadcast to (N, heads, L, S)."""
    mask = None
    if attn_mask is not None:
        mask = _additive(attn_mask, dtype)
        if mask.ndim == 3:
            mask = mask.reshape(batch, heads, *mask.shape[1:])
    if key_padding_mask is not None:
        padding = _additive(key_padding_mask, dtype)[:, None, None, :]
        mask = padding if mask is None else mask + padding
    return mask


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask of bools, True where nothing is to be seen, as 0 and -inf."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)
