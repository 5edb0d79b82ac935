"""`thermokron predict`: what it shows, writes, and refuses."""

import json
import re

import pytest

from thermokron.host.cli import main

QUICK = ("--draws", "200", "--batch", "16")


def run(capsys, *arguments):
    status = main(["predict", *arguments])
    told = capsys.readouterr()
    return status, told.out, told.err


def test_it_lists_what_there_is(capsys):
    status, out, _ = run(capsys, "--list")
    assert status == 0
    for name in ("vit-s16", "ogbg-gnn", "bert-base", "v100", "h100", "cmos28", "tngd", "board"):
        assert name in out


def test_paragraph_and_tables_say_the_same_as_json(capsys):
    arguments = ("mlp:256x2", "--steps", "1000", *QUICK)
    _, shown, _ = run(capsys, *arguments, "--parts", "--break-even", "--tornado", "--assumptions")
    _, out, _ = run(capsys, *arguments, "--json", "--break-even", "--tornado")
    record = json.loads(out)
    assert record["machine"] == "a100"
    assert {each["name"] for each in record["break_even"]} >= {"width", "tau"}
    assert record["tornado"][0]["quantity"]["source"]
    assert record["spec"]["cells"] == 257
    adam, exact = record["predictions"][1:3]
    assert adam["steps_to_target"]["nominal"] == 1000
    milliseconds = 1e3 * exact["seconds_per_step"]["nominal"]
    row = next(line for line in shown.splitlines() if line.lstrip().startswith("kfac-exact@1 "))
    assert float(row.split()[1]) == pytest.approx(milliseconds, rel=5e-3)
    assert "…" not in shown
    for told in (
        "speedup a step",
        "to the target",
        "what moves",
        "where",
        "assumed",
        "nine of ten",
    ):
        assert told in shown


def test_it_writes_tables_pictures_and_json(capsys, tmp_path):
    status, out, _ = run(capsys, "mlp:64x1", *QUICK, "-o", str(tmp_path / "new"))
    assert status == 0
    written = {path.name for path in (tmp_path / "new").iterdir()}
    assert written == {
        "prediction.json",
        "prediction.md",
        "parts.png",
        "tornado.png",
        "break-even.png",
    }
    assert all(name in out for name in written)
    page = (tmp_path / "new" / "prediction.md").read_text(encoding="utf-8")
    record = json.loads((tmp_path / "new" / "prediction.json").read_text(encoding="utf-8"))
    for known in record["assumptions"]:
        assert known["name"] in page


def test_a_unit_of_a_user_s_spec(capsys):
    options = ("--adc-bits", "6", "--units", "3", "--as-built", "--cells", "80")
    _, out, _ = run(capsys, "mlp:64x1", *QUICK, *options, "--json")
    record = json.loads(out)
    assert (record["spec"]["adc_bits"], record["spec"]["cells"]) == (6, 80)
    assert record["units_per_device"] == 3


def test_a_network_of_the_user_s(capsys, tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text(
        "import torch\n"
        "from thermokron.host.train import Task\n"
        "def task(seed):\n"
        "    data = torch.utils.data.TensorDataset(torch.randn(40, 30), torch.randn(40, 5))\n"
        "    return Task(model=torch.nn.Linear(30, 5), train=data, loss=torch.nn.MSELoss())\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    _, out, _ = run(capsys, "theirs:task", *QUICK, "--json")
    record = json.loads(out)
    assert (record["workload"], record["batch"], record["spec"]["cells"]) == ("theirs:task", 16, 31)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "NETWORK is missing"),
        (("vgg",), "network = 'vgg' is unknown; legal: .*vit-s16"),
        (("mlp:0x3",), "legal: 1 to"),
        (("digits", "--machine", "abacus"), "machine = 'abacus' is unknown; legal: .*v100"),
        (("digits", "--technology", "moon"), "technology = 'moon' is unknown; legal: board"),
        (("digits", "--optimizer", "lion"), "optimizer = 'lion' is unknown; legal: sgd"),
        (("digits", "--technology", "none", "--optimizer", "kfac-solve"), "kfac-solve@1 needs"),
        (("digits", "--technology", "none", "--units", "2"), "has no unit"),
        (("digits", "--technology", "tngd", "--adc-bits", "8"), "no effect on technology 'tngd'"),
        (("digits", "--technology", "none", "--tornado"), "--tornado and --break-even need"),
        (("digits", "--devices", "0"), "devices = 0"),
        (("digits", "--batch", "-3"), "batch = -3"),
        (("digits", "--draws", "1"), "draws = 1"),
        (("digits", "--units", "-1"), "units = -1"),
        (("digits", "--kappa", "0.5"), "kappa = 0.5"),
        (("digits", "--settle", "7"), "settle = 7"),
        (("digits", "--samples", "0"), "samples = 0"),
        (("digits", "--adc-bits", "99"), "adc_bits = 99"),
        (("digits", "--steps", "-5"), "steps = -5"),
        (("digits", "--steps", "0.5"), "steps = 0.5"),
        (("digits", "--ratio", "nan"), "ratio = nan"),
        (("bert-base", "--ratio", "0.5"), "ratio = 0.5 has no effect on 'bert-base'"),
        (("digits", "--kappa", "inf"), "kappa = inf"),
        (("digits", "--units", "0"), "units = 0"),
        (("digits", "--ports", "0"), "ports = 0"),
        (("digits", "--optimizer", "adam", "--settle", "0.1"), "settle = 0.1 has no effect"),
        (("vgg:task",), "vgg"),
    ],
)
def test_nonsense_ends_in_one_line(capsys, arguments, told):
    status, out, err = run(capsys, *arguments)
    assert status == 2
    assert not out
    assert re.search(told, err), err
    assert len(err.splitlines()) == 1
