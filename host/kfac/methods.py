"""How a damped block A ⊗ G is applied to a gradient: by inverses, by solving, or in its eigenbasis.

Each method prepares a layer when its inverses are due, and is then applied at every step:

    inverse    prepare: both inverses (Method 1, covariances on a unit)
               apply:   G⁻¹ V A⁻¹, two products on the host, O(m n (m + n)) per step
    solve      prepare: the damped factors; on the host their Cholesky factors
               apply:   G X = V, then Y A = X (Method 2, means on a unit): no product on the host
    eigen      prepare: A = Q_A Λ_A Q_Aᵀ, G likewise; on the host alone
               apply:   Q_G [(Q_Gᵀ V Q_A) / (λ_G λ_Aᵀ + λ)] Q_Aᵀ, the damping exact

"inverse" pays where inverses serve many steps, and V is wide: its columns are passes of the unit
in "solve". "solve" pays where factors are renewed at every step, as means are far more exact than
covariances in the same time, and where the products would cost the host more than the inversions:
for a square layer of width n they are 4n³ operations at every step, both inversions 2n³ when due.

Layers with the same inputs, such as query, key and value of self-attention, have the same A. They
are prepared together, and A is inverted once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from thermokron.host.kfac.dense import cholesky, float32_suffices, inverted, product, solved
from thermokron.host.kfac.factors import Factor, Share, shares
from thermokron.host.kfac.inverses import Inverse, Inverter, Thermodynamic, exact
from thermokron.host.kfac.layers import KroneckerLayer

__all__ = [
    "METHODS",
    "Cost",
    "Eigen",
    "Factorised",
    "Inverses",
    "Prepared",
    "Solves",
    "alike",
    "prepare",
    "restore",
]

METHODS = ("inverse", "solve")
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


def alike(layers: Sequence[KroneckerLayer]) -> list[list[KroneckerLayer]]:
    """Layers sorted into groups with equal A, bit for bit, as equal inputs make them.

    What is equal is seen from the averages themselves, so that a network resumed from its saved
    state is sorted in the same way. Layers of several blocks, and of diagonal A, stay alone.
    """
    groups: list[list[KroneckerLayer]] = []
    for layer in layers:
        group = next((each for each in groups if _same_inputs(each[0], layer)), None)
        if group is None:
            groups.append([layer])
        else:
            group.append(layer)
    return groups


def prepare(
    layers: Sequence[KroneckerLayer],
    damping: float,
    *,
    method: str,
    inverse: Inverter,
    cost: Cost,
) -> list[Prepared]:
    """Ready the blocks of layers with the same A, with their averages as they are now.

    Factored damping takes such layers for parts of one, whose G consists of theirs: π comes from
    the diagonals of all, so that one A + π√λ I serves all of them.

    Parameters
    ----------
    layers : sequence of KroneckerLayer
        One layer, or several as `alike` groups them; each must have seen data.
    damping : float
        λ.
    method : "inverse", "solve" or "eigen"
        How.
    inverse : Inverter
        What inverts, or solves.
    cost : Cost
        Gets what it cost.
    """
    a, several = layers[0].input_factor, [layer.output_factor for layer in layers]
    if method == EIGEN:
        left = _decompose(a, cost)
        return [_eigen(left, _decompose(g, cost), damping) for g in several]
    low_a, low_g = shares(a.mean_diagonal(), _mean_diagonal(several), damping)
    if method == "solve" and inverse is not exact:
        whole, kappa = _damped(a, low_a)
        others = [_damped(g, low_g) for g in several]
        return [Solves(whole, g, low_a, low_g, max(kappa, worse)) for g, worse in others]
    make = _factorise if method == "solve" else _invert
    ready, kappa = make(a, low_a, inverse, cost)
    blocks: list[Prepared] = []
    for layer, g in zip(layers, several, strict=True):
        other, worse = make(g, low_g, inverse, cost)
        worst, dtype = max(kappa, worse), layer.weight.dtype
        if method == "solve":
            blocks.append(Factorised(ready, other, worst))
        else:  # the products are made in the network's type
            blocks.append(Inverses(ready.to(dtype), other.to(dtype), worst))
    return blocks


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


# ---- making them ---------------------------------------------------------------------------------


def _same_inputs(one: KroneckerLayer, other: KroneckerLayer) -> bool:
    a, b = one.input_factor, other.input_factor
    assert a.moment is not None
    assert b.moment is not None
    return (
        a.moment.ndim == 2
        and one.blocks is None
        and other.blocks is None
        and a.weight == b.weight
        and a.moment.dtype == b.moment.dtype
        and torch.equal(a.moment, b.moment)  # which stops at the first difference
    )


def _mean_diagonal(factors: Sequence[Factor]) -> torch.Tensor:
    """Mean over the diagonals of all."""
    if len(factors) == 1:
        return factors[0].mean_diagonal()
    means = torch.stack([factor.mean_diagonal() for factor in factors])
    sizes = means.new_tensor([factor.size for factor in factors])
    return torch.dot(means, sizes) / sizes.sum()


def _damped(factor: Factor, low: Share) -> tuple[torch.Tensor, float]:
    """A damped factor in float64, and a bound on its condition number."""
    matrix = factor.damped(low)
    return matrix, _condition(matrix, low, factor.diagonal)


def _host_damped(factor: Factor, low: Share) -> tuple[torch.Tensor, float]:
    """The same in the precision that the host needs for it."""
    assert factor.moment is not None
    # the condition number is known only when the matrix is there: at worst it is made twice
    if factor.moment.dtype == torch.float32 and float32_suffices(factor.size, 1.0):
        matrix = factor.damped(low, torch.float32)
        kappa = _condition(matrix, low, factor.diagonal)
        if float32_suffices(factor.size, kappa):
            return matrix, kappa
    return _damped(factor, low)


def _invert(
    factor: Factor, low: Share, inverse: Inverter, cost: Cost
) -> tuple[torch.Tensor, float]:
    """The inverse of a damped factor, and a bound on its condition number."""
    if factor.diagonal:
        matrix, kappa = _damped(factor, low)
        return 1.0 / matrix, kappa
    if inverse is exact:
        matrix, kappa = _host_damped(factor, low)
        cost.inversions += factor.blocks
        return inverted(matrix), kappa
    matrix, kappa = _damped(factor, low)
    if not isinstance(low, torch.Tensor):
        return cost.enter(inverse(matrix, low)), kappa
    pairs = zip(matrix, low.tolist(), strict=True)
    return torch.stack([cost.enter(inverse(block, bound)) for block, bound in pairs]), kappa


def _factorise(
    factor: Factor, low: Share, inverse: Inverter, cost: Cost
) -> tuple[torch.Tensor, float]:
    """The Cholesky factor of a damped factor, itself if it is diagonal, and a bound likewise."""
    if factor.diagonal:
        return _damped(factor, low)
    matrix, kappa = _host_damped(factor, low)
    cost.inversions += factor.blocks
    return cholesky(matrix), kappa


def _decompose(factor: Factor, cost: Cost) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Eigenvectors, none of a diagonal, and eigenvalues of an undamped factor."""
    matrix = factor.damped(0.0)
    if factor.diagonal:
        vectors, values = None, matrix
    else:
        values, vectors = torch.linalg.eigh(matrix)
        cost.inversions += factor.blocks
    # rounding may leave an eigenvalue of a semidefinite matrix below zero
    return vectors, values.clamp(min=0.0)


def _eigen(
    a: tuple[torch.Tensor | None, torch.Tensor],
    g: tuple[torch.Tensor | None, torch.Tensor],
    damping: float,
) -> Eigen:
    (qa, la), (qg, lg) = a, g
    assert qg is not None
    largest, least = la.amax(-1) * lg.amax(-1), la.amin(-1) * lg.amin(-1)
    kappa = ((largest + damping) / (least + damping)).max().item()
    return Eigen(qa, la, qg, lg, damping, kappa)


def _each_solution(
    solver: Solver, matrices: torch.Tensor, right: torch.Tensor, lows: Share, cost: Cost
) -> torch.Tensor:
    if not isinstance(lows, torch.Tensor):
        return cost.enter(solver(matrices, right, lows))
    rows = zip(matrices, right, lows.tolist(), strict=True)
    return torch.stack([cost.enter(solver(matrix, b, low)) for matrix, b, low in rows])


def _solve_on_host(matrix: torch.Tensor, right: torch.Tensor, lambda_min: float) -> Inverse:
    """For a state that was saved with a unit, and goes on without."""
    return Inverse(solved(cholesky(matrix), right))


def _condition(matrix: torch.Tensor, low: Share, diagonal: bool) -> float:
    """A bound on the condition number: the largest eigenvalue is at most the largest row sum."""
    rows = matrix.abs() if diagonal else matrix.abs().sum(dim=-1)
    if isinstance(low, torch.Tensor):
        return (rows.amax(dim=-1) / low).max().item()
    return rows.amax().item() / low


def _is_diagonal(a: torch.Tensor, gradient: torch.Tensor) -> bool:
    return a.ndim < gradient.ndim
