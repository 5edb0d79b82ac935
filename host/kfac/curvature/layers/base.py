"""What every kind of layer offers K-FAC, and what layers with Kronecker factors have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from thermokron.host.kfac.curvature.factors import Factor

__all__ = ["KroneckerLayer", "Layer", "Sums", "full_precision", "with_ones"]

#: What the factors of a layer hold since the last update: sums, and what they are divided by.
Sums = list[tuple[torch.Tensor | None, float]]


class Layer(ABC):
    """The curvature of one layer's parameters.

    Attributes
    ----------
    name : str
        The module's name in the model.
    modules : tuple of torch.nn.Module
        Where its parameters are used; several where modules share them.
    module : torch.nn.Module
        The first of them.
    """

    #: the modules' names of the parameters that it may have
    keys: tuple[str, ...] = ("weight", "bias")

    def __init__(self, name: str, modules: Sequence[torch.nn.Module]) -> None:
        self.name = name
        self.modules = tuple(modules)
        self.module = self.modules[0]
        self._shapes = {
            key: parameter.shape
            for key in self.keys
            if (parameter := self.module._parameters.get(key)) is not None
            and parameter.requires_grad
        }

    def __deepcopy__(self, memo: Any) -> Layer:
        """A copy of the model is not watched, and needs no layers of its own."""
        return self

    def __reduce__(self) -> Any:
        """Nor does one that is pickled: it gets None."""
        return type(None), ()

    @classmethod
    @abstractmethod
    def fits(cls, module: torch.nn.Module) -> bool:
        """Whether a module of a class that this one is registered for has something to train."""

    def part_at(self, module: torch.nn.Module) -> Layer:
        """What records the uses of one of `modules`: the layer itself, unless it has parts."""
        return self

    @property
    @abstractmethod
    def parameters(self) -> list[torch.nn.Parameter]:
        """The parameters whose gradients this layer preconditions."""

    @property
    def intact(self) -> bool:
        """Whether the modules still have parameters of these shapes, and share them still.

        They do not once a parameter was pruned or parametrized, or has grown.
        """
        for key, shape in self._shapes.items():
            own = self.module._parameters.get(key)
            if own is None or own.shape != shape:
                return False
            if any(module._parameters.get(key) is not own for module in self.modules[1:]):
                return False
        return True

    @property
    @abstractmethod
    def factors(self) -> dict[str, Factor]:
        """Its running averages by name."""

    # ---- gathering ----------------------------------------------------------------------

    @abstractmethod
    def prepare(self, module: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        """What `record` needs of a forward pass; called inside it, so it should copy nothing."""

    @abstractmethod
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
        """Add a gradient of one use of the layer in one pass.

        Parameters
        ----------
        module : torch.nn.Module
            Which of `modules` was used.
        prepared : tensor
            From `prepare`.
        gradient : tensor
            With respect to what the layer returned, of that shape, scaled so that it is the
            gradient of a sum of loss terms, not of their mean.
        terms : float
            Loss terms that this adds to the average's count: those of the pass at the layer's
            first use in it, 0 at further uses. Where the curvature of the loss has several
            columns, each adds its part.
        reduce : bool
            Weight sharing: False for "expand", True for "reduce".
        again : bool
            Whether this use was recorded with another column of the loss's curvature before.
        """

    @abstractmethod
    def pass_over(self, terms: float) -> None:
        """Count the loss terms of a pass that made no use of the layer, while others did."""

    def take(self) -> Sums:
        """What was recorded since the last update, which the layer then has no longer."""
        return [factor.take() for factor in self.factors.values()]

    def put(self, sums: Sums) -> None:
        """Add what `take` gave."""
        for factor, (total, count) in zip(self.factors.values(), sums, strict=True):
            factor.put(total, count)

    def discard(self) -> None:
        """Forget what was recorded since the last update."""
        self.take()

    def recorded(self) -> dict[str, torch.Tensor] | None:
        """The means of what was recorded since the last update by factor, if anything was."""
        if not all(factor.pending for factor in self.factors.values()):
            return None
        return {name: factor.mean() for name, factor in self.factors.items()}

    def update_factors(self, decay: float) -> bool:
        """Move the averages towards what was recorded; whether there was anything.

        Raises
        ------
        FloatingPointError
            If an activation or a gradient was NaN or inf; the averages are left as they were.
        """
        found = self.recorded()
        if found is None:
            return False
        for name, mean in found.items():
            if not self.factors[name].is_finite(mean):
                what = "activations" if name == "input_factor" else "gradients"
                raise FloatingPointError(
                    f"{what} of layer {self.name or '(model)'!r} hold NaN or inf: training has "
                    "diverged (lower lr, or raise damping), or the data held some"
                )
        for name, mean in found.items():
            self.factors[name].update(mean, decay)
        return True

    @property
    def has_factors(self) -> bool:
        """Whether any data has reached this layer."""
        return all(factor.moment is not None for factor in self.factors.values())

    # ---- the gradient --------------------------------------------------------------------

    @abstractmethod
    def gradient(self) -> torch.Tensor | None:
        """All of the layer's gradient in one tensor, in single precision or better.

        None while any of it is missing.
        """

    @abstractmethod
    def set_gradient(self, value: torch.Tensor) -> None:
        """Write back what `gradient` returned, preconditioned."""

    @abstractmethod
    def stacked(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Tensors of the shapes of `parameters`, in the layout of `gradient`."""

    def precondition(self, gradient: torch.Tensor, damping: float) -> torch.Tensor:
        """The damped inverse of the curvature times a gradient, where no block is prepared."""
        raise NotImplementedError(f"{type(self).__name__} has no curvature of its own")

    # ---- state ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The averages, to be saved."""
        return {name: factor.state_dict() for name, factor in self.factors.items()}

    def check_state(self, state: Any) -> None:
        """`ValueError` if a state is not one of this layer's: of its shapes, types, and finite."""
        dtype = full_precision(self.parameters[0]).dtype
        if not isinstance(state, dict) or set(state) != set(self.factors):
            raise ValueError(
                f"the state of layer {self.name!r} does not hold {', '.join(self.factors)}"
            )
        for name, factor in self.factors.items():
            factor.check_state(f"{name} of layer {self.name!r}", state[name], dtype)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        for name, factor in self.factors.items():
            factor.load_state_dict(state[name])

    @abstractmethod
    def describe(self) -> str:
        """Sizes of its curvature, for `repr`."""

    def limit(self, dense_limit: int | None) -> None:  # noqa: B027 - not every layer has such
        """Keep only the diagonal of factors of more rows than this, before any data is seen."""


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

    # ---- the gradient --------------------------------------------------------------------

    def gradient(self) -> torch.Tensor | None:
        """[∂W, ∂b], shape (out, in) or (out, in + 1), with blocks in front if there are any."""
        gradients = [p.grad for p in self.parameters]
        present = [full_precision(g) for g in gradients if g is not None]
        return self.stacked(present) if len(present) == len(gradients) else None

    def stacked(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
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


def full_precision(tensor: torch.Tensor) -> torch.Tensor:
    """Sums of products overflow in half precision."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
