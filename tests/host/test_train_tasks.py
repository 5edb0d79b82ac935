"""Every way into training: networks that come along, tasks of the user's, schedules, the log."""

from __future__ import annotations

import importlib
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from thermokron.host.cli import main
from thermokron.host.kfac import KFAC
from thermokron.host.train import Task, TrainConfig, train
from thermokron.host.train.defaults import page_table
from thermokron.host.train.evaluation import evaluate
from thermokron.host.train.molecules import ATOMS, ELEMENTS, FEATURES, Molecules, _graph
from thermokron.host.train.networks import GraphNetwork, VisionTransformer
from thermokron.host.train.schedules import scheduler
from thermokron.model import UnitSpec

#: Few steps of small networks: options by network.
SHORT = {
    "mlp": {"hidden": (16,), "batch_size": 479},
    "cnn": {"hidden": (4, 8), "batch_size": 479},
    "vit": {"hidden": (16,), "batch_size": 720},
    "graph": {"hidden": (16,), "batch_size": 100},
}

MODULE = '''
import torch
from thermokron.host.train import Task

class Rows(torch.utils.data.Dataset):
    """Neither tensors nor a TensorDataset."""
    def __init__(self, rows):
        self.rows = rows
    def __len__(self):
        return len(self.rows)
    def __getitem__(self, index):
        return {"x": self.rows[index]}, float(self.rows[index].sum() > 0)

class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.ReLU(), torch.nn.Linear(8, 1)
        )
    def forward(self, batch):
        return self.layers(batch["x"]).squeeze(-1).double()

def task(seed):
    rows = torch.randn(60, 4)
    return Task(model=Network(), train=Rows(rows[:40]), test=Rows(rows[40:]),
                loss=torch.nn.BCEWithLogitsLoss(), name="signs")

def number(seed):
    return 3

def summed(seed):
    made = task(seed)
    return Task(model=made.model, train=made.train, loss=torch.nn.BCELoss(reduction="sum"))

constant = 3
'''


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
    """A module of the user's, in the current folder; its name differs per test."""
    name = f"mine_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return name


# ---- networks --------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["exact", "numeric"])
@pytest.mark.parametrize("network", SHORT)
def test_one_epoch_of_every_network(network: str, engine: str) -> None:
    config = TrainConfig(
        network=network, engine=engine, epochs=1, samples=200, seed=3, lr=0.02, **SHORT[network]
    )
    result = train(config, spec=UnitSpec(cells=80))
    assert result.network == network
    assert tuple(result.hidden) == SHORT[network]["hidden"]
    assert result.train_loss[0] < result.initial_loss
    assert result.test_loss is not None
    assert (result.test_accuracy is None) == (network == "graph")
    assert (result.hardware_seconds > 0.0) == (engine == "numeric")


@pytest.mark.parametrize("network", ["cnn", "vit", "graph"])
def test_runs_are_reproducible_and_leave_the_global_generator_alone(network: str) -> None:
    config = TrainConfig(network=network, engine="exact", epochs=1, seed=3, **SHORT[network])
    before = torch.get_rng_state()
    first = train(config)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert train(config).train_loss == first.train_loss


@pytest.mark.parametrize(("network", "blocks"), [("cnn", 3), ("vit", 20), ("graph", 4)])
def test_k_fac_covers_every_parameter(network: str, blocks: int) -> None:
    from thermokron.host.train.named import make_task

    with make_task(TrainConfig(network=network, engine="exact"), torch.Generator()) as task:
        kfac = KFAC(task.model, lr=0.1, damping=0.1)
    assert kfac.uncovered == []
    assert len(kfac.layers) == blocks


def test_the_vision_transformer_sees_patches_and_their_places() -> None:
    torch.manual_seed(0)
    model = VisionTransformer((16,)).eval()
    image = torch.randn(1, 8, 8)
    shifted = image.roll(2, dims=2)  # the same patches at other places
    first, second = model(image.reshape(1, 64)), model(shifted.reshape(1, 64))
    assert not torch.allclose(first, second, atol=1e-4)
    model.positions.weight.data.zero_()
    torch.testing.assert_close(model(image.reshape(1, 64)), model(shifted.reshape(1, 64)))


def test_the_graph_network_knows_neither_order_nor_padding() -> None:
    torch.manual_seed(0)
    model = GraphNetwork((16, 16))
    data = Molecules.load(0)
    atoms, bonds = data.test_atoms[:5], data.test_bonds[:5]
    order = torch.randperm(ATOMS)
    torch.testing.assert_close(
        model(atoms, bonds), model(atoms[:, order], bonds[:, order][:, :, order])
    )
    used = int((atoms.abs().sum(dim=-1) > 0).sum(dim=1).max())
    assert used < ATOMS
    torch.testing.assert_close(model(atoms, bonds), model(atoms[:, :used], bonds[:, :used, :used]))
    alone = torch.cat([model(a[None], b[None]) for a, b in zip(atoms, bonds, strict=True)])
    torch.testing.assert_close(model(atoms, bonds), alone)


# ---- molecules -------------------------------------------------------------------------------


def test_a_molecule_is_read_atom_by_atom() -> None:
    atoms, bonds = _graph("CH3 C N+ O- Cl", "0-1 1=2 2:3 1#4")
    assert atoms.shape == (ATOMS, FEATURES)
    assert [ELEMENTS[int(a[:10].argmax())] for a in atoms[:5]] == ["C", "C", "N", "O", "Cl"]
    assert atoms[:5, 10].tolist() == [3, 0, 0, 0, 0]  # hydrogens
    assert atoms[:5, 11].tolist() == [0, 0, 1, -1, 0]  # charge
    assert atoms[1, 12:].tolist() == [1, 0, 1, 1]  # single, aromatic, double, triple
    assert atoms[5:].abs().sum() == 0
    assert torch.equal(bonds, bonds.T)
    assert bonds.nonzero().tolist()[:2] == [[0, 1], [1, 0]]


def test_molecules_are_whole_and_split_once() -> None:
    data = Molecules.load(4)
    assert len(data.train_atoms) == 400
    assert len(data.test_atoms) == 96
    every = torch.cat([data.train_atoms, data.test_atoms])
    valences = every[..., 10] + every[..., 12:] @ torch.tensor([1.0, 1.5, 2.0, 3.0])
    carbon = (every[..., 0] == 1) & (every[..., 11] == 0)
    # an aromatic bond counts as one and a half: more where rings meet, or a ring has a C=O
    assert set(valences[carbon].tolist()) <= {4.0, 4.5, 5.0}
    assert (valences[carbon] == 4.0).float().mean() > 0.95
    assert data.train_targets.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert data.train_targets.std().item() == pytest.approx(1.0, abs=1e-5)
    assert 80.0 < data.deviation_k < 130.0
    again = Molecules.load(4)
    assert torch.equal(again.test_targets, data.test_targets)
    assert not torch.equal(Molecules.load(5).test_atoms, data.test_atoms)


# ---- tasks of the user's ---------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["kfac", "adam"])
def test_a_function_of_the_users_is_trained(module: str, optimizer: str) -> None:
    command = ["train", f"{module}:task", "--optimizer", optimizer, "--epochs", "2"]
    command += ["--batch-size", "16", "--lr", "0.05", "-o", "out"]
    command += ["--engine", "exact"] if optimizer == "kfac" else []
    for _ in range(2):  # dropout and weights are seeded
        assert main(command) == 0
        with open("out/result.json") as file:
            (run,) = json.load(file)["runs"]
        losses = run["train_loss"]
        assert (run["network"], run["loss"]) == ("signs", "BCEWithLogitsLoss")
        assert losses[1] < run["initial_loss"]
        assert 0.0 <= run["test_accuracy"] <= 1.0
    assert losses == run["train_loss"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{}:number", "the function returned int; legal: thermokron.host.train.Task"),
        ("{}:nothing", "has no function 'nothing'"),
        ("{}:constant", "has no function 'constant'"),
        ("{}:summed", "loss.reduction = 'sum'; legal: 'mean'"),
        ("nowhere.mod:task", "there is no module 'nowhere'"),
        ("a b:task", "names no function; legal: package.module:function"),
    ],
)
def test_what_is_no_task_is_refused_by_name(module: str, name: str, message: str, capsys) -> None:
    assert main(["train", name.format(module), "--engine", "exact", "-o", "out"]) == 2
    assert message in capsys.readouterr().err


def test_a_task_says_what_is_wrong_with_it() -> None:
    model, loss = torch.nn.Linear(2, 1), torch.nn.MSELoss()
    data = TensorDataset(torch.zeros(4, 2), torch.zeros(4, 1))
    for part, wrong, message in (
        ("model", 3, "model = 3 is not a torch.nn.Module"),
        ("loss", torch.nn.functional.mse_loss, "loss = the function 'mse_loss' is not"),
        ("loss", torch.nn.MSELoss, "loss = the class MSELoss is not a torch.nn.Module"),
        ("model", torch.nn.Tanh(), "model has no parameters; legal: 1 or more"),
        ("train", [1, 2], "train = a list is not a torch.utils.data.Dataset"),
        ("train", TensorDataset(torch.zeros(0, 2), torch.zeros(0, 1)), "train holds no examples"),
        ("test", TensorDataset(torch.zeros(4, 2)), r"test\[0\] is a tuple of 1 entries; legal"),
    ):
        with pytest.raises(ValueError, match=message):
            Task(**{"model": model, "loss": loss, "train": data, part: wrong})


def test_a_task_in_python_replaces_the_network_named() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(90, 5, generator=generator)
    data = TensorDataset(inputs, inputs @ torch.randn(5, 2, generator=generator))
    model = torch.nn.Linear(5, 2)
    task = Task(model=model, train=data, loss=torch.nn.MSELoss(), name="line")
    config = TrainConfig(
        engine="exact", fisher="ggn", epochs=5, batch_size=30, lr=0.3, momentum=0.0, kl_clip=None
    )
    result = train(config, task=task)
    assert (result.network, result.test_loss, result.test_accuracy) == ("line", None, None)
    assert result.train_loss[-1] < 0.1 * result.initial_loss
    assert evaluate(task, data).loss == result.train_loss[-1]  # it is the model given


def test_evaluation_is_the_mean_over_all_examples_whatever_the_chunks(monkeypatch) -> None:
    from thermokron.host.train import evaluation

    inputs, labels = torch.randn(50, 3), torch.randint(4, (50,))
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5))
    task = Task(model=model, train=TensorDataset(inputs, labels), loss=torch.nn.CrossEntropyLoss())
    whole = evaluate(task, task.train)
    monkeypatch.setattr(evaluation, "CHUNK", 7)
    parts = evaluate(task, task.train)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert parts.accuracy == whole.accuracy
    assert model.training


def test_networks_that_are_unknown_are_named() -> None:
    for network, message in (
        ("resnet", "network = 'resnet' is unknown; legal: mlp, cnn, vit, graph, module:function"),
        ("m:f", r"hidden = \(3,\) has no effect"),
        ("cnn", r"hidden = \(3,\) is out of range; legal for cnn: two channels"),
    ):
        with pytest.raises(ValueError, match=message):
            train(TrainConfig(network=network, hidden=(3,), engine="exact"))


# ---- schedules, options and the log ----------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("cosine", [(1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)]),
        ("step", [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
    ],
)
def test_schedules_take_the_rate_where_they_say(schedule: str, expected: list[float]) -> None:
    for warmup in (0, 3):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
        schedule_ = scheduler(optimizer, schedule, steps=8 + warmup, warmup=warmup)
        rates = []
        for _ in range(8 + warmup):
            rates.append(optimizer.param_groups[0]["lr"] / 2.0)
            optimizer.step()
            schedule_.step()
        assert rates == pytest.approx([0.25, 0.5, 0.75][:warmup] + expected)
    with pytest.raises(ValueError, match="warmup = 8 is out of range; legal: below the 8 steps"):
        scheduler(optimizer, schedule, steps=8, warmup=8)


def test_every_step_is_logged_with_the_scheduled_rate(tmp_path) -> None:
    command = "train digits --engine exact --epochs 2 --batch-size 479 --schedule linear --lr 0.06"
    command += " --adapt-damping --fisher mc --kl-clip none --inverse-interval 2 --damping 0.05"
    assert main([*command.split(), "-o", str(tmp_path)]) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5]
    assert [line["epoch"] for line in lines] == [0, 0, 0, 1, 1, 1]
    assert [line["lr"] for line in lines] == pytest.approx([0.06 * (6 - i) / 6 for i in range(6)])
    assert [line["inversions"] for line in lines] == [4, 0, 4, 0, 4, 0]
    assert {line["nu"] for line in lines} == {1.0}
    assert lines[0]["damping"] == 0.05
    assert "reduction_ratio" in lines[0]
    assert lines[-1]["damping"] != 0.05
    assert lines[0]["loss"] == pytest.approx(math.log(10), abs=0.3)
    run = json.loads((tmp_path / "result.json").read_text())["runs"][0]
    assert run["kfac_options"]["fisher"] == "mc"
    assert run["kfac_options"]["kl_clip"] is None
    assert (run["schedule"], run["adapt_damping"]) == ("linear", True)


def test_options_of_k_fac_change_what_is_trained() -> None:
    base = {"engine": "exact", "epochs": 1, "batch_size": 479}
    seen = {tuple(train(TrainConfig(**base)).train_loss)}
    for option in (
        {"fisher": "ggn"},
        {"fisher": "mc"},
        {"fisher": "mc", "mc_samples": 3},
        {"damping_mode": "exact"},
        {"damping": 0.01},
        {"adapt_damping": True, "batch_size": 240},
        {"decay": 0.5},
        {"factor_interval": 2},
        {"inverse_interval": 2},
        {"kl_clip": 1e-4},
        {"norm_constraint": 0.1},
        {"weight_decay": 0.1},
        {"schedule": "cosine"},
        {"warmup": 1},
    ):
        losses = tuple(train(TrainConfig(**base | option)).train_loss)
        assert losses not in seen, option
        seen.add(losses)
    numeric = TrainConfig(epochs=1, batch_size=1437, hidden=(8,), samples=100)
    method = TrainConfig(epochs=1, batch_size=1437, hidden=(8,), samples=100, method="inverse")
    assert train(numeric).train_loss != train(method).train_loss


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--optimizer adam --fisher mc", "fisher = mc has no effect: adam uses no K-FAC"),
        ("--optimizer sgd --damping 0.1", "damping = 0.1 has no effect: sgd uses no K-FAC"),
        ("--engine exact --samples 9", "samples = 9 has no effect: kfac (exact) uses no unit"),
        ("--optimizer adam --cells 8", "cells = 8 has no effect: adam uses no unit"),
        ("--engine exact --decay 1", "decay = 1.0 is out of range"),
        ("--engine exact --warmup 100", "warmup = 100 is out of range; legal: below the 100"),
        ("--network cnn --hidden 3", "hidden = (3,) is out of range"),
        ("--damping-mode exact", "engine = 'numeric' does not make; legal: engine = 'exact'"),
        ("--optimizer adam --momentum 0.5", "momentum = 0.5 has no effect: adam has its own"),
        ("--simulator icarus", "simulator = icarus has no effect: kfac (numeric) runs no Verilog"),
        ("--method inverse --settle 0.2", "settle = 0.2 has no effect: kfac (numeric) reads no"),
        ("--mc-samples 5", "mc_samples = 5 has no effect: kfac (numeric) samples no labels"),
        ("--optimizer adam --engine exact", "legal: None; on the command line, no --engine"),
        ("--kl-clip -1", "kl_clip = -1.0 is out of range; legal: 1e-16 or more"),
        ("--no-equilibrate --epochs 1", "cells, or a unit with cells = 65 or more"),
    ],
)
def test_options_without_effect_or_sense_are_refused(options, message, tmp_path, capsys) -> None:
    assert main(["train", "digits", *options.split(), "-o", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_task_on_the_page_on_training_learns(tmp_path, monkeypatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    _, mine = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "mytask.py").write_text(mine)
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall(r"^thermokron (train mytask.*)$", page, re.MULTILINE)
    assert main([*command.split(), "--engine", "exact"]) == 0
    with open("runs/mytask.task-kfac-exact/result.json") as file:
        (run,) = json.load(file)["runs"]
    assert run["train_loss"][-1] < 0.1 * run["initial_loss"]
    # as the page says: the same from Python, by name, and made before
    (settings,) = re.findall(r"^config = TrainConfig\((.*)\)$", page, re.MULTILINE)
    config = replace(eval(f"TrainConfig({settings})"), engine="exact")
    assert train(config).train_loss == run["train_loss"]
    torch.manual_seed(0)
    made = importlib.import_module("mytask").task(0)
    assert train(config, task=made).train_loss == run["train_loss"]


def test_the_page_on_training_has_the_defaults_that_there_are() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    assert page_table() in page, f"docs/training.md should have:\n{page_table()}"
    assert "| vit | 0.001 |" in page_table()


def test_sizes_of_datasets_that_have_none_are_refused() -> None:
    class Endless(Dataset[int]):
        def __getitem__(self, index: int) -> int:
            return index

    with pytest.raises(ValueError, match=r"is not a torch\.utils.data.Dataset with a length"):
        Task(model=torch.nn.Linear(1, 1), train=Endless(), loss=torch.nn.MSELoss())
