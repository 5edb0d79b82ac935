"""Training on digits: reproducible, recorded, drawn, and refused by name."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from thermokron.host.cli import main
from thermokron.host.train import Digits, RunResult, TrainConfig, train, write_result
from thermokron.host.train.defaults import SUITS
from thermokron.host.train.demo import DemoPlan, run_demo
from thermokron.host.train.plots import LABEL_DISTANCE, _spread, plot_losses
from thermokron.model import ArrayPhysics, UnitSpec

QUICK = {"epochs": 1, "batch_size": 479, "samples": 200}  # three steps


def test_the_data_is_split_once_and_scaled_by_the_training_part() -> None:
    digits = Digits.load(seed=4)
    assert digits.train_images.shape == (1437, 64)
    assert digits.test_images.shape == (360, 64)
    assert digits.train_images.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert digits.train_images.std().item() == pytest.approx(1.0, abs=1e-3)
    counts = torch.bincount(digits.test_labels)
    assert counts.max() - counts.min() <= 3  # stratified
    assert torch.equal(digits.test_labels, Digits.load(seed=4).test_labels)
    assert not torch.equal(digits.test_labels, Digits.load(seed=5).test_labels)


@pytest.mark.parametrize(
    ("optimizer", "engine"),
    [("adam", None), ("sgd", None), ("kfac", "exact"), ("kfac", "diagonal"), ("kfac", "numeric")],
)
def test_a_run_is_reproducible_whatever_the_threads(optimizer: str, engine: str | None) -> None:
    config = TrainConfig(optimizer=optimizer, engine=engine, seed=3, **QUICK)
    first = train(config)
    threads = torch.get_num_threads()
    torch.manual_seed(99)  # the global generator plays no part
    torch.set_num_threads(3 - min(threads, 2))
    try:
        again = train(config)
    finally:
        torch.set_num_threads(threads)
    assert first.train_loss == again.train_loss
    assert first.test_accuracy == again.test_accuracy
    assert train(replace(config, seed=4)).train_loss != first.train_loss
    assert first.train_loss[-1] < first.initial_loss
    assert first.initial_loss == pytest.approx(np.log(10), abs=0.3)


def test_ten_epochs_of_k_fac_learn_the_digits() -> None:
    result = train(TrainConfig(engine="exact", seed=3))
    assert result.train_loss[-1] < 0.01
    assert result.test_accuracy > 0.95
    assert (result.inversions, result.unit_runs, result.hardware_seconds) == (400, 0, 0.0)


def test_numeric_counts_runs_and_time_on_the_unit() -> None:
    steps = []
    spec = UnitSpec(cells=65)  # large enough for every factor
    result = train(TrainConfig(engine="numeric", **QUICK), spec=spec, progress=steps.append)
    # of 65, 32, 33 and 10 columns, 64 at a time, and some of them again
    assert result.inversions == 12
    assert 3 * (2 + 1 + 1 + 1) <= result.unit_runs < 3 * 3 * (2 + 1 + 1 + 1)
    assert result.hardware_seconds > 12 * 199 * spec.shortest_interval(False) * spec.clock_s
    assert sum(result.phase_seconds.values()) == pytest.approx(result.hardware_seconds)
    # biases of 140 columns of at most 65 codes, results of as many, and the couplings
    assert 0 < result.bytes_from_unit < 2 * 3 * 12 * 140 * 65
    assert result.bytes_to_unit > 12 * 4 * spec.coupling_count
    assert [(p.step, p.steps) for p in steps] == [(1, 3), (2, 3), (3, 3)]
    inverse = TrainConfig(engine="numeric", method="inverse", **QUICK)
    result = train(inverse, spec=spec)
    assert (result.inversions, result.unit_runs) == (12, 12)
    assert result.hardware_seconds > 12 * 199 * spec.shortest_interval() * spec.clock_s


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"optimizer": "lbfgs"}, ValueError, "optimizer = 'lbfgs' is unknown; legal"),
        ({"engine": "abacus"}, ValueError, "engine = 'abacus' does not go with"),
        ({"optimizer": "adam"}, ValueError, r"engine = 'numeric' does not .* legal: None; "),
        ({"epochs": 0}, ValueError, "epochs = 0 is out of range; legal: 1"),
        ({"batch_size": 1.5}, TypeError, "batch_size = 1.5 is not an integer"),
        ({"lr": -1.0}, ValueError, "lr = -1.0 is out of range"),
        ({"damping": 0.0}, ValueError, "damping = 0.0 is out of range"),
        ({"momentum": 1.0}, ValueError, "momentum = 1.0 is out of range"),
        ({"samples": 0}, ValueError, "samples = 0 is out of range; legal: 1 to"),
        ({"samples": 1, "method": "inverse"}, ValueError, "samples = 1 is out of range; legal: 2"),
        ({"settle": 1.5}, ValueError, "settle = 1.5 is out of range; legal: between 0 and 1"),
        ({"settle": "5 minutes"}, ValueError, "settle = '5 minutes' is no time; legal: .*5tau"),
        ({"guard": "luck"}, ValueError, "guard = 'luck' is unknown; legal: .*lanczos"),
        ({"hidden": (0,)}, ValueError, "hidden = 0 is out of range"),
        ({"hidden": 32}, TypeError, "hidden = 32 is no sequence of integers"),
        ({"network": ["mlp"]}, TypeError, r"network = \['mlp'\] is not a string"),
        ({"fisher": "foo"}, ValueError, "fisher = 'foo' is unknown; legal: .*ggn"),
        ({"sharing": "all"}, ValueError, "sharing = 'all' is unknown; legal"),
        ({"schedule": ["step"]}, ValueError, r"schedule = \['step'\] is unknown"),
        ({"method": "guess"}, ValueError, "method = 'guess' is unknown; legal"),
        ({"kl_clip": -1}, ValueError, "kl_clip = -1 is out of range"),
        ({"norm_constraint": 0.0}, ValueError, "norm_constraint = 0.0 is out of range"),
        ({"refresh_threshold": "x"}, TypeError, "refresh_threshold = 'x' is out of range"),
        ({"decay": 1.0}, ValueError, "decay = 1.0 is out of range; legal: 0 to below 1"),
        ({"mc_samples": 0}, ValueError, "mc_samples = 0 is out of range; legal: 1 or more"),
        ({"inverse_interval": 0.5}, TypeError, "inverse_interval = 0.5 is not an integer"),
        ({"adapt_damping": "yes"}, TypeError, "adapt_damping = 'yes'; legal: True, False"),
        ({"damping_mode": "exact"}, ValueError, "engine = 'numeric' does not make; legal: engine"),
        ({"method": "solve", "engine": "diagonal"}, ValueError, "cannot use engine = 'diagonal'"),
        (
            {"method": "solve", "engine": "exact", "damping_mode": "exact"},
            ValueError,
            "method = 'solve' needs damping_mode = 'factored'",
        ),
        ({"seed": -1}, ValueError, "seed = -1 is out of range"),
    ],
)
def test_wrong_settings_are_named(changed, error, message) -> None:
    with pytest.raises(error, match=message):
        TrainConfig(**changed)


# ---- the command line --------------------------------------------------------------------------


def test_one_epoch_from_the_command_line(tmp_path, capsys) -> None:
    out = tmp_path / "new" / "folder"
    command = ["train", "digits", "--epochs", "1", "--batch-size", "479", "--samples", "200"]
    assert main([*command, "--cells", "20", "--seed", "7", "-o", str(out)]) == 0
    record = json.loads((out / "result.json").read_text())
    assert set(record) == {"version", "spec", "physics", "runs"}
    assert record["spec"] == json.loads(UnitSpec(cells=20).to_json())
    (run,) = record["runs"]
    assert (run["optimizer"], run["engine"], run["seed"]) == ("kfac", "numeric", 7)
    assert len(run["train_loss"]) == 1
    assert 0.0 <= run["test_accuracy"] <= 1.0
    assert run["wall_seconds"] > 0.0
    settings = TrainConfig(seed=7, **QUICK)
    assert run["train_loss"] == train(settings, spec=UnitSpec(cells=20)).train_loss
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "K-FAC, numeric" in printed
    assert "result.json" in printed.replace("\n", "")


def test_few_bits_without_a_guard_are_refused_in_one_line(tmp_path, capsys) -> None:
    command = ["train", "digits", "--epochs", "1", "--batch-size", "1437", "--samples", "50"]
    command += ["--coupling-bits", "3", "--cells", "65", "--no-equilibrate", "-o", str(tmp_path)]
    command += ["--method", "inverse"]
    assert main([*command, "--guard", "none"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("thermokron: error: M is not positive definite as far as the unit")
    assert error.count("\n") == 1
    assert main([*command, "--guard", "norm"]) == 0
    (run,) = json.loads((tmp_path / "result.json").read_text())["runs"]
    assert (run["equilibrate"], run["guard"]) == (False, "norm")
    assert main([*command, "--engine", "exact"]) == 2
    assert "has no effect: kfac (exact) uses no unit" in capsys.readouterr().err


def test_flaws_of_the_array_come_from_a_file_and_are_recorded(tmp_path) -> None:
    flaws = ArrayPhysics(cell_offset=0.01)
    (tmp_path / "flaws.json").write_text(flaws.to_json())
    command = ["train", "digits", "--epochs", "1", "--batch-size", "1437", "--samples", "50"]
    main([*command, "--physics", str(tmp_path / "flaws.json"), "-o", str(tmp_path)])
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["physics"] == json.loads(flaws.to_json())
    (tmp_path / "flaws.json").write_text('{"cell_offset": 0.02}')  # the others are ideal
    main([*command, "--physics", str(tmp_path / "flaws.json"), "-o", str(tmp_path)])
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["physics"] == json.loads(ArrayPhysics(cell_offset=0.02).to_json())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"adc_nose": 0.1}', "not an ArrayPhysics: unknown adc_nose"),
        ("3", "not an ArrayPhysics: expected an object"),
        (ArrayPhysics().to_json().replace('"adc_noise": null', '"adc_noise": "x"'),
         "adc_noise = 'x' is not a number"),
        ("flaws", "not an ArrayPhysics: not JSON"),
    ],
)  # fmt: skip
def test_a_file_of_flaws_that_cannot_be_read_is_named(text, message, tmp_path, capsys) -> None:
    path = tmp_path / "flaws.json"
    path.write_text(text)
    assert main(["train", "digits", "--physics", str(path), "-o", str(tmp_path)]) == 2
    assert f"error: {path}: {message}" in capsys.readouterr().err


def test_adam_needs_no_unit_and_has_none_in_its_record(tmp_path) -> None:
    command = ["train", "digits", "--optimizer", "adam", "--epochs", "1", "-o", str(tmp_path)]
    assert main(command) == 0
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["spec"] is None
    assert record["runs"][0]["engine"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optimizer", "adam", "--engine", "exact"], "engine = 'exact' does not go with"),
        (["--cells", "1"], "cells = 1 is out of range"),
        (["--epochs", "0"], "epochs = 0 is out of range"),
        (["--physics", "nowhere.json"], "nowhere.json"),
        (["--engine", "exact", "--physics", "p.json"], "physics = p.json has no effect"),
        (["--optimizer", "sgd", "--lr", "1e37", "--epochs", "2"], "lower lr = 1e+37"),
    ],
)
def test_mistakes_end_in_one_line(options, message, tmp_path, capsys) -> None:
    assert main(["train", "digits", *options, "-o", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("thermokron: error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("kind", ["digits", "demo"])
def test_help_teaches_by_example(kind: str, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["train", kind, "--help"])
    out = capsys.readouterr().out
    assert f"thermokron train {kind} " in out.split("examples:")[1]
    suited = SUITS["mlp"]
    row = ["mlp", *(f"{suited.lr[o]:g}" for o in ("kfac", "adam", "sgd")), f"{suited.epochs}"]
    assert (row in [line.split()[:5] for line in out.splitlines()]) == (kind == "digits")


# ---- the demo ------------------------------------------------------------------------------------


def test_a_small_demo_compares_all_kinds(tmp_path) -> None:
    plan = DemoPlan(
        seeds=(0, 1),
        tuning_seeds=(10,),
        epochs=1,
        grids={
            ("kfac", "exact"): (0.05, 0.07),
            ("kfac", "diagonal"): (0.03,),
            ("adam", None): (0.04, 1e37),  # the second diverges, and is not chosen
            ("sgd", None): (0.3,),
        },
        unit_engine="numeric",
    )
    heard = []
    outcome = run_demo(plan, lambda *job: heard.append(job))
    kinds = [(run.optimizer, run.engine) for run in outcome.runs]
    assert kinds == [
        (optimizer, engine)
        for optimizer, engine in (
            ("kfac", "numeric"),
            ("kfac", "exact"),
            ("kfac", "diagonal"),
            ("adam", None),
            ("sgd", None),
        )
        for _ in plan.seeds
    ]
    chosen = {(t["optimizer"], t["engine"]): t["lr"] for t in outcome.tuning if t["chosen"]}
    assert chosen["adam", None] == 0.04
    assert [t["train_loss"] for t in outcome.tuning if t["lr"] == 1e37] == [None]
    assert outcome.runs[0].lr == chosen["kfac", "exact"]
    # processes side by side: which run ends last is not known, but every one is heard of
    trained = [job for job in heard if job[0] == "training"]
    assert [job[1:3] for job in trained] == [(done, 10) for done in range(1, 11)]
    assert "K-FAC, numeric, seed 1" in {job[3] for job in trained}
    path = write_result(tmp_path / "result.json", outcome.runs, spec=plan.spec)
    assert [RunResult(**run) for run in json.loads(path.read_text())["runs"]] == outcome.runs
    assert plot_losses(outcome.runs, tmp_path / "p.svg", title="T").read_text().count("Adam") == 1


def test_labels_of_a_plot_stay_apart_and_in_order() -> None:
    heights = {"a": 0.5, "b": 0.51, "c": 0.2, "d": 0.49}
    placed = _spread(heights)
    assert sorted(placed, key=placed.__getitem__) == ["c", "d", "a", "b"]
    assert np.diff(sorted(placed.values())).min() >= LABEL_DISTANCE * (1 - 1e-9)
    assert placed["c"] == pytest.approx(0.2)


def test_training_on_the_co_simulated_unit_gives_the_same_losses() -> None:
    from thermokron.sim import SimulatorMissing
    from thermokron.sim.simulators import require

    try:
        require("verilator")
    except SimulatorMissing as missing:
        pytest.skip(str(missing))
    short = {"epochs": 1, "batch_size": 1437, "samples": 300, "seed": 2}
    numeric = train(TrainConfig(engine="numeric", **short))
    cosim = train(TrainConfig(engine="cosim", **short))
    assert cosim.train_loss == numeric.train_loss
    assert cosim.test_accuracy == numeric.test_accuracy
    assert cosim.hardware_seconds == numeric.hardware_seconds
