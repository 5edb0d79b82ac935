"""What every integration does at a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from thermokron.host.kfac import KFAC, LevenbergMarquardt, StepMetrics

__all__ = ["check_options", "step"]


def check_options(options: Mapping[str, Any], given: Mapping[str, str]) -> None:
    """`TypeError` or `ValueError` if an option of `KFAC` cannot be given to a callback.

    Parameters
    ----------
    options : mapping
        Options by name.
    given : mapping of str to str
        Names that the callback fills in itself, and what takes their place.
    """
    for name, instead in given.items():
        if name in options:
            raise TypeError(f"{name} = {options[name]!r} is not for the callback: {instead}")
    if isinstance(options.get("damping"), LevenbergMarquardt):
        raise ValueError(
            f"damping = {options['damping']!r} needs KFAC.adapt with the loss of the batch, which "
            "this loop does not give; legal: a number or a function of the step"
        )


def step(kfac: KFAC, scaler: torch.amp.GradScaler | None) -> StepMetrics | None:
    """Precondition gradients that a scaler, if there is one, has unscaled.

    Returns
    -------
    StepMetrics or None
        None where there is no gradient, or an overflow in it, for which the scaler skips the step.

    Raises
    ------
    FloatingPointError
        As `KFAC.step` does, where no scaler will skip the step.
    """
    gradients = [p.grad for layer in kfac.layers for p in layer.parameters if p.grad is not None]
    if not gradients:
        return None
    try:
        return kfac.step()
    except FloatingPointError:
        if scaler is None or all(bool(torch.isfinite(g).all()) for g in gradients):
            raise
        return None
