"""How far an update may go."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

__all__ = ["shortening"]


def shortening(
    gradients: Sequence[torch.Tensor],
    updates: Sequence[torch.Tensor],
    *,
    lr: float,
    kl_clip: float | None,
    norm_constraint: float | None,
) -> float:
    """ν by which all updates are multiplied.

    The KL clip ν = min(1, √(κ / (η² |Σ vᵀg|))) bounds the change of the predictions in one step
    (Ba, Grosse & Martens 2017, section 5). The norm constraint bounds the length of the step as
    such: η ν ‖v‖ ≤ c. The shorter of the two counts.
    """
    nu = 1.0
    if kl_clip is not None:
        product = sum((g * v).sum().item() for g, v in zip(gradients, updates, strict=True))
        change = lr**2 * abs(product)
        if change > kl_clip:
            nu = math.sqrt(kl_clip / change)
    if norm_constraint is not None:
        length = lr * math.sqrt(sum((v * v).sum().item() for v in updates))
        if nu * length > norm_constraint:
            nu = norm_constraint / length
    return nu
