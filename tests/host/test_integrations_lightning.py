"""K-FAC in Lightning's trainer is K-FAC in a loop of one's own."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("lightning", reason="needs the extra lightning")

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins.precision import MixedPrecision

from thermokron.host.integrations.lightning import KFACCallback
from thermokron.host.kfac import KFAC, LevenbergMarquardt

X = torch.linspace(-1, 1, 384).reshape(96, 4).sin()
Y = torch.arange(96) // 32
OPTIONS = {"damping": 0.1, "kl_clip": 1e-2, "fisher": "mc"}


class Net(LightningModule):
    """A classifier in the usual form."""

    def __init__(self, manual: bool = False, factor: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        self.criterion = nn.CrossEntropyLoss()
        self.automatic_optimization = not manual
        self.factor = factor

    def training_step(self, batch, index):
        loss = self.criterion(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss * self.factor

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


class Kept(DummyLogger):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics, step=None) -> None:
        self.rows.append(dict(metrics))


def fit(net, callback, folder: Path, *others, resume=None, **options) -> Trainer:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=8)
    options = {"max_epochs": 1, "logger": False, "enable_progress_bar": False} | options
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        enable_model_summary=False,
        enable_checkpointing=bool(others),
        callbacks=[callback, *others],
        log_every_n_steps=1,
        **options,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
        trainer.fit(net, loader, ckpt_path=resume)
    return trainer


def named(**options) -> KFACCallback:
    return KFACCallback(model="net", criterion="criterion", **(OPTIONS | options))


def plain(net: Net, accumulated: int = 1, clip: float | None = None, **options) -> None:
    """The same in a loop."""
    settings = net.configure_optimizers()
    optimizer, scheduler = settings["optimizer"], settings["lr_scheduler"]["scheduler"]
    options = {"lr": optimizer} | OPTIONS | options
    kfac = KFAC(net.net, criterion=net.criterion, **options)
    batches = list(zip(X.split(8), Y.split(8), strict=True))
    for first in range(0, len(batches), accumulated):
        optimizer.zero_grad()
        for x, y in batches[first : first + accumulated]:
            (net.criterion(net.net(x), y) / accumulated).backward()
        kfac.step()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("accumulated", "clip", "options"),
    [(1, None, {}), (3, None, {"fisher": "empirical"}), (2, 0.05, {}), (4, None, {"lr": 0.2})],
)
def test_a_fit_is_a_loop(accumulated, clip, options, tmp_path) -> None:
    """Accumulated, clipped after the step, with a schedule that the KL clip follows."""
    found, expected = Net(), Net()
    kfac = named(**options)
    fit(found, kfac, tmp_path, accumulate_grad_batches=accumulated, gradient_clip_val=clip)
    plain(expected, accumulated, clip, **options)
    assert kfac.kfac.steps == 12 // accumulated
    for p, q in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_it_trains_in_mixed_precision_and_logs(tmp_path) -> None:
    logger, net, kfac = Kept(), Net(), named()
    fit(net, kfac, tmp_path, precision="bf16-mixed", logger=logger, max_epochs=4)
    rows = [row for row in logger.rows if "kfac/nu" in row]
    assert len(rows) == 48
    assert [row["kfac/step"] for row in rows] == list(range(48))
    assert rows[0]["kfac/loss"] == pytest.approx(rows[0]["loss"])
    loss = nn.functional.cross_entropy(net.net(X), Y).item()
    assert loss < 0.8 * rows[0]["loss"]
    assert kfac.kfac.layers[0].input_factor.dtype == torch.float32
    quiet = Kept()
    fit(Net(), named(log=False), tmp_path, logger=quiet)
    assert not any("kfac/nu" in row for row in quiet.rows)


def test_the_whole_module_may_be_the_model(tmp_path) -> None:
    class Called(Net):
        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, index):
            return self.criterion(self(batch[0]), batch[1])

    found, expected = Called(), Net()
    kfac = KFACCallback(criterion="criterion", **OPTIONS)
    fit(found, kfac, tmp_path)
    plain(expected)
    for p, q in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_resumed_equals_uninterrupted(tmp_path) -> None:
    """Draws of "mc" and kept inverses included."""
    whole, resumed = Net(), Net()
    options = {"inverse_interval": 4}
    saves = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{step}")
    first = named(**options)
    trainer = fit(whole, first, tmp_path, saves, max_epochs=3)
    path = tmp_path / "step=12.ckpt"
    again = named(**options)
    fit(resumed, again, tmp_path, resume=path, max_epochs=3)
    assert again.kfac.steps == first.kfac.steps == 36
    assert again.kfac.metrics == first.kfac.metrics
    for p, q in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)
    trainer.save_checkpoint(tmp_path / "end.ckpt")  # after fit: the state is still there
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)["callbacks"]
    assert saved[first.state_key]["kfac"]["steps"] == 36


def test_a_loaded_state_is_saved_again_before_it_is_used() -> None:
    kfac = named()
    assert kfac.state_dict() == {}
    kfac.load_state_dict({"kfac": {"steps": 3}})
    assert kfac.state_dict() == {"kfac": {"steps": 3}}


def test_after_fit_nothing_is_watched(tmp_path) -> None:
    net, kfac = Net(), named()
    fit(net, kfac, tmp_path)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("overflows", [[], [0, 5]])
def test_steps_that_a_scaler_skips(overflows, tmp_path) -> None:
    class Overflowing(Net):
        def training_step(self, batch, index):
            self.factor = 3e38 if index in overflows else 1.0
            return super().training_step(batch, index)

    net, kfac = Overflowing(), named()
    plugin = MixedPrecision("bf16-mixed", "cpu")
    plugin.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    fit(net, kfac, tmp_path, plugins=[plugin])
    assert kfac.kfac.steps == 12 - len(overflows)
    assert plugin.scaler.get_scale() == 2.0 ** (10 - len(overflows))
    assert nn.functional.cross_entropy(net.net(X), Y).item() < 1.0


def test_an_overflow_without_a_scaler_is_an_error(tmp_path) -> None:
    net = Net(factor=float("inf"))
    with pytest.raises(FloatingPointError, match="NaN or inf"):
        fit(net, named(), tmp_path)
    assert not any(m._forward_hooks for m in net.modules())


def test_batches_may_be_left_out(tmp_path) -> None:
    """`training_step` returns None."""

    class Choosy(Net):
        def training_step(self, batch, index):
            return None if index % 3 == 0 else super().training_step(batch, index)

    kfac = named()
    fit(Choosy(), kfac, tmp_path)
    assert kfac.kfac.steps == 8


def test_what_does_not_fit_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"damping = LevenbergMarquardt.* needs KFAC\.adapt"):
        KFACCallback(damping=LevenbergMarquardt(0.1))
    with pytest.raises(RuntimeError, match="automatic_optimization = False; legal: one, in auto"):
        fit(Net(manual=True), named(), tmp_path)
    with pytest.raises(ValueError, match="model = 'nett' is no submodule of Net; legal: 'net', 'c"):
        fit(Net(), KFACCallback(model="nett"), tmp_path)
    with pytest.raises(ValueError, match="criterion = 'loss' is no submodule of Net"):
        fit(Net(), KFACCallback(criterion="loss"), tmp_path)
    with pytest.raises(ValueError, match=r"damping = -1\.0 is out of range"):
        fit(Net(), KFACCallback(damping=-1.0), tmp_path)
