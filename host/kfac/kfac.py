"""K-FAC as a preconditioner beside any torch optimiser."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel

from thermokron.host.kfac.agreement import agree
from thermokron.host.kfac.choices import (
    choose_inverter,
    judge,
    loss_curvature,
    loss_reduction_of,
)
from thermokron.host.kfac.curvature.hooks import Watcher
from thermokron.host.kfac.curvature.layers import Choice, find_layers
from thermokron.host.kfac.curvature.pooled import Pool
from thermokron.host.kfac.curvature.uncovered import Uncovered
from thermokron.host.kfac.curvature.vectors import Vectors
from thermokron.host.kfac.distributed import ranks_of
from thermokron.host.kfac.hyperparameters import (
    Hyperparameters,
    Interval,
    OptionalSchedule,
    Samples,
    Schedule,
    SettleSchedule,
    check_count,
    learning_rate,
)
from thermokron.host.kfac.metrics import StepMetrics
from thermokron.host.kfac.preconditioner import Preconditioner
from thermokron.host.kfac.solve.auto import AutomaticStep
from thermokron.host.kfac.solve.damping import LevenbergMarquardt, Trial
from thermokron.host.kfac.solve.division import Division
from thermokron.host.kfac.solve.inverses import Inverter, Thermodynamic
from thermokron.host.kfac.solve.quadratic import LocalModel
from thermokron.host.kfac.solve.relative import Relative
from thermokron.host.kfac.solve.solver import Solver
from thermokron.host.kfac.solve.trust import TrustRegion
from thermokron.host.kfac.state import TrainingState
from thermokron.model import Unit

__all__ = ["KFAC"]

#: Damping where none is given, see docs/untuned.md, and the λ that "auto" begins with.
DAMPING, AUTO_DAMPING = Relative(1.0), 0.01


class KFAC(Preconditioner):
    """Preconditions gradients by Kronecker-factored curvature.

    Call it between the backward pass and the optimiser, which may be any:

        criterion = torch.nn.CrossEntropyLoss()
        kfac = KFAC(model, unit, lr=0.05, damping=0.03, criterion=criterion)

        loss = criterion(model(inputs), targets)
        loss.backward()
        kfac.step()
        optimizer.step()

    The gradient V of every covered layer becomes ν G⁻¹ V A⁻¹. A = E[a aᵀ] is the second moment of
    its inputs, with the bias as a homogeneous coordinate, and G = E[g gᵀ] that of the gradients of
    loss terms with respect to its outputs, so that A ⊗ G approximates its block of the curvature
    of the *mean* loss, whatever the batch size, the number of positions at which the layer is
    used, and of loss terms per example (Martens & Grosse 2015, arXiv 1503.05671; Eschenhagen et
    al. 2023, arXiv 2311.00636). Averages are exponential and bias-corrected. Momentum, weight
    decay and learning-rate schedules stay with the optimiser.

    Covered are `torch.nn.Linear`, `Conv1d` to `Conv3d`, `Embedding`, `MultiheadAttention` with its
    projections, transformers' `Conv1D`, what `register_layer` was told of, and, with diagonal
    curvature, the scales and shifts of `LayerNorm`, `RMSNorm`, `GroupNorm` and `BatchNorm1d` to
    `BatchNorm3d`. Other parameters have what `others` says, and a warning names them. What changes
    later, or brings no data, keeps its plain gradient, and is named once by the first step that
    finds it with one. Parameters without a gradient stay without. What counts are the passes that
    made the gradient which `step` finds: others, as under `torch.no_grad`, of modules in eval
    mode, without a backward pass, or whose gradient was set to zero, leave no trace.

    Moments, products and sums are made in single precision at least, whatever the type of the
    network and of autocasting around the calls.

    Parameters
    ----------
    model : torch.nn.Module
        The network; hooks are placed in it, and removed by `close`.
    unit : Unit or None
        Thermodynamic unit that holds the factors, or a pool; None works exactly on the host.
    lr : float, torch.optim.Optimizer or "auto"
        The optimiser's learning rate η; it enters only through KL clip and norm constraint. Given
        the optimiser itself, each layer's rate is that of its parameters' group, the largest if
        there are several, read at every step, whatever scheduler changes it and whatever groups
        are added. 0 is legal, as at the end of a schedule. With "auto" K-FAC chooses rate and
        momentum itself, see `thermokron.host.kfac.solve.auto.AutomaticStep`: the gradient becomes
        minus the whole step, for SGD with a rate of 1 and no momentum. It needs `criterion`.
    damping : float, Relative or LevenbergMarquardt, optional
        Tikhonov damping of the curvature: a number is λ in units of the loss, `Relative(ρ)` is ρ in
        units of each layer's own mean curvature, so that the scales of inputs do not matter. A
        `LevenbergMarquardt` adapts λ itself; it needs `criterion`, and `adapt` to be called after
        the optimiser's step, but for "auto", which calls it. If not given, `Relative(1.0)`, and
        `LevenbergMarquardt(0.01)` with "auto".
    criterion : torch.nn.Module, optional
        The loss module that the training loop calls, as `criterion(outputs, targets)`: a hook on
        it tells K-FAC outputs, targets and reduction. Needed for `fisher` "mc" and "ggn". Without
        it, the empirical Fisher takes the model's output to have one loss term per row (all
        dimensions but the last), and the loss to be backpropagated undivided.
    fisher : "empirical", "mc" or "ggn"
        Which gradients g are: those at the training labels; those at labels drawn from the
        model's own predictions, one more backward pass per sample; or the exact square root of
        the loss's Hessian, one more backward pass per output, for `CrossEntropyLoss`, `MSELoss`
        and `BCEWithLogitsLoss`. The further passes begin at the outputs, when the backward pass
        enters the loss, and leave parameter gradients alone.
    mc_samples, seed : int
        Samples per loss term for "mc", and the seed of their generator.
    sharing : "expand" or "reduce"
        How positions that share a weight are combined, see `KroneckerLayer`.
    damping_mode : "factored" or "exact"
        Damping of both factors, see `shares`, or of their product, from their
        eigendecompositions, O(n³) on the host.
    method : "inverse" or "solve", optional
        How blocks are applied, see `thermokron.host.kfac.solve.methods`: "solve" on a unit, which
        then makes the apply too, and "inverse" on the host, if not given.
    inverse : Inverter, optional
        Another way to invert, such as `diagonal`; excludes `unit`.
    samples : int, optional
        Samples per run of the unit: of an inverse 1,000, of a solution one reading, if not given.
    settle : float or str
        Of solutions on a unit: the part of a factor's slowest mode that may be left undone before
        they are read, which acts like a little more damping; or a time such as "5tau".
    decay : float
        β of the factors' moving average, in [0, 1).
    factor_interval, inverse_interval : int
        Steps between updates of the factors, and of their inverses.
    refresh_threshold : float or None
        Renews a layer's inverses between intervals too, when either of its factors has moved by
        more than this part of its Frobenius norm since they were made.
    kl_clip : float, TrustRegion, "adaptive" or None
        κ in ν = min(1, √(κ / (η² |Σ vᵀg|))). A `TrustRegion` adapts κ by where steps lead, for any
        rate that is not too small; "adaptive" is one as it comes. None switches the clip off. A
        number suits rates and dampings that were chosen with it, such as the 1e-2 of
        `thermokron train`.
    norm_constraint : float or None
        c in η ν ‖v‖ ≤ c; None switches it off.
    loss_reduction : "mean" or "sum"
        How the loss combines its terms, where there is no `criterion` to ask. For a sum the
        curvature is still that of the mean loss, so that damping means the same.
    include, exclude : str, module class, module, or a list of these; optional
        Which modules to cover, with all that is in them, and which not. Names may have wildcards,
        as in `exclude="encoder.*.norm?"`. What is left out keeps its plain gradient.
    others : "diagonal" or "plain"
        What parameters get that no layer class knows the use of, such as class tokens and
        positions: diagonal curvature from the gradients of whole batches, see `FreeLayer`, or
        their plain gradient.
    dense_limit : int or None
        Rows up to which a factor is a matrix; beyond only its diagonal is kept, and a warning
        says so. The default lets all layers of a BERT-large in, but no vocabulary: a factor of
        8,192 rows is 0.27 GB, three times while it is inverted, which takes about 10 s on two
        cores.
    process_group : torch.distributed.ProcessGroup, None or False
        The processes that train the model together, each with a part of every batch: None stands
        for those of a model in DistributedDataParallel, and for the default group where there is
        one, False for this process alone. All of them make a KFAC, and step, together.

    Numbers from `lr` to `norm_constraint`, but for `mc_samples` and `seed`, may be functions of
    the step index.

    Attributes
    ----------
    layers : list of Layer
        What is covered.
    uncovered : list of str
        What is not, and trained all the same, with the reason.
    steps : int
        Steps taken.
    metrics : StepMetrics or None
        Of the last step.

    Raises
    ------
    ValueError, TypeError
        If a hyperparameter is illegal (named, with the legal range), or the model holds nothing
        that K-FAC covers, or processes were given different ones.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        unit: Unit | None = None,
        *,
        lr: Schedule | torch.optim.Optimizer | str,
        damping: Schedule | Relative | LevenbergMarquardt | None = None,
        criterion: torch.nn.Module | None = None,
        fisher: str = "empirical",
        mc_samples: int = 1,
        seed: int = 0,
        sharing: str = "expand",
        damping_mode: str = "factored",
        method: str | None = None,
        inverse: Inverter | None = None,
        samples: Samples = None,
        settle: SettleSchedule = 0.1,
        decay: Schedule = 0.95,
        factor_interval: Interval = 1,
        inverse_interval: Interval = 1,
        refresh_threshold: OptionalSchedule = None,
        kl_clip: OptionalSchedule | TrustRegion | str = "adaptive",
        norm_constraint: OptionalSchedule = None,
        loss_reduction: str | None = None,
        include: Choice = None,
        exclude: Choice = None,
        others: str = "diagonal",
        dense_limit: int | None = 8192,
        process_group: ProcessGroup | Literal[False] | None = None,
    ) -> None:
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"model = {model!r} is not a torch.nn.Module")
        self._ranks = ranks_of(model, process_group)
        if isinstance(model, DistributedDataParallel):
            model = model.module
        self.choices: dict[str, Any] = {
            "fisher": fisher,
            "sharing": sharing,
            "damping_mode": damping_mode,
            "method": method,
            "others": others,
            "loss_reduction": loss_reduction_of(criterion, loss_reduction),
        }
        inverse = choose_inverter(unit, inverse, self.choices, samples)
        self.method_given = method is not None
        self.unit = inverse.unit if isinstance(inverse, Thermodynamic) else None
        curvature = loss_curvature(criterion, fisher)
        automatic = isinstance(lr, str)
        if damping is None:
            damping = LevenbergMarquardt(AUTO_DAMPING) if automatic else DAMPING
        if automatic and isinstance(damping, Relative):
            raise ValueError(
                f"damping = {damping!r} has no λ of a quadratic model; legal with lr = 'auto': a "
                "number, a function of the step, or LevenbergMarquardt(...)"
            )
        lm = damping if isinstance(damping, LevenbergMarquardt) else None
        trust = None if automatic else TrustRegion() if kl_clip == "adaptive" else kl_clip
        relative = isinstance(damping, Relative)
        self.choices["damping_of"] = "its layer" if relative else "all layers"
        self.hyperparameters = Hyperparameters(
            lr=learning_rate(lr),
            samples=samples,
            settle=settle,
            damping=_value_of(damping),
            decay=decay,
            factor_interval=factor_interval,
            inverse_interval=inverse_interval,
            refresh_threshold=refresh_threshold,
            kl_clip=_value_of(trust),
            norm_constraint=norm_constraint,
        )
        self.metrics: StepMetrics | None = None
        for name in self.hyperparameters:
            self.hyperparameters.at(name, 0)
        if dense_limit is not None:
            check_count("dense_limit", dense_limit)
        coverage = find_layers(
            model, include=include, exclude=exclude, dense_limit=dense_limit, others=others
        )
        coverage.tell()
        self.layers, self.uncovered = coverage.layers, coverage.uncovered
        self._left_out = coverage.left_out
        self._others = Uncovered(model, coverage, fisher)
        generator = torch.Generator().manual_seed(check_count("seed", seed, low=0))
        mc_samples, reduce = check_count("mc_samples", mc_samples), sharing == "reduce"
        agreement = agree(
            self._ranks,
            layers=self.layers,
            unit=self.unit,
            choices=self.choices,
            method_given=self.method_given,
            hyperparameters=self.hyperparameters,
            others={"seed": seed, "mc_samples": mc_samples, "lr = 'auto'": automatic},
        )
        self.choices["method"] = agreement.method
        division = Division(self.layers, self._ranks.rank, agreement.owners)
        self._solver = Solver(
            inverse,
            self.choices,
            self.hyperparameters,
            own=unit,
            division=division,
            relative=relative,
        )
        self._pool = Pool(self.layers, self._ranks)
        self.training = TrainingState(
            self.layers,
            generator,
            lm,
            self.unit,
            ranks=self._ranks,
            division=division,
            seeds=agreement.seeds,
            trust=trust if isinstance(trust, TrustRegion) else None,
        )
        self._trial = None if lm is None or automatic else Trial(model, criterion, self._ranks)
        if automatic:
            local = LocalModel(model, judge(criterion), self._ranks)
            self.training.automatic = AutomaticStep(local, lm)
        vectors = None
        if fisher != "empirical":
            assert curvature is not None
            vectors = Vectors(
                curvature,
                fisher,
                samples=mc_samples,
                reduce=reduce,
                generator=self.training.drawing,
            )
        self._watcher = Watcher(
            model,
            coverage,
            criterion=criterion,
            curvature=curvature,
            vectors=vectors,
            reduce=reduce,
            mean=self.choices["loss_reduction"] == "mean",
            due=lambda: automatic or self._due(),
            replays=automatic,
        )


def _value_of(given: Any) -> Any:
    """A number, or what tells it at every step."""
    if isinstance(given, Relative):
        return given.part
    if isinstance(given, LevenbergMarquardt | TrustRegion):
        return lambda step: given.value
    return given
