"""What a step did, for any logger."""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["StepMetrics"]


@dataclass(frozen=True)
class StepMetrics:
    """What one `KFAC.step` did.

    Attributes
    ----------
    step : int
        Index of the step, from 0.
    inversions : int
        Factors inverted, decomposed or solved with.
    hardware_seconds : float
        Time on the unit in seconds.
    runs : int
        Runs of the unit.
    digital_flops : int
        Floating-point operations that the host spent beside the unit.
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
    loss : float or None
        The loss of this step's batch, where `criterion` was given.
    loss_reduction : float or None
        By how much this step's update lowered that loss, where `KFAC.adapt` measured it.
    reduction_ratio : float or None
        The same over what the quadratic model foretold.
    """

    step: int
    inversions: int
    hardware_seconds: float
    runs: int
    digital_flops: int
    repairs: int
    nu: float
    clipped: bool
    damping: float
    kappa: float
    clipped_samples: int
    loss: float | None = None
    loss_reduction: float | None = None
    reduction_ratio: float | None = None

    def as_dict(self) -> dict[str, float]:
        """All that is known, as numbers: `logger.log(metrics.as_dict())`."""
        return {key: float(value) for key, value in asdict(self).items() if value is not None}
