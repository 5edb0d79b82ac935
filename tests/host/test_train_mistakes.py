"""What goes wrong in a module of the user's, or at the very end, is said in one line, and kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from thermokron.host.cli import main
from thermokron.host.train.identity import RunFile
from thermokron.host.train.named import naming
from thermokron.host.train.results import StepLog
from thermokron.model import UnitFault
from thermokron.model.files import check_writable

MODULE = """
import torch
from torch.utils.data import Dataset, TensorDataset
from thermokron.host.train import Task

def made(inputs=8, targets=None, train=None, test=None, model=None, loss=None):
    torch.manual_seed(0)
    if targets is None:
        targets = torch.randn(20, 1)
    return Task(
        model=model or torch.nn.Linear(inputs, 1),
        train=train or TensorDataset(torch.randn(20, 8), targets),
        test=test,
        loss=loss or torch.nn.MSELoss(),
    )

class Broken(Dataset):
    def __len__(self):
        return 20
    def __getitem__(self, index):
        if index == 13:
            raise LookupError("row 13 is gone")
        return torch.zeros(8), torch.zeros(1)

class Unused(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 1)
    def forward(self, x):
        return x[:, :1] @ self.layer.weight[:, :1]

def good(seed): return made()
def no_seed(): return made()
def runtime(seed): raise RuntimeError("my own bug")
def value(seed): raise ValueError("my own bug")
def key(seed): return {}["absent"]
def exits(seed): raise SystemExit(3)
def shapes(seed): return made(inputs=7)
def labels(seed):
    return made(targets=torch.full((20,), 5), model=torch.nn.Linear(8, 3),
                loss=torch.nn.CrossEntropyLoss())
def broken(seed): return made(train=Broken())
def broken_test(seed): return made(test=Broken())
def unused(seed): return made(model=Unused())
def nan_inputs(seed):
    return made(train=TensorDataset(torch.full((20, 8), float("nan")), torch.zeros(20, 1)))
def nan_test(seed):
    return made(test=TensorDataset(torch.full((20, 8), float("nan")), torch.zeros(20, 1)))
def partly(seed):
    return made(model=torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.PReLU(),
                                          torch.nn.Linear(4, 1)))
"""


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
    """A module of the user's, in the current folder; its name differs per test."""
    name = f"faulty_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return name


def run(module: str, function: str, *options: str) -> int:
    command = ["train", f"{module}:{function}", "--engine", "exact", "--epochs", "1", "-o", "out"]
    return main([*command, *options])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("no_seed", "calling it with the seed 0 raised TypeError: no_seed() takes 0 positional"),
        ("runtime", "calling it with the seed 0 raised RuntimeError: my own bug"),
        ("value", "calling it with the seed 0 raised ValueError: my own bug"),
        ("key", "calling it with the seed 0 raised KeyError: 'absent'"),
        ("exits", "calling it with the seed 0 raised SystemExit: 3"),
        ("shapes", "raised RuntimeError: mat1 and mat2 shapes cannot be multiplied (20x8 and 7x1)"),
        ("labels", "applying model and loss to its training examples raised IndexError: Target 5"),
        ("broken", "to its training examples raised LookupError: row 13 is gone"),
        ("broken_test", "testing it raised LookupError: row 13 is gone"),
        ("unused", "a step of K-FAC raised RuntimeError: "),
    ],
)
def test_an_error_of_the_users_is_one_line_with_its_name(module, function, message, capsys) -> None:
    assert run(module, function) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"thermokron: error: network = '{module}:{function}': ")
    assert message in error
    assert error.count("\n") == 1
    assert "`thermokron --traceback COMMAND ...` shows where" in error
    assert not Path("out/result.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def task(seed:\n", "importing it raised SyntaxError: "),
        ("raise OSError('no such instrument')", "importing it raised OSError: no such instrument"),
        ("from torch import nothing_of_the_kind", "importing it raised ImportError: cannot import"),
        ("import no_module_of_this_name", "ModuleNotFoundError: No module named 'no_module_of_"),
        ("import sys; sys.exit('bye')", "importing it raised SystemExit: bye"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named(module, content, message, capsys) -> None:
    Path(f"{module}_too.py").write_text(content)
    assert run(f"{module}_too", "task") == 2
    error = capsys.readouterr().err
    assert f"network = '{module}_too:task': " in error
    assert message in error
    assert error.count("\n") == 1


def test_the_traceback_leads_to_the_users_line(module) -> None:
    with pytest.raises(ValueError, match="my own bug") as caught:
        main(["--traceback", "train", f"{module}:runtime", "-o", "out"])
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_faults_of_the_unit_and_divergence_keep_their_kind() -> None:
    for error in (UnitFault("adc_timeout"), FloatingPointError("diverged"), KeyboardInterrupt()):
        with pytest.raises(type(error)), naming("m:f", "training"):
            raise error


def test_data_that_hold_nan_are_said_to(module, capsys) -> None:
    assert run(module, "nan_inputs") == 2
    error = capsys.readouterr().err
    assert "the training loss is nan before the first step; NaN or inf is in the inputs" in error


def test_a_test_loss_that_is_no_number_does_not_lose_the_training(module) -> None:
    assert run(module, "nan_test") == 0
    (record,) = json.loads(Path("out/result.json").read_text())["runs"]
    assert record["test_loss"] is None
    assert record["train_loss"][0] < record["initial_loss"]
    assert Path("out/loss.png").exists()


def test_numbers_that_json_has_not_are_null_in_the_log(tmp_path) -> None:
    owner = RunFile(tmp_path, {"seed": 0})
    log = StepLog(tmp_path / "metrics.jsonl", owner)
    log.write({"step": 0, "loss": float("inf"), "kappa": float("nan")})
    found = json.loads(log.path.read_text())
    assert found == {"step": 0, "loss": None, "kappa": None, "run": owner.digest}


def test_looking_at_the_test_examples_early_changes_no_loss(module) -> None:
    """Data and dropout may draw from torch's generator."""
    Path(f"{module}_drawn.py").write_text(
        "import torch\n"
        "from thermokron.host.train import Task\n"
        "class Noisy(torch.utils.data.Dataset):\n"
        "    def __len__(self): return 20\n"
        "    def __getitem__(self, i): return torch.randn(8), torch.ones(1)\n"
        "class Later(Noisy):  # a task looks at the first when it is made\n"
        "    def __getitem__(self, i):\n"
        "        return (torch.randn(8) if i else torch.zeros(8)), torch.ones(1)\n"
        "def make(test):\n"
        "    model = torch.nn.Sequential(torch.nn.Linear(8, 1), torch.nn.Dropout(0.5))\n"
        "    return Task(model=model, train=Noisy(), test=test, loss=torch.nn.MSELoss())\n"
        "def tested(seed): return make(Later())\n"
        "def untested(seed): return make(None)\n"
    )
    losses = []
    for function in ("tested", "untested"):
        assert run(f"{module}_drawn", function, "--batch-size", "5") == 0
        losses.append(json.loads(Path("out/result.json").read_text())["runs"][0]["train_loss"])
    assert losses[0] == losses[1]


def test_a_warning_is_one_line_without_source(module, capsys) -> None:
    assert run(module, "partly") == 0
    said = capsys.readouterr()
    warning = next(line for line in (said.err + said.out).splitlines() if "only diagonal" in line)
    assert warning.startswith("thermokron: warning: K-FAC has only diagonal curvature")
    assert ".py" not in said.err + said.out


# ---- folders -------------------------------------------------------------------------------------


def test_runs_to_compare_go_to_folders_of_their_own(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    short = ["--epochs", "1", "--batch-size", "1437"]
    for options in (["--engine", "exact"], ["--optimizer", "adam"], ["--optimizer", "sgd"]):
        assert main(["train", "digits", *options, *short]) == 0
    assert main(["train", "digits", "--network", "cnn", "--optimizer", "adam", *short]) == 0
    found = sorted(path.parent.name for path in Path("runs").glob("*/result.json"))
    assert found == ["cnn-adam", "mlp-adam", "mlp-kfac-exact", "mlp-sgd"]


def test_an_interrupted_run_is_not_mixed_with_an_older_one(module, monkeypatch, capsys) -> None:
    from thermokron.host.kfac import KFAC

    assert run(module, "good") == 0
    assert "in place of" not in capsys.readouterr().out
    assert run(module, "good") == 0
    assert "in place of an older run's" in capsys.readouterr().out
    step = KFAC.step

    def interrupted(kfac: KFAC) -> object:
        if kfac.steps == 1:
            raise KeyboardInterrupt
        return step(kfac)

    monkeypatch.setattr(KFAC, "step", interrupted)
    assert run(module, "good", "--batch-size", "5") == 130
    assert sorted(path.name for path in Path("out").iterdir()) == ["metrics.jsonl", "run.json"]


@pytest.mark.parametrize("name", ["result.json", "loss.png", "metrics.jsonl"])
def test_a_folder_in_the_place_of_a_result_is_seen_at_once(module, name, capsys) -> None:
    Path("out", name).mkdir(parents=True)
    assert run(module, "good") == 2
    assert capsys.readouterr().err == f"thermokron: error: out/{name}: Is a directory\n"
    assert [path.name for path in Path("out").iterdir()] == [name]


def test_trying_to_write_leaves_nothing(tmp_path) -> None:
    check_writable(tmp_path / "a" / "b" / "c.json")
    assert not list(tmp_path.iterdir())
    (tmp_path / "kept.json").write_text("kept")
    check_writable(tmp_path / "kept.json")
    assert (tmp_path / "kept.json").read_text() == "kept"
    assert len(list(tmp_path.iterdir())) == 1


def test_none_switches_a_bound_off_and_nothing_else_does(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["train", "digits", "--kl-clip", "off"])
    assert "'off' is neither a number nor none" in capsys.readouterr().err
    command = ["train", "digits", "--engine", "exact", "--epochs", "1", "--batch-size", "1437"]
    assert main([*command, "--kl-clip", "None", "-o", str(tmp_path)]) == 0
    (record,) = json.loads((tmp_path / "result.json").read_text())["runs"]
    assert record["kfac_options"]["kl_clip"] is None
