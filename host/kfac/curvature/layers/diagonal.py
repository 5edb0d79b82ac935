"""Parameters with diagonal curvature, such as those that no layer class knows the use of."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from thermokron.host.kfac.curvature.factors import Factor
from thermokron.host.kfac.curvature.layers.base import Layer, full_precision

__all__ = ["DiagonalLayer", "FreeLayer"]


class DiagonalLayer(Layer):
    """Parameters v of one size, each of whose entries has its own entry h of the Fisher's diagonal.

    The update is v/(h + λ).

    Attributes
    ----------
    curvature : Factor
        Running average of h, a row for each parameter.
    """

    def __init__(self, name: str, modules: Sequence[torch.nn.Module]) -> None:
        super().__init__(name, modules)
        self._trained = list(self._shapes)
        shape = len(self._trained), self.parameters[0].numel()
        self.curvature = Factor(shape, diagonal=True)

    @classmethod
    def fits(cls, module: torch.nn.Module) -> bool:
        return any(p is not None and p.requires_grad for p in module._parameters.values())

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return [self.module._parameters[key] for key in self._trained]  # type: ignore[misc]

    @property
    def factors(self) -> dict[str, Factor]:
        return {"curvature": self.curvature}

    def pass_over(self, terms: float) -> None:
        self.curvature.add(torch.zeros((), device=self.parameters[0].device), terms)

    def stacked(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """A row for each parameter."""
        return torch.stack([t.reshape(-1) for t in tensors])

    def set_gradient(self, value: torch.Tensor) -> None:
        for parameter, row in zip(self.parameters, value, strict=True):
            assert parameter.grad is not None
            parameter.grad.copy_(row.reshape(parameter.shape))

    def mean_curvature(self) -> float:
        return self.curvature.value.double().mean().item()

    def precondition(self, gradient: torch.Tensor, damping: float) -> torch.Tensor:
        return gradient / (self.curvature.value + damping)

    def describe(self) -> str:
        return f"diagonal {sum(p.numel() for p in self.parameters)}"


class FreeLayer(DiagonalLayer):
    """One parameter of whose use nothing is known: a class token, a table of positions, a scale.

    Gradients of single examples are not to be had then. With d_n the gradient of loss term n of R,
    the mean of h = 1/R (Σ_n d_n)² is that of 1/R Σ_n d_n² where terms are drawn independently and
    their expectation is zero, as with labels from the model's own predictions ("mc") or signs
    ("ggn"): the Gauss-Newton-Bartlett estimator (Liu et al. 2023, arXiv 2305.14342, section 2.3).
    With the training labels it is larger by R times the squared mean gradient, on the safe side.

    Parameters
    ----------
    name : str
        Of the parameter in the model.
    holder : torch.nn.Module
        Which holds it.
    """

    def __init__(self, name: str, holder: torch.nn.Module) -> None:
        self.keys = (name.rpartition(".")[2],)
        super().__init__(name, [holder])

    def prepare(self, module: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("what the parameter is used with is not known")

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
        raise NotImplementedError("nor is what it returns")

    def add(self, gradient: torch.Tensor, terms: float) -> None:
        """Add Σ_n d_n, of the parameter's shape, over so many loss terms."""
        self.curvature.add(full_precision(gradient).reshape(1, -1).square(), terms)
