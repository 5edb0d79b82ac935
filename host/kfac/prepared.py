"""What is kept of a damped block A ⊗ G between its renewals, and how it is applied to a gradient.

Inverses    G⁻¹ V A⁻¹, two products on the host, O(m n (m + n))
Factorised  G X = V, then Y A = X, by substitution with Cholesky factors
Solves      the same on a unit, the columns of V as bias vectors
Eigen       Q_G [(Q_Gᵀ V Q_A) / (λ_G λ_Aᵀ + λ)] Q_Aᵀ, the damping exact
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from thermokron.host.kfac.dense import definite_cholesky, product, solved
from thermokron.host.kfac.factors import Share
from thermokron.host.kfac.inverses import Inverse, Inverter, Thermodynamic

__all__ = ["EIGEN", "Cost", "Eigen", "Factorised", "Inverses", "Prepared", "Solves", "restore"]

EIGEN = "eigen"

#: Solves one system; given a lower bound on the matrix's eigenvalues.
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


def restore(state: dict[str, Any]) -> Prepared:
    """What `state_dict` of a prepared block was made of."""
    kind, kappa = state["method"], float(state["kappa"])
    if kind == "inverse":
        return Inverses(state["a"], state["g"], kappa)
    if kind == "factorised":
        return Factorised(state["a"], state["g"], kappa)
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
        left = product(self.g, gradient)
        return left * self.a if _is_diagonal(self.a, gradient) else product(left, self.a)

    def state_dict(self) -> dict[str, Any]:
        return {"method": "inverse", "a": self.a, "g": self.g, "kappa": self.kappa}


@dataclass(frozen=True)
class Factorised:
    """Method "solve" on the host: `a` and `g` are Cholesky factors of the damped factors.

    They are kept as long as inverses would be, in float32 or float64, whichever they need.
    """

    a: torch.Tensor
    g: torch.Tensor
    kappa: float

    def apply(self, gradient: torch.Tensor, inverse: Inverter, cost: Cost) -> torch.Tensor:
        left = solved(self.g, gradient.to(self.g.dtype))
        if _is_diagonal(self.a, gradient):
            return (left / self.a).to(gradient.dtype)
        return solved(self.a, left.mT.to(self.a.dtype)).mT.to(gradient.dtype)

    def state_dict(self) -> dict[str, Any]:
        return {"method": "factorised", "a": self.a, "g": self.g, "kappa": self.kappa}


@dataclass(frozen=True)
class Solves:
    """Method "solve" on a unit: `a` and `g` are the damped factors, with lower bounds."""

    a: torch.Tensor
    g: torch.Tensor
    low_a: Share
    low_g: Share
    kappa: float

    def apply(self, gradient: torch.Tensor, inverse: Inverter, cost: Cost) -> torch.Tensor:
        solver = inverse.solve if isinstance(inverse, Thermodynamic) else _solve_on_host
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


def _each_solution(
    solver: Solver, matrices: torch.Tensor, right: torch.Tensor, lows: Share, cost: Cost
) -> torch.Tensor:
    if not isinstance(lows, torch.Tensor):
        return cost.enter(solver(matrices, right, lows))
    rows = zip(matrices, right, lows.tolist(), strict=True)
    return torch.stack([cost.enter(solver(matrix, b, low)) for matrix, b, low in rows])


def _solve_on_host(matrix: torch.Tensor, right: torch.Tensor, lambda_min: float) -> Inverse:
    """For a state that was saved with a unit, and goes on without."""
    factor, repairs = definite_cholesky(matrix, lambda_min)
    return Inverse(solved(factor, right), repairs=repairs)


def _is_diagonal(a: torch.Tensor, gradient: torch.Tensor) -> bool:
    return a.ndim < gradient.ndim
