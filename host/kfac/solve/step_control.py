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
    rates: Sequence[float],
    kl_rates: Sequence[float] | None = None,
    kl_clip: float | None,
    norm_constraint: float | None,
    damping: float | Sequence[float] = 0.0,
    cost: Cost | None = None,
) -> float:
    """ν by which all updates are multiplied.

    The KL clip ν = min(1, √(κ / |Σ η² vᵀg|)) bounds the change of the predictions in one step
    (Ba, Grosse & Martens 2017, section 5), η being each layer's own rate, or that of `kl_rates`.
    The norm constraint bounds the length of the step as such: ν √(Σ η² ‖v‖²) ≤ c. The shorter of
    the two counts.

    With v = (C + λI)⁻¹ g, vᵀg is λ ‖v‖² at least, and that much is counted, for a `damping` λ, of
    all or of each. It changes nothing where inverses are good. A sampled one that is wrong, as few
    bits or many blocks may make it, can give a long v at right angles to g, which vᵀg does not see.
    The operations are entered into `cost`.

    Raises
    ------
    FloatingPointError
        If products overflow in double precision.
    """
    nu, entries = 1.0, sum(v.numel() for v in updates)
    if cost is not None:
        cost.flops(2 * entries * (2 * (kl_clip is not None) + (norm_constraint is not None)))
    if kl_clip is not None:
        kl_rates = rates if kl_rates is None else kl_rates
        change = abs(_total(kl_rates, gradients, updates))
        each = [damping] * len(updates) if isinstance(damping, float) else damping
        roots = [rate * math.sqrt(part) for rate, part in zip(kl_rates, each, strict=True)]
        change = max(change, _total(roots, updates, updates))
        if change > kl_clip:
            nu = math.sqrt(kl_clip / change)
    if norm_constraint is not None:
        length = math.sqrt(_total(rates, updates, updates))
        if nu * length > norm_constraint:
            nu = norm_constraint / length
    return nu


def _total(
    rates: Sequence[float], lefts: Sequence[torch.Tensor], rights: Sequence[torch.Tensor]
) -> float:
    """Σ η² uᵀv."""
    total = sum(
        rate**2 * _product(u, v) for rate, u, v in zip(rates, lefts, rights, strict=True) if rate
    )
    if not math.isfinite(total):
        raise FloatingPointError(
            "the step is too long for its length to be a number: lower lr, or raise damping"
        )
    return total


def _product(u: torch.Tensor, v: torch.Tensor) -> float:
    """uᵀv, in double precision where single would overflow."""
    found = (u * v).sum().item()
    return found if math.isfinite(found) else (u.double() * v.double()).sum().item()
