"""K-FAC in Hugging Face's Trainer is K-FAC in a loop of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="needs the extra transformers")
pytest.importorskip("accelerate", reason="needs the extra transformers")

from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from thermokron.host.integrations.transformers import KFACTrainerCallback, loss_function
from thermokron.host.kfac import KFAC, LevenbergMarquardt

TOKENS = torch.arange(32 * 8).reshape(32, 8) * 7 % 11
LABELS = TOKENS.masked_fill(torch.arange(8) < torch.arange(32)[:, None] % 4, -100)
DATA = [{"input_ids": x, "labels": y} for x, y in zip(TOKENS, LABELS, strict=True)]
OPTIONS = {"damping": 0.1, "kl_clip": 1e-2, "fisher": "mc"}


def language_model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=11,
        n_positions=8,
        n_embd=8,
        n_layer=1,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


class Unshuffled(Trainer):
    """Takes examples in order."""

    def _get_train_sampler(self, *args, **kwargs):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def train(
    model, callback: KFACTrainerCallback, folder: Path, resume=None, shift=True, **options
) -> Trainer:
    options = {"max_grad_norm": 0.0, "save_strategy": "no", "num_train_epochs": 2} | options
    args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        learning_rate=0.1,
        lr_scheduler_type="linear",
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    steps = args.num_train_epochs * 8 // args.gradient_accumulation_steps
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, int(steps))
    trainer = Unshuffled(
        model,
        args,
        train_dataset=DATA,
        compute_loss_func=loss_function(callback.criterion, shift=shift),
        callbacks=[callback],
        optimizers=(optimizer, scheduler),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def callback(**options) -> KFACTrainerCallback:
    return KFACTrainerCallback(criterion=nn.CrossEntropyLoss(), **(OPTIONS | options))


def plain(model, accumulated: int = 1, **options) -> KFAC:
    """The same in a loop."""
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 16 // accumulated)
    kfac = KFAC(model, criterion=criterion, **({"lr": optimizer} | OPTIONS | options))
    model.train()
    for _ in range(2):
        for first in range(0, 32, 4 * accumulated):
            optimizer.zero_grad()
            # of this model the Trainer counts the first label too, which nothing foretells
            whole = (LABELS[first : first + 4 * accumulated] != -100).sum()
            for at in range(first, first + 4 * accumulated, 4):
                rows = slice(at, at + 4)
                logits = model(input_ids=TOKENS[rows]).logits[:, :-1]
                labels = LABELS[rows, 1:]
                loss = criterion(logits.reshape(-1, 11), labels.reshape(-1))
                (loss * (labels != -100).sum() / whole).backward()
            kfac.step()
            optimizer.step()
            scheduler.step()
    return kfac


@pytest.mark.parametrize(
    ("accumulated", "options"), [(1, {}), (2, {}), (4, {"fisher": "empirical", "lr": 0.2})]
)
def test_training_is_a_loop(accumulated, options, tmp_path) -> None:
    """With ignored labels, of which every batch has another number."""
    found, expected, kfac = language_model(), language_model(), callback(**options)
    trainer = train(found, kfac, tmp_path, gradient_accumulation_steps=accumulated)
    reference = plain(expected, accumulated, **options)
    assert kfac.kfac.steps == reference.steps == trainer.state.global_step == 16 // accumulated
    for p, q in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)


def test_it_trains_in_mixed_precision_and_logs(tmp_path) -> None:
    class Writer:
        def __init__(self) -> None:
            self.rows: list[tuple[str, float, int]] = []

        def add_scalar(self, tag, scalar_value, global_step) -> None:
            self.rows.append((tag, scalar_value, global_step))

    writer = Writer()
    kfac = callback(writer=writer)
    trainer = train(language_model(), kfac, tmp_path, bf16=True)
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    assert [row["kfac/step"] for row in rows] == list(range(16))
    assert rows[0]["kfac/loss"] * 25 / 26 == pytest.approx(rows[0]["loss"], rel=0.01)
    assert [step for tag, _, step in writer.rows if tag == "kfac/nu"] == list(range(16))
    assert "kfac/nu" not in trainer.state.log_history[-1]  # of the whole run


@pytest.mark.parametrize("accumulated", [1, 2])
def test_resumed_equals_uninterrupted(accumulated, tmp_path) -> None:
    options = {"gradient_accumulation_steps": accumulated, "save_strategy": "steps"}
    whole, resumed, elsewhere = (language_model() for _ in range(3))
    first, again, moved = (callback(inverse_interval=4) for _ in range(3))
    train(whole, first, tmp_path, save_steps=5, **options)
    assert (tmp_path / "checkpoint-5" / "kfac.pt").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "checkpoint-5").rename(tmp_path / "other" / "five")
    with pytest.raises(FileNotFoundError, match=r"no kfac\.pt in .*checkpoint-5; resume_from = No"):
        train(resumed, again, tmp_path, resume=str(tmp_path / "other" / "five"), **options)
    moved.resume_from = tmp_path / "other" / "five"
    train(elsewhere, moved, tmp_path, resume=str(moved.resume_from), **options)
    (tmp_path / "other" / "five").rename(tmp_path / "checkpoint-5")
    train(resumed, again, tmp_path, resume=str(tmp_path / "checkpoint-5"), **options)
    for kfac, model in ((again, resumed), (moved, elsewhere)):
        assert kfac.kfac.steps == first.kfac.steps == 16 // accumulated
        assert kfac.kfac.metrics == first.kfac.metrics
        for p, q in zip(whole.parameters(), model.parameters(), strict=True):
            assert torch.equal(p, q)


def test_only_the_model_may_be_saved(tmp_path) -> None:
    train(language_model(), callback(), tmp_path, save_strategy="epoch", save_only_model=True)
    assert (tmp_path / "checkpoint-8").exists()
    assert not list(tmp_path.rglob("kfac*"))


def test_clipping_before_changes_nothing_where_the_kl_clip_bounds_the_step(tmp_path) -> None:
    models = [language_model() for _ in range(3)]
    for model, norm, kl_clip in zip(models, (0.0, 0.05, 0.05), (1e-6, 1e-6, None), strict=True):
        train(model, callback(kl_clip=kl_clip), tmp_path, max_grad_norm=norm)
    for p, q, other in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)
        assert not torch.allclose(p, other, rtol=1e-3, atol=1e-5)


def test_after_training_nothing_is_watched(tmp_path) -> None:
    model = language_model()
    train(model, callback(), tmp_path, num_train_epochs=1)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_loss_function_is_that_of_the_model() -> None:
    """With its shift and ignored labels; accumulated as the Trainer wants it."""
    model = language_model()
    outputs = model(input_ids=TOKENS, labels=LABELS)
    loss = loss_function(nn.CrossEntropyLoss(), shift=True)
    torch.testing.assert_close(loss(outputs, LABELS), outputs.loss)
    parts = [
        loss({"logits": outputs.logits[rows]}, LABELS[rows], (LABELS[:, 1:] != -100).sum())
        for rows in (slice(0, 5), slice(5, 32))
    ]
    torch.testing.assert_close(sum(parts), outputs.loss)
    flat = loss_function(nn.CrossEntropyLoss())
    logits, labels = torch.randn(5, 3), torch.arange(5) % 3
    torch.testing.assert_close(
        flat({"logits": logits}, labels), nn.functional.cross_entropy(logits, labels)
    )


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(TypeError, match="model = 3 is not for the callback: it is the Trainer's"):
        KFACTrainerCallback(model=3)
    with pytest.raises(ValueError, match=r"damping = LevenbergMarquardt.* needs KFAC\.adapt"):
        KFACTrainerCallback(damping=LevenbergMarquardt(0.1))
