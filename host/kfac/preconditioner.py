"""What a preconditioner does at every step, and what of it is saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch

from thermokron.host.kfac.curvature.context import undisturbed
from thermokron.host.kfac.curvature.hooks import Watcher
from thermokron.host.kfac.curvature.layers import Layer
from thermokron.host.kfac.curvature.layers.coverage import intact_of
from thermokron.host.kfac.curvature.pooled import Pool
from thermokron.host.kfac.curvature.replay import closure_of
from thermokron.host.kfac.curvature.uncovered import Uncovered
from thermokron.host.kfac.distributed import Ranks, check_alike
from thermokron.host.kfac.hyperparameters import Hyperparameters
from thermokron.host.kfac.metrics import StepMetrics
from thermokron.host.kfac.solve.auto import AutomaticStep
from thermokron.host.kfac.solve.cost import Cost
from thermokron.host.kfac.solve.damping import Trial
from thermokron.host.kfac.solve.inverses import Inverter
from thermokron.host.kfac.solve.quadratic import Closure
from thermokron.host.kfac.solve.relative import Relative
from thermokron.host.kfac.solve.solver import Solver, check_updates, gradients_of
from thermokron.host.kfac.solve.step_control import shortening
from thermokron.host.kfac.state import TrainingState
from thermokron.model import Unit

__all__ = ["Preconditioner"]

#: Options that decide what averages and prepared blocks are.
FIXED = ("fisher", "sharing", "loss_reduction", "method", "damping_mode", "damping_of")


class Preconditioner:
    """The steps of `KFAC`, whose constructor makes the parts.

    Attributes
    ----------
    hyperparameters : Hyperparameters
        Numbers, and functions of the step.
    choices : dict
        Options that are none of these, by name.
    training : TrainingState
        What steps change.
    """

    hyperparameters: Hyperparameters
    choices: dict[str, Any]
    method_given: bool
    unit: Unit | None
    layers: list[Layer]
    uncovered: list[str]
    training: TrainingState
    metrics: StepMetrics | None
    _ranks: Ranks
    _pool: Pool
    _solver: Solver
    _left_out: list[str]
    _others: Uncovered
    _watcher: Watcher
    _trial: Trial | None

    @property
    def inverse(self) -> Inverter:
        """What inverts, as of the last step."""
        return self._solver.inverse

    @property
    def steps(self) -> int:
        """Steps taken."""
        return self.training.steps

    def _due(self) -> bool:
        return bool(self.steps % self._now("factor_interval") == 0)

    def _now(self, name: str) -> Any:
        return self.hyperparameters.at(name, self.steps)

    # ---- stepping -------------------------------------------------------------------------

    def step(self, closure: Closure | None = None) -> StepMetrics:
        """Update factors and inverses as they are due, and precondition the gradients in place.

        A step that ends with an exception has changed no gradient and no average. What was
        gathered is still there, so that it may be tried again, but for a `FloatingPointError`.

        Parameters
        ----------
        closure : callable, optional
            The loss of this step's batch, for `lr = "auto"`; where criterion was called on the
            model's output it is known.

        Raises
        ------
        RuntimeError
            If no layer has ever seen a backward pass, something could not be taken into account,
            or the preconditioner is closed.
        FloatingPointError
            If outputs, activations or gradients are NaN or inf, or the update would be.
        UnitFault
            If the unit failed.
        TypeError
            If there is a closure, but nothing that needs it.

        What one of several processes fails with ends the step of all, see
        `thermokron.host.kfac.distributed.Exchange`.
        """
        if closure is not None and self.training.automatic is None:
            raise TypeError("step() takes a closure with lr = 'auto' alone; legal here: step()")
        with undisturbed(), self.training.unless_it_fails():
            try:
                self.metrics = self._step(closure)
            except FloatingPointError:
                self.discard()
                raise
        self._watcher.release()
        return self.metrics

    def discard(self) -> None:
        """Forget the passes since the last step, whose gradient is not to become a step.

        Gradients that `zero_grad` threw away need no word; this is for those that are thrown away
        otherwise, such as by `param.grad = other`.
        """
        self._watcher.discard()

    def _step(self, closure: Closure | None) -> StepMetrics:
        ranks, blocks, step = self._ranks, self.training.blocks, self.steps
        trust = self.training.trust
        with ranks.exchange("what was recorded") as recorded:
            if self._watcher.closed:
                raise RuntimeError("this KFAC is closed")
            due, passes, loss = self._due(), self._watcher.collect(), self._watcher.loss
            recorded.own = step, _number(loss), self._pool.report(passes if due else ())
        steps, losses, reports = zip(*recorded.all, strict=True)
        check_alike([{"steps": its} for its in steps])
        with self._pool.added_up(reports), ranks.exchange("updates") as solved:
            decay, damping, cost = self._now("decay"), self._now("damping"), Cost()
            intact = intact_of(self.layers)
            moved = [layer for layer in intact if layer.update_factors(decay)] if due else []
            for layer in moved:
                blocks.outdate(layer)
            ready = [layer for layer in intact if layer.has_factors]
            present = gradients_of(ready)
            self._others.check(self.layers, moved, present, due=due)
            if trust is not None:
                trust.look_back(present)
            part = self._solver.updates(blocks, ready, present, step, damping, cost)
            stream = None if self.unit is None else self.unit.stream
            solved.own = stream, part.told(present, blocks) if ranks.size > 1 else {}
        streams, told = zip(*solved.all, strict=True)
        updates = self._solver.joined(blocks, present, part, told, step, damping)
        automatic, more = self.training.automatic, {}
        with ranks.exchange("the length of the step") as length:
            if automatic is None:
                length.own = self._shortening(present, updates, damping, cost)
            else:
                length.own, again = 1.0, closure or closure_of(passes)
        nu = length.all[0]
        if nu != 1.0:
            cost.flops(sum(update.numel() for update in updates))
            for update in updates:
                update.mul_(nu)
        check_updates(present, updates)
        self._begin_trial()
        if trust is not None:
            trust.set_out(present, held_back=nu < 1.0)
        before = {layer: g.clone() for layer, g in present.items()} if automatic else {}
        for layer, update in zip(present, updates, strict=True):
            layer.set_gradient(update)
        if automatic is not None:
            try:
                more = self._lengthen(automatic, again, present, damping)
            except BaseException:
                for layer, gradient in before.items():
                    layer.set_gradient(gradient)
                raise
        metrics = StepMetrics.of(
            cost,
            step=step,
            nu=nu,
            clipped=nu < 1.0,
            damping=damping,
            kappa=blocks.kappa,
            loss=_mean([its for its in losses if its is not None]),
            **more,
        )
        self.training.advance(streams)
        return metrics

    def _shortening(
        self,
        gradients: Mapping[Layer, torch.Tensor],
        updates: Sequence[torch.Tensor],
        damping: float,
        cost: Cost,
    ) -> float:
        """ν, by which updates are to be multiplied."""
        trust = self.training.trust
        return shortening(
            list(gradients.values()),
            updates,
            rates=self.hyperparameters.rates(self.steps, gradients),
            kl_rates=self.hyperparameters.rates(
                self.steps, gradients, in_the_end=trust is not None
            ),
            kl_clip=self._now("kl_clip"),
            norm_constraint=self._now("norm_constraint"),
            damping=[
                max(self._solver.each[layer], 0.0 if trust is None else trust.least)
                for layer in gradients
            ],
            cost=cost,
        )

    def _lengthen(
        self, automatic: AutomaticStep, closure: Closure, layers: Iterable[Layer], damping: float
    ) -> dict[str, Any]:
        """Put -δ in the place of the gradients, which are -Δ; what the metrics say of it."""
        names = {id(p): name for name, p in automatic.local.model.named_parameters()}
        parameters = {names[id(p)]: p for layer in layers for p in layer.parameters}
        proposal = {n: -p.grad for n, p in parameters.items() if p.grad is not None}
        with self._watcher.asleep():
            chosen = automatic.choose(closure, proposal, damping, self.steps)
        for name, step in chosen.step.items():
            gradient = parameters[name].grad
            assert gradient is not None
            gradient.copy_(-step)
        return {
            "rate": chosen.rate,
            "momentum": chosen.momentum,
            "loss_reduction": chosen.reduction,
            "reduction_ratio": chosen.ratio,
        }

    def _begin_trial(self) -> None:
        """Have `adapt` see what this step does, if it is its turn."""
        lm = self.training.marquardt
        if self._trial is not None and lm is not None:
            self._trial.begin() if self.steps % lm.interval == 0 else self._trial.expire()

    def adapt(self, closure: Callable[[], torch.Tensor]) -> float | None:
        """Adapt a `LevenbergMarquardt` damping; call it between the optimiser's step and the next.

            optimizer.step()
            kfac.adapt(lambda: criterion(model(inputs), targets))

        Parameters
        ----------
        closure : callable
            The loss on this step's batch; called twice at every `interval`-th step, with the
            parameters after and before it. Model and generators are left as they were, see
            `thermokron.host.kfac.solve.damping.Trial`.

        Returns
        -------
        float or None
            The reduction ratio; None where it was not this step's turn, or the model did not
            foretell a reduction, as momentum or too large a learning rate may have it: then λ
            rises if the loss did. `metrics` is extended by both.

        Raises
        ------
        RuntimeError
            If damping does not adapt, the closure did not call the criterion, or torch cannot
            differentiate the model in forward mode.
        """
        lm = self.training.marquardt
        if self.training.automatic is not None:
            raise RuntimeError("lr = 'auto' adapts the damping in step(): leave adapt() out")
        if lm is None or self._trial is None:
            raise RuntimeError("adapt() needs damping=LevenbergMarquardt(...)")
        if not self._trial.begun:
            return None
        assert self.metrics is not None
        with self._watcher.asleep():
            change, predicted = self._trial.end(closure, self.metrics.damping)
        ratio = change / predicted if predicted < 0.0 else None
        if ratio is not None:
            lm.adapt(ratio)
        elif not change <= 0.0:  # no ratio, but a step that was too long by either account
            lm.adapt(-math.inf)
        self.metrics = replace(self.metrics, loss_reduction=-change, reduction_ratio=ratio)
        return ratio

    # ---- state ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the coming steps depend on; hyperparameters stay with the constructor.

        Steps, factors, inverses, adapted damping, the generator of "mc", and the unit's seed and
        stream count: saved after a step and loaded into a fresh KFAC with a unit of the same seed,
        training goes on exactly as if it had not been interrupted. `torch.load` reads it with
        `weights_only=True`.
        """
        return self.training.save({name: self.choices[name] for name in FIXED})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned, all of it or nothing.

        Raises
        ------
        ValueError
            If layers, shapes, types, the unit's seed, or options that decide what averages and
            inverses are, differ.
        """
        # what was left open suits what inverts, here and where the state was saved
        fixed = {
            name: self.choices[name] for name in FIXED if name != "method" or self.method_given
        }
        self.training.load(state, fixed, self.inverse)
        self.discard()

    def close(self) -> None:
        """Remove the hooks from model and criterion; a second call does nothing."""
        self._watcher.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def __repr__(self) -> str:
        inverse = getattr(self.inverse, "__name__", None) or str(self.inverse)
        lines = [f"inverse={inverse}"]
        given = dict(self.hyperparameters.given)
        if self.training.marquardt is not None:
            given["damping"] = self.training.marquardt
        elif self._solver.relative:
            given["damping"] = Relative(given["damping"])
        if self.training.trust is not None:
            given["kl_clip"] = self.training.trust
        lines += [f"{name}={value!r}" for name, value in (given | self.choices).items()]
        lines += [f"layer {layer.name or '(model)'}: {layer.describe()}" for layer in self.layers]
        lines += [f"plain gradient: {label}" for label in self.uncovered + self._left_out]
        return "KFAC(\n  " + "\n  ".join(lines) + "\n)"


def _number(loss: torch.Tensor | None) -> float | None:
    return None if loss is None or loss.numel() > 1 else loss.item()


def _mean(losses: Sequence[float]) -> float | None:
    return sum(losses) / len(losses) if losses else None
