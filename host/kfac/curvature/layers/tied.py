"""One weight matrix in modules that use it differently, such as embedding and output layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from thermokron.host.kfac.curvature.layers.kronecker import KroneckerLayer

__all__ = ["TiedLayer", "balanced"]


class TiedLayer(KroneckerLayer):
    """The curvature of a weight that several parts of a model share, each in a way of its own.

    With W of shape (m, n), a linear layer z = W a has the block G ⊗ A, G of size m, A of size n;
    an embedding, which reads rows of W, has D ⊗ G, D the diagonal of m index frequencies, G of
    size n. Uses of one kind are added up by `KroneckerLayer`, factor by factor; those of two kinds
    cannot be, as what is an input's second moment here is a gradient's there, in other units. The
    sum of their blocks L_k ⊗ R_k, L of size m, R of size n, is therefore approximated by

        L ⊗ R,    L = Σ_k tr(R_k) L_k / √t,   R = Σ_k tr(L_k) R_k / √t,   t = Σ_k tr(L_k) tr(R_k)

    which has the partial traces of the sum: for every row of W the sum of its entries' curvature
    is right, and so for every column. It is the sum itself where all L_k, or all R_k, are
    multiples of one another, and does not depend on how the scale of a block is shared out to its
    factors. As everywhere in K-FAC, products of gradients from different uses are left out.

    A bias of one of the parts is one more column of W, of which the others make no use: zeros in
    their R_k. L is dense, where an embedding alone would have a diagonal, unless it is too large.

    Parameters
    ----------
    name : str
        Of the first module.
    parts : sequence of KroneckerLayer
        Modules that use the weight in the same way, with the same parameters, are one part.
    """

    def __init__(self, name: str, parts: Sequence[KroneckerLayer]) -> None:
        super().__init__(name, [module for part in parts for module in part.modules])
        self._parts = tuple(parts)
        self._biases = list({id(b): b for part in parts if (b := part.bias) is not None}.values())
        self.blocks = parts[0].blocks
        self.has_bias = bool(self._biases)

    @classmethod
    def fits(cls, module: torch.nn.Module) -> bool:
        """Never: one module alone is not tied."""
        return False

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return [self.weight, *self._biases]

    @property
    def intact(self) -> bool:
        return all(part.intact and part.weight is self.weight for part in self._parts)

    @property
    def sizes(self) -> tuple[int, int]:
        inputs = self.weight[0].numel() + len(self._biases)
        return inputs, len(self.weight) // (self.blocks or 1)

    def limit(self, dense_limit: int | None) -> None:
        super().limit(dense_limit)
        for part in self._parts:
            part.limit(dense_limit)

    # ---- gathering ----------------------------------------------------------------------

    def part_at(self, module: torch.nn.Module) -> KroneckerLayer:
        return next(part for part in self._parts if module in part.modules)

    def prepare(self, module: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        return self.part_at(module).prepare(module, inputs)

    def record(
        self, module: torch.nn.Module, prepared: torch.Tensor, *args: Any, **kwargs: Any
    ) -> None:
        self.part_at(module).record(module, prepared, *args, **kwargs)

    def pass_over(self, terms: float) -> None:
        raise NotImplementedError("uses are recorded, and passed over, part by part")

    def input_rows(self, module: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        return self.part_at(module).input_rows(module, inputs)

    def output_rows(self, module: torch.nn.Module, gradient: torch.Tensor) -> torch.Tensor:
        return self.part_at(module).output_rows(module, gradient)

    def discard(self) -> None:
        for part in self._parts:
            part.discard()

    def recorded(self) -> dict[str, torch.Tensor] | None:
        uses = [
            self._sides(part, found)
            for part in self._parts
            if (found := part.recorded()) is not None
        ]
        if not uses:
            return None
        left, right = balanced(uses)
        return {"input_factor": right, "output_factor": left}

    def _sides(
        self, part: KroneckerLayer, found: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A part's curvature on the rows, and on the columns, of [W, biases]."""
        sides = {
            name: _as_wide_as(found[name], part.factors[name].diagonal, to)
            for name, to in zip(found, self._diagonal(part), strict=True)
        }
        a, g = sides["input_factor"], sides["output_factor"]
        left, right = (a, g) if part.transposed else (g, a)
        inputs = self.weight[0].numel()
        places = list(range(inputs))
        if part.bias is not None:
            places.append(inputs + [id(b) for b in self._biases].index(id(part.bias)))
        index = torch.tensor(places, device=right.device)
        wide = right.new_zeros(self.input_factor.shape)
        if self.input_factor.diagonal:
            wide[index] = right
        else:
            wide[..., index[:, None], index] = right
        return left, wide

    def _diagonal(self, part: KroneckerLayer) -> tuple[bool, bool]:
        """Which of a part's A and G belong to diagonal factors of this layer."""
        rows, columns = self.output_factor.diagonal, self.input_factor.diagonal
        return (rows, columns) if part.transposed else (columns, rows)

    # ---- the gradient --------------------------------------------------------------------

    def set_gradient(self, value: torch.Tensor) -> None:
        inputs = self.weight[0].numel()
        parts = torch.split(value, [inputs, *(1 for _ in self._biases)], dim=-1)
        for parameter, part in zip(self.parameters, parts, strict=True):
            assert parameter.grad is not None
            parameter.grad.copy_(part.reshape(parameter.shape))

    def describe(self) -> str:
        parts = " and ".join(part.name or "(model)" for part in self._parts)
        return f"{super().describe()}, tied in {parts}"


def _as_wide_as(factor: torch.Tensor, diagonal: bool, wanted: bool) -> torch.Tensor:
    """A factor as a diagonal or as a matrix, whatever it is."""
    if diagonal == wanted:
        return factor
    return factor.diagonal(dim1=-2, dim2=-1) if wanted else torch.diag(factor)


def balanced(
    products: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """L and R of equal trace, with L ⊗ R of the same partial traces as Σ L_k ⊗ R_k.

    Parameters
    ----------
    products : sequence of (tensor, tensor)
        Symmetric positive semidefinite L_k (..., m, m) and R_k (..., n, n), or the diagonals (m,)
        of all L_k, or (n,) of all R_k.
    """
    left, right = (torch.stack(factors) for factors in zip(*products, strict=True))
    left_trace, right_trace = (
        t.sum(-1) if t.ndim == 2 else t.diagonal(dim1=-2, dim2=-1).sum(-1) for t in (left, right)
    )
    total = (left_trace * right_trace).sum(0)
    # without any gradient, as behind dead units, one side of each product is zero
    root = torch.where(total > 0.0, total, torch.ones_like(total)).sqrt()
    return _weighted(left, right_trace / root), _weighted(right, left_trace / root)


def _weighted(factors: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The sum of factors, each block times its weight."""
    return (factors * weights[(...,) + (None,) * (factors.ndim - weights.ndim)]).sum(0)
