"""Plans: what is wrong with one is said before anything runs, and where it is."""

import pytest
from study_plans import COMPARISON, QUANTISATION, written

from thermokron.host.cli import main
from thermokron.host.studies import load_study, plan_names
from thermokron.host.studies.runs import make_config

UNIT = "unit = { coupling_bits = 8, adc_bits = 8 }"
SAMPLED = 'config = { optimizer = "kfac", kl_clip = 0.01, samples = 500 }'
EXACT = 'config = { optimizer = "kfac", kl_clip = 0.01 }'
ADAM = 'config = { optimizer = "adam" }'
CLAIMED = '["MLP 64-16-10"]'


def test_every_plan_of_the_package_is_sound():
    assert plan_names() == ["comparison", "quantisation", "vision-and-graphs"]
    for name in plan_names():
        assert load_study(name).title


def refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_study(written(tmp_path, text))
    assert str(caught.value).startswith("plan tiny: ")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('kind = "comparison"', 'kind = "contest"', "kind = 'contest' is unknown; legal: comp"),
        ('kind = "comparison"', 'kind = ["comparison"]', r"kind = \['comparison'\] is unknown"),
        ("tuning_seeds = [10]", "tuning_seeds = [1]", r"share \[1\]; tune on other seeds"),
        ("tuning_seeds = [10]", "tuning_seeds = []", "tuning_seeds needs one entry"),
        ("seeds = [0, 1]", "seeds = [0, 1", "Unclosed array"),
        ("seeds = [0, 1]", "seeds = [0, 0]", "seeds holds 0 twice"),
        ("seeds = [0, 1]", "seeds = 3", "seeds = 3; legal: a list of integers"),
        ("seeds = [0, 1]", "seeds = [-1]", "seed = -1 is out of range; legal: 0 to"),
        ("targets = [0.5, 0.1]", "targets = [0.1, 0.5]", "legal: falling"),
        ("targets = [0.5, 0.1]", "targets = [inf]", r"\[inf\]; legal: a list of finite numbers"),
        ("title = ", "# title = ", "title is missing in Comparison; needed: name, title, seeds"),
        ('title = "Adam and K-FAC on a small MLP"', "title = 3", "title = 3; legal: a text"),
        ("epochs = 4", "epochs = 0", "epochs = 0 is out of range"),
        ("epochs = 4", "epoch = 4", "networks, MLP 64-16-10: epoch is unknown in Network; legal"),
        ("hidden = [16]", "hidden = 16", "hidden = 16; legal: a list of integers"),
        ("hidden = [16]", "epochs = 3", "epochs does not belong in config"),
        ("unit_epochs = 2", "unit_epochs = 0", "unit_epochs = 0; legal: 1 or more"),
        ("unit_epochs = 2", 'skip = ["Eve"]', "skip has 'Eve'; legal: Adam, K-FAC, exact"),
        ("unit_epochs = 2", 'skip = ["Adam"]', "'Adam' is not run on 'MLP 64-16-10', which skips"),
        ("unit_epochs = 2", 'skip = ["K-FAC, exact"]', "skip both or neither"),
        ('name = "Adam"', 'name = "K-FAC, exact"', "contenders holds 'K-FAC, exact' twice"),
        (ADAM, 'config = "mlp"', "contenders, Adam: config = 'mlp'; legal: a table"),
        (ADAM, 'config = { optimiser = "adam" }', "optimiser is unknown in TrainConfig; legal: "),
        (ADAM, 'config = { optimizer = "adam", seed = 1 }', "seed does not belong in config"),
        ("points = 4", "points = 1", "2 to 1,000 points"),
        ("points = 4", "points = 30_000_000", "2 to 1,000 points"),
        ("seeds = [0, 1]", f"seeds = {[*range(11, 20_011)]}", "asks for 180,009 runs; legal"),
        (
            "grid.damping = [0.01, 0.03]",
            "grid.damping = { from = 0.01, to = 1, points = 1000 }\n"
            "grid.momentum = { from = 0.1, to = 0.9, points = 1000 }",
            "contenders, K-FAC, exact: the plan asks for 2,000,000 runs; legal: 100,000 at most",
        ),
        ("seeds = [0, 1]", "seeds = " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("seeds = [0, 1]", "seeds" + ".a" * 3000 + " = 1", "seeds = .*; legal: a list|too deeply"),
        ("seeds = [0, 1]", f"seeds = {[*range(11, 130_000)]}", "asks for .* runs; legal"),
        ("seeds = [0, 1]", "seeds = [" + "1" * 5000 + "]", "Exceeds the limit"),
        ("targets = [0.5, 0.1]", "targets = [1" + "0" * 400 + "]", "a list of finite numbers"),
        ("to = 0.1", "to = 1" + "0" * 400, "legal: 0 < from < to"),
        ("[0.001, 0.07]", "[1" + "0" * 400 + "]", "legal: a list of numbers"),
        ("targets = ", "# " + "." * 1_000_000 + "\ntargets = ", "bytes; legal: 1,000,000 at most"),
        ("to = 0.1", "to = inf", "legal: 0 < from < to"),
        ("[0.001, 0.07]", '["fast"]', r"grid of lr = \['fast'\]; legal: a list of numbers"),
        ("grid.damping = [0.01, 0.03]", "grid.batch_size = [0.5]", "legal: a list of integers"),
        ("grid.damping = [0.01, 0.03]", "grid.damping = [0.01, -1]", r"damping -1: damping = -1"),
        ('tuned_as = "K-FAC, exact"', 'tuned_as = "SGD"', "'SGD' names no contender with a grid"),
        ("samples = 500", "sample = 500", "sample is unknown in TrainConfig; legal: network"),
        ("samples = 500", "lr = 0.1", "lr has no effect: it is taken over from 'K-FAC, exact'"),
        ("adc_bits = 8", "adc_bits = 2", "adc_bits = 2 is out of range; legal: 3 to 16"),
        ("adc_bits = 8", "adc_bit = 8", "adc_bit is unknown in UnitSpec"),
        ("cells = 65", "cells = 7000", "cells = 7000 is out of range"),
        ('against = "Adam"', 'against = "Eve"', "a claim names 'Eve'"),
        ("at_most = 0.5", "at_most = 0.5\nmeasure = 'taste'", "measure = 'taste' is unknown"),
        ("at_most = 0.5", 'at_most = "a"', "claims, entry 1: at_most = 'a'; legal: a finite"),
        (f"networks = {CLAIMED}", 'networks = ["X"]', "networks has 'X'; legal: MLP 64-16-10"),
        (f"networks = {CLAIMED}", "networks = []", "networks needs one entry at least"),
    ],
)
def test_wrong_comparisons_are_refused(tmp_path, old, new, message):
    assert old in COMPARISON
    refused(tmp_path, COMPARISON.replace(old, new, 1), message)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (UNIT, "", "contenders, K-FAC, 8 bits: samples has no effect without a unit"),
        (UNIT, "unit = { cell = 8 }", "cell is unknown in UnitSpec"),
        (f', samples = 500 }}\ntuned_as = "K-FAC, exact"\n{UNIT}', "}", "-10: unit has no effect"),
        (EXACT, EXACT.replace("}", ', engine = "numeric" }'), "engine = 'numeric' needs a unit"),
        (SAMPLED, SAMPLED.replace("}", ', engine = "exact" }'), "unit has no effect with engine"),
        (SAMPLED, ADAM, "unit has no effect with optimizer = 'adam'"),
        (ADAM, 'config = { optimizer = "adam", damping = 0.1 }', "damping has no effect without K"),
        (ADAM, 'config = { optimizer = "adam", momentum = 0.5 }', "momentum has no effect with Ad"),
        (EXACT, EXACT.replace("}", ", mc_samples = 2 }"), "mc_samples has no effect without fish"),
        (EXACT, EXACT.replace("}", ", lr = 1 }"), "lr is in config and in grid"),
    ],
)
def test_what_has_no_effect_is_refused(tmp_path, old, new, message):
    assert old in COMPARISON
    refused(tmp_path, COMPARISON.replace(old, new, 1), message)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("kl_clip = -1", "kl_clip = -1"),
        ('fisher = "foo"', "fisher = 'foo'"),
        ("decay = 2", "decay = 2"),
        ('damping_mode = "sum"', "damping_mode = 'sum'"),
        ("inverse_interval = 0", "inverse_interval = 0"),
    ],
)
def test_options_of_kfac_are_checked_before_anything_runs(tmp_path, setting, message):
    text = COMPARISON.replace(EXACT, f'config = {{ optimizer = "kfac", {setting} }}')
    refused(tmp_path, text, f"plan tiny: MLP 64-16-10, K-FAC, exact, lr 0.001, .*{message}")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"none"]', '"luck"]', "guard = 'luck' is unknown"),
        ('guards = ["lanczos", "none"]', "guards = []", "guards needs one entry at least"),
        ("damping = 0.1, lr = 0.1", "damping = 0.1", r"damped holds {'damping': 0.1}; legal: damp"),
        ("target = 2.0", "target = 0.0", "target = 0.0; legal: above 0"),
        ("keeps = 2.0", "keeps = 0", "keeps = 0; legal: above 0"),
        ("adc_bits = [3]", 'adc_bits = ["3"]', "legal: a list of integers"),
        ("equilibrate = [true, false]", "equilibrate = [1]", "legal: a list of true or false"),
        ("epochs = 1 }", "epochs = 1, samples = 20 }", "rival: samples has no effect without"),
        ("samples = 50 }", 'engine = "exact" }', "engine = 'exact' in config; legal: numeric, compiled, cosim, sta"),
        ("samples = 50 }", "seed = 3 }", "seed does not belong in config; the plan has seeds"),
        ("samples = 50 }", "mc_samples = 3 }", "config: mc_samples has no effect without fisher"),
        ("cells = 65", "cells = 7000", "4-bit couplings, 3-bit ADC, .*: cells = 7000 is out"),
    ],
)
def test_wrong_grids_of_bits_are_refused(tmp_path, old, new, message):
    assert old in QUANTISATION
    refused(tmp_path, QUANTISATION.replace(old, new, 1), message)


def test_a_plan_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_bytes(b'title = "\xff"')
    with pytest.raises(ValueError, match=r"plan .*tiny\.toml is not UTF-8"):
        load_study(str(path))


def test_none_turns_off_what_can_be_turned_off():
    assert make_config({"kl_clip": "none"}).kl_clip is None
    assert make_config({"guard": "none"}).guard == "none"  # which is a guard's name
    with pytest.raises(ValueError, match="damping = 'none'; legal: a finite number"):
        make_config({"damping": "none"})


def test_integers_of_a_grid_stay_integers(tmp_path):
    text = COMPARISON.replace("grid.damping = [0.01, 0.03]", "grid.inverse_interval = [1, 5]")
    study = load_study(written(tmp_path, text))
    found = [trial["inverse_interval"] for trial in study.contenders[1].trials]
    assert found == [1, 5, 1, 5]
    assert all(isinstance(value, int) for value in found)


def test_unknown_names_and_too_few_processes(tmp_path, capsys):
    assert main(["study", "nonsense"]) == 2
    assert (
        "legal: comparison, quantisation, vision-and-graphs, or a path" in capsys.readouterr().err
    )
    assert main(["study"]) == 2
    assert "NAME is missing" in capsys.readouterr().err
    plan = written(tmp_path, COMPARISON)
    assert main(["study", plan, "-o", str(tmp_path / "out"), "--jobs", "0"]) == 2
    assert "jobs = 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_list_and_show(capsys):
    assert main(["study", "--list"]) == 0
    assert "quantisation" in capsys.readouterr().out
    assert main(["study", "comparison", "--show"]) == 0
    assert 'kind = "comparison"' in capsys.readouterr().out
