"""Studies: a plan runs to its end, goes on where it was, and refuses what is wrong."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from thermokron.host.cli import main
from thermokron.host.studies import Outcome, Run, load_study, plan_names, run_study
from thermokron.host.studies.plots import smoothed
from thermokron.host.studies.runs import Store, execute, make_config
from thermokron.host.studies.tables import markdown, number
from thermokron.model import UnitSpec

COMPARISON = """
kind = "comparison"
title = "A tiny comparison"
seeds = [0, 1]
tuning_seeds = [10]
targets = [1.0, 0.5]

[[networks]]
name = "MLP 64-4-10"
config = { network = "mlp", hidden = [4] }
epochs = 3
unit_epochs = 1
unit = { cells = 16 }

[[contenders]]
name = "Adam"
config = { optimizer = "adam" }
grid.lr = { from = 0.01, to = 0.1, points = 2 }

[[contenders]]
name = "K-FAC, exact"
config = { optimizer = "kfac", engine = "exact" }
grid.lr = [0.001, 0.07]
grid.damping = [0.03]

[[contenders]]
name = "K-FAC, unit"
config = { optimizer = "kfac", samples = 50 }
tuned_as = "K-FAC, exact"
unit = { adc_bits = 8 }

[[claims]]
contender = "K-FAC, exact"
against = "Adam"
at_most = 0.5
networks = ["MLP 64-4-10"]
"""

QUANTISATION = """
kind = "quantisation"
title = "A tiny grid"
seeds = [0]
target = 2.0
keeps = 2.0
config = { network = "mlp", hidden = [4], epochs = 1, samples = 50 }
unit = { cells = 65 }
rival = { network = "mlp", hidden = [4], epochs = 1 }
coupling_bits = [4, 8]
adc_bits = [3]
equilibrate = [true, false]
guards = ["lanczos", "none"]
fixed_adc_bits = 8
samples_coupling_bits = [8]
samples = [20, 50]
damping_coupling_bits = [4]
damped = [{ damping = 0.1, lr = 0.1 }]
"""


@pytest.fixture
def plan(tmp_path):
    def write(text, name="tiny.toml"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


def results(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "runs").glob("*.json")}


# ---- end to end -----------------------------------------------------------------------------


def test_a_comparison_from_the_command_line(plan, tmp_path, capsys):
    folder = tmp_path / "out"
    assert main(["study", plan(COMPARISON), "-o", str(folder)]) == 0
    tables = (folder / "tables.md").read_text()
    assert "### MLP 64-4-10" in tables
    row = next(line for line in tables.splitlines() if line.startswith("| K-FAC, exact |"))
    assert "lr 0.07, damping 0.03" in row  # a rate of 0.001 learns nothing in three epochs
    assert "simulated" in next(r for r in tables.splitlines() if r.startswith("| K-FAC, unit |"))
    assert "K-FAC, exact against Adam" in tables
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert len(results(folder)) == 2 + 2 + 3 * 2  # trials of Adam and of K-FAC, reported runs
    assert str(folder / "tables.md") in capsys.readouterr().out.replace("\n", "")


def test_a_grid_of_bits(plan, tmp_path):
    written = run_study(load_study(plan(QUANTISATION)), tmp_path / "out")
    assert [path.name for path in written] == ["tables.md", "bits.png"]
    tables = written[0].read_text()
    assert "### Epochs to 2, equilibrated, guarded" in tables
    lines = tables.splitlines()
    start = lines.index("### Final loss, divided by the largest entry, unguarded")
    assert lines[start + 4] == "| **4** | refused |"
    assert float(lines[start + 5].split("|")[2]) < 3.0
    fewest = next(
        line for line in lines if line.startswith("| divided by the largest entry, unguarded")
    )
    assert fewest == "| divided by the largest entry, unguarded | 8 |"
    assert "fewest samples" in tables
    assert next(line for line in lines if line.startswith("| damping 0.1, lr 0.1 |"))
    assert written[1].read_bytes().startswith(b"\x89PNG")


def test_results_do_not_depend_on_the_process_that_ran_them():
    config = make_config({"optimizer": "adam", "hidden": [4], "epochs": 2, "lr": 0.02, "seed": 5})
    run = Run(label="a run", config=config)
    command = (
        "from thermokron.host.studies.runs import execute, make_config, Run\n"
        "config = make_config("
        "{'optimizer': 'adam', 'hidden': [4], 'epochs': 2, 'lr': 0.02, 'seed': 5})\n"
        "print(execute(Run(label='another', config=config)).train_loss)"
    )
    other = subprocess.run(
        [sys.executable, "-c", command],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.strip() == str(execute(run).train_loss)


# ---- going on -------------------------------------------------------------------------------


def test_a_second_time_runs_nothing_and_a_grown_plan_only_what_is_new(plan, tmp_path):
    run_study(load_study(plan(QUANTISATION)), tmp_path / "out")
    first = results(tmp_path / "out")
    run_study(load_study(plan(QUANTISATION)), tmp_path / "out")
    assert results(tmp_path / "out") == first
    grown = QUANTISATION.replace("coupling_bits = [4, 8]", "coupling_bits = [4, 6, 8]", 1)
    run_study(load_study(plan(grown)), tmp_path / "out")
    second = results(tmp_path / "out")
    assert len(second) == len(first) + 4
    assert {name: second[name] for name in first} == first


def test_interrupted_it_keeps_what_was_done_and_goes_on(plan, tmp_path):
    folder = tmp_path / "out"
    many = COMPARISON.replace("points = 2", "points = 40")
    command = [sys.executable, "-m", "thermokron.host.cli", "study", plan(many), "-o", str(folder)]
    command += ["--jobs", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (folder / "runs").exists() or len(results(folder)) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: to all processes
    assert process.wait(timeout=30) == 130
    kept = results(folder)
    assert 2 <= len(kept) < 48
    for name in kept:
        json.loads((folder / "runs" / name).read_text())
    run_study(load_study(plan(COMPARISON)), folder)
    assert {name: results(folder)[name] for name in kept} == kept


def test_a_run_that_diverges_has_a_result(tmp_path):
    config = make_config(
        {"optimizer": "sgd", "hidden": [4], "epochs": 3, "lr": 1e36, "network": "mlp"}
    )
    run = Run(label="too fast", config=config)
    store = Store(tmp_path)
    store.put(run, execute(run))
    found = Store(tmp_path)[run]
    assert found.end == "diverged"
    assert found.final_loss == math.inf
    assert all(math.isfinite(loss) for loss in found.step_loss)
    assert math.isnan(found.test_accuracy)
    assert found.epochs_to(1e-6) == math.inf
    assert "NaN" not in next(tmp_path.glob("*.json")).read_text()


def test_a_run_whose_factors_the_unit_refuses_has_a_result_that_says_so(tmp_path):
    # 3 bits, spent on the largest entry, do not leave a factor positive definite
    settings = {"engine": "numeric", "hidden": [4], "epochs": 1, "samples": 50, "damping": 0.01}
    spec = UnitSpec(cells=65, coupling_bits=3)
    ends = {}
    for guard in ("lanczos", "none"):
        config = make_config({**settings, "guard": guard, "equilibrate": False})
        run = Run(label=guard, config=config, spec=spec)
        Store(tmp_path).put(run, execute(run))
        ends[guard] = Store(tmp_path)[run]
    assert (ends["lanczos"].end, len(ends["lanczos"].step_loss)) == ("finished", 10)
    assert ends["lanczos"].final_loss < math.inf
    assert ends["none"].end == "refused"
    assert ends["none"].final_loss == math.inf
    assert len(ends["none"].step_loss) < 10


def test_the_losses_of_all_steps_are_kept():
    config = make_config({"optimizer": "adam", "hidden": [4], "epochs": 2, "batch_size": 400})
    outcome = execute(Run(label="a run", config=config))
    assert len(outcome.train_loss) == 3
    assert len(outcome.step_loss) == 2 * math.ceil(1437 / 400)
    assert outcome.step_loss[0] == pytest.approx(outcome.train_loss[0], rel=0.1)
    assert outcome.step_loss[-1] == pytest.approx(outcome.train_loss[-1], rel=0.2)


def test_a_damaged_result_is_named(plan, tmp_path):
    folder = tmp_path / "out"
    run_study(load_study(plan(QUANTISATION)), folder)
    path = next((folder / "runs").glob("*.json"))
    path.write_text("{")
    with pytest.raises(ValueError, match=f"{path.name} is not the result of a run.*delete it"):
        run_study(load_study(plan(QUANTISATION)), folder)


# ---- numbers --------------------------------------------------------------------------------


def test_epochs_to_a_target_are_interpolated_in_the_logarithm():
    outcome = Outcome(
        train_loss=[1.0, 0.1, 0.001, 0.01],
        step_loss=[],
        test_accuracy=1.0,
        wall_seconds=1.0,
        hardware_seconds=0.0,
        inversions=0,
    )
    assert outcome.epochs_to(0.1) == pytest.approx(1.0)
    assert outcome.epochs_to(0.01) == pytest.approx(1.5)
    assert outcome.epochs_to(1.0) == 0.0
    assert outcome.epochs_to(1e-4) == math.inf
    assert outcome.epochs_to(0.01, for_good=True) == pytest.approx(1.5)
    assert outcome.epochs_to(1.0, for_good=True) == 0.0
    assert outcome.epochs_to(0.003, for_good=True) == math.inf  # it was there, and left again


def test_losses_of_steps_are_smoothed_over_nine():
    losses = np.random.default_rng(0).random(40)
    smooth = smoothed(losses)
    assert smooth[0] == losses[0]
    assert smooth[2] == pytest.approx(losses[:5].mean())
    assert smooth[20] == pytest.approx(losses[16:25].mean())
    assert smooth[-1] == pytest.approx(losses[-5:].mean())
    assert smoothed([]).shape == (0,)


def test_an_advantage_is_kept_in_time_and_by_all_seeds(plan):
    study = load_study(plan(QUANTISATION))

    def ran(*losses, end="finished"):
        rest = {"test_accuracy": 0.9, "wall_seconds": 1.0, "hardware_seconds": 0.0}
        return Outcome(train_loss=list(losses), step_loss=[], inversions=0, end=end, **rest)

    exact = [ran(4.0, 1.0)] * 3  # 0.5 epochs to 2; twice as many keep the advantage
    soon, late, refused = ran(4.0, 2.0), ran(4.0, 3.0, 1.0), ran(4.0, math.inf, end="refused")
    assert study.keeps_lead([soon, soon, late], exact)
    assert not study.keeps_lead([soon, late, late], exact)
    assert not study.keeps_lead([soon, soon, refused], exact)
    assert not study.keeps_lead([soon] * 3, [ran(4.0, 3.0)] * 3)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (3.14159, "3.14"), (1234.5, "1234"), (2e-5, "2.00e-05"), (math.inf, "never")],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_tables_are_markdown():
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --: |\n| 1 | 2 |\n"


# ---- what is refused ------------------------------------------------------------------------


def test_every_plan_of_the_package_is_sound():
    assert plan_names() == ["comparison", "quantisation", "vision-and-graphs"]
    for name in plan_names():
        assert load_study(name).title


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('kind = "comparison"', 'kind = "contest"', "kind = 'contest' is unknown; legal: comp"),
        ("tuning_seeds = [10]", "tuning_seeds = [1]", r"share \[1\]; tune on other seeds"),
        ("targets = [1.0, 0.5]", "targets = [0.5, 1.0]", "legal: falling"),
        ("epochs = 3", "epochs = 0", "epochs = 0 is out of range"),
        ("epochs = 3", "epoch = 3", "epoch is unknown in Network; legal: name"),
        ("points = 2", "points = 1", "2 points or more"),
        ('tuned_as = "K-FAC, exact"', 'tuned_as = "SGD"', "'SGD' names no contender with a grid"),
        ("adc_bits = 8", "adc_bits = 2", "adc_bits = 2 is out of range; legal: 3 to 16"),
        ("adc_bits = 8", "adc_bit = 8", "adc_bit is unknown in UnitSpec"),
        ('against = "Adam"', 'against = "Eve"', "a claim names 'Eve'"),
        ("at_most = 0.5", "at_most = 0.5\nmeasure = 'taste'", "measure = 'taste' is unknown"),
        ("tuning_seeds = [10]", "tuning_seeds = []", "tuning_seeds needs one entry"),
        ("samples = 50", "sample = 50", "sample is unknown in TrainConfig; legal: network"),
        ("seeds = [0, 1]", "seeds = [0, 1", "plan tiny: "),
    ],
)
def test_wrong_plans_are_refused_by_name(plan, old, new, message):
    assert COMPARISON.count(old) >= 1
    with pytest.raises(ValueError, match=message):
        load_study(plan(COMPARISON.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"none"]', '"luck"]', "guard = 'luck' is unknown"),
        ('guards = ["lanczos", "none"]', "guards = []", "guards needs one entry at least"),
        ("damping = 0.1, lr = 0.1", "damping = 0.1", r"damped holds {'damping': 0.1}; legal: damp"),
        ("target = 2.0", "target = 0.0", "target = 0.0; legal: above 0"),
    ],
)
def test_wrong_grids_are_refused_by_name(plan, old, new, message):
    with pytest.raises(ValueError, match=message):
        load_study(plan(QUANTISATION.replace(old, new, 1)))


def test_unknown_names_and_too_few_processes(plan, tmp_path, capsys):
    assert main(["study", "nonsense"]) == 2
    assert (
        "legal: comparison, quantisation, vision-and-graphs, or a path" in capsys.readouterr().err
    )
    assert main(["study"]) == 2
    assert "NAME is missing" in capsys.readouterr().err
    assert main(["study", plan(COMPARISON), "-o", str(tmp_path), "--jobs", "0"]) == 2
    assert "jobs = 0" in capsys.readouterr().err


def test_list_and_show(capsys):
    assert main(["study", "--list"]) == 0
    assert "quantisation" in capsys.readouterr().out
    assert main(["study", "comparison", "--show"]) == 0
    assert 'kind = "comparison"' in capsys.readouterr().out
