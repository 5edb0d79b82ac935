"""How the damped blocks A ⊗ G of layers are made ready to be applied to gradients.

Each method prepares a layer when its inverses are due, and is then applied at every step, as
`thermokron.host.kfac.prepared` says:

    inverse    both inverses (Method 1, covariances on a unit)
    solve      the damped factors (Method 2, means on a unit); on the host their Cholesky factors
    eigen      A = Q_A Λ_A Q_Aᵀ, G likewise; on the host alone

On the host "inverse" is the faster one, but for small factors that are renewed at every step: for a
square layer of width n the apply is 4n³ operations at every step, and products are faster than
substitutions. On a unit means are far more exact than covariances in the same time, so that "solve"
pays where factors are renewed at every step; every column of V is a pass of its own, so that
"inverse" pays where inverses serve many steps, and where V is wide. docs/kfac.md has the figures.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from thermokron.host.kfac.dense import SMALL, definite_cholesky, float32_suffices
from thermokron.host.kfac.factors import Factor, Share, shares, symmetric
from thermokron.host.kfac.inverses import Inverter, exact
from thermokron.host.kfac.layers import KroneckerLayer
from thermokron.host.kfac.prepared import (
    EIGEN,
    Cost,
    Eigen,
    Factorised,
    Inverses,
    Prepared,
    Solves,
)

__all__ = ["METHODS", "alike", "prepare"]

METHODS = ("inverse", "solve")

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
        a, g = layer.input_factor, layer.output_factor
        jobs += zip((a, g), shares(a.mean_diagonal(), g.mean_diagonal(), damping), strict=True)
    on_unit = method == "solve" and inverse is not exact
    if on_unit:
        made = [_damped(job) for job in jobs]
    elif inverse is exact:
        made = _on_host(jobs, cost, invert=method == "inverse")
    else:
        made = [_inverted_by(inverse, job, cost) for job in jobs]
    pairs = iter(zip(jobs, made, strict=True))
    for layer, ((_, low_a), (a_made, kappa)), ((_, low_g), (g_made, worse)) in zip(
        layers, pairs, pairs, strict=True
    ):
        worst, dtype = max(kappa, worse), layer.weight.dtype
        if on_unit:
            blocks[layer] = Solves(a_made, g_made, low_a, low_g, worst)
        elif method == "solve":
            blocks[layer] = Factorised(a_made, g_made, worst)
        else:  # the products are made in the network's type
            blocks[layer] = Inverses(a_made.to(dtype), g_made.to(dtype), worst)
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


def _damped(job: Job) -> Made:
    """A damped factor in float64."""
    factor, low = job
    matrix = factor.damped(low)
    return matrix, _condition(matrix, low, factor.diagonal)


def _inverted_by(inverse: Inverter, job: Job, cost: Cost) -> Made:
    matrix, kappa = _damped(job)
    factor, low = job
    if factor.diagonal:
        return 1.0 / matrix, kappa
    if not isinstance(low, torch.Tensor):
        return cost.enter(inverse(matrix, low)), kappa
    pairs = zip(matrix, low.tolist(), strict=True)
    return torch.stack([cost.enter(inverse(block, bound)) for block, bound in pairs]), kappa


# ---- on the host ---------------------------------------------------------------------------------


def _on_host(jobs: Sequence[Job], cost: Cost, *, invert: bool) -> list[Made]:
    """Inverses, or Cholesky factors, of damped factors.

    Of diagonals the inverses, or themselves. Small matrices of one size are worked on together,
    since the calls are what takes the time there; the arithmetic is that of one by one.
    """
    made: dict[int, Made] = {}
    together: dict[tuple[int, torch.device], list[int]] = defaultdict(list)
    for place, (factor, low) in enumerate(jobs):
        assert factor.moment is not None
        if factor.diagonal:
            matrix, kappa = _damped((factor, low))
            made[place] = 1.0 / matrix if invert else matrix, kappa
        elif factor.moment.ndim == 2 and factor.size < SMALL:
            together[factor.size, factor.moment.device].append(place)
        else:
            matrix, kappa = _as_exact_as_needed(factor, low)
            made[place] = _factorised(matrix, low, cost, invert), kappa
            cost.inversions += factor.blocks
    for places in together.values():
        values = torch.stack([jobs[place][0].value.double() for place in places])
        lows = values.new_tensor([jobs[place][1] for place in places])
        matrices = symmetric(values)
        matrices.diagonal(dim1=-2, dim2=-1).add_(lows[:, None])
        kappas = (matrices.abs().sum(dim=-1).amax(dim=-1) / lows).tolist()
        answers = _factorised(matrices, lows, cost, invert)
        made |= dict(zip(places, zip(answers, kappas, strict=True), strict=True))
        cost.inversions += len(places)
    return [made[place] for place in range(len(jobs))]


def _factorised(matrix: torch.Tensor, low: Share, cost: Cost, invert: bool) -> torch.Tensor:
    """Inverses, or Cholesky factors."""
    factor, repairs = definite_cholesky(matrix, low)
    cost.repairs += repairs
    return torch.cholesky_inverse(factor) if invert else factor


def _as_exact_as_needed(factor: Factor, low: Share) -> Made:
    """A damped factor, in float32 where that is enough."""
    assert factor.moment is not None
    # the condition number is known only when the matrix is there: at worst it is made twice
    if factor.moment.dtype == torch.float32 and float32_suffices(factor.size, 1.0):
        matrix = factor.damped(low, torch.float32)
        kappa = _condition(matrix, low, factor.diagonal)
        if float32_suffices(factor.size, kappa):
            return matrix, kappa
    return _damped((factor, low))


def _decomposed(factor: Factor, cost: Cost) -> tuple[torch.Tensor | None, torch.Tensor]:
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


def _condition(matrix: torch.Tensor, low: Share, diagonal: bool) -> float:
    """A bound on the condition number: the largest eigenvalue is at most the largest row sum."""
    rows = matrix.abs() if diagonal else matrix.abs().sum(dim=-1)
    if isinstance(low, torch.Tensor):
        return (rows.amax(dim=-1) / low).max().item()
    return rows.amax().item() / low
