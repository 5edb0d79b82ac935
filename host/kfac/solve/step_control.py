"""How far an update may go."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from thermokron.host.kfac.solve.cost import Cost

__all__ = ["shortening"]


def shortening(
    gradients: Sequence[torch.Tensor],
    updates: Sequence[torch.Tensor],
    *,
    lr: float,
    kl_clip: float | None,
    norm_constraint: float | None,
    damping: float = 0.0,
    cost: Cost | None = None,
) -> float:
    """ν by which all updates are multiplied.

    The KL clip ν = min(1, √(κ / (η² |Σ vᵀg|))) bounds the change of the predictions in one step
    (Ba, Grosse & Martens 2017, section 5). The norm constraint bounds the length of the step as
    such: η ν ‖v‖ ≤ c. The shorter of the two counts.

    With v = (C + λI)⁻¹ g, vᵀg is λ ‖v‖² at least, and that much is counted, for a `damping` λ. It
    changes nothing where inverses are good. A sampled one that is wrong, as few bits or many blocks
    may make it, can give a long v at right angles to g, which vᵀg does not see. The operations are
    entered into `cost`.
    """
    nu, entries = 1.0, sum(v.numel() for v in updates)
    if cost is not None:
        cost.flops(2 * entries * (2 * (kl_clip is not None) + (norm_constraint is not None)))
    if kl_clip is not None:
        product = sum((g * v).sum().item() for g, v in zip(gradients, updates, strict=True))
        least = damping * sum((v * v).sum().item() for v in updates)
        change = lr**2 * max(abs(product), least)
        if change > kl_clip:
            nu = math.sqrt(kl_clip / change)
    if norm_constraint is not None:
        length = lr * math.sqrt(sum((v * v).sum().item() for v in updates))
        if nu * length > norm_constraint:
            nu = norm_constraint / length
    return nu
