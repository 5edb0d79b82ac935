"""Living with `torch.compile`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
import torch._functorch.config as compiler_config
from torch._compile import _disable_dynamo

__all__ = ["KeptBuffers", "check_kept", "keeping_buffers", "uncompiled"]


def uncompiled(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that runs as it is; what is between hooks is compiled."""
    return partial(_run, hook)


@_disable_dynamo
def _run(hook: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return hook(*args, **kwargs)


@contextmanager
def keeping_buffers() -> Iterator[None]:
    """Have backward passes leave what they need to the next one on the same graph.

    `torch.compile` looks at this when it compiles, and again in the backward pass: both must be
    in here. Otherwise compiled backward passes may write over what the forward pass left them.
    """
    before, compiler_config.donated_buffer = compiler_config.donated_buffer, False
    try:
        yield
    finally:
        compiler_config.donated_buffer = before


class KeptBuffers:
    """Compiles what is compiled in a model's forward pass by `keeping_buffers`.

    Parameters
    ----------
    model : torch.nn.Module
        The network.

    Attributes
    ----------
    handles : list
        Of the hooks.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._keeping: AbstractContextManager[None] | None = None
        self.handles: list[Any] = [
            model.register_forward_pre_hook(uncompiled(self._begin)),
            model.register_forward_hook(uncompiled(self._finish), always_call=True),
        ]

    def __deepcopy__(self, memo: Any) -> KeptBuffers:
        return _idle()

    def __reduce__(self) -> Any:
        return _idle, ()

    def _begin(self, module: torch.nn.Module, args: Any) -> None:
        if self._keeping is None and self.handles:
            self._keeping = keeping_buffers()
            self._keeping.__enter__()

    def _finish(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        if self._keeping is not None:
            self._keeping.__exit__(None, None, None)
            self._keeping = None


def _idle() -> KeptBuffers:
    """What a copy of the model has of it."""
    kept = object.__new__(KeptBuffers)
    kept._keeping, kept.handles = None, []
    return kept


def check_kept(node: torch.autograd.graph.Node) -> None:
    """`RuntimeError` if a node of the graph was compiled to be gone through once."""
    if type(node).__name__ != "CompiledFunctionBackward":
        return
    compiled: Any = node
    metadata = getattr(compiled._forward_cls, "metadata", None)
    if getattr(metadata, "bw_donated_idxs", None):
        raise RuntimeError(
            "fisher 'mc' and 'ggn' cannot go more than once through what torch.compile compiled "
            "before KFAC was made; legal: make KFAC before the compiled model is called, call "
            "torch.compiler.reset() once it is made, or fisher = 'empirical'"
        )
