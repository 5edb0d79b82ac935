"""Kronecker factors: running averages of second moments, and factored damping."""

from __future__ import annotations

import math
from typing import Any

import torch

from thermokron.host.products import product

__all__ = [
    "Factor",
    "MovingAverage",
    "Share",
    "all_finite",
    "in_type",
    "shares",
    "symmetric",
]

#: How much of the damping a factor gets: a number, or one for each of its blocks.
Share = torch.Tensor | float


class MovingAverage:
    """Exponential moving average without the bias towards its start.

    m ← β m + (1-β) C and w ← β w + (1-β), both from 0; the average is m / w. With a constant β
    that is Adam's correction (Kingma & Ba 2015, arXiv 1412.6980, section 3), and it stays exact
    when β follows a schedule.

    Attributes
    ----------
    moment : tensor or None
        m; None before the first update.
    weight : float
        w.
    """

    def __init__(self) -> None:
        self.moment: torch.Tensor | None = None
        self.weight = 0.0

    def update(self, value: torch.Tensor, decay: float) -> None:
        """Move towards `value`; β = `decay`."""
        part = 1.0 - decay
        if self.moment is None:
            self.moment = part * value
        else:  # m + (1-β)(C - m), in one pass
            self.moment = torch.lerp(in_type(self.moment, value.dtype), value, part)
        self.weight = decay * self.weight + (1.0 - decay)

    @property
    def value(self) -> torch.Tensor:
        """The average; there must have been an update."""
        assert self.moment is not None
        return self.moment / self.weight

    def state_dict(self) -> dict[str, Any]:
        """Both attributes."""
        return {"moment": self.moment, "weight": self.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.moment, self.weight = state["moment"], float(state["weight"])


class Factor(MovingAverage):
    """A running average of second moments E[x xᵀ], gathered backward pass by backward pass.

    Dense factors have the shape (n, n), or (blocks, n, n) where a layer has several independent
    blocks of one size, such as the groups of a convolution. A diagonal one has the shape (n,):
    the inputs of an embedding are one-hot, and no two entries of such a vector are ever nonzero;
    or the matrix would be too large.

    Parameters
    ----------
    shape : tuple of int
        Of the average.
    diagonal : bool
        Whether all its entries stand for themselves, as those of diagonals do.
    """

    def __init__(self, shape: tuple[int, ...], *, diagonal: bool = False) -> None:
        super().__init__()
        self.shape, self.diagonal = shape, diagonal
        self._total: torch.Tensor | None = None
        self._count = 0.0

    def moments(self, rows: torch.Tensor) -> torch.Tensor:
        """Σ x xᵀ over rows (..., rows, n), or its diagonal."""
        if self.diagonal:
            return rows.square().sum(dim=-2)
        return product(rows.mT, rows)

    def add(self, total: torch.Tensor, count: float) -> None:
        """Enter a sum of second moments, and by how many examples it is to be divided."""
        self._total = total if self._total is None else self._total + total
        self._count += count

    @property
    def brought(self) -> bool:
        """Whether anything but zeros was entered since the last update."""
        return self._total is not None and bool(self._total.any())

    def take(self) -> tuple[torch.Tensor | None, float]:
        """What was entered since the last update, as `put` takes it; it is no longer here then."""
        found = self._total, self._count
        self._total, self._count = None, 0.0
        return found

    def put(self, total: torch.Tensor | None, count: float) -> None:
        """Enter what `take` gave."""
        if total is not None:
            self.add(total, count)

    @property
    def size(self) -> int:
        """Rows of the matrix, or of each block."""
        return self.shape[-1]

    @property
    def blocks(self) -> int:
        """Independent matrices, 1 for a single one."""
        return self.shape[0] if len(self.shape) > 2 else 1

    def is_finite(self, value: torch.Tensor) -> bool:
        """Whether second moments are free of NaN and inf.

        The diagonal tells: |E[x y]|² ≤ E[x²] E[y²].
        """
        if self.diagonal:
            return all_finite(value)
        if value.ndim == 2 and math.isfinite(torch.trace(value).item()):
            return True
        return all_finite(value.diagonal(dim1=-2, dim2=-1))

    def check_state(self, what: str, state: Any, dtype: torch.dtype) -> None:
        """`ValueError`, which says `what` it is, if a state does not fit."""
        moment = state["moment"]
        if moment is None:
            return
        if tuple(moment.shape) != self.shape or moment.dtype != dtype:
            raise ValueError(
                f"{what} is {tuple(moment.shape)}, {moment.dtype} in the state; "
                f"here it is {self.shape}, {dtype}"
            )
        weight = float(state["weight"])
        if not (all_finite(moment) and 0.0 < weight <= 1.0 + 1e-6):
            raise ValueError(f"{what} holds NaN or inf in the state, or no average")

    @property
    def dtype(self) -> torch.dtype:
        """Of the average; there must have been an update."""
        assert self.moment is not None
        return self.moment.dtype

    @property
    def pending(self) -> bool:
        """Whether anything was entered since the last update."""
        return self._total is not None and self._count > 0.0

    def mean(self) -> torch.Tensor:
        """What was entered, divided by its count."""
        assert self._total is not None
        return self._total / self._count

    def damped(self, amount: Share, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """The average plus `amount` times the identity; in float64 made exactly symmetric.

        In other types it is what BLAS made it, symmetric up to rounding: a Cholesky factorisation
        reads one triangle, and the transposition would take a sixth of its time.
        """
        value = in_type(self.value, dtype)
        if self.diagonal:
            return value.add_(amount)
        if dtype == torch.float64:
            value = symmetric(value)
        share = amount[..., None] if isinstance(amount, torch.Tensor) else amount
        value.diagonal(dim1=-2, dim2=-1).add_(share)
        return value

    def mean_diagonal(self) -> Share:
        """Mean of the diagonal: a number, or one for each block in float64."""
        assert self.moment is not None
        if self.moment.ndim == 2:
            total = torch.trace(self.moment).item()
            if math.isfinite(total):  # else a sum that float32 does not hold
                return total / (self.weight * self.size)
        diagonal = self.moment if self.diagonal else self.moment.diagonal(dim1=-2, dim2=-1)
        mean = diagonal.double().mean(dim=-1) / self.weight
        return mean.item() if mean.ndim == 0 else mean


def in_type(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`tensor.to(dtype)`, without the call where there is nothing to do, which small steps feel."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def all_finite(values: torch.Tensor) -> bool:
    """Whether values are free of NaN and inf."""
    # a sum is half the work, and overflows where no entry does at worst
    return math.isfinite(values.sum().item()) or bool(torch.isfinite(values).all())


def symmetric(matrix: torch.Tensor) -> torch.Tensor:
    """(M + Mᵀ)/2: a product from BLAS is symmetric only up to rounding."""
    return (matrix + matrix.mT).div_(2)


def shares(mean_a: Share, mean_g: Share, damping: float) -> tuple[Share, Share]:
    """π√λ for A, √λ/π for G, with π² = mean_a / mean_g; each bounds its factor's eigenvalues.

    Factored Tikhonov damping takes the means of the diagonals, so that the damping's share in both
    factors is alike (Martens & Grosse 2015, arXiv 1503.05671, section 6.3). It adds
    π√λ I ⊗ G + √λ/π A ⊗ I + λ I to A ⊗ G: more than λ, and by the same share where A or G is
    large, which keeps the factors' condition numbers low.
    """
    root = math.sqrt(damping)
    if isinstance(mean_a, float) and isinstance(mean_g, float):
        # a factor that is zero, such as G behind dead units, has no scale to balance
        ratio = math.sqrt(mean_a / mean_g) if mean_a > 0.0 and mean_g > 0.0 else 1.0
        return ratio * root, root / ratio
    mean_a, mean_g = torch.as_tensor(mean_a), torch.as_tensor(mean_g)
    usable = (mean_a > 0.0) & (mean_g > 0.0)
    one = torch.ones_like(mean_a + mean_g)
    pi = torch.where(usable, torch.sqrt(mean_a / torch.where(usable, mean_g, one)), one)
    return pi * root, root / pi
