"""What is kept of a damped block A ⊗ G between its renewals, and how it is applied to a gradient.

Inverses    G⁻¹ V A⁻¹, two products on the host, O(m n (m + n))
Factorised  G X = V, then Y A = X, by substitution with Cholesky factors
Programs    the same on a unit: both factors are programmed, and the columns of V are bias vectors
Eigen       Q_G [(Q_Gᵀ V Q_A) / (λ_G λ_Aᵀ + λ)] Q_Aᵀ, the damping exact
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from thermokron.host.kfac.solve.cost import Cost
from thermokron.host.kfac.solve.dense import definite_cholesky, solved
from thermokron.host.kfac.solve.inverses import Inverter, Thermodynamic
from thermokron.host.linalg import Dithered, Eliminated, Programmed, load
from thermokron.host.products import product
from thermokron.model import Unit

__all__ = [
    "EIGEN",
    "Eigen",
    "Factorised",
    "Inverses",
    "Kept",
    "Prepared",
    "Programs",
    "held",
    "restore",
    "shapes_of",
]

EIGEN = "eigen"

#: The blocks of a factor on a unit; or its diagonal, on the host.
OnUnit = tuple[Programmed | Eliminated, ...] | torch.Tensor


class Prepared(Protocol):
    """One layer's block, ready to be applied."""

    @property
    def kappa(self) -> float:
        """Condition number of the worse of its damped factors, or an upper bound on it."""
        ...

    def apply(self, gradient: torch.Tensor, inverse: Inverter, cost: Cost) -> torch.Tensor:
        """The damped block's inverse times a gradient (..., m, n); `inverse` reads, if need be."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What `restore` makes the same of."""
        ...


def restore(state: dict[str, Any], inverse: Inverter) -> Prepared:
    """What `state_dict` of a prepared block was made of.

    What was programmed is factorised where there is no unit any more.
    """
    kind, kappa = state["method"], float(state["kappa"])
    if kind == "inverse":
        return Inverses(state["a"], state["g"], kappa)
    if kind == "factorised":
        return Factorised(state["a"], state["g"], kappa)
    if kind == "solve":
        a, g = (
            each if isinstance(each, torch.Tensor) else [_arrays(one) for one in each]
            for each in (state["a"], state["g"])
        )
        batched = bool(state["batched"])
        if not isinstance(inverse, Thermodynamic):
            return Factorised(_factors(a, batched), _factors(g, batched), kappa)
        on_a, on_g = (
            each
            if isinstance(each, torch.Tensor)
            else tuple(_loaded(inverse.unit, one) for one in each)
            for each in (a, g)
        )
        return Programs(on_a, on_g, batched, kappa)
    return Eigen(state["qa"], state["la"], state["qg"], state["lg"], state["damping"], kappa)


def held(state: dict[str, Any], inverse: Inverter) -> Prepared:
    """A block that another process applies, or that no unit is needed for."""
    return Kept(state) if state["method"] == "solve" else restore(state, inverse)


def shapes_of(state: dict[str, Any]) -> list[tuple[int, ...]]:
    """The shapes of A and G that a block was made of, from its `state_dict`.

    Raises
    ------
    ValueError
        If it is none.
    """
    try:
        if state["method"] == EIGEN:
            return [
                tuple(values.shape if vectors is None else vectors.shape)
                for vectors, values in ((state["qa"], state["la"]), (state["qg"], state["lg"]))
            ]
        return [_shape(state[side], bool(state.get("batched"))) for side in "ag"]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"state holds a block that is none: {error!r}") from None


def _shape(side: Any, batched: bool) -> tuple[int, ...]:
    if isinstance(side, torch.Tensor):
        return tuple(side.shape)
    size = tuple(side[0]["matrix"].shape)
    return (len(side), *size) if batched else size


@dataclass(frozen=True)
class Inverses:
    """Method "inverse": `a` and `g` are the inverses of the damped factors."""

    a: torch.Tensor
    g: torch.Tensor
    kappa: float

    def apply(self, gradient: torch.Tensor, inverse: Inverter, cost: Cost) -> torch.Tensor:
        if _is_diagonal(self.g, gradient):
            left = self.g[:, None] * gradient
            cost.flops(left.numel())
        else:
            left = product(self.g, gradient)
            cost.flops(2 * left.numel() * self.g.shape[-1])
        if _is_diagonal(self.a, gradient):
            cost.flops(left.numel())
            return left * self.a
        cost.flops(2 * left.numel() * self.a.shape[-1])
        return product(left, self.a)

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
        if _is_diagonal(self.g, gradient):
            left = gradient / self.g[:, None]
            cost.flops(left.numel())
        else:
            left = solved(self.g, gradient.to(self.g.dtype))
            cost.flops(2 * left.numel() * self.g.shape[-1])
        if _is_diagonal(self.a, gradient):
            cost.flops(left.numel())
            return (left / self.a).to(gradient.dtype)
        cost.flops(2 * left.numel() * self.a.shape[-1])
        return solved(self.a, left.mT.to(self.a.dtype)).mT.to(gradient.dtype)

    def state_dict(self) -> dict[str, Any]:
        return {"method": "factorised", "a": self.a, "g": self.g, "kappa": self.kappa}


@dataclass(frozen=True)
class Programs:
    """Method "solve" on a unit: the damped factors as they were programmed, a block each."""

    a: OnUnit
    g: OnUnit
    batched: bool
    kappa: float

    def apply(self, gradient: torch.Tensor, inverse: Inverter, cost: Cost) -> torch.Tensor:
        assert isinstance(inverse, Thermodynamic)
        if isinstance(self.g, torch.Tensor):
            left = gradient / self.g[:, None]
            cost.flops(left.numel())
        else:
            left = _read(inverse, self.g, gradient, cost)
        if isinstance(self.a, torch.Tensor):
            cost.flops(left.numel())
            return (left / self.a).to(gradient.dtype)
        return _read(inverse, self.a, left.mT, cost).mT.to(gradient.dtype)

    def state_dict(self) -> dict[str, Any]:
        a, g = (
            each if isinstance(each, torch.Tensor) else [_tensors(one.state_dict()) for one in each]
            for each in (self.a, self.g)
        )
        return {"method": "solve", "a": a, "g": g, "batched": self.batched, "kappa": self.kappa}

    def gains(self) -> list[Any]:
        """What of the state changes whenever it is applied: how large solutions were."""
        sides = [() if isinstance(each, torch.Tensor) else each for each in (self.a, self.g)]
        return [_tensors(g) for side in sides for one in side for g in _gains(one.state_dict())]


@dataclass(frozen=True)
class Kept:
    """The state of `Programs` on the unit of another process, to be saved with all others."""

    state: dict[str, Any]

    @property
    def kappa(self) -> float:
        return float(self.state["kappa"])

    def with_gains(self, gains: Iterable[Any]) -> Kept:
        """The same, with `Programs.gains` as they are now."""
        return Kept(_with_gains(self.state, iter(gains)))

    def apply(self, gradient: torch.Tensor, inverse: Inverter, cost: Cost) -> torch.Tensor:
        raise AssertionError("a block is applied where its unit is")

    def state_dict(self) -> dict[str, Any]:
        return self.state


@dataclass(frozen=True)
class Eigen:
    """Damping mode "exact": eigenvectors and eigenvalues; no vectors where a factor is diagonal."""

    qa: torch.Tensor | None
    la: torch.Tensor
    qg: torch.Tensor | None
    lg: torch.Tensor
    damping: float
    kappa: float

    def apply(self, gradient: torch.Tensor, inverse: Inverter, cost: Cost) -> torch.Tensor:
        cost.flops(3 * gradient.numel())
        turned = gradient.to(self.lg.dtype)
        if self.qg is not None:
            cost.flops(4 * gradient.numel() * gradient.shape[-2])
            turned = self.qg.mT @ turned
        if self.qa is not None:
            cost.flops(4 * gradient.numel() * gradient.shape[-1])
            turned = turned @ self.qa
        turned = turned / (self.lg[..., :, None] * self.la[..., None, :] + self.damping)
        back = turned if self.qg is None else self.qg @ turned
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


def _loaded(unit: Unit, state: dict[str, Any]) -> Programmed | Eliminated:
    programmed = load(unit, state)
    assert not isinstance(programmed, Dithered), "a factor is rounded once"
    return programmed


def _read(
    inverse: Thermodynamic, programs: OnUnit, right: torch.Tensor, cost: Cost
) -> torch.Tensor:
    """Solutions for right-hand sides (n, k), or (blocks, n, k)."""
    assert not isinstance(programs, torch.Tensor)
    parts = []
    for programmed, columns in zip(programs, right.reshape(-1, *right.shape[-2:]), strict=True):
        solution, spent = inverse.solve(programmed, columns)
        cost.add(spent)
        cost.inversions += 1
        parts.append(solution)
    return parts[0] if right.ndim == 2 else torch.stack(parts)


def _tensors(state: Any) -> Any:
    """Arrays as tensors, which `torch.load(weights_only=True)` reads."""
    if isinstance(state, np.ndarray):
        return torch.from_numpy(state.copy())
    if isinstance(state, dict):
        return {key: _tensors(value) for key, value in state.items()}
    return [_tensors(each) for each in state] if isinstance(state, list) else state


def _arrays(state: Any) -> Any:
    """What `_tensors` was made of."""
    if isinstance(state, torch.Tensor):
        return state.cpu().numpy()
    if isinstance(state, dict):
        return {key: _arrays(value) for key, value in state.items()}
    return [_arrays(each) for each in state] if isinstance(state, list) else state


def _gains(state: Any) -> Iterator[Any]:
    """All entries of this name in the state of something programmed, in its order."""
    if isinstance(state, dict):
        for key, value in state.items():
            yield from [value] if key == "gains" else _gains(value)
    elif isinstance(state, list):
        for each in state:
            yield from _gains(each)


def _with_gains(state: Any, gains: Iterator[Any]) -> Any:
    """The same state with other gains."""
    if isinstance(state, dict):
        return {
            key: next(gains) if key == "gains" else _with_gains(value, gains)
            for key, value in state.items()
        }
    return [_with_gains(each, gains) for each in state] if isinstance(state, list) else state


def _factors(states: Any, batched: bool) -> torch.Tensor:
    """Cholesky factors of what was programmed, for a state that goes on without the unit."""
    if isinstance(states, torch.Tensor):
        return states
    factors = []
    for state in states:
        scale = torch.from_numpy(state["scale"])
        factor, _ = definite_cholesky(torch.from_numpy(state["matrix"]), state["bound"])
        factors.append(scale[:, None] * factor)  # M = D^½ A D^½
    return torch.stack(factors) if batched else factors[0]


def _is_diagonal(factor: torch.Tensor, gradient: torch.Tensor) -> bool:
    return factor.ndim < gradient.ndim
