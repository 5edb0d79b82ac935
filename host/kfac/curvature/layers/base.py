"""What every kind of layer offers K-FAC."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from thermokron.host.kfac.curvature.factors import Factor

__all__ = ["Layer", "Sums", "full_precision"]

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

    @property
    def has_gradients(self) -> bool:
        """Whether any gradient that was recorded since the last update is not zero."""
        return any(
            factor.brought for name, factor in self.factors.items() if name != "input_factor"
        )

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

    def gradient(self) -> torch.Tensor | None:
        """All of the layer's gradient in one tensor, `stacked`, in single precision or better.

        None while any of it is missing.
        """
        gradients = [p.grad for p in self.parameters]
        present = [full_precision(g) for g in gradients if g is not None]
        return self.stacked(present) if len(present) == len(gradients) else None

    @abstractmethod
    def set_gradient(self, value: torch.Tensor) -> None:
        """Write back what `gradient` returned, preconditioned."""

    @abstractmethod
    def stacked(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Tensors of the shapes of `parameters`, in the layout of `gradient`."""

    @abstractmethod
    def mean_curvature(self) -> float:
        """Mean of the curvature's diagonal; there must be averages."""

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


def full_precision(tensor: torch.Tensor) -> torch.Tensor:
    """Sums of products overflow in half precision."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
