"""What sums over the samples of coupled Ornstein-Uhlenbeck modes are like, in closed form.

A mode of rate λ begins at 0 when discharge ends, and is sampled N times, at t₀ + jΔ. With
ρ = e^(-λΔ), v = e^(-λt₀), times in τ, m the mean that it tends to and C the covariance of two
settled modes,

    E z_k(j) = m_k (1 - v_k ρ_k^j),
    Cov(z_k(i), z_l(j)) = C_kl (1 - v_k v_l (ρ_k ρ_l)^j) ρ_k^(i-j)   for i ≥ j,

and all that follows are sums of geometric series, which are worked out of exponents, so that slow
modes do not cancel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Law", "convolved", "correlated", "geometric"]

#: What is left of a mode's variance after settling, below which products are taken for settled.
SETTLED = 1e-3


def geometric(rate: torch.Tensor, count: int) -> torch.Tensor:
    """Σ_j e^(-rate·j) over j = 0 … count-1, elementwise; rates are not negative."""
    still = rate == 0.0
    safe = torch.where(still, 1.0, rate)
    return torch.where(still, float(count), torch.expm1(-count * safe) / torch.expm1(-safe))


def convolved(a: torch.Tensor, b: torch.Tensor, count: int) -> torch.Tensor:
    """Σ_j e^(-a (count-1-j)) e^(-b j) over j = 0 … count-1, elementwise."""
    slower = torch.exp(-(count - 1) * torch.minimum(a, b))
    return slower * geometric((a - b).abs(), count)


def correlated(a: torch.Tensor, b: torch.Tensor, count: int) -> torch.Tensor:
    """Σ_ij e^(-a |i-j|) e^(-b (i+j)) over i, j = 0 … count-1, elementwise; a + b is positive."""
    both, each = a + b, geometric(2.0 * b, count)
    return each + 2.0 / torch.expm1(both) * (each - convolved(both, 2.0 * b, count))


@dataclass(frozen=True)
class Law:
    """Of the modes' sums over samples, Σz, and over their products, Σzzᵀ.

    Attributes
    ----------
    rates : (n,) float64 tensor
        λ, positive.
    settle, interval : float, in τ
        t₀ and Δ.
    samples : int
        N.
    """

    rates: torch.Tensor
    settle: float
    interval: float
    samples: int

    @property
    def _steps(self) -> torch.Tensor:
        return self.rates * self.interval

    @property
    def _left(self) -> torch.Tensor:
        return torch.exp(-self.rates * self.settle)

    def mean(self) -> torch.Tensor:
        """E Σz over m, (n,)."""
        return self.samples - self._left * geometric(self._steps, self.samples)

    def energy(self, *, pairs: bool) -> torch.Tensor:
        """Σ_j Cov(z_k(j), z_l(j)) over C_kl: (n, n), or (n,) for each mode with itself."""
        (a, v), (b, w) = self._both(pairs)
        return self.samples - v * w * geometric(a + b, self.samples)

    def covariance(self, *, pairs: bool) -> torch.Tensor:
        """Cov(Σz_k, Σz_l) over C_kl: (n, n), or (n,) for each mode with itself."""
        (a, v), (b, w) = self._both(pairs)
        count, joint, undone = self.samples, a + b, v * w
        together = geometric(joint, count)
        total = count - undone * together
        for one in (a, b):  # whichever of the two is the later
            later = count - geometric(one, count)
            later = later - undone * (together - convolved(one, joint, count))
            total = total + later / torch.expm1(one)
        return total

    def transient(self, ends: torch.Tensor) -> torch.Tensor:
        """Σ_j E z_k E z_l - (E Σz_k)(E Σz_l)/N for means that tend to `ends`, (n, n)."""
        (a, v), (b, w) = self._both(pairs=True)
        apart = geometric(a, self.samples) * geometric(b, self.samples) / self.samples
        left = geometric(a + b, self.samples) - apart
        return torch.outer(ends, ends) * v * w * left

    def scatter(self) -> torch.Tensor:
        """Var of Σ(z-z̄)_k (z-z̄)_l over C_kk C_ll + C_kl², (n, n).

        By Isserlis' theorem that of Σ z_k z_l is Σ_ij of a product of two covariances. Of it goes
        what z̄ has, with which the rest is all but uncorrelated.
        """
        (a, v), (b, w) = self._both(pairs=True)
        count = self.samples
        total = correlated(a + b, torch.zeros_like(a), count)
        v, w = v * v, w * w
        if float(v.max()) > SETTLED:
            total = total - w * correlated(a, b, count) - v * correlated(b, a, count)
            total = total + v * w * geometric(a + b, count) ** 2
        of_mean = self.covariance(pairs=False) / count
        return (total - torch.outer(of_mean, of_mean)).clamp_min(0.0)

    def _both(
        self, pairs: bool
    ) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        a, v = self._steps, self._left
        return ((a[:, None], v[:, None]), (a, v)) if pairs else ((a, v), (a, v))
