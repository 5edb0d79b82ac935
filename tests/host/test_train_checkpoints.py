"""Training that is interrupted and resumed: exactly as if it had not been, or refused."""

from __future__ import annotations

import io
import json
import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from thermokron.host.cli import main
from thermokron.host.train import Progress, Task, TrainConfig, train
from thermokron.host.train.checkpoints import Account, Checkpoints, _sealed
from thermokron.model import ArrayPhysics, UnitSpec

RUNS = {
    "mlp numeric": TrainConfig(epochs=3, batch_size=479, samples=100, seed=3),
    "cnn cosine": TrainConfig(
        network="cnn",
        engine="exact",
        epochs=3,
        batch_size=720,
        hidden=(4, 8),
        schedule="cosine",
        warmup=1,
        fisher="mc",
        inverse_interval=4,
    ),
    "graph adapting": TrainConfig(
        network="graph", engine="exact", epochs=3, adapt_damping=True, schedule="linear"
    ),
    "adam": TrainConfig(
        optimizer="adam", engine=None, epochs=3, batch_size=479, weight_decay=0.01, schedule="step"
    ),
    "sgd": TrainConfig(optimizer="sgd", engine=None, epochs=3, batch_size=479),
}
TIMES = ("wall_seconds", "start_seconds", "epoch_seconds")


class Interrupted(Exception):
    pass


def interrupt(config: TrainConfig, path, *, at: int, **options) -> None:
    """Train with a checkpoint until the middle of an epoch, counted from 0."""

    def stop(now: Progress) -> None:
        if now.metrics["epoch"] == at:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(config, progress=stop, checkpoint=path, **options)


def record(result) -> dict:
    """What a run came to, but for the time it took."""
    return {name: value for name, value in vars(result).items() if name not in TIMES}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("at", [1, 2])
def test_resumed_equals_uninterrupted(name: str, at: int, tmp_path) -> None:
    """Losses, the test set's too, and everything that is counted."""
    config, path = RUNS[name], tmp_path / "new" / "run.pt"
    whole = train(config)
    interrupt(config, path, at=at)
    assert torch.load(path, weights_only=True)["account"]["losses"] == [
        whole.initial_loss,
        *whole.train_loss[:at],
    ]
    seen = []
    resumed = train(config, resume=path, checkpoint=path, progress=seen.append)
    assert record(resumed) == record(whole)
    assert seen[0].metrics["epoch"] == at
    assert len(resumed.epoch_seconds) == 3
    again = train(config, resume=path)  # the file holds the finished run
    assert record(again) == record(whole)
    assert not list(path.parent.glob("*.part"))


def noisy_task() -> Task:
    """Dropout draws from torch's own generator while it trains."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 5, generator=generator)
    model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator) / 3
    data = torch.utils.data.TensorDataset(inputs, inputs[:, :1].sin())
    return Task(model=model, train=data, loss=torch.nn.MSELoss(), name="noisy")


def test_dropout_goes_on_where_it_was(tmp_path) -> None:
    config = TrainConfig(engine="exact", epochs=4, batch_size=20, fisher="ggn")
    torch.manual_seed(7)
    whole = train(config, task=noisy_task())
    torch.manual_seed(7)
    interrupt(config, tmp_path / "run.pt", at=2, task=noisy_task())
    torch.manual_seed(99)
    resumed = train(config, task=noisy_task(), resume=tmp_path / "run.pt")
    assert record(resumed) == record(whole)


def test_a_constant_rate_may_go_on_for_longer(tmp_path) -> None:
    config, path = replace(RUNS["sgd"], epochs=2), tmp_path / "run.pt"
    train(config, checkpoint=path)
    longer = train(RUNS["sgd"], resume=path)
    assert longer.train_loss == train(RUNS["sgd"]).train_loss
    with pytest.raises(ValueError, match="epochs = 1 is out of range; legal: 2 or more, which"):
        train(replace(config, epochs=1), resume=path)


def test_other_runs_are_refused_and_what_differs_is_named(tmp_path) -> None:
    path = tmp_path / "run.pt"
    config = replace(RUNS["mlp numeric"], epochs=1, batch_size=1437, schedule="cosine")
    train(config, checkpoint=path, spec=UnitSpec(cells=20))
    for changed, message in (
        ({"seed": 4}, r"seed = 3, not 4$"),
        ({"lr": 0.05, "samples": 99}, "lr = 0.07, not 0.05; samples = 100, not 99$"),
        ({"epochs": 2}, "epochs = 1, not 2"),
        ({"hidden": (16,)}, r"hidden = None, not \(16,\)"),
        ({"network": "vit", "fisher": "empirical"}, "network = 'mlp', not 'vit'"),
    ):
        with pytest.raises(ValueError, match=f"{path} is a checkpoint of another run: .*{message}"):
            train(replace(config, **changed), resume=path, spec=UnitSpec(cells=20))
    with pytest.raises(ValueError, match=r"run: spec\.cells = 20, not 65; spec\.lanes"):
        train(config, resume=path, spec=UnitSpec(cells=65))
    physics = ArrayPhysics(adc_offset=0.01)
    with pytest.raises(ValueError, match=r"run: physics\.adc_offset = None, not 0\.01$"):
        train(config, resume=path, spec=UnitSpec(cells=20), physics=physics)


def save_sealed(state: object, path: Path) -> None:
    """As `Checkpoints` does, whatever it is."""
    written = io.BytesIO()
    torch.save(state, written)
    path.write_bytes(_sealed(written))


def test_files_that_are_no_checkpoints_are_refused(tmp_path) -> None:
    config, path = RUNS["sgd"], tmp_path / "run.pt"
    train(replace(config, epochs=1), checkpoint=path)
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"run\.pt is no checkpoint of a training run: it"):
            train(config, resume=path)
    torch.save({"model": {}}, path)  # without a checksum
    with pytest.raises(ValueError, match=r"run\.pt is no checkpoint of a training run: it does no"):
        train(config, resume=path)
    save_sealed({"model": {}}, path)
    with pytest.raises(ValueError, match=r"run\.pt is no checkpoint of a training run$"):
        train(config, resume=path)
    save_sealed({"format": "thermokron training 0"}, path)
    with pytest.raises(ValueError, match="has the format 'thermokron training 0'; legal"):
        train(config, resume=path)
    with pytest.raises(FileNotFoundError):
        train(config, resume=tmp_path / "nowhere.pt")
    path.write_bytes(whole)
    state = torch.load(path, weights_only=True)
    for name in ("identity", "account", "parts", "generator"):
        save_sealed({key: value for key, value in state.items() if key != name}, path)
        with pytest.raises(ValueError, match=rf"run\.pt is no checkpoint .*: it has no {name}$"):
            train(config, resume=path)
    for changed, message in (
        ({"account": state["account"] | {"joules": 3.0}}, "account: .*'joules'"),
        ({"parts": {"model": state["parts"]["model"]}}, "it lacks parts: optimizer, schedule, los"),
        ({"generator": torch.zeros(3)}, "generators: "),
    ):
        save_sealed(state | changed, path)
        with pytest.raises(ValueError, match=rf"run\.pt is no whole checkpoint: {message}"):
            train(config, resume=path)


def test_any_flipped_bit_is_noticed(tmp_path) -> None:
    config, path = replace(RUNS["sgd"], epochs=1), tmp_path / "run.pt"
    train(config, checkpoint=path)
    whole = path.read_bytes()
    for place in range(0, len(whole), len(whole) // 40):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"run\.pt is (damaged: its checksum|no checkpoint)"):
            train(config, resume=path)
    path.write_bytes(whole)
    assert len(train(config, resume=path).train_loss) == 1


def test_another_engine_is_all_that_is_said_of_it(tmp_path) -> None:
    config = replace(RUNS["mlp numeric"], epochs=1, batch_size=1437)
    train(config, checkpoint=tmp_path / "run.pt")
    with pytest.raises(ValueError, match=r"another run: engine = 'numeric', not 'exact'$"):
        train(replace(config, engine="exact"), resume=tmp_path / "run.pt")


def test_a_path_that_cannot_be_written_is_refused_before_training(tmp_path) -> None:
    def never(now: Progress) -> None:
        raise AssertionError("it trained")

    (tmp_path / "file").touch()
    for path, error in (
        (tmp_path, IsADirectoryError),
        (tmp_path / "file" / "run.pt", FileExistsError),
        (tmp_path / "file" / "deep" / "run.pt", NotADirectoryError),
    ):
        with pytest.raises(error, match=str(tmp_path)):
            train(RUNS["sgd"], checkpoint=path, progress=never)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_one_file_by_two_paths_is_one_file(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.pt"
    train(replace(RUNS["sgd"], epochs=1), checkpoint=path)
    train(RUNS["sgd"], checkpoint=Path("run.pt"), resume=path)
    assert torch.load(path, weights_only=True)["account"]["losses"][3:]


def test_an_older_checkpoint_is_not_overwritten_unasked(tmp_path) -> None:
    path = tmp_path / "run.pt"
    train(replace(RUNS["sgd"], epochs=1), checkpoint=path)
    with pytest.raises(ValueError, match=r"checkpoint = .*run\.pt exists; resume from it, or"):
        train(RUNS["sgd"], checkpoint=path)


def test_a_network_that_has_changed_is_refused(tmp_path) -> None:
    config = TrainConfig(engine="exact", epochs=1, batch_size=20)
    train(config, task=noisy_task(), checkpoint=tmp_path / "run.pt")
    changed = noisy_task()
    changed.model[0] = torch.nn.Linear(5, 9)
    with pytest.raises(ValueError, match=r"does not fit the network: .*size mismatch"):
        train(config, task=changed, resume=tmp_path / "run.pt")


def test_a_save_that_fails_leaves_the_one_before(tmp_path, monkeypatch) -> None:
    path = tmp_path / "run.pt"
    model = torch.nn.Linear(2, 2)
    checkpoints = Checkpoints({"a": 1}, {"model": model}, torch.Generator(), global_generator=False)
    checkpoints.save(path, Account(losses=[1.0]))

    def fail(state, file) -> None:
        file.write(b"half of it")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        checkpoints.save(path, Account(losses=[1.0, 0.5]))
    assert checkpoints.load(path).losses == [1.0]


def test_a_checkpoint_that_is_a_symbolic_link_keeps_being_one(tmp_path) -> None:
    (tmp_path / "elsewhere").mkdir()
    path, target = tmp_path / "run.pt", tmp_path / "elsewhere" / "real.pt"
    path.symlink_to(target)
    train(replace(RUNS["sgd"], epochs=1), checkpoint=path)
    assert path.is_symlink()
    train(replace(RUNS["sgd"], epochs=2), checkpoint=path, resume=path)
    assert path.is_symlink()
    assert len(torch.load(target, weights_only=True)["account"]["losses"]) == 3
    assert os.listdir(tmp_path / "elsewhere") == ["real.pt"]


def test_a_checkpoint_that_another_run_writes_is_left_alone(tmp_path) -> None:
    """Both were begun before either had saved anything."""
    path = tmp_path / "run.pt"

    def other(now: Progress) -> None:
        if now.step == 1:
            train(replace(RUNS["sgd"], epochs=1), checkpoint=path)

    with pytest.raises(FileExistsError, match="written by another run meanwhile"):
        train(replace(RUNS["sgd"], seed=9), checkpoint=path, progress=other)
    assert torch.load(path, weights_only=True)["identity"]["seed"] == 0


def test_a_file_size_limit_or_a_full_disk_is_one_line_that_names_the_file(
    tmp_path, monkeypatch, capsys
) -> None:
    """The file-size limit and a full disk come to the same call, with another number."""
    monkeypatch.chdir(tmp_path)
    command = ["train", "digits", "--hidden", "8", "--optimizer", "sgd", "--epochs", "1"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))
    try:
        assert main([*command, "-o", "out", "--checkpoint", "run.pt"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert capsys.readouterr().err == "thermokron: error: run.pt: File too large\n"
    assert os.listdir() == ["out"]


def test_the_command_line_resumes_and_completes_its_log(tmp_path, monkeypatch, capsys) -> None:
    """Interrupted in the third step of its second epoch, by the user."""
    from thermokron.host.kfac import KFAC

    monkeypatch.chdir(tmp_path)
    command = ["train", "digits", "--epochs", "3", "--batch-size", "479", "--engine", "exact"]
    command += ["--schedule", "cosine"]
    assert main([*command, "-o", "whole"]) == 0
    steps = 0

    def step(kfac):
        nonlocal steps
        steps += 1
        if steps == 6:
            raise KeyboardInterrupt
        return original(kfac)

    original = KFAC.step
    with monkeypatch.context() as patched:
        patched.setattr(KFAC, "step", step)
        assert main([*command, "-o", "parts", "--checkpoint", "run.pt"]) == 130
    assert len((tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()) == 5
    arguments = [*command, "-o", "parts", "--resume", "run.pt"]
    elsewhere = [*command, "-o", "other", "--resume", "run.pt", "--checkpoint", "other.pt"]
    capsys.readouterr()
    assert main(elsewhere) == 0
    assert "metrics.jsonl lacks 3 steps of before" in capsys.readouterr().out
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "run.pt" in printed
    assert "lacks" not in printed
    assert torch.load("run.pt", weights_only=True)["account"]["losses"][3:]  # saved on its way
    logs, runs = [], []
    for folder in ("whole", "parts"):
        logs.append((tmp_path / folder / "metrics.jsonl").read_text())
        (run,) = json.loads((tmp_path / folder / "result.json").read_text())["runs"]
        runs.append({name: value for name, value in run.items() if name not in TIMES})
    assert logs[0] == logs[1]
    assert runs[0] == runs[1]
    assert main([*arguments, "--seed", "1"]) == 2
    assert "run.pt is a checkpoint of another run: seed = 0, not 1" in capsys.readouterr().err
