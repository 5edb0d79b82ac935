"""Curvature of the loss itself: what is sent backwards through the network for "ggn" and "mc"."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

__all__ = ["BinaryCrossEntropy", "CrossEntropy", "LossCurvature", "SquaredError", "curvature_of"]

F = torch.nn.functional


class LossCurvature(ABC):
    """The Hessian H of each loss term with respect to the outputs that it depends on.

    A network with output Jacobian J has the generalised Gauss-Newton matrix 1/R Σ Jᵀ H J over R
    loss terms. With H = S Sᵀ, sending the columns of S back gives gradients whose second moments
    are exact ("ggn"); sending one random vector u with E[u uᵀ] = H gives an unbiased estimate
    ("mc"). Where the loss is a negative log-likelihood this is its Fisher matrix (Martens 2020,
    arXiv 1412.1193, section 9).

    Columns are sent back for all loss terms at once. Where one example has several loss terms and
    the network mixes them, as attention does, products between terms of one example would be
    included in "ggn": a random sign for each term makes them vanish in expectation, as they do in
    "mc", and leaves alone what terms do not share.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module

    @staticmethod
    def arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        """Outputs and target among what the loss module was called with, as torch names them."""
        given = dict(zip(("input", "target"), args, strict=False)) | dict(kwargs)
        return given["input"], given["target"]

    @abstractmethod
    def term_shape(self, outputs: torch.Tensor) -> torch.Size:
        """The outputs' shape, with 1 for the dimension that one loss term takes together."""

    def signs(self, outputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """1 or -1 with equal probability for each loss term, to be broadcast to the outputs."""
        drawn = torch.randint(2, self.term_shape(outputs), generator=generator)
        return drawn.mul_(2).sub_(1).to(outputs)

    @abstractmethod
    def total(self, outputs: torch.Tensor, target: torch.Tensor) -> float:
        """R: the number of loss terms that the mean is taken over, weighted as the loss does."""

    @abstractmethod
    def columns(self, outputs: torch.Tensor, target: torch.Tensor) -> Iterator[torch.Tensor]:
        """The columns of S, each of the outputs' shape."""

    @abstractmethod
    def sample(
        self, outputs: torch.Tensor, target: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """u, of the outputs' shape."""


class CrossEntropy(LossCurvature):
    """`torch.nn.CrossEntropyLoss`: H = ω (diag p - p pᵀ), with p the softmax.

    S = √ω (diag √p - p √pᵀ), and u = √ω (p - e_y) for a label y drawn from p. ω is the weight of
    a term: 1, or what class weights, label smoothing and ignored labels make of it.
    """

    def term_shape(self, outputs: torch.Tensor) -> torch.Size:
        shape, axis = outputs.shape, _classes(outputs)
        return torch.Size([*shape[:axis], 1, *shape[axis + 1 :]])

    def total(self, outputs: torch.Tensor, target: torch.Tensor) -> float:
        assert isinstance(self.module, torch.nn.CrossEntropyLoss)
        if target.is_floating_point():
            return outputs.numel() / outputs.shape[_classes(outputs)]
        kept = target != self.module.ignore_index
        if self.module.weight is None:
            return float(kept.sum().item())
        return float(self.module.weight[target[kept]].sum().item())

    def columns(self, outputs: torch.Tensor, target: torch.Tensor) -> Iterator[torch.Tensor]:
        axis = _classes(outputs)
        p, weight = torch.softmax(outputs, axis), self._weight(outputs, target)
        root = p.sqrt()
        for c in range(outputs.shape[axis]):
            picked = root.select(axis, c).unsqueeze(axis)
            column = -p * picked
            column.select(axis, c).add_(picked.squeeze(axis))
            yield weight * column

    def sample(
        self, outputs: torch.Tensor, target: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        axis = _classes(outputs)
        p = torch.softmax(outputs, axis).movedim(axis, -1)
        rows = p.reshape(-1, p.shape[-1])
        drawn = torch.multinomial(rows.double().cpu(), 1, generator=generator).to(p.device)
        labels = F.one_hot(drawn[:, 0], p.shape[-1]).to(p.dtype).reshape(p.shape)
        return self._weight(outputs, target) * (p - labels).movedim(-1, axis)

    def _weight(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """√ω, with a dimension of 1 for the classes."""
        module, axis = self.module, _classes(outputs)
        assert isinstance(module, torch.nn.CrossEntropyLoss)
        classes = outputs.shape[axis]
        scale = module.weight
        if scale is None:
            scale = outputs.new_ones(classes)
        if target.is_floating_point():
            mixed = target * (1.0 - module.label_smoothing) + module.label_smoothing / classes
            omega = (mixed.movedim(axis, -1) * scale).sum(dim=-1)
        else:
            kept = target != module.ignore_index
            own = scale[target.where(kept, 0)] * (1.0 - module.label_smoothing)
            omega = (own + module.label_smoothing * scale.mean()) * kept
        return omega.sqrt().unsqueeze(axis)


class SquaredError(LossCurvature):
    """`torch.nn.MSELoss`: a term is a row's ‖f - y‖², H = 2 I; its mean over C entries, H = 2/C I.

    Every dimension but the last counts loss terms. u is Gaussian: the likelihood has variance 1/2.
    """

    def term_shape(self, outputs: torch.Tensor) -> torch.Size:
        return _rows_of(outputs)

    def total(self, outputs: torch.Tensor, target: torch.Tensor) -> float:
        return outputs.numel() / _width(outputs)

    def columns(self, outputs: torch.Tensor, target: torch.Tensor) -> Iterator[torch.Tensor]:
        for c in range(_width(outputs)):
            column = torch.zeros_like(outputs).reshape(-1, _width(outputs))
            column[:, c] = self._scale(outputs)
            yield column.reshape(outputs.shape)

    def sample(
        self, outputs: torch.Tensor, target: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        noise = torch.randn(outputs.shape, generator=generator, dtype=outputs.dtype)
        return noise.to(outputs.device) * self._scale(outputs)

    def _scale(self, outputs: torch.Tensor) -> float:
        mean = self.module.reduction == "mean"
        return math.sqrt(2.0 / _width(outputs) if mean else 2.0)


class BinaryCrossEntropy(LossCurvature):
    """`torch.nn.BCEWithLogitsLoss`: H = ω diag(σ(1-σ)), over C for a mean over C entries.

    Every dimension but the last counts loss terms. u = √ω (σ - y)/√C for y drawn from σ.
    """

    def term_shape(self, outputs: torch.Tensor) -> torch.Size:
        return _rows_of(outputs)

    def total(self, outputs: torch.Tensor, target: torch.Tensor) -> float:
        return outputs.numel() / _width(outputs)

    def columns(self, outputs: torch.Tensor, target: torch.Tensor) -> Iterator[torch.Tensor]:
        p = torch.sigmoid(outputs)
        root = (self._weight(outputs, target) * p * (1.0 - p)).sqrt()
        rows = root.reshape(-1, _width(outputs))
        for c in range(rows.shape[1]):
            column = torch.zeros_like(rows)
            column[:, c] = rows[:, c]
            yield column.reshape(outputs.shape)

    def sample(
        self, outputs: torch.Tensor, target: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        p = torch.sigmoid(outputs)
        drawn = torch.bernoulli(p.double().cpu(), generator=generator).to(p)
        return self._weight(outputs, target).sqrt() * (p - drawn)

    def _weight(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        module = self.module
        assert isinstance(module, torch.nn.BCEWithLogitsLoss)
        weight = torch.ones_like(outputs)
        if module.pos_weight is not None:
            weight = weight * (module.pos_weight * target + 1.0 - target)
        if module.weight is not None:
            weight = weight * module.weight
        return weight / _width(outputs) if module.reduction == "mean" else weight


KINDS: dict[type[torch.nn.Module], type[LossCurvature]] = {
    torch.nn.CrossEntropyLoss: CrossEntropy,
    torch.nn.MSELoss: SquaredError,
    torch.nn.BCEWithLogitsLoss: BinaryCrossEntropy,
}


def curvature_of(criterion: torch.nn.Module) -> LossCurvature | None:
    """The curvature of a loss module, or None if it is of no known kind."""
    kind = KINDS.get(type(criterion))
    return None if kind is None else kind(criterion)


def _classes(outputs: torch.Tensor) -> int:
    """The dimension of the classes: the second, or the only one of a single example."""
    return 0 if outputs.ndim == 1 else 1


def _width(outputs: torch.Tensor) -> int:
    return outputs.shape[-1] if outputs.ndim > 1 else 1


def _rows_of(outputs: torch.Tensor) -> torch.Size:
    """The shape of outputs whose last dimension, if there are several, is a term's."""
    return torch.Size([*outputs.shape[:-1], 1]) if outputs.ndim > 1 else outputs.shape
