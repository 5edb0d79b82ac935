"""How a damped block A ⊗ G is applied to a gradient: by inverses, by solving, or in its eigenbasis.

Each method prepares a layer when its inverses are due, and is then applied at every step:

    inverse    prepare: both inverses (Method 1, covariances on a unit)
               apply:   G⁻¹ V A⁻¹, two products on the host, O(m n (m + n)) per step
    solve      prepare: the damped factors
               apply:   G X = V, then Y A = X (Method 2, means on a unit): no product on the host
    eigen      prepare: A = Q_A Λ_A Q_Aᵀ, G likewise; on the host alone
               apply:   Q_G [(Q_Gᵀ V Q_A) / (λ_G λ_Aᵀ + λ)] Q_Aᵀ, the damping exact

"inverse" pays where inverses serve many steps, and V is wide: its columns are passes of the unit
in "solve". "solve" pays where factors are renewed at every step, as means are far more exact than
covariances in the same time, and where the products would cost the host more than the inversions:
for a square layer of width n they are 4n³ operations at every step, both inversions 2n³ when due.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from thermokron.host.kfac.inverses import Inverse, Inverter, Thermodynamic, exact
from thermokron.host.kfac.layers import KroneckerLayer

__all__ = ["METHODS", "Cost", "Eigen", "Inverses", "Prepared", "Solves", "prepare", "restore"]

METHODS = ("inverse", "solve")
EIGEN = "eigen"

#: Inverts one matrix; given a lower bound on its eigenvalues.
Solver = Callable[[torch.Tensor, torch.Tensor, float], Inverse]


@dataclass
class Cost:
    """What a step's inverses and solutions cost; attributes as of `Inverse`, added up."""

    inversions: int = 0
    hardware_seconds: float = 0.0
    runs: int = 0
    digital_flops: int = 0
    repairs: int = 0
    clipped: int = 0

    def enter(self, inverse: Inverse) -> torch.Tensor:
        """Add one to the account; its value."""
        self.inversions += 1
        self.hardware_seconds += inverse.hardware_seconds
        self.runs += inverse.runs
        self.digital_flops += inverse.digital_flops
        self.repairs += inverse.repairs
        self.clipped += inverse.clipped
        return inverse.value


class Prepared(Protocol):
    """One layer's block, ready to be applied."""

    @property
    def kappa(self) -> float:
        """Condition number of the worse of its damped factors, or an upper bound on it."""
        ...

    def apply(self, gradient: torch.Tensor, inverse: Inverter, cost: Cost) -> torch.Tensor:
        """The damped block's inverse times a gradient (..., m, n); `inverse` solves, if need be."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What `restore` makes the same of."""
        ...


def prepare(
    layer: KroneckerLayer,
    damping: float,
    *,
    method: str,
    inverse: Inverter,
    cost: Cost,
) -> Prepared:
    """Ready a layer's block, with its averages as they are now.

    Parameters
    ----------
    layer : KroneckerLayer
        Which must have seen data.
    damping : float
        λ.
    method : "inverse", "solve" or "eigen"
        How.
    inverse : Inverter
        What inverts, or solves.
    cost : Cost
        Gets what it cost.
    """
    if method == EIGEN:
        return _decompose(layer, damping, cost)
    (a, low_a), (g, low_g) = layer.damped_factors(damping)
    dtype = layer.weight.dtype
    kappa = max(_condition(a, low_a, layer.input_factor.diagonal), _condition(g, low_g, False))
    if method == "solve":
        return Solves(a, g, low_a, low_g, kappa)
    a_inverse = 1.0 / a if layer.input_factor.diagonal else _each(inverse, a, low_a, cost)
    return Inverses(a_inverse.to(dtype), _each(inverse, g, low_g, cost).to(dtype), kappa)


def restore(state: dict[str, Any]) -> Prepared:
    """What `state_dict` of a prepared block was made of."""
    kind, kappa = state["method"], float(state["kappa"])
    if kind == "inverse":
        return Inverses(state["a"], state["g"], kappa)
    if kind == "solve":
        return Solves(state["a"], state["g"], state["low_a"], state["low_g"], kappa)
    return Eigen(state["qa"], state["la"], state["qg"], state["lg"], state["damping"], kappa)


@dataclass(frozen=True)
class Inverses:
    """Method "inverse": `a` and `g` are the inverses of the damped factors."""

    a: torch.Tensor
    g: torch.Tensor
    kappa: float

    def apply(self, gradient: torch.Tensor, inverse: Inverter, cost: Cost) -> torch.Tensor:
        left = self.g @ gradient
        return left * self.a if _is_diagonal(self.a, gradient) else left @ self.a

    def state_dict(self) -> dict[str, Any]:
        return {"method": "inverse", "a": self.a, "g": self.g, "kappa": self.kappa}


@dataclass(frozen=True)
class Solves:
    """Method "solve": `a` and `g` are the damped factors themselves, with lower bounds."""

    a: torch.Tensor
    g: torch.Tensor
    low_a: torch.Tensor
    low_g: torch.Tensor
    kappa: float

    def apply(self, gradient: torch.Tensor, inverse: Inverter, cost: Cost) -> torch.Tensor:
        solver = inverse.solve if isinstance(inverse, Thermodynamic) else _cholesky_solve
        left = _each_solution(solver, self.g, gradient.to(self.g.dtype), self.low_g, cost)
        if _is_diagonal(self.a, gradient):
            return (left / self.a).to(gradient.dtype)
        right = _each_solution(solver, self.a, left.mT, self.low_a, cost)
        return right.mT.to(gradient.dtype)

    def state_dict(self) -> dict[str, Any]:
        return {
            "method": "solve",
            "a": self.a,
            "g": self.g,
            "low_a": self.low_a,
            "low_g": self.low_g,
            "kappa": self.kappa,
        }


@dataclass(frozen=True)
class Eigen:
    """Damping mode "exact": eigenvectors and eigenvalues; no `qa` where A is diagonal."""

    qa: torch.Tensor | None
    la: torch.Tensor
    qg: torch.Tensor
    lg: torch.Tensor
    damping: float
    kappa: float

    def apply(self, gradient: torch.Tensor, inverse: Inverter, cost: Cost) -> torch.Tensor:
        turned = self.qg.mT @ gradient.to(self.qg.dtype)
        turned = turned if self.qa is None else turned @ self.qa
        turned = turned / (self.lg[..., :, None] * self.la[..., None, :] + self.damping)
        back = self.qg @ turned
        return (back if self.qa is None else back @ self.qa.mT).to(gradient.dtype)

    def state_dict(self) -> dict[str, Any]:
        return {
            "method": EIGEN,
            "qa": self.qa,
            "la": self.la,
            "qg": self.qg,
            "lg": self.lg,
            "damping": self.damping,
            "kappa": self.kappa,
        }


def _decompose(layer: KroneckerLayer, damping: float, cost: Cost) -> Eigen:
    a, g = layer.input_factor.damped(0.0), layer.output_factor.damped(0.0)
    if layer.input_factor.diagonal:
        la, qa = a, None
    else:
        la, qa = torch.linalg.eigh(a)
        cost.inversions += layer.blocks or 1
    lg, qg = torch.linalg.eigh(g)
    cost.inversions += layer.blocks or 1
    # rounding may leave an eigenvalue of a semidefinite matrix below zero
    la, lg = la.clamp(min=0.0), lg.clamp(min=0.0)
    largest, least = la.amax(-1) * lg.amax(-1), la.amin(-1) * lg.amin(-1)
    kappa = ((largest + damping) / (least + damping)).max().item()
    return Eigen(qa, la, qg, lg, damping, kappa)


def _each(
    inverse: Inverter, matrices: torch.Tensor, lows: torch.Tensor, cost: Cost
) -> torch.Tensor:
    """Inverses of one (n, n) or several (blocks, n, n) matrices."""
    if matrices.ndim == 2:
        return cost.enter(inverse(matrices, lows.item()))
    if inverse is exact:  # all at once
        cost.inversions += len(matrices)
        return exact(matrices, lows.min().item()).value
    pairs = zip(matrices, lows.tolist(), strict=True)
    return torch.stack([cost.enter(inverse(matrix, low)) for matrix, low in pairs])


def _each_solution(
    solver: Solver, matrices: torch.Tensor, right: torch.Tensor, lows: torch.Tensor, cost: Cost
) -> torch.Tensor:
    if matrices.ndim == 2:
        return cost.enter(solver(matrices, right, lows.item()))
    rows = zip(matrices, right, lows.tolist(), strict=True)
    return torch.stack([cost.enter(solver(matrix, b, low)) for matrix, b, low in rows])


def _cholesky_solve(matrix: torch.Tensor, right: torch.Tensor, lambda_min: float) -> Inverse:
    return Inverse(torch.cholesky_solve(right, torch.linalg.cholesky(matrix)))


def _condition(matrix: torch.Tensor, low: torch.Tensor, diagonal: bool) -> float:
    """A bound on the condition number: the largest eigenvalue is at most the largest row sum."""
    rows = matrix.abs() if diagonal else matrix.abs().sum(dim=-1)
    return (rows.amax(dim=-1) / low).max().item()


def _is_diagonal(a: torch.Tensor, gradient: torch.Tensor) -> bool:
    return a.ndim < gradient.ndim
