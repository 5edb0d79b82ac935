"""How well a network does on a whole dataset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from thermokron.host.train.tasks import Task, batch_of

__all__ = ["Evaluation", "evaluate"]

CHUNK = 2048  # examples at once, which bounds memory


@dataclass(frozen=True)
class Evaluation:
    """Mean loss over the examples, and the part of targets that is predicted, if they are classes.

    A target counts as a class where it is an integer beside one output per class, or a float of
    a `BCEWithLogitsLoss`.
    """

    loss: float
    accuracy: float | None


@torch.no_grad()
def evaluate(task: Task, data: Dataset[Any]) -> Evaluation:
    """Loss and accuracy in eval mode; the model is left in the mode that it was in."""
    examples = len(data)  # type: ignore[arg-type]
    was_training = task.model.training
    task.model.eval()
    loss, hits, classes = 0.0, 0, 0
    for chosen in torch.split(torch.arange(examples), CHUNK):
        inputs, targets = batch_of(data, chosen)
        output = task.model(*inputs)
        loss += task.loss(output, targets).item() * (len(chosen) / examples)
        predicted = _predicted(task.loss, output, targets)
        if predicted is not None:
            hits += int((predicted == targets).sum())
            classes += targets.numel()
    task.model.train(was_training)
    return Evaluation(loss, hits / classes if classes else None)


def _predicted(
    criterion: torch.nn.Module, output: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor | None:
    if isinstance(criterion, torch.nn.BCEWithLogitsLoss):
        return (output > 0.0).to(targets.dtype)
    if not targets.is_floating_point() and output.ndim == targets.ndim + 1:
        return output.argmax(dim=1)
    return None
