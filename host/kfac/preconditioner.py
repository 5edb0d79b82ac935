"""K-FAC as a preconditioner beside any torch optimiser."""

from __future__ import annotations

import math
import numbers
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch

from thermokron.host.kfac.inverses import Inverse, Inverter, Thermodynamic, exact
from thermokron.host.kfac.layers import LAYERS, LinearLayer
from thermokron.model import Unit

__all__ = ["KFAC", "StepMetrics"]

REDUCTIONS = ("mean", "sum")
TINY = 1e-12  # the least lr, damping and clip; there for the message, nobody wants less


@dataclass(frozen=True)
class StepMetrics:
    """What one `KFAC.step` did.

    Attributes
    ----------
    step : int
        Index of the step, from 0.
    inversions : int
        Factors inverted.
    hardware_seconds : float
        Time on the unit in seconds.
    runs : int
        Runs of the unit.
    digital_flops : int
        Floating-point operations that the host spent beside the unit.
    repairs : int
        Schur complements that noise had made indefinite and that were repaired.
    nu : float
        Factor by which the KL clip shortened the update, 1 where it did not.
    clipped : bool
        Whether the KL clip shortened the update.
    """

    step: int
    inversions: int
    hardware_seconds: float
    runs: int
    digital_flops: int
    repairs: int
    nu: float
    clipped: bool


class KFAC:
    """Preconditions gradients by Kronecker-factored curvature.

    Call it between the backward pass and the optimiser, which may be any:

        kfac = KFAC(model, unit, lr=0.05, damping=0.03)
        loss.backward()
        kfac.step()
        optimizer.step()

    Every `torch.nn.Linear` with a trainable weight has its gradient V replaced by
    ν G⁻¹ V A⁻¹. A = E[a aᵀ] is the second moment of its inputs, with the bias as a homogeneous
    coordinate, and G = E[g gᵀ] that of the gradients of each example's loss with respect to its
    outputs, at the labels of the training data: the *empirical* Fisher of the mean loss
    (Martens & Grosse 2015, arXiv 1503.05671, with the data's labels instead of sampled ones).
    One row of a layer's output counts as one example. Averages are exponential and
    bias-corrected; damping is factored Tikhonov. Passes under `torch.no_grad` and those of
    modules in eval mode leave no trace.

    Parameters that it does not cover keep their plain gradient, and a warning names them. So do
    layers that no data has reached, and those without a gradient stay without.

    Parameters
    ----------
    model : torch.nn.Module
        The network; forward hooks are placed in it, and removed by `close`.
    unit : Unit or None
        Thermodynamic unit that inverts the factors; None inverts exactly on the host.
    lr : float
        The optimiser's learning rate η; it enters only through the KL clip.
    damping : float
        Tikhonov damping λ of the curvature, in units of the loss.
    inverse : Inverter, optional
        Another way to invert, such as `diagonal`; excludes `unit`.
    samples : int
        Samples per run of the unit.
    decay : float
        β of the factors' moving average, in [0, 1).
    factor_interval, inverse_interval : int
        Steps between updates of the factors, and of their inverses.
    kl_clip : float or None
        κ in ν = min(1, √(κ / (η² |Σ vᵀg|))), a bound on the change of the predictions in one
        step (Ba, Grosse & Martens 2017); None switches it off.
    loss_reduction : "mean" or "sum"
        How the loss combines examples; for "mean" the 1/B is taken out of g.

    `lr`, `damping`, `decay`, the intervals and `kl_clip` may be functions of the step index.

    Raises
    ------
    ValueError, TypeError
        If a hyperparameter is illegal (named, with the legal range), or the model holds nothing
        that K-FAC covers.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        unit: Unit | None = None,
        *,
        lr: float | Callable[[int], float],
        damping: float | Callable[[int], float],
        inverse: Inverter | None = None,
        samples: int = 1000,
        decay: float | Callable[[int], float] = 0.95,
        factor_interval: int | Callable[[int], int] = 1,
        inverse_interval: int | Callable[[int], int] = 1,
        kl_clip: float | Callable[[int], float | None] | None = 1e-2,
        loss_reduction: str = "mean",
    ) -> None:
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"model = {model!r} is not a torch.nn.Module")
        if unit is not None and inverse is not None:
            raise ValueError("inverse and unit exclude each other: give one of them")
        if inverse is not None and not callable(inverse):
            raise TypeError(f"inverse = {inverse!r} is not callable; legal: see Inverter")
        if loss_reduction not in REDUCTIONS:
            raise ValueError(f"loss_reduction = {loss_reduction!r} is unknown; legal: {REDUCTIONS}")
        self.samples = _integer("samples", samples)
        if inverse is None:
            inverse = exact if unit is None else Thermodynamic(unit, self.samples)
        self.inverse: Inverter = inverse
        self.loss_reduction = loss_reduction
        self._schedules: dict[str, Any] = {
            "lr": lr,
            "damping": damping,
            "decay": decay,
            "factor_interval": factor_interval,
            "inverse_interval": inverse_interval,
            "kl_clip": kl_clip,
        }
        self.steps = 0
        self.metrics: StepMetrics | None = None
        for name in self._schedules:
            self._now(name)
        self.layers, uncovered = _find_layers(model)
        if not self.layers:
            raise ValueError("model holds no trainable torch.nn.Linear, all that K-FAC covers")
        if uncovered:
            warnings.warn(
                f"K-FAC does not cover {', '.join(uncovered)}: plain gradients there", stacklevel=2
            )
        self._handles = [
            layer.module.register_forward_hook(partial(self._watch, layer)) for layer in self.layers
        ]

    # ---- hyperparameters ------------------------------------------------------------------

    def _now(self, name: str) -> Any:
        """The value of a hyperparameter at this step, checked."""
        given = self._schedules[name]
        value = given(self.steps) if callable(given) else given
        if name.endswith("interval"):
            return _integer(name, value)
        if name == "kl_clip" and value is None:
            return None
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if name == "decay":
            legal, fine = "0 to below 1", real and 0.0 <= value < 1.0
        else:
            legal, fine = f"{TINY:g} or more", real and TINY <= value < math.inf
        if not fine:
            error = ValueError if real else TypeError
            raise error(f"{name} = {value!r} is out of range; legal: {legal}")
        return float(value)

    # ---- gathering ------------------------------------------------------------------------

    def _watch(
        self,
        layer: LinearLayer,
        module: torch.nn.Module,
        args: tuple[torch.Tensor, ...],
        output: torch.Tensor,
    ) -> None:
        # in eval mode the statistics would not be those of training
        if not (module.training and torch.is_grad_enabled() and output.requires_grad):
            return
        if self.steps % self._now("factor_interval"):
            return
        inputs = args[0].detach()

        def collect(gradient: torch.Tensor) -> None:
            examples = gradient.numel() // gradient.shape[-1]
            scale = examples if self.loss_reduction == "mean" else 1
            layer.record(inputs, gradient.detach(), scale)

        output.register_hook(collect)  # type: ignore[no-untyped-call]

    # ---- stepping -------------------------------------------------------------------------

    @torch.no_grad()
    def step(self) -> StepMetrics:
        """Update factors and inverses as they are due, and precondition the gradients in place.

        Raises
        ------
        RuntimeError
            If no layer has ever seen a backward pass, or the preconditioner is closed.
        FloatingPointError
            If activations or gradients are NaN or inf.
        UnitFault
            If the unit failed; gradients are then as they were.
        """
        if not self._handles:
            raise RuntimeError("this KFAC is closed")
        for layer in self.layers:
            layer.update_factors(self._now("decay"))
        ready = [layer for layer in self.layers if layer.has_factors]
        if not ready:
            raise RuntimeError(
                "no layer has seen a backward pass in training mode; call step() after "
                "loss.backward()"
            )
        done: list[Inverse] = []
        due = self.steps % self._now("inverse_interval") == 0
        for layer in ready:
            if not due and layer.input_inverse is not None:
                continue
            pair = [self.inverse(m, low) for m, low in layer.damped_factors(self._now("damping"))]
            dtype = layer.module.weight.dtype
            layer.input_inverse, layer.output_inverse = (
                inverse.value.to(dtype) for inverse in pair
            )
            done += pair
        gradients = [(layer, g) for layer in ready if (g := layer.gradient()) is not None]
        updates = [layer.precondition(g) for layer, g in gradients]
        nu = self._clip([g for _, g in gradients], updates)
        for (layer, _), update in zip(gradients, updates, strict=True):
            layer.set_gradient(nu * update)
        self.metrics = StepMetrics(
            step=self.steps,
            inversions=len(done),
            hardware_seconds=sum(inverse.hardware_seconds for inverse in done),
            runs=sum(inverse.runs for inverse in done),
            digital_flops=sum(inverse.digital_flops for inverse in done),
            repairs=sum(inverse.repairs for inverse in done),
            nu=nu,
            clipped=nu < 1.0,
        )
        self.steps += 1
        return self.metrics

    def _clip(self, gradients: Sequence[torch.Tensor], updates: Sequence[torch.Tensor]) -> float:
        """ν of the KL clip."""
        kappa, lr = self._now("kl_clip"), self._now("lr")
        if kappa is None:
            return 1.0
        product = sum((g * v).sum().item() for g, v in zip(gradients, updates, strict=True))
        change = lr**2 * abs(product)
        return 1.0 if change <= kappa else math.sqrt(kappa / change)

    # ---- state ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Step count, factors and inverses by layer; hyperparameters stay with the constructor."""
        return {
            "steps": self.steps,
            "layers": {layer.name: layer.state_dict() for layer in self.layers},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned; `ValueError` if the layers are others."""
        names = [layer.name for layer in self.layers]
        if set(state["layers"]) != set(names):
            raise ValueError(f"state holds the layers {sorted(state['layers'])}, not {names}")
        self.steps = _integer("steps", state["steps"], low=0)
        for layer in self.layers:
            layer.load_state_dict(state["layers"][layer.name])

    def close(self) -> None:
        """Remove the hooks from the model; a second call does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def __repr__(self) -> str:
        inverse = getattr(self.inverse, "__name__", None) or str(self.inverse)
        lines = [f"inverse={inverse}"]
        lines += [f"{name}={value!r}" for name, value in self._schedules.items()]
        lines += [f"loss_reduction={self.loss_reduction!r}"]
        lines += [
            f"layer {layer.name or '(model)'}: A {layer.module.in_features + layer.has_bias}, "
            f"G {layer.module.out_features}"
            for layer in self.layers
        ]
        return "KFAC(\n  " + "\n  ".join(lines) + "\n)"


def _integer(name: str, value: Any, low: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} = {value!r} is not an integer; legal: {low} or more")
    if value < low:
        raise ValueError(f"{name} = {value} is out of range; legal: {low} or more")
    return int(value)


def _find_layers(model: torch.nn.Module) -> tuple[list[LinearLayer], list[str]]:
    """The layers that K-FAC covers, and what else in the model is trained."""
    modules = list(model.named_modules())
    owners = Counter(id(p) for _, m in modules for p in m._parameters.values() if p is not None)
    layers, uncovered = [], []
    for name, module in modules:
        trained = [p for p in module._parameters.values() if p is not None and p.requires_grad]
        # a gradient shared between modules is the sum of theirs, and belongs to no single block
        shared = any(owners[id(p)] > 1 for p in trained)
        kind = next((k for k in LAYERS if k.covers(module)), None)
        if kind is not None and not shared:
            layers.append(kind(name, module))
        elif trained:
            label = f"{name or '(model)'} ({type(module).__name__}"
            uncovered.append(label + (", shared parameters)" if shared else ")"))
    return layers, uncovered
