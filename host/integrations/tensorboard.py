"""Metrics of K-FAC for TensorBoard."""

from __future__ import annotations

from typing import Any, Protocol

from thermokron.host.kfac import StepMetrics

__all__ = ["Writer", "log_metrics"]


class Writer(Protocol):
    """What writes numbers, such as `torch.utils.tensorboard.SummaryWriter`."""

    def add_scalar(self, tag: str, scalar_value: Any, global_step: Any) -> Any:
        """Write one number."""
        ...


def log_metrics(
    writer: Writer, metrics: StepMetrics, *, step: int | None = None, prefix: str = "kfac/"
) -> None:
    """Write every number of a step's metrics as a scalar.

    Parameters
    ----------
    writer : Writer
        Of any package that has torch's `SummaryWriter`.
    metrics : StepMetrics
        From `KFAC.step`.
    step : int, optional
        Where on the axis; the metrics' own step if not given.
    prefix : str
        Of the tags; up to a slash it is the name of TensorBoard's section.
    """
    at = metrics.step if step is None else step
    for name, value in metrics.as_dict().items():
        if name != "step":
            writer.add_scalar(f"{prefix}{name}", value, at)
