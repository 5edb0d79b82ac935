"""Plans of searches: what they may say, and how they are refused."""

import re
from pathlib import Path

import pytest
from search_plans import TINY, written

from thermokron.host.cli import main
from thermokron.host.explore import load_plan, plan_names, plan_text
from thermokron.host.explore.axes import AXES, axis

PAGE = (Path(__file__).parents[2] / "docs" / "explore.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", plan_names())
def test_plans_that_come_along_are_legal_and_explained(name):
    plan = load_plan(name)
    assert plan.trials % plan.generation == 0
    assert plan.within == 0.1
    assert plan_text(name).startswith("#")
    assert f"thermokron explore {name}" in PAGE


def test_the_plan_on_the_page_is_legal(tmp_path):
    (text,) = re.findall(r"```text\n(title = .*?)```", PAGE, re.DOTALL)
    plan = load_plan(written(tmp_path, text, "mine.toml"))
    assert plan.name == "mine"
    assert not plan.axes["cells"].fixed


def test_the_page_names_every_axis_and_field():
    for name in AXES:
        assert f"`{name}`" in PAGE, name
    fields = ("trials", "generation", "search_seed", "seeds", "check_seeds", "engine", "within")
    for name in (*fields, "word_bits"):
        assert f"`{name}`" in PAGE, name


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("trials = 8", "trials = 0", "trials = 0 is out of range"),
        ("trials = 8", "", "trials is missing"),
        ("trials = 8", "trials = 8\ncolour = 3", "colour is unknown"),
        ("generation = 4", "generation = 0", "generation = 0"),
        ("\nseeds = [0]", "\nseeds = []", r": seeds = \[\]; legal: one at least"),
        ("\nseeds = [0]", "\nseeds = [1, 1]", r": seeds = \[1, 1\]"),
        ("\nseeds = [0]", "\nseeds = [-1]", "config: seed = -1"),
        ("check_seeds = [5]", "check_seeds = []", r"check_seeds = \[\]; legal: one at least"),
        ("check_seeds = [5]", "check_seeds = [5, 5]", r"check_seeds = \[5, 5\]; legal: one at"),
        ("check_seeds = [5]", "check_seeds = [-5]", "config: seed = -5"),
        ("check_seeds = [5]", "check_seeds = [6, 0]", r"check_seeds = \[6, 0\] has 0, which is in"),
        ("check_seeds = [5]", "check_seeds = 5", "check_seeds = 5; legal: a list of integers"),
        ("within = 0.5", "within = 0", "within = 0"),
        ("within = 0.5", "within = nan", "within = nan"),
        ("within = 0.5", "within = 0.5\nengine = 'exact'", "engine = 'exact' is unknown"),
        ("within = 0.5", "within = 0.5\nword_bits = 8", "word_bits = 8, but"),
        ("within = 0.5", "within = 0.5\nclock_hz = 0", "clock_hz = 0"),
        ("within = 0.5", "within = 0.5\nconversion_ns = 1e5", "adc_cycles = 100000"),
        ('network = "mlp"', 'network = "what"', "config: network = 'what'"),
        ('network = "mlp"', "epochs = 1", "plan tiny"),
        ('network = "mlp", hidden', "hidden", "network is missing in config"),
        ("epochs = 1", "epochs = 1, samples = 2", "samples does not belong in config"),
        ("epochs = 1", "epochs = 0", "config: epochs = 0"),
        ("cells = [12, 36, 72]", "cells = []", r"cells = \[\] in space"),
        ("cells = [12, 36, 72]", "cells = [12, 12]", "each value once"),
        ("cells = [12, 36, 72]", "cells = [0.5]", r"cells = \[0.5\] in space"),
        ("cells = [12, 36, 72]", "cells = [12, 100]", "folds in space has 3, which does not"),
        ("cells = [12, 36, 72]", "cells = 12000", "cells = 12000"),
        ("cells = [12, 36, 72]", "rooms = [12]", "rooms is unknown in space; legal: cells"),
        ("from = 3", "from = 2", "coupling_bits = 2 in space: coupling_bits = 2"),
        ("from = 3, to = 8", "from = 8, to = 3", "legal: 0 < from < to"),
        ("from = 3, to = 8", "from = 3", "legal: a value, a list of them, or { from, to }"),
        ("from = 3, to = 8", "from = 3, to = 8, step = 2", "a multiple of step"),
        ("from = 3, to = 8", "from = 3, to = 8, step = 1, log = true", "without step"),
        ("to = 100.0", "to = inf", "legal: 0 < from < to"),
        ("from = 0.05, to = 0.95", "from = 0.05, to = 1.5", "settle = 1.5 in space"),
        ("ports = [1, 16]", "ports = [0, 16]", "ports = 0 in space"),
        ("units = [1, 2]", "units = [1, 2000]", "units = 2000 in space"),
        ("ports = [1, 16]", 'method = "guess"', "method = guess in space"),
        ("ports = [1, 16]", "samples = [0]", "samples = 0 in space: samples = 0"),
        ("ports = [1, 16]", "ports = true", "ports = True in space"),
    ],
)
def test_nonsense_is_refused_by_name(tmp_path, before, after, message):
    assert before in TINY
    with pytest.raises(ValueError, match=message):
        load_plan(written(tmp_path, TINY.replace(before, after)))


def test_a_space_without_a_choice_is_refused(tmp_path):
    head = TINY.partition("[space]")[0]
    with pytest.raises(ValueError, match="space has nothing to choose"):
        load_plan(written(tmp_path, head + "[space]\ncells = 12\n"))


def test_ranges_and_lists_become_what_they_say():
    assert axis("settle", [0.1, "5tau"]).values == (0.1, "5tau")
    bits = axis("coupling_bits", {"from": 4, "to": 8, "step": 2})
    assert [bits.value(v) for v in (4, 6, 8)] == [4, 6, 8]
    assert bits.steps == (4, 6, 8)
    cells = axis("cells", [36, 12, 72])
    assert [cells.value(place) for place in range(3)] == [12, 36, 72]  # neighbours are neighbours
    tau = axis("tau_ns", {"from": 2.0, "to": 200.0, "log": True})
    assert tau.value(12.3456) == 12.3
    assert axis("ports", 4).fixed


@pytest.mark.parametrize("command", ["explore", "predict"])
def test_an_error_of_the_users_names_no_command_that_was_not_given(tmp_path, command, capsys):
    plan = written(tmp_path, TINY.replace('"mlp", hidden = [4]', '"json:loads"'))
    given = {"explore": [plan, "-o", str(tmp_path / "out")], "predict": ["json:loads"]}
    assert main([command, *given[command]]) == 2
    error = capsys.readouterr().err
    assert "network = 'json:loads': calling it with the seed 0 raised TypeError" in error
    assert "`thermokron --traceback COMMAND ...` shows where" in error
    assert "thermokron train" not in error


def test_the_command_lists_shows_and_refuses(tmp_path, capsys):
    assert main(["explore", "--list"]) == 0
    assert capsys.readouterr().out.startswith("digits-mlp")
    assert main(["explore", "digits-mlp", "--show"]) == 0
    assert capsys.readouterr().out == plan_text("digits-mlp")
    assert main(["explore"]) == 2
    assert "PLAN is missing; legal: digits-mlp" in capsys.readouterr().err
    assert main(["explore", "nothing"]) == 2
    assert "no plan is called 'nothing'; legal: digits-mlp" in capsys.readouterr().err
    for option, message in (
        (("--trials", "0"), "trials = 0"),
        (("--jobs", "0"), "jobs = 0"),
    ):
        assert main(["explore", written(tmp_path, TINY), *option]) == 2
        told = capsys.readouterr()
        assert message in told.err
        assert told.out == ""
