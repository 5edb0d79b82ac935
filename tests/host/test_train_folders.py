"""Whose results a folder holds, and what becomes of them when nobody reads the terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from thermokron.host.cli import main
from thermokron.host.train import TrainConfig, train
from thermokron.host.train.identity import RunFile, identity, run_digest
from thermokron.model.files import claimed

CLI = [sys.executable, "-m", "thermokron.host.cli"]
TRAIN = ["train", "digits", "--hidden", "4", "--optimizer", "sgd", "--batch-size", "479"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(folder: str) -> list[dict]:
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


# ---- every file names its run ------------------------------------------------------------------


def test_every_file_names_the_run_that_it_belongs_to() -> None:
    assert main([*TRAIN, "--epochs", "2", "--seed", "3", "-o", "out"]) == 0
    config = TrainConfig(
        hidden=(4,), optimizer="sgd", engine=None, batch_size=479, epochs=2, seed=3
    )
    digest = run_digest(identity(config, None, None))
    record = json.loads(Path("out/run.json").read_text())
    assert record["run"] == digest
    assert record["identity"]["seed"] == 3
    assert record["identity"]["hidden"] == [4]
    assert [run["run"] for run in json.loads(Path("out/result.json").read_text())["runs"]] == [
        digest
    ]
    assert {line["run"] for line in lines("out")} == {digest}
    assert digest.encode() in Path("out/loss.png").read_bytes()
    assert train(config).run == digest


def test_a_digest_is_of_what_losses_depend_on() -> None:
    def digest(**settings: object) -> str:
        return run_digest(identity(TrainConfig(engine="exact", **settings), None, None))

    assert digest() == digest(epochs=20)  # a constant rate may go on
    assert digest(schedule="cosine") != digest(schedule="cosine", epochs=20)
    assert len({digest(seed=s, lr=lr) for s in (0, 1) for lr in (0.1, 0.2)}) == 4


def test_resuming_in_the_folder_of_another_run_is_refused(capsys) -> None:
    begun = [*TRAIN, "-o", "out"]
    assert main([*begun, "--epochs", "1", "--checkpoint", "a.pt"]) == 0
    assert main([*begun, "--epochs", "2", "--seed", "5"]) == 0
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    capsys.readouterr()
    resume = [*TRAIN, "--epochs", "2", "--resume", "a.pt"]
    assert main([*resume, "-o", "out"]) == 2
    told = "out holds the results of another run: seed = 5, not 0; give another folder with -o"
    assert told in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == before
    Path("out/run.json").unlink()  # the lines say whose they are, too
    assert main([*resume, "-o", "out"]) == 2
    assert "out/metrics.jsonl, line 1, is of another run" in capsys.readouterr().err
    Path("out/run.json").write_text("[]")
    assert main([*resume, "-o", "out"]) == 2
    assert "out/run.json does not name a run" in capsys.readouterr().err
    assert main([*resume, "-o", "new"]) == 0
    assert "lacks 3 steps of before it was resumed" in capsys.readouterr().out


def test_a_log_that_was_cut_short_goes_on_where_it_is_whole(capsys) -> None:
    assert main([*TRAIN, "--epochs", "1", "--checkpoint", "a.pt", "-o", "out"]) == 0
    path = Path("out/metrics.jsonl")
    path.write_text(path.read_text()[:-9])
    capsys.readouterr()
    assert main([*TRAIN, "--epochs", "2", "--resume", "a.pt", "-o", "out"]) == 0
    assert "lacks 1 steps of before" in capsys.readouterr().out
    assert [line["step"] for line in lines("out")] == [0, 1, 3, 4, 5]


def test_a_line_that_is_damaged_is_named_and_none_is_lost(capsys) -> None:
    assert main([*TRAIN, "--epochs", "1", "--checkpoint", "a.pt", "-o", "out"]) == 0
    path = Path("out/metrics.jsonl")
    damaged = path.read_text().replace('"step": 1', '"step" 1')
    path.write_text(damaged)
    assert main([*TRAIN, "--epochs", "2", "--resume", "a.pt", "-o", "out"]) == 2
    assert "out/metrics.jsonl, line 2, is damaged" in capsys.readouterr().err
    assert path.read_text() == damaged


def test_a_run_that_is_resumed_twice_in_another_folder_keeps_its_lines() -> None:
    assert main([*TRAIN, "--epochs", "1", "--checkpoint", "a.pt", "-o", "out"]) == 0
    for epochs in ("2", "3"):
        assert main([*TRAIN, "--epochs", epochs, "--resume", "a.pt", "-o", "new"]) == 0
    assert [line["step"] for line in lines("new")] == [3, 4, 5, 6, 7, 8]


def test_a_run_that_was_at_its_end_names_itself_all_the_same() -> None:
    assert main([*TRAIN, "--epochs", "1", "--checkpoint", "a.pt", "-o", "out"]) == 0
    assert main([*TRAIN, "--epochs", "1", "--resume", "a.pt", "-o", "new"]) == 0
    assert Path("new/run.json").read_text() == Path("out/run.json").read_text()


# ---- a folder in use ---------------------------------------------------------------------------


def test_two_runs_at_once_have_folders_of_their_own() -> None:
    with claimed(Path("runs/mlp-sgd")):
        assert main([*TRAIN, "--epochs", "1"]) == 0
        assert not list(Path("runs/mlp-sgd").iterdir())
        with claimed(Path("runs/mlp-sgd-2")):
            assert main([*TRAIN, "--epochs", "1"]) == 0
    assert sorted(path.parent.name for path in Path().glob("runs/*/result.json")) == [
        "mlp-sgd-2",
        "mlp-sgd-3",
    ]


def test_without_a_folder_another_runs_results_are_left_alone(capsys) -> None:
    """And a run that is resumed finds its own."""
    Path("runs/mlp-sgd-4").mkdir(parents=True)
    Path("runs/mlp-sgd-4/result.json").write_text("of a version that named no run")
    for seed in ("0", "1", "0"):
        assert main([*TRAIN, "--epochs", "1", "--seed", seed]) == 0
    assert "in place of an older run's" in capsys.readouterr().out
    assert sorted(os.listdir("runs")) == ["mlp-sgd", "mlp-sgd-2", "mlp-sgd-4"]
    assert main([*TRAIN, "--epochs", "1", "--seed", "2", "--checkpoint", "a.pt"]) == 0
    assert main([*TRAIN, "--epochs", "2", "--seed", "2", "--resume", "a.pt"]) == 0
    assert len(lines("runs/mlp-sgd-3")) == 6
    assert [len(lines(f"runs/mlp-sgd{end}")) for end in ("", "-2")] == [3, 3]
    assert main([*TRAIN, "--epochs", "1", "--seed", "5"]) == 0
    assert os.listdir("runs/mlp-sgd-4") == ["result.json"]
    assert Path("runs/mlp-sgd-5/result.json").exists()


def test_the_demo_leaves_another_runs_results_alone(capsys) -> None:
    assert main([*TRAIN, "--epochs", "1", "-o", "out"]) == 0
    assert main(["train", "demo", "--engine", "numeric", "-o", "out"]) == 2
    assert "out holds the results of another run" in capsys.readouterr().err


@pytest.mark.parametrize("command", [TRAIN, ["train", "demo", "--engine", "numeric"]])
def test_a_folder_in_use_is_refused_by_name(command: list[str], capsys) -> None:
    with claimed(Path("out")):
        assert main([*command, "-o", "out"]) == 2
    told = "out: another run is writing there; wait for it, or choose another folder"
    assert capsys.readouterr().err == f"thermokron: error: {told}\n"
    assert not os.listdir()


# ---- shown after saved -------------------------------------------------------------------------


def test_readers_that_leave_change_nothing_nor_does_a_terminal_without_utf8() -> None:
    read, write = os.pipe()
    os.close(read)
    out = "out-\u03c4"
    ascii_only = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [*CLI, *TRAIN, "--epochs", "1", "-o", out]
    assert subprocess.run(command, stdout=write, stderr=write, env=ascii_only).returncode == 0
    os.close(write)
    assert sorted(os.listdir(out)) == ["loss.png", "metrics.jsonl", "result.json", "run.json"]


def test_a_full_disk_behind_the_terminal_loses_no_result(monkeypatch, capsys) -> None:
    with monkeypatch.context() as patched, open("/dev/full", "w") as full:
        patched.setattr(sys, "stdout", full)
        assert main([*TRAIN, "--epochs", "1", "-o", "out"]) == 2
    told = "thermokron: error: standard output: No space left on device\n"
    assert capsys.readouterr().err == told
    assert Path("out/result.json").exists()


def test_a_process_without_a_terminal_is_silent(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main([*TRAIN, "--epochs", "1", "-o", "out"]) == 0
    assert Path("out/result.json").exists()
    assert main([*TRAIN, "--epochs", "0", "-o", "out"]) == 2


def test_a_list_whose_reader_leaves_ends_quietly() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*CLI, "train", "--help"], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


# ---- the end of a process ----------------------------------------------------------------------


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_as_ctrl_c_does_and_ignored_ones_do_not(
    end: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    from thermokron.host.train import results

    write, sent = results.StepLog.write, []

    def ended(log: results.StepLog, metrics: dict) -> None:
        write(log, metrics)
        if not sent:
            sent.append(True)
            os.kill(os.getpid(), end)

    monkeypatch.setattr(results.StepLog, "write", ended)
    assert main([*TRAIN, "--epochs", "1", "-o", "out"]) == 128 + end
    assert capsys.readouterr().err.strip() == f"thermokron: ended by {end.name}"
    assert signal.getsignal(end) is signal.SIG_DFL
    assert sorted(os.listdir("out")) == ["metrics.jsonl", "run.json"]
    sent.clear()
    before = signal.signal(end, signal.SIG_IGN)  # as `nohup` does
    try:
        assert main([*TRAIN, "--epochs", "1", "-o", "out"]) == 0
    finally:
        signal.signal(end, before)


def test_a_file_that_names_no_run_is_named(tmp_path: Path) -> None:
    RunFile(tmp_path, {"seed": 1}).write()
    RunFile(tmp_path, {"seed": 1}).check()
    with pytest.raises(ValueError, match="holds the results of another run: seed = 1, not 2; give"):
        RunFile(tmp_path, {"seed": 2}).check()
