"""Learning rates that change while training."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

__all__ = ["SCHEDULES", "scheduler"]

#: By name, the part of the learning rate that is left when a part `t`, 0 to 1, of training is
#: done.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda t: 1.0,
    "cosine": lambda t: 0.5 * (1.0 + math.cos(math.pi * t)),
    "linear": lambda t: 1.0 - t,
    "step": lambda t: 1.0 if t < 0.5 else 0.1 if t < 0.75 else 0.01,
}


def scheduler(
    optimizer: torch.optim.Optimizer, schedule: str, *, steps: int, warmup: int = 0
) -> torch.optim.lr_scheduler.LambdaLR:
    """A torch scheduler over all steps; call its `step` after every optimiser step.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Whose learning rate it changes.
    schedule : str
        A key of `SCHEDULES`.
    steps : int
        Steps of the whole training.
    warmup : int
        Steps over which the rate rises linearly to what it was given as; the schedule then
        covers the rest.

    Raises
    ------
    ValueError
        If the warmup takes all steps.
    """
    if warmup >= steps:
        raise ValueError(f"warmup = {warmup} is out of range; legal: below the {steps} steps")

    def part(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return SCHEDULES[schedule]((step - warmup) / (steps - warmup))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, part)
