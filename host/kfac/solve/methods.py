"""How the damped blocks A ⊗ G of layers are made ready to be applied to gradients.

Each method prepares a layer when its inverses are due, and is then applied at every step, as
`thermokron.host.kfac.solve.prepared` says:

    inverse    both inverses (Method 1, covariances on a unit)
    solve      the damped factors (Method 2, means on a unit); on the host their Cholesky factors
    eigen      A = Q_A Λ_A Q_Aᵀ, G likewise; on the host alone

On the host "inverse" is the faster one, but for small factors that are renewed at every step: for a
square layer of width n the apply is 4n³ operations at every step, and products are faster than
substitutions. On a unit "solve" is the default: the unit then makes the apply too, and one reading
of every column is enough, so that the host's part of a step is of the order of the numbers that it
moves. "inverse" pays there where inverses serve many steps, since every column of V is a pass of
its own at every step. docs/kfac.md has the figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch

from thermokron.host.kfac.curvature.factors import Factor, Share, in_type, shares
from thermokron.host.kfac.curvature.layers import KroneckerLayer, Layer
from thermokron.host.kfac.solve.cost import Cost, work_out
from thermokron.host.kfac.solve.dense import definite_cholesky, float32_suffices
from thermokron.host.kfac.solve.inverses import Inverter, Thermodynamic, exact
from thermokron.host.kfac.solve.prepared import (
    EIGEN,
    Eigen,
    Factorised,
    Inverses,
    OnUnit,
    Prepared,
    Programs,
)

__all__ = ["METHODS", "alike", "prepare"]

METHODS = ("inverse", "solve")

NONE_BEFORE: Mapping[Layer, Prepared] = {}
#: A factor, and the damping's share in it.
Job = tuple[Factor, Share]
#: What was made of it, and a bound on the condition number of the damped factor.
Made = tuple[torch.Tensor, float]


def alike(layers: Sequence[KroneckerLayer]) -> list[list[KroneckerLayer]]:
    """Layers sorted into groups with equal A, bit for bit, as equal inputs make them.

    Query, key and value of self-attention are such a group. What is equal is seen from the
    averages themselves, so that a network resumed from its saved state is sorted in the same way.
    Layers of several blocks, and of diagonal A, stay alone.
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
    before: Mapping[Layer, Prepared] = NONE_BEFORE,
) -> dict[KroneckerLayer, Prepared]:
    """Ready the blocks of layers, with their averages as they are now.

    Where the damping is exact, layers with the same A share its eigendecomposition. Factored
    damping leaves no two alike: π, and with it A + π√λ I, depends on each layer's G.

    Parameters
    ----------
    layers : sequence of KroneckerLayer
        Which must have seen data.
    damping : float
        λ.
    method : "inverse", "solve" or "eigen"
        How.
    inverse : Inverter
        What inverts, or solves.
    cost : Cost
        Gets what it cost.
    before : mapping of Layer to Prepared
        The blocks that these follow.
    """
    blocks: dict[KroneckerLayer, Prepared] = {}
    if method == EIGEN:
        for group in alike(layers):
            left = _decomposed(group[0].input_factor, cost)
            for layer in group:
                blocks[layer] = _eigen(left, _decomposed(layer.output_factor, cost), damping)
        return blocks
    jobs: list[Job] = []
    for layer in layers:
        factors = layer.input_factor, layer.output_factor
        mean_a, mean_g = (factor.mean_diagonal() for factor in factors)
        jobs += zip(factors, shares(mean_a, mean_g, damping), strict=True)
        cost.flops(sum(factor.blocks * factor.size for factor in factors))
    if method == "solve" and isinstance(inverse, Thermodynamic):
        olds: list[OnUnit] = []
        for layer in layers:
            old = before.get(layer)
            olds += (old.a, old.g) if isinstance(old, Programs) else ((), ())
        programming = [
            partial(_programmed_by, inverse, job, old) for job, old in zip(jobs, olds, strict=True)
        ]
        programmed = work_out(inverse.unit, programming, cost)
        for layer, (a_made, kappa), (g_made, worse) in zip(
            layers, programmed[::2], programmed[1::2], strict=True
        ):
            batched = layer.blocks is not None
            blocks[layer] = Programs(a_made, g_made, batched, max(kappa, worse))
        return blocks
    if inverse is exact:
        made = _on_host(jobs, cost, invert=method == "inverse")
    else:
        unit = inverse.unit if isinstance(inverse, Thermodynamic) else None
        made = work_out(unit, [partial(_inverted_by, inverse, job) for job in jobs], cost)
    for layer, (a, kappa), (g, worse) in zip(layers, made[::2], made[1::2], strict=True):
        worst = max(kappa, worse)
        if method == "solve":
            blocks[layer] = Factorised(a, g, worst)
        else:  # products are made in the type of the moments, the network's or single precision
            dtype = layer.output_factor.dtype
            blocks[layer] = Inverses(in_type(a, dtype), in_type(g, dtype), worst)
    return blocks


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


def _damped(factor: Factor, low: Share, cost: Cost) -> Made:
    """A damped factor in float64."""
    matrix = factor.damped(low)
    if factor.diagonal:
        cost.flops(matrix.numel())
    else:  # of both triangles the mean
        cost.flops(3 * matrix.numel() + matrix.shape[-1])
    return matrix, _condition(matrix, low, factor.diagonal, cost)


def _inverted_by(inverse: Inverter, job: Job, cost: Cost) -> Made:
    factor, low = job
    matrix, kappa = _damped(factor, low, cost)
    if factor.diagonal:
        cost.flops(len(matrix))
        return 1.0 / matrix, kappa
    inverses = []
    for block, bound in _each(matrix, low):
        found = inverse(block, bound)
        cost.inversions += 1
        if found.cost is not None:
            cost.add(found.cost)
        inverses.append(found.value)
    return (inverses[0] if matrix.ndim == 2 else torch.stack(inverses)), kappa


def _programmed_by(
    inverse: Thermodynamic, job: Job, before: OnUnit, cost: Cost
) -> tuple[OnUnit, float]:
    """A damped factor on the unit, in the precision that it needs; `before` what it follows."""
    factor, low = job
    if factor.diagonal:
        return _damped(factor, low, cost)
    matrix, kappa = _as_exact_as_needed(factor, low, cost)
    olds = before if len(before) == factor.blocks else [None] * factor.blocks
    made = []
    for (block, bound), old in zip(_each(matrix, low), olds, strict=True):
        made.append(inverse.program(block, bound, old))
        cost.add(made[-1].cost)
    return tuple(made), kappa


def _each(matrix: torch.Tensor, low: Share) -> list[tuple[torch.Tensor, float]]:
    """The matrices of a factor, each with the damping's share in it."""
    if matrix.ndim == 2:
        return [(matrix, float(low))]
    lows = torch.as_tensor(low).expand(len(matrix)).tolist()
    return list(zip(matrix, lows, strict=True))


# ---- on the host ---------------------------------------------------------------------------------


def _on_host(jobs: Sequence[Job], cost: Cost, *, invert: bool) -> list[Made]:
    """Inverses, or Cholesky factors, of damped factors; of diagonals inverses, or themselves."""
    made: list[Made] = []
    for factor, low in jobs:
        if factor.diagonal:
            matrix, kappa = _damped(factor, low, cost)
            cost.flops(len(matrix) if invert else 0)
            made.append((1.0 / matrix if invert else matrix, kappa))
        else:
            matrix, kappa = _as_exact_as_needed(factor, low, cost)
            made.append((_factorised(matrix, low, cost, invert), kappa))
            cost.inversions += factor.blocks
    return made


def _factorised(matrix: torch.Tensor, low: Share, cost: Cost, invert: bool) -> torch.Tensor:
    """Inverses, or Cholesky factors."""
    factor, repairs = definite_cholesky(matrix, low)
    cost.repairs += repairs
    size = matrix.shape[-1]
    cost.cholesky(size, matrix.numel() // size**2, inverse=invert)
    # LAPACK's columns are rows of the same matrix, as products want them
    return torch.cholesky_inverse(factor).mT if invert else factor


def _as_exact_as_needed(factor: Factor, low: Share, cost: Cost) -> Made:
    """A damped factor, in float32 where that is enough."""
    assert factor.moment is not None
    # the condition number is known only when the matrix is there: at worst it is made twice
    if factor.moment.dtype == torch.float32:
        matrix = factor.damped(low, torch.float32)
        cost.flops(matrix.numel() + matrix.shape[-1])
        kappa = _condition(matrix, low, factor.diagonal, cost)
        if float32_suffices(kappa):
            return matrix, kappa
    return _damped(factor, low, cost)


def _decomposed(factor: Factor, cost: Cost) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Eigenvectors, none of a diagonal, and eigenvalues of an undamped factor."""
    matrix = factor.damped(0.0)
    if factor.diagonal:
        vectors, values = None, matrix
    else:
        values, vectors = torch.linalg.eigh(matrix)
        cost.flops(3 * matrix.numel())  # of both triangles the mean
        cost.eigen(factor.size, factor.blocks)
        cost.inversions += factor.blocks
    # rounding may leave an eigenvalue of a semidefinite matrix below zero
    return vectors, values.clamp(min=0.0)


def _eigen(
    a: tuple[torch.Tensor | None, torch.Tensor],
    g: tuple[torch.Tensor | None, torch.Tensor],
    damping: float,
) -> Eigen:
    (qa, la), (qg, lg) = a, g
    largest, least = la.amax(-1) * lg.amax(-1), la.amin(-1) * lg.amin(-1)
    kappa = ((largest + damping) / (least + damping)).max().item()
    return Eigen(qa, la, qg, lg, damping, kappa)


def _condition(matrix: torch.Tensor, low: Share, diagonal: bool, cost: Cost) -> float:
    """A bound on the condition number: the largest eigenvalue is at most the Frobenius norm."""
    if diagonal:
        largest = matrix.amax(dim=-1)
    else:
        cost.flops(2 * matrix.numel())
        if isinstance(low, float):
            return float(torch.linalg.vector_norm(matrix).item()) / low
        largest = torch.linalg.vector_norm(matrix, dim=(-2, -1))
    return (largest / low).max().item()
