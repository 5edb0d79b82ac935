"""K-FAC as a callback of Lightning's trainer."""

from __future__ import annotations

from typing import Any

import torch

from thermokron.host.integrations.steps import check_options, step
from thermokron.host.kfac import KFAC

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "thermokron.host.integrations.lightning needs lightning; install it with: "
        "pip install 'thermokron[lightning]'",
        name=error.name,
    ) from None

__all__ = ["KFACCallback"]


class KFACCallback(Callback):
    """Preconditions gradients in automatic optimisation.

        kfac = KFACCallback(model="net", criterion="criterion", damping=0.03)
        trainer = Trainer(callbacks=[kfac])

    The gradient is preconditioned when all batches of a step are accumulated and a scaler, if there
    is one, has unscaled them; an overflow that the scaler skips is no step of K-FAC's.
    `gradient_clip_val` comes after, and clips what is then left of the preconditioned gradient's
    length: leave it out unless that is meant, since `kl_clip` bounds steps. Metrics are logged as
    `kfac/...` to whatever loggers the trainer has. Checkpoints hold K-FAC's state, and `ckpt_path`
    restores it.

    Parameters
    ----------
    model : str
        Name of the submodule that `training_step` calls; "" for the LightningModule itself, which
        fits where `training_step` calls `self(...)`.
    criterion : str or None
        Name of the submodule that is called for the loss; None where there is none, or K-FAC is
        not to know it, see `KFAC`.
    log : bool
        Whether metrics are logged.
    **options
        Of `KFAC`: all but `model`, `criterion`, and a damping that adapts. `lr` is the optimiser's
        if it is not given.

    Attributes
    ----------
    kfac : KFAC or None
        From the start of `fit` on.

    Raises
    ------
    TypeError, ValueError
        If an option cannot be given here.
    """

    def __init__(
        self, *, model: str = "", criterion: str | None = None, log: bool = True, **options: Any
    ) -> None:
        check_options(options, {})
        self.model, self.criterion, self.logged = model, criterion, log
        self.options = options
        self.kfac: KFAC | None = None
        self._loaded: dict[str, Any] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make K-FAC, with the state of a checkpoint if one was loaded."""
        if not pl_module.automatic_optimization or len(trainer.optimizers) != 1:
            raise RuntimeError(
                f"KFACCallback found {len(trainer.optimizers)} optimisers, automatic_optimization "
                f"= {pl_module.automatic_optimization}; legal: one, in automatic optimisation. In "
                "manual optimisation call KFAC.step between manual_backward and optimizer.step"
            )
        self._close()
        model = _part(pl_module, "model", self.model)
        criterion = None
        if self.criterion is not None:
            criterion = _part(pl_module, "criterion", self.criterion)
        options = {"lr": trainer.optimizers[0]} | self.options
        self.kfac = KFAC(model, criterion=criterion, **options)
        if self._loaded is not None:
            self.kfac.load_state_dict(self._loaded)
            self._loaded = None

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Precondition."""
        assert self.kfac is not None
        metrics = step(self.kfac, getattr(trainer.precision_plugin, "scaler", None))
        if metrics is not None and self.logged:
            pl_module.log_dict({f"kfac/{name}": value for name, value in metrics.as_dict().items()})

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Watch no more; `kfac` stays, so that checkpoints can still be saved."""
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Watch no more."""
        self._close()

    def _close(self) -> None:
        if self.kfac is not None:
            self.kfac.close()

    def state_dict(self) -> dict[str, Any]:
        """K-FAC's state."""
        state = self._loaded if self.kfac is None else self.kfac.state_dict()
        return {} if state is None else {"kfac": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a state until K-FAC is made."""
        self._loaded = state_dict.get("kfac")


def _part(module: LightningModule, option: str, name: str) -> torch.nn.Module:
    """A submodule by its name.

    Raises
    ------
    ValueError
        If there is none.
    """
    try:
        found: torch.nn.Module = module.get_submodule(name)
    except AttributeError:
        names = [name for name, _ in module.named_children()]
        raise ValueError(
            f"{option} = {name!r} is no submodule of {type(module).__name__}; legal: "
            f"{', '.join(map(repr, names))}, or one within these"
        ) from None
    return found
