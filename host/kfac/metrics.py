"""What a step did, for any logger."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from thermokron.host.kfac.solve.cost import Cost
from thermokron.host.linalg import Activity

__all__ = ["StepMetrics"]


@dataclass(frozen=True)
class StepMetrics:
    """What one `KFAC.step` did: of several processes this one, but for the loss, their mean.

    Attributes
    ----------
    step : int
        Index of the step, from 0.
    inversions : int
        Factors inverted, decomposed, or solved with.
    hardware_seconds : float
        Time on the unit in seconds, load to done; of a pool the sum over its units, which does not
        depend on how many there are.
    load_seconds, discharge_seconds, settle_seconds, sample_seconds, results_seconds : float
        Its phases; loading is that of couplings and biases into the DACs, and results leave on their
        stream.
    bytes_to_unit, bytes_from_unit : int
        What passed the unit's port, see `thermokron.model.UnitSpec.port_bytes`.
    runs : int
        Runs of the unit.
    activity : Activity
        What they came to in codes, conversions and products.
    digital_flops : int
        Floating-point operations of the host beyond forward and backward pass and the factors' own
        moments: damping, programming or inversion, apply, step control.
    repairs : int
        Matrices that had lost their definiteness and were repaired: Schur complements on the unit
        to noise, factors on the host to rounding.
    nu : float
        Factor by which KL clip and norm constraint shortened the update, 1 where they did not.
    clipped : bool
        Whether they did.
    damping : float
        λ of this step.
    kappa : float
        Condition number of the worst damped factor in use, or an upper bound on it; of the worst
        damped block with exact damping. 1 without Kronecker factors.
    clipped_samples : int
        Samples that left the ADC's range in the runs of this step.
    makespan_seconds : float
        The same as a clock on the wall has it: less than `hardware_seconds` where a pool's units
        work side by side, each taking the next factor or layer when it is free.
    span_seconds : float
        The same of as many units as there are factors or layers.
    loss : float or None
        The loss of this step's batch, where `criterion` was given.
    rate, momentum : float or None
        α and μ of a step with `lr = "auto"`.
    loss_reduction : float or None
        By how much this step's update lowered that loss, where it was measured.
    reduction_ratio : float or None
        The same over what the quadratic model foretold.
    """

    step: int
    inversions: int
    hardware_seconds: float
    load_seconds: float
    discharge_seconds: float
    settle_seconds: float
    sample_seconds: float
    results_seconds: float
    bytes_to_unit: int
    bytes_from_unit: int
    runs: int
    activity: Activity
    digital_flops: int
    repairs: int
    nu: float
    clipped: bool
    damping: float
    kappa: float
    clipped_samples: int
    makespan_seconds: float
    span_seconds: float
    loss: float | None = None
    rate: float | None = None
    momentum: float | None = None
    loss_reduction: float | None = None
    reduction_ratio: float | None = None

    @classmethod
    def of(cls, cost: Cost, **others: Any) -> StepMetrics:
        """Those of an account, and the others."""
        phases: dict[str, Any] = {f"{name}_seconds": time for name, time in cost.seconds.items()}
        return cls(
            inversions=cost.inversions,
            hardware_seconds=sum(cost.seconds.values()),
            **phases,
            bytes_to_unit=cost.bytes_to_unit,
            bytes_from_unit=cost.bytes_from_unit,
            runs=cost.runs,
            activity=cost.activity,
            digital_flops=cost.digital_flops,
            repairs=cost.repairs,
            clipped_samples=cost.clipped,
            makespan_seconds=cost.makespan,
            span_seconds=cost.span,
            **others,
        )

    def as_dict(self) -> dict[str, float]:
        """All that is known, as numbers: `logger.log(metrics.as_dict())`."""
        known = asdict(self)
        known |= known.pop("activity")
        return {key: float(value) for key, value in known.items() if value is not None}
