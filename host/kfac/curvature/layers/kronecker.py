"""Layers that multiply by a weight matrix: their curvature is a Kronecker product."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch

from thermokron.host.kfac.curvature.factors import Factor
from thermokron.host.kfac.curvature.layers.base import Layer, full_precision

__all__ = ["KroneckerLayer", "with_ones"]


class KroneckerLayer(Layer):
    """A layer that multiplies by a weight matrix: its block of the curvature is A ⊗ G.

    With a the input row, extended by a 1 if there is a bias, and g the gradient of the loss with
    respect to the output row, A = E[a aᵀ] and G = E[g gᵀ] (Martens & Grosse 2015, arXiv
    1503.05671, section 3). A layer that uses its weight at S positions of every example, as
    convolutions and token-wise layers do, is approximated in one of two ways (Eschenhagen et al.
    2023, arXiv 2311.00636, section 3), with N examples, R loss terms in all, ā the mean and ĝ the
    sum over positions:

        expand   A = 1/(NS) Σ_ns a aᵀ     G = 1/R Σ_ns g gᵀ
        reduce   A = 1/N Σ_n ā āᵀ         G = 1/R Σ_n ĝ ĝᵀ

    where g belongs to the *sum* of the R loss terms. Expand is exact for deep linear networks
    with a loss term per position, reduce for those that average positions.

    The same weight at several places, in modules of one kind, counts as positions do: A is the
    mean over all uses, G the sum.

    A subclass says how a module's input and output become rows, in `input_rows`, `output_rows`.

    Attributes
    ----------
    has_bias : bool
        Whether there is a bias, and it is trained.
    """

    #: independent blocks of equal size, or None where there is one; sets the layout of `gradient`
    blocks: int | None = None
    #: rows from which on a factor is diagonal, or None
    dense_limit: int | None = None
    #: whether A is diagonal in any case
    diagonal_inputs = False
    #: whether the weight's first dimension is that of the input, so that `gradient` turns it
    transposed = False

    def __init__(self, name: str, modules: Sequence[torch.nn.Module]) -> None:
        super().__init__(name, modules)
        bias = self.module._parameters.get("bias")  # a parametrized one is no parameter
        self.has_bias = bias is not None and bias.requires_grad

    @classmethod
    def fits(cls, module: torch.nn.Module) -> bool:
        weight = module._parameters.get("weight")  # a parametrized weight is no parameter
        return weight is not None and weight.requires_grad and not weight.is_complex()

    # ---- what a subclass says ------------------------------------------------------------

    @abstractmethod
    def input_rows(self, module: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs as (..., N, S, n): examples, positions, entries, without the 1 of the bias."""

    @abstractmethod
    def output_rows(self, module: torch.nn.Module, gradient: torch.Tensor) -> torch.Tensor:
        """Gradients with respect to outputs as (..., N, S, m)."""

    @property
    def weight(self) -> torch.nn.Parameter:
        """The weight, of shape (out, ...)."""
        return self.module._parameters["weight"]  # type: ignore[return-value]

    @property
    def sizes(self) -> tuple[int, int]:
        """Rows of A and of G, or of each of their blocks."""
        return self.weight[0].numel() + self.has_bias, len(self.weight) // (self.blocks or 1)

    @property
    def bias(self) -> torch.nn.Parameter | None:
        """The bias, of shape (out,), if it is trained."""
        return self.module._parameters["bias"] if self.has_bias else None

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        bias = self.bias
        return [self.weight] if bias is None else [self.weight, bias]

    @cached_property
    def input_factor(self) -> Factor:
        """The running average of A."""
        size = self.sizes[0]
        return self._factor(size, self.diagonal_inputs or self._too_large(size))

    @cached_property
    def output_factor(self) -> Factor:
        """The running average of G."""
        size = self.sizes[1]
        return self._factor(size, self._too_large(size))

    def limit(self, dense_limit: int | None) -> None:
        self.dense_limit = dense_limit

    def _too_large(self, size: int) -> bool:
        return self.blocks is None and self.dense_limit is not None and size > self.dense_limit

    def _factor(self, size: int, diagonal: bool) -> Factor:
        if diagonal:
            return Factor((size,), diagonal=True)
        return Factor((size, size) if self.blocks is None else (self.blocks, size, size))

    @property
    def factors(self) -> dict[str, Factor]:
        return {"input_factor": self.input_factor, "output_factor": self.output_factor}

    # ---- gathering ----------------------------------------------------------------------

    def prepare(self, module: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.detach()

    def record(
        self,
        module: torch.nn.Module,
        prepared: torch.Tensor,
        gradient: torch.Tensor,
        terms: float,
        *,
        reduce: bool,
        again: bool = False,
    ) -> None:
        if not again:
            self.input_factor.add(*self.input_moments(module, prepared, reduce))
        g = self.output_examples(module, full_precision(gradient), reduce)
        self.output_factor.add(self.output_factor.moments(g), terms)

    def pass_over(self, terms: float) -> None:
        self.output_factor.add(torch.zeros(()), terms)

    def input_moments(
        self, module: torch.nn.Module, prepared: torch.Tensor, reduce: bool
    ) -> tuple[torch.Tensor, int]:
        """Σ a aᵀ over the rows of one use, and their number."""
        a = self.input_examples(module, full_precision(prepared), reduce)
        if self.has_bias:
            a = with_ones(a)
        return self.input_factor.moments(a), a.shape[-2]

    def input_examples(
        self, module: torch.nn.Module, inputs: torch.Tensor, reduce: bool
    ) -> torch.Tensor:
        """The rows a, (..., rows, n), positions spread out or taken together."""
        return _as_examples(self.input_rows(module, inputs), reduce, mean=True)

    def output_examples(
        self, module: torch.nn.Module, gradient: torch.Tensor, reduce: bool
    ) -> torch.Tensor:
        """The rows g, (..., rows, m)."""
        return _as_examples(self.output_rows(module, gradient), reduce, mean=False)

    def mean_curvature(self) -> float:
        a, g = (factor.mean_diagonal() for factor in (self.input_factor, self.output_factor))
        product = a * g
        return product if isinstance(product, float) else product.mean().item()

    # ---- the gradient --------------------------------------------------------------------

    def stacked(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """[W, b], shape (out, in) or (out, in + 1), with blocks in front if there are any."""
        matrix = torch.cat([t if t.ndim == 2 else t.reshape(len(t), -1) for t in tensors], dim=1)
        return matrix if self.blocks is None else matrix.reshape(self.blocks, -1, matrix.shape[1])

    def set_gradient(self, value: torch.Tensor) -> None:
        inputs = value.shape[-1] - self.has_bias
        parts = (value[..., :inputs], value[..., inputs:])
        for parameter, part in zip(self.parameters, parts, strict=False):
            gradient = parameter.grad
            assert gradient is not None
            gradient.copy_(part if part.shape == gradient.shape else part.reshape(gradient.shape))

    def describe(self) -> str:
        blocks = f"{self.blocks} x " if self.blocks else ""
        return ", ".join(
            f"{blocks}{letter} {size}" + (" (diagonal)" if factor.diagonal else "")
            for letter, size, factor in zip("AG", self.sizes, self.factors.values(), strict=True)
        )


def with_ones(rows: torch.Tensor) -> torch.Tensor:
    """Rows (..., n) extended by a 1, the homogeneous coordinate of the bias."""
    return torch.cat([rows, rows.new_ones(*rows.shape[:-1], 1)], dim=-1)


def _as_examples(rows: torch.Tensor, reduce: bool, *, mean: bool) -> torch.Tensor:
    """(..., N, S, n) as (..., rows, n), positions spread out or taken together."""
    if not reduce:
        return rows.flatten(-3, -2)
    return rows.mean(dim=-2) if mean else rows.sum(dim=-2)
