"""Forecasts: parts add up, more work costs more, outputs agree, nonsense is refused by name."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from thermokron.host.predict import report
from thermokron.host.predict.conditions import CONDITIONS, TARGETS
from thermokron.host.predict.forecast import forecast
from thermokron.host.predict.hardware.converters import adc_area, adc_energy, regression
from thermokron.host.predict.hardware.costs import side_by_side
from thermokron.host.predict.hardware.technologies import TECHNOLOGIES, built_at_28nm, technology
from thermokron.host.predict.machines.cards import machine
from thermokron.host.predict.optimizers import OPTIMIZERS, Optimizer, optimizer
from thermokron.host.predict.pays import pays, square_layers
from thermokron.host.predict.prediction import PARTS, Question
from thermokron.host.predict.quantity import Quantity, Values, exactly
from thermokron.host.predict.sensitivity import break_even, speedup, tornado
from thermokron.host.predict.workloads.networks import network
from thermokron.host.predict.workloads.workload import Block, Operation, Workload
from thermokron.model import UnitSpec

DRAWS = 400
LOAD = square_layers(256, 128)


def question(name="kfac-solve", **changes):
    options = {"technology": technology("cmos28")} | changes
    load = options.pop("workload", LOAD)
    how = name if isinstance(name, Optimizer) else optimizer(name)
    return Question(load, machine("v100"), how, **options)


def predict(**changes):
    options = {"machine": machine("v100"), "technology": technology("cmos28"), "draws": DRAWS}
    load = changes.pop("workload", LOAD)
    return forecast(load, **(options | changes))


# ---- quantities ----------------------------------------------------------------------------------


def test_half_of_the_draws_lie_on_either_side_of_nominal():
    quantity = Quantity("x", 1.0, 10.0, 20.0, "s", "test")
    drawn = quantity.draw(20_000, seed=1)
    assert drawn.min() >= 1.0
    assert drawn.max() <= 20.0
    # of 20,000 draws 10,000 +- 71: five sigma
    assert abs((drawn < 10.0).sum() - 10_000) < 355
    assert np.median(np.log(drawn[drawn < 10.0])) == pytest.approx(0.5 * math.log(10.0), abs=0.06)


def test_draws_depend_on_seed_and_name_alone():
    quantity = Quantity("x", 1.0, 2.0, 3.0, "s", "test")
    other = replace(quantity, name="y")
    values = Values(10, seed=5)
    values(other)
    assert (values(quantity) == Values(10, seed=5)(quantity)).all()
    assert (values(quantity) != values(other)).any()
    assert (values(quantity) != Values(10, seed=6)(quantity)).any()
    assert Values()(quantity) == 2.0
    assert Values(10, fixed={"x": 7.0})(quantity) == 7.0


@pytest.mark.parametrize(
    ("numbers", "unit", "source"),
    [
        ((2.0, 1.0, 3.0), "s", "x"),
        ((-1.0, 1.0, 3.0), "s", "x"),
        ((0.0, 1.0, 3.0), "s", "x"),
        ((1.0, math.nan, 3.0), "s", "x"),
        ((1.0, 2.0, math.inf), "s", "x"),
        ((1.0, 2.0, 3.0), "", "x"),
        ((1.0, 2.0, 3.0), "s", " "),
    ],
)
def test_a_quantity_that_is_none_is_refused_by_name(numbers, unit, source):
    with pytest.raises(ValueError, match="power of cells"):
        Quantity("power of cells", *numbers, unit, source)


def test_two_quantities_of_one_name_are_not_taken_for_one():
    values = Values()
    values(exactly("x", 1.0, "s", "a"))
    with pytest.raises(ValueError, match="two quantities are called 'x'"):
        values(exactly("x", 2.0, "s", "a"))


# ---- converters ----------------------------------------------------------------------------------

#: What hwcomponents-adc 1.0.21 (commit 246af7e) says: nm, bits, samples a second, pJ, um2.
JUDGED = [
    (65, 4, 1e6, 3.50075, 4289.8),
    (65, 8, 1e9, 6.49448, 17983.1),
    (65, 14, 1e8, 1139.16, 55641.0),
    (28, 6, 1e8, 0.82863, 2775.74),
    (28, 8, 1e6, 1.33325, 1392.3),
    (28, 10, 1e9, 10.8494, 9083.01),
    (28, 12, 1e6, 5.58164, 2136.7),
    (28, 12, 1e8, 22.6065, 7462.47),
    (28, 14, 1e9, 1072.09, 35886.4),
    (7, 8, 1e6, 0.0984047, 161.117),
    (7, 12, 1e9, 7.64923, 2064.49),
]


@pytest.mark.parametrize(("node", "bits", "rate", "energy", "area"), JUDGED)
def test_converters_are_those_of_hwcomponents(node, bits, rate, energy, area):
    assert regression(bits, rate, node) == pytest.approx((energy, area), rel=1e-5)


def test_the_middle_is_the_survey_s_median():
    assert adc_energy(10, 1e6, 28.0).nominal == pytest.approx(11.0e-12)
    assert adc_energy(8, 1e6, 28.0).low == pytest.approx(1.333e-12, rel=1e-3)


@pytest.mark.parametrize("edge", ["low", "nominal", "high"])
def test_a_converter_costs_more_with_bits_and_rate(edge):
    for cost in (adc_energy, adc_area):
        by_bits = [getattr(cost(bits, 1e7, 28.0), edge) for bits in range(3, 17)]
        assert by_bits == sorted(by_bits)
        by_rate = [getattr(cost(12, rate, 28.0), edge) for rate in (1e6, 1e7, 1e8, 1e9)]
        assert by_rate == sorted(by_rate)


# ---- technologies --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TECHNOLOGIES)
def test_every_figure_of_a_technology_has_unit_range_and_source(name):
    quantities = technology(name).quantities()
    assert len(quantities) >= 18
    for quantity in quantities:
        assert quantity.unit
        assert quantity.source
        assert quantity.low <= quantity.nominal <= quantity.high


def test_area_and_power_grow_with_cells_bits_and_units():
    base = built_at_28nm(UnitSpec(cells=64), units=2)
    values = Values
    for more in (
        built_at_28nm(UnitSpec(cells=128), units=2),
        built_at_28nm(UnitSpec(cells=64, adc_bits=13), units=2),
        built_at_28nm(UnitSpec(cells=64, coupling_bits=9), units=2),
        built_at_28nm(UnitSpec(cells=64), units=3),
    ):
        assert more.area(values()) > base.area(values())
    assert built_at_28nm(UnitSpec(cells=128)).static_power(values()) > base.static_power(values())


def test_a_technology_whose_nominal_values_are_not_its_spec_s_is_refused():
    made = built_at_28nm(UnitSpec())
    with pytest.raises(ValueError, match="tau_s"):
        replace(made, tau=exactly("tau", 1.0, "s", "test"))
    with pytest.raises(ValueError, match="units = 0"):
        made.with_units(0)


# ---- forecasts -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found():
    return predict(workload=network("vit-s16"), machine=machine("v100"), devices=8)


def test_parts_add_up_to_the_whole(found):
    for each in found.predictions:
        assert set(each.seconds) <= set(PARTS)
        for parts, whole in (
            (each.seconds, each.seconds_per_step),
            (each.joules, each.joules_per_step),
        ):
            assert sum(part.nominal for part in parts.values()) == pytest.approx(whole.nominal)
            assert whole.low <= whole.nominal <= whole.high
        assert each.nominal.limit == max(each.seconds, key=lambda part: each.seconds[part].nominal)


def test_all_outputs_say_the_same(found):
    record = json.loads(report.as_json(found))
    table = {row[0]: row for row in report.step_table(found)[1]}
    training = {row[0]: row for row in report.target_table(found)[1]}
    parts = {row[0]: row for row in report.parts_table(found)[1]}
    gains = {row[0]: row for row in report.speedup_table(found)[1]}
    assert len(record["predictions"]) == len(OPTIMIZERS) == len(table) == len(parts)
    for each, told in zip(found.predictions, record["predictions"], strict=True):
        milliseconds = report.number(1e3 * told["seconds_per_step"]["nominal"])
        title = each.optimizer.name
        assert table[title][1].startswith(milliseconds)
        assert parts[title][-1] == milliseconds
        if told["seconds_to_target"] is not None:
            hours = told["seconds_to_target"]["nominal"] / 3600
            assert training[title][2].startswith(report.number(hours))
            energy = told["joules_to_target"]["nominal"] / 3.6e6
            assert training[title][3].startswith(report.number(energy))
        assert table[title][2].startswith(report.number(told["joules_per_step"]["nominal"]))
        gain = told["speedup_over_adam"]["nominal"]
        assert gains[title][3].startswith(report.number(gain))
    assert record["assumptions"]
    for known in record["assumptions"]:
        assert known["unit"]
        assert known["source"]


def test_every_number_s_name_has_its_unit(found):
    """In JSON: seconds, joules, steps, or a plain ratio or count."""
    plain = {"batch", "devices", "units_per_device", "draws", "seed"}
    record = json.loads(report.as_json(found))
    for name, value in record.items():
        assert not isinstance(value, int | float) or name in plain, name
    for name, value in record["predictions"][-1].items():
        if isinstance(value, dict):
            assert re.match("seconds|joules|steps|speedup|amdahl_limit", name), name


def test_no_speedup_over_exact_passes_amdahl_s_limit(found):
    for each in found.predictions:
        digital = found.digital(each)
        if digital is None:
            continue
        limit = digital.for_free().speedup(digital)
        gain = each.speedup(digital)
        assert gain.nominal <= limit.nominal * (1 + 1e-12)
        assert gain.high <= limit.high * (1 + 1e-12)


def test_the_words_name_what_is_quickest_and_what_limits_it(found):
    text = report.explain(found)
    quickest = min(found.predictions, key=lambda p: p.nominal.total_seconds)
    assert report.number(1e3 * quickest.seconds_per_step.nominal) in text
    assert "Adam" in text
    assert "nine of ten" in text


def test_the_same_seed_gives_the_same_forecast():
    one, other = (report.as_json(predict(seed=seed)) for seed in (3, 3))
    assert one == other
    assert report.as_json(predict(seed=4)) != one


def test_renewing_less_often_is_never_slower():
    for kind in ("kfac-exact", "kfac-solve", "kfac-inverse"):
        times = [
            float(question(f"{kind}@{often}").evaluate(Values()).total_seconds)
            for often in (1, 10, 100)
        ]
        assert times == sorted(times, reverse=True)


@pytest.mark.parametrize("kind", ["kfac-solve", "kfac-inverse"])
def test_time_and_energy_grow_with_samples_bits_and_cells(kind):
    spec = UnitSpec(cells=257, rhs_depth=256, adc_bits=8, bias_bits=8)

    def costs(spec=spec, samples=1000, **changes):
        built = built_at_28nm(spec, word_bits=32, **changes)
        asked = question(Optimizer(kind, samples=samples), technology=built)
        return asked.evaluate(Values())

    base = costs()
    for more in (costs(samples=1001), costs(replace(spec, cells=258, lanes=None), fitted=False)):
        assert more.total_seconds > base.total_seconds
        assert more.total_joules > base.total_joules
    assert costs(replace(spec, adc_bits=10)).total_joules > base.total_joules
    assert costs(replace(spec, coupling_bits=10)).total_joules > base.total_joules


def test_units_side_by_side_take_less_time_down_to_the_longest_layer():
    def at_work(units):
        built = technology("cmos28").with_units(units)
        seconds = question(technology=built).evaluate(Values()).seconds
        return sum(float(seconds[part]) for part in ("load", "settle", "sample"))

    times = [at_work(units) for units in (1, 2, 4, 8)]
    assert times[0] == pytest.approx(2 * times[1]) == pytest.approx(4 * times[2])
    assert times[3] == times[2]  # there are four layers


@pytest.mark.parametrize("units", [2, 3, 7])
def test_layers_of_several_sizes_take_graham_s_bound(units):
    """His own worst case: m(m - 1) layers of one second and then one of m."""
    layers = [1.0] * (units * (units - 1)) + [float(units)]
    free = [0.0] * units
    for layer in layers:  # whoever is free takes the next
        free[free.index(min(free))] += layer
    work = sum(layers)
    assert work * side_by_side(units, work, max(layers)) == pytest.approx(max(free))


def test_devices_divide_blocks_and_not_passes():
    """There are four layers, of which nobody takes a part."""
    one, two, four, eight = (
        question("kfac-exact", devices=n).evaluate(Values()).seconds for n in (1, 2, 4, 8)
    )
    for part in ("inversion", "apply"):
        assert one[part] == pytest.approx(2 * two[part]) == pytest.approx(4 * four[part])
        assert eight[part] == four[part]
    for part in ("forward and backward", "factors", "update"):
        assert one[part] == eight[part]


def test_steps_to_the_target_are_an_input():
    steps = exactly("first-order steps", 1000, "1", "test")
    target = replace(TARGETS["vit-s16"], steps=steps, batch=None)
    found = predict(target=target)
    adam, kfac = found["adam"], found["kfac-exact@1"]
    assert adam.seconds_to_target.nominal == pytest.approx(1000 * adam.seconds_per_step.nominal)
    ratio = target.ratio.nominal
    whole = ratio * 1000 * kfac.seconds_per_step.nominal
    assert kfac.seconds_to_target.nominal == pytest.approx(whole)
    times = adam.seconds_to_target.nominal / whole
    assert kfac.speedup_to_target(adam).nominal == pytest.approx(times)
    assert times != pytest.approx(1.0, abs=0.01)
    assert found["sgd"].seconds_to_target is None
    assert predict()["adam"].seconds_to_target is None


def test_steps_are_those_of_a_batch():
    """A target that is known for one batch, of all devices, is not taken for another's."""
    load = network("vit-s16", 128)
    assert predict(workload=load, devices=8).target is TARGETS["vit-s16"]
    for other in (predict(workload=load), predict(workload=network("vit-s16", 64), devices=8)):
        assert other.target is None
        assert "is known for a batch of 1,024 in all" in other.explain()


def test_tornado_is_sorted_and_names_what_matters():
    swings = tornado(question(), question("kfac-exact"))
    assert [s.width for s in swings] == sorted((s.width for s in swings), reverse=True)
    names = {swing.quantity.name for swing in swings}
    assert {"tau", "condition, 1/λ_min", "link bandwidth"} <= names
    nominal = speedup(question(), question("kfac-exact"), Values())
    for swing in swings:
        low, high = sorted((swing.at_low, swing.at_high))
        assert low * (1 - 1e-12) <= nominal <= high * (1 + 1e-12)


def test_break_even_is_where_both_take_as_long():
    wide = square_layers(1024, 128)
    one, other = question(workload=wide), question("kfac-exact", workload=wide)
    found = {each.name: each for each in pays(one, other)}
    assert {
        "width",
        "condition, 1/λ_min",
        "tau",
        "link bandwidth",
        "steps between renewals",
    } == set(found)
    checked = 0
    for name in ("condition, 1/λ_min", "tau", "link bandwidth"):
        for value, _ in found[name].crossings:
            ratio = speedup(one, other, Values(fixed={name: value}))
            assert ratio == pytest.approx(1.0, rel=1e-3)
            checked += 1
    assert checked


@pytest.mark.parametrize(
    ("ratio", "told"),
    [
        (lambda x: x / 10, "from 10.0"),
        (lambda x: 10 / x, "up to 10.0"),
        (lambda x: 2.0, "everywhere from 1.00 to 100"),
        (lambda x: 0.5, "nowhere from 1.00 to 100"),
        (lambda x: 1.1 - abs(math.log(x / 10)) / 10, "from 3.68 to 27.2"),
    ],
)
def test_break_even_in_words(ratio, told):
    assert break_even("x", "1", ratio, 1.0, 100.0).told() == told


# ---- nonsense ------------------------------------------------------------------------------------


def bare(**changes):
    fields = {
        "name": "x",
        "batch": 1,
        "parameters": 1,
        "operations": (),
        "blocks": (Block("l", 2, 2, 1),),
        "source": "test",
    }
    return Workload(**(fields | changes))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: technology("moon"), "technology = 'moon'.*legal: board, cmos28, tngd"),
        (lambda: machine("abacus"), "machine = 'abacus'.*v100"),
        (lambda: network("vgg"), "network = 'vgg'.*vit-s16"),
        (lambda: optimizer("lion"), "optimizer = 'lion'.*kfac-solve"),
        (lambda: optimizer("adam@10"), "optimizer = 'adam@10'"),
        (lambda: Optimizer("kfac-solve", refresh=0), "refresh = 0"),
        (lambda: Optimizer("kfac-solve", samples=0), "samples = 0"),
        (lambda: Optimizer("kfac-solve", settle=2.0), "settle = 2.0"),
        (lambda: built_at_28nm(UnitSpec(cells=0)), "cells = 0"),
        (lambda: predict(draws=3), "draws = 3"),
        (lambda: predict(devices=0), "devices = 0"),
        (lambda: predict(optimizers=()), "optimizers is empty"),
        (lambda: question(technology=None), "technology is missing: kfac-solve@1"),
        (lambda: bare(batch=0), "batch = 0"),
        (lambda: bare(blocks=()), "no block that K-FAC covers"),
        (lambda: Block("l", 0, 1, 1), "inputs = 0 of block 'l'"),
        (lambda: Operation("magic", "forward"), "kind = 'magic'"),
        (lambda: regression(20, 1e6, 28), "bits = 20"),
        (lambda: regression(3, 1e6, 28), "bits = 3"),
        (lambda: break_even("x", "1", abs, 3.0, 2.0), "x from 3.0 to 2.0"),
    ],
)
def test_nonsense_is_refused_by_name(make, told):
    with pytest.raises(ValueError, match=told):
        make()


def test_conditions_have_sources():
    for quantity in vars(CONDITIONS).values():
        assert quantity.source
