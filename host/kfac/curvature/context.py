"""What K-FAC's own computations must not take from whoever called them, and not leave behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["leaving_no_trace", "undisturbed"]

DEVICES = ("cpu", "cuda")


class undisturbed:
    """No graph, no autocasting, no default device, whatever the caller has set.

    Moments, sums and products are then made in the types that they are given. A class, as hooks
    enter it for every layer: a generator takes longer than what they do there.
    """

    def __enter__(self) -> None:
        self._gradients = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        self._outer: list[Any] = [
            torch.autocast(device, enabled=False)
            for device in DEVICES
            if torch.is_autocast_enabled(device)
        ]
        if torch._C._len_torch_function_stack():  # what a default device is made of, for one
            self._outer.append(torch.device("cpu"))
        for each in self._outer:
            each.__enter__()

    def __exit__(self, *details: object) -> None:
        for each in reversed(self._outer):
            each.__exit__(*details)
        torch.set_grad_enabled(self._gradients)


@contextmanager
def leaving_no_trace(devices: Iterable[torch.device]) -> Iterator[None]:
    """Have passes that run modules again, as checkpointed regions do, change nothing.

    torch's generators, those that modules hold, and buffers, such as the averages of batch
    normalisation, are afterwards what they were.

    Parameters
    ----------
    devices : iterable of torch.device
        Where the network is.
    """
    state = torch.get_rng_state()
    on_cuda = [(d, torch.cuda.get_rng_state(d)) for d in devices if d.type == "cuda"]
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
        yield
    finally:
        handle.remove()
        torch.set_rng_state(state)
        for device, its_state in on_cuda:
            torch.cuda.set_rng_state(its_state, device)
        for module, key, buffer in kept:
            module._buffers[key] = buffer
        for generator, state in generators:
            generator.set_state(state)
