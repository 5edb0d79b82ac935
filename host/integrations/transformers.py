"""K-FAC as a callback of Hugging Face's Trainer."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from thermokron.host.integrations.steps import check_options, step
from thermokron.host.integrations.tensorboard import Writer, log_metrics
from thermokron.host.kfac import KFAC, StepMetrics

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "thermokron.host.integrations.transformers needs transformers; install it with: "
        "pip install 'thermokron[transformers]'",
        name=error.name,
    ) from None

__all__ = ["KFACTrainerCallback", "loss_function"]

#: Name of the file in the folder of a checkpoint.
STATE = "kfac.pt"
IGNORED = -100  # labels that the Trainer does not count


def loss_function(
    criterion: torch.nn.Module, *, shift: bool = False
) -> Callable[..., torch.Tensor]:
    """What `Trainer(compute_loss_func=...)` takes, with a loss module that K-FAC can watch.

    Models of transformers compute their loss by a function, of which K-FAC sees nothing: it would
    take ignored labels for loss terms, and the share of an accumulated batch for a loss.

    Parameters
    ----------
    criterion : torch.nn.Module
        Takes means, such as `CrossEntropyLoss()`; called with the model's logits and the labels,
        all dimensions but that of the classes together. The loss is then divided as the Trainer
        counts labels over accumulated batches.
    shift : bool
        Whether logits foretell the next label, as in causal language models.
    """

    def loss(
        outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        logits = outputs["logits"]
        if shift:
            logits, labels = logits[..., :-1, :], labels[..., 1:]
        value: torch.Tensor = criterion(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))
        if num_items_in_batch is None:
            return value
        return value * (labels != IGNORED).sum() / num_items_in_batch

    return loss


class KFACTrainerCallback(TrainerCallback):
    """Preconditions gradients before the optimiser's step.

        criterion = torch.nn.CrossEntropyLoss()
        trainer = Trainer(
            model,
            args,
            train_dataset=data,
            compute_loss_func=loss_function(criterion, shift=True),
            callbacks=[KFACTrainerCallback(criterion=criterion, damping=0.03)],
        )

    The Trainer clips gradients before: `max_grad_norm` shortens what K-FAC is given. Where
    `kl_clip` bounds the step that changes nothing, as the step has its length from the clip;
    elsewhere steps are shorter. Set `max_grad_norm=0` unless that is meant. The curvature does not
    depend on it.

    The state is saved as `kfac.pt` in the folder of each checkpoint, unless `save_only_model`, and
    taken up by `trainer.train(resume_from_checkpoint=...)`. Metrics are added to what the Trainer
    logs, and so to `trainer.state.log_history`; its reporters, such as TensorBoard, were called
    before: give the callback a `writer` for them.

    Parameters
    ----------
    criterion : torch.nn.Module or None
        The loss module, see `loss_function`; None if K-FAC is not to know it, see `KFAC`.
    resume_from : str or Path, optional
        The checkpoint's folder, where a run is resumed from another one than
        `output_dir/checkpoint-<step>`: the Trainer does not tell callbacks which.
    writer : Writer, optional
        Gets the metrics of every step, such as torch's `SummaryWriter`.
    **options
        Of `KFAC`, but for `model` and a damping that adapts. `lr` is the optimiser's if it is not
        given.

    Attributes
    ----------
    kfac : KFAC or None
        From the start of training on.

    Raises
    ------
    TypeError, ValueError
        If an option cannot be given here.
    """

    def __init__(
        self,
        *,
        criterion: torch.nn.Module | None = None,
        resume_from: str | Path | None = None,
        writer: Writer | None = None,
        **options: Any,
    ) -> None:
        check_options(options, {"model": "it is the Trainer's"})
        self.criterion, self.writer, self.options = criterion, writer, options
        self.resume_from = None if resume_from is None else Path(resume_from)
        self.kfac: KFAC | None = None
        self._metrics: StepMetrics | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make K-FAC, with the state of the checkpoint that training is resumed from."""
        if self.kfac is not None:
            self.kfac.close()
        options = {"lr": kwargs["optimizer"]} | self.options
        self.kfac = KFAC(kwargs["model"], criterion=self.criterion, **options)
        if state.global_step == 0:
            return
        folder = self.resume_from or _folder(args, state)
        try:
            saved = torch.load(folder / STATE, weights_only=True)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"training is resumed at step {state.global_step}, but there is no {STATE} in "
                f"{folder}; resume_from = {self.resume_from!r}, legal: the folder of a checkpoint "
                "that was saved with this callback"
            ) from None
        self.kfac.load_state_dict(saved)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Precondition."""
        assert self.kfac is not None
        self._metrics = step(self.kfac, getattr(kwargs["optimizer"], "scaler", None))
        if self._metrics is not None and self.writer is not None:
            log_metrics(self.writer, self._metrics, step=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the last step's metrics to what is logged of training."""
        if self._metrics is None or logs is None or "loss" not in logs:
            return
        found = {f"kfac/{name}": value for name, value in self._metrics.as_dict().items()}
        logs.update(found)
        if state.log_history:
            state.log_history[-1].update(found)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save K-FAC's state beside the Trainer's, as a whole or not at all."""
        if self.kfac is None or args.save_only_model or not args.should_save:
            return
        path = _folder(args, state) / STATE
        partial = path.with_suffix(".partial")
        torch.save(self.kfac.state_dict(), partial)
        os.replace(partial, path)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Watch no more; `kfac` stays for its state."""
        if self.kfac is not None:
            self.kfac.close()


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    """Where the Trainer saves the checkpoint of this step."""
    assert args.output_dir is not None
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
