"""What K-FAC's own computations must not take from whoever called them, and not leave behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

__all__ = ["leaving_no_trace", "undisturbed"]

DEVICES = ("cpu", "cuda")


@contextmanager
def undisturbed() -> Iterator[None]:
    """No autocasting, no graph, no default device, whatever the caller has set.

    Moments, sums and products are then made in the types that they are given.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for device in DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def leaving_no_trace(devices: set[torch.device]) -> Iterator[None]:
    """Have passes that run modules again, as checkpointed regions do, change nothing.

    torch's generators, those that modules hold, and buffers, such as the averages of batch
    normalisation, are afterwards what they were.

    Parameters
    ----------
    devices : set of torch.device
        Where the network is.
    """
    kept: list[tuple[torch.nn.Module, str, torch.Tensor | None]] = []
    generators: list[tuple[torch.Generator, torch.Tensor]] = []
    known: set[torch.nn.Module] = set()

    def keep(module: torch.nn.Module, args: Any) -> None:
        """Before a module runs again; buffers are replaced, as graphs may hold the real ones."""
        if module in known:
            return
        known.add(module)
        for key, buffer in module._buffers.items():
            kept.append((module, key, buffer))
            module._buffers[key] = None if buffer is None else buffer.clone()
        for value in vars(module).values():
            if isinstance(value, torch.Generator):
                generators.append((value, value.get_state()))

    handle = torch.nn.modules.module.register_module_forward_pre_hook(keep)
    try:
        cuda = [device for device in devices if device.type == "cuda"]
        with torch.random.fork_rng(devices=cuda):
            yield
    finally:
        handle.remove()
        for module, key, buffer in kept:
            module._buffers[key] = buffer
        for generator, state in generators:
            generator.set_state(state)
