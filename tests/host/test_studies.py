"""Studies: a plan runs to its end, goes on where it was, and tells what came out."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import numpy as np
import pytest
from study_plans import COMPARISON, QUANTISATION, SMALL, results, written

from thermokron.host.cli import main
from thermokron.host.studies import Outcome, Run, load_study, run_study
from thermokron.host.studies.plots import smoothed
from thermokron.host.studies.quantisation_report import Findings
from thermokron.host.studies.runs import Store, execute, make_config
from thermokron.host.tables import markdown, number
from thermokron.model import UnitSpec
from thermokron.model.files import claimed, digest

#: The first of them only.
ALONE = SMALL[: SMALL.index('[[contenders]]\nname = "too fast"')].replace(
    "unit = { cells = 65 }", ""
)


# ---- end to end -----------------------------------------------------------------------------


def test_the_plan_on_the_page_on_plans(tmp_path, capsys):
    folder = tmp_path / "out"
    assert main(["study", written(tmp_path, COMPARISON), "-o", str(folder)]) == 0
    tables = (folder / "tables.md").read_text()
    assert "### MLP 64-16-10" in tables
    row = next(line for line in tables.splitlines() if line.startswith("| K-FAC, exact |"))
    assert "lr 0.07, damping 0.0" in row  # a rate of 0.001 learns little in four epochs
    unit = next(line for line in tables.splitlines() if line.startswith("| K-FAC, 8 bits |"))
    assert unit.split("|")[2] == row.split("|")[2]
    assert "simulated" in unit
    assert "K-FAC, exact against Adam" in tables
    assert "Versions" not in tables
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert len(results(folder)) == 4 + 4 + 3 * 2  # trials of Adam and of K-FAC, reported runs
    assert str(folder / "tables.md") in capsys.readouterr().out.replace("\n", "")


def test_a_grid_of_bits(tmp_path):
    reports = run_study(load_study(written(tmp_path, QUANTISATION)), tmp_path / "out")
    assert [path.name for path in reports] == ["tables.md", "bits.png"]
    tables = reports[0].read_text()
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
    assert reports[1].read_bytes().startswith(b"\x89PNG")


# ---- going on -------------------------------------------------------------------------------


def test_a_second_time_runs_nothing_and_a_grown_plan_only_what_is_new(tmp_path):
    run_study(load_study(written(tmp_path, QUANTISATION)), tmp_path / "out")
    first = results(tmp_path / "out")
    run_study(load_study(written(tmp_path, QUANTISATION)), tmp_path / "out")
    assert results(tmp_path / "out") == first
    grown = QUANTISATION.replace("coupling_bits = [4, 8]", "coupling_bits = [4, 6, 8]", 1)
    run_study(load_study(written(tmp_path, grown)), tmp_path / "out")
    second = results(tmp_path / "out")
    assert len(second) == len(first) + 4
    assert {name: second[name] for name in first} == first


def begun(plan, folder):
    """The process of a study that shares its work among two others."""
    command = [sys.executable, "-m", "thermokron.host.cli", "study", plan, "-o", str(folder)]
    return subprocess.Popen(
        [*command, "--jobs", "2"],
        stdout=subprocess.PIPE,
        cwd=folder.parent,
        text=True,
        start_new_session=True,
    )


def test_interrupted_it_keeps_what_was_done_and_goes_on(tmp_path):
    folder = tmp_path / "out"
    many = ALONE.replace("seeds = [0]", f"seeds = {list(range(1000))}")
    with begun(written(tmp_path, many), folder) as process:
        deadline = time.monotonic() + 300
        while len(results(folder)) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: to all processes
        assert process.wait(timeout=120) == 130
    kept = results(folder)
    assert 2 <= len(kept) < 1000
    for name in list(kept)[:3]:  # what workers found is what this process finds
        record = json.loads((folder / "runs" / name).read_text())
        run = Run(label="here", config=make_config(record["config"]))
        assert f"{run.key}.json" == name
        assert execute(run).train_loss == record["outcome"]["train_loss"]
    seeds = list(range(len(kept) + 4))
    grown = written(tmp_path, ALONE.replace("seeds = [0]", f"seeds = {seeds}"))
    run_study(load_study(grown), folder)
    assert len(results(folder)) >= len(seeds)
    assert {name: results(folder)[name] for name in kept} == kept


def test_workers_end_with_their_parent(tmp_path):
    (tmp_path / "endless.py").write_text(
        "import time\ndef task(seed):\n    print('at work', flush=True)\n    time.sleep(3600)\n"
    )
    endless = ALONE.replace('network = "mlp", hidden = [4]', 'network = "endless:task"')
    with begun(written(tmp_path, endless), tmp_path / "out") as process:
        assert process.stdout is not None
        assert any("at work" in line for line in process.stdout)
        process.kill()
        process.communicate(timeout=120)  # ends when the last of them has closed its output


def test_a_worker_that_is_killed_is_told_and_results_are_kept(tmp_path, capsys):
    (tmp_path / "deadly.py").write_text(
        "import os\nfrom thermokron.host.train.networks import BUILDERS\n"
        "import torch\n"
        "def task(seed):\n"
        "    if seed == 1:\n        os.kill(os.getpid(), 9)\n"
        "    generator = torch.Generator().manual_seed(seed)\n"
        "    return BUILDERS['mlp'](seed, (4,), generator)\n"
    )
    text = ALONE.replace('network = "mlp", hidden = [4]', 'network = "deadly:task"')
    plan = written(tmp_path, text.replace("seeds = [0]", "seeds = [0, 1]"))
    command = [sys.executable, "-m", "thermokron.host.cli", "study", plan, "-o", "out"]
    done = subprocess.run([*command, "--jobs", "2"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "the plan runs code of yours or its author's: deadly:task" in done.stdout
    told = "thermokron: error: a process that trained was killed, perhaps by the system because mem"
    assert done.stderr.splitlines()[-1].startswith(told)
    assert "Traceback" not in done.stderr


def test_a_plan_names_what_it_imports_before_it_does(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "foreign.py").write_text("print('imported')\nraise ValueError('on import')\n")
    text = ALONE.replace('network = "mlp", hidden = [4]', 'network = "foreign:task"')
    assert main(["study", written(tmp_path, text), "-o", "out"]) == 2
    printed = capsys.readouterr().out
    told = "the plan runs code of yours or its author's: foreign:task"
    assert 0 <= printed.index(told) < printed.index("imported")


def test_a_study_that_runs_already_is_refused(tmp_path, capsys):
    plan, out = written(tmp_path, ALONE), tmp_path / "out"
    with claimed(out):
        assert main(["study", plan, "-o", str(out)]) == 2
    assert f"{out}: another run is writing there" in capsys.readouterr().err


def test_without_dask_a_cluster_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "distributed", None)
    out = str(tmp_path / "out")
    assert main(["study", written(tmp_path, ALONE), "-o", out, "--cluster", "tcp://here:1"]) == 2
    told = "a cluster needs distributed; install it with: pip install 'thermokron[cluster]'\n"
    assert capsys.readouterr().err == f"thermokron: error: {told}"


def test_terminated_it_ends_as_interrupted(tmp_path, monkeypatch):
    def terminated(run, timeout_s):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        raise AssertionError("still running")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("thermokron.host.studies.runner.execute", terminated)
    command = ["study", written(tmp_path, COMPARISON), "-o", str(tmp_path / "out")]
    assert main(command) == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_folder_belongs_to_one_study(tmp_path):
    study = load_study(written(tmp_path, QUANTISATION))
    other = load_study(written(tmp_path, COMPARISON, "other.toml"))
    out = tmp_path / "out"
    out.mkdir()
    for told in ({"name": "other", "title": study.title}, {"name": "tiny", "title": "Another"}):
        (out / "study.json").write_text(json.dumps(told))
        message = rf"out holds the study '{told['name']}', '{told['title']}', not 'tiny', .*; give"
        with pytest.raises(ValueError, match=message):
            run_study(study, out)
    assert results(out) == {}
    assert other.name == "other"
    (out / "study.json").write_text("[]")
    with pytest.raises(ValueError, match=r"study\.json does not name a study.*delete it"):
        run_study(other, out)


def test_files_tell_array_and_version_and_tables_tell_other_versions(tmp_path):
    study, out = load_study(written(tmp_path, SMALL)), tmp_path / "out"
    run_study(study, out)
    path = next((out / "runs").glob("*.json"))
    record = json.loads(path.read_text())
    assert record["physics"] is None  # an ideal array
    assert record["version"] == version("thermokron")
    del record["checksum"]
    record["version"] = "0.0.1"
    path.write_text(json.dumps({**record, "checksum": digest(record)}))
    before = results(out)
    run_study(study, out)
    assert results(out) == before
    told = (out / "tables.md").read_text().splitlines()[-1]
    assert told.endswith(f"their numbers of runs: 0.0.1 (1), {version('thermokron')} (2).")


def test_runs_that_end_badly_have_their_row(tmp_path):
    run_study(load_study(written(tmp_path, SMALL)), tmp_path / "out")
    tables = (tmp_path / "out" / "tables.md").read_text().splitlines()
    rows = {line.split(" | ")[0]: line.split(" | ")[2:] for line in tables}
    # epochs to 1, final loss, epochs run, seeds, accuracy, ms per epoch, s to 1, ms on the unit
    assert rows["| refused"] == ["never", "never", "1", "1", "", "simulated", "simulated", " |"]
    assert rows["| too fast"] == ["never", "never", "1", "1", "", "", "never", " |"]
    assert rows["| fine"][1:4] != ["never", "1", "1"]


def test_a_run_that_cannot_be_made_is_named(tmp_path):
    text = SMALL.replace('network = "mlp", hidden = [4]', 'network = "nowhere_to_be:found"')
    with pytest.raises(ValueError, match=r"^small, fine, seed 0: network = 'nowhere_to_be:found'"):
        run_study(load_study(written(tmp_path, text)), tmp_path / "out")


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


@pytest.mark.parametrize("text", ["{", "[]", '{"outcome": {"train_loss": [], "step_loss": []}}'])
def test_a_damaged_result_is_named(text, tmp_path):
    run = Run(label="a run", config=make_config({"optimizer": "adam"}))
    path = tmp_path / f"{run.key}.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{path.name} is not the result of a run.*delete it"):
        Store(tmp_path).get(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["config"].update(seed=1), "its config is another run's"),
        (lambda r: r.update(physics={"adc_noise": 0.1}), "its physics is another run's"),
        (lambda r: r["outcome"]["train_loss"].pop(), "train_loss has 2 entries; legal .*: 3 to 3"),
        (lambda r: r["outcome"].update(end="diverged", train_loss=[]), "train_loss has 0 entries"),
        (lambda r: r["outcome"].update(wall_seconds="1"), "wall_seconds = '1'; legal: a finite"),
        (lambda r: r["outcome"].update(step_loss=None), "step_loss = "),
        (lambda r: r["outcome"].update(end="stopped"), "end = 'stopped'; legal: finished"),
        (lambda r: r["outcome"].update(joules=1.0), "joules is unknown"),
        (lambda r: r.update(format="thermokron study run 1"), "format = .* 1'; legal"),
    ],
)
def test_a_file_that_cannot_be_this_runs_is_refused(change, message, tmp_path):
    """Even if its checksum is right."""
    settings = {"optimizer": "adam", "hidden": [4], "epochs": 2, "batch_size": 1437}
    run = Run(label="a run", config=make_config(settings))
    Store(tmp_path).put(run, execute(run))
    path = tmp_path / f"{run.key}.json"
    record = json.loads(path.read_text())
    assert Store(tmp_path)[run].train_loss == record["outcome"]["train_loss"]
    del record["checksum"]
    change(record)
    path.write_text(json.dumps({**record, "checksum": digest(record)}))
    with pytest.raises(ValueError, match=rf"{path.name} is not the result of a run \({message}"):
        Store(tmp_path).get(run)


def test_a_digit_that_was_changed_is_noticed(tmp_path):
    settings = {"optimizer": "adam", "hidden": [4], "epochs": 1, "batch_size": 1437}
    run = Run(label="a run", config=make_config(settings))
    Store(tmp_path).put(run, execute(run))
    path = tmp_path / f"{run.key}.json"
    record = json.loads(path.read_text())
    record["outcome"]["train_loss"][-1] += 0.01
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="its checksum is wrong"):
        Store(tmp_path).get(run)


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


def test_an_advantage_is_kept_in_time_and_by_all_seeds():
    def ran(*losses, end="finished"):
        rest = {"test_accuracy": 0.9, "wall_seconds": 1.0, "hardware_seconds": 0.0}
        return Outcome(train_loss=list(losses), step_loss=[], inversions=0, end=end, **rest)

    def found(exact):
        plan = {"title": "a study", "target": 2.0, "keeps": 2.0, "fixed_adc_bits": 12}
        grids = {"bits": {}, "samples": {}, "damping": {}}
        return Findings(exact="K-FAC", rival="Adam", references={"K-FAC": exact}, **plan, **grids)

    exact = [ran(4.0, 1.0)] * 3  # 0.5 epochs to 2; twice as many keep the advantage
    soon, late, refused = ran(4.0, 2.0), ran(4.0, 3.0, 1.0), ran(4.0, math.inf, end="refused")
    assert found(exact).keeps_lead([soon, soon, late])
    assert not found(exact).keeps_lead([soon, late, late])
    assert not found(exact).keeps_lead([soon, soon, refused])
    assert not found([ran(4.0, 3.0)] * 3).keeps_lead([soon] * 3)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (3.14159, "3.14"), (1234.5, "1234"), (2e-5, "2.00e-05"), (math.inf, "never")],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_tables_are_markdown():
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --: |\n| 1 | 2 |\n"
