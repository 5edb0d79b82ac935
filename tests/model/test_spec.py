"""The spec: ranges, derived widths, codes, times, what it refuses, JSON."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import numpy as np
import pytest

from thermokron.model import Job, UnitSpec
from thermokron.model.spec import MAX_INTERVAL_CYCLES

FIELDS = {f.name: f.metadata["range"] for f in fields(UnitSpec) if "range" in f.metadata}
CHOICES = {f.name: f.metadata["choices"] for f in fields(UnitSpec) if "choices" in f.metadata}
SIZES = [name for name, (low, _) in FIELDS.items() if isinstance(low, int)]
QUANTITIES = [name for name in FIELDS if name not in SIZES]


@pytest.mark.parametrize("name", SIZES)
def test_a_size_out_of_range_is_refused_by_name(name):
    low, high = FIELDS[name]
    for value in (low - 1, high + 1):
        with pytest.raises(ValueError, match=f"{name} = {value} .*legal: {low} to {high}"):
            UnitSpec(**{name: value})
    for value in (float(low), str(low), True):
        with pytest.raises(TypeError, match=f"{name} = .* is not an integer"):
            UnitSpec(**{name: value})


@pytest.mark.parametrize("name", QUANTITIES)
def test_a_quantity_out_of_range_is_refused_by_name(name):
    low, high = FIELDS[name]
    for value in (low / 2, high * 2, float("nan"), float("inf"), -low):
        with pytest.raises(ValueError, match=f"{name} = .*legal: "):
            UnitSpec(**{name: value})
    for value in ("1", None, True):
        with pytest.raises(TypeError, match=f"{name} = .* is not a number"):
            UnitSpec(**{name: value})


@pytest.mark.parametrize("name", CHOICES)
def test_what_is_no_choice_is_refused_by_name(name):
    for value in (3, 256, "64", 1.0, False if name != "second_moments" else 0):
        with pytest.raises(
            ValueError, match=f"{name} = .* is not legal; legal: {CHOICES[name][0]}"
        ):
            UnitSpec(**{name: value})
    for value in CHOICES[name]:
        spec = UnitSpec(**{name: value})
        assert getattr(spec, name) is value
        assert UnitSpec.from_json(spec.to_json()) == spec


def test_ends_of_the_ranges_are_legal():
    least = UnitSpec(**{n: r[0] for n, r in FIELDS.items() if n != "adc_timeout_cycles"})
    most = UnitSpec(**{n: r[1] for n, r in FIELDS.items()})
    assert (least.cells, most.cells) == (2, 4096)
    assert (least.lanes, most.lanes) == (1, 4096)
    assert (least.coupling_bits, most.coupling_bits) == (3, 16)
    assert (least.adc_bits, most.adc_bits) == (3, 16)
    assert (least.bias_bits, most.bias_bits) == (4, 16)
    assert (least.rhs_depth, most.rhs_depth) == (1, 256)


def test_lanes_divide_the_cells():
    assert UnitSpec(cells=15).lanes == 15
    assert UnitSpec(cells=15, lanes=5).folds == 3
    with pytest.raises(ValueError, match=r"lanes = 4 .* cells = 15; legal: \[1, 3, 5, 15\]"):
        UnitSpec(cells=15, lanes=4)


def test_a_timeout_shorter_than_a_conversion_is_refused():
    with pytest.raises(ValueError, match=r"adc_timeout_cycles = 9 .*adc_cycles = 10"):
        UnitSpec(adc_cycles=10, adc_timeout_cycles=9)


@pytest.mark.parametrize(
    ("adc_cycles", "timeout"), [(4, 255), (127, 255), (128, 256), (900, 1800), (65535, 65535)]
)
def test_the_timeout_follows_from_the_conversion(adc_cycles, timeout):
    assert UnitSpec(adc_cycles=adc_cycles).adc_timeout_cycles == timeout


@pytest.mark.parametrize(("cells", "diagonals", "couplings"), [(2, 2, 3), (7, 4, 28), (16, 9, 136)])
def test_sizes_follow_from_the_cells(cells, diagonals, couplings):
    spec = UnitSpec(cells=cells)
    assert (spec.diagonals, spec.coupling_count) == (diagonals, couplings)


@pytest.mark.parametrize("bits", [3, 12, 16])
def test_accumulators_hold_the_extremes(bits):
    spec = UnitSpec(adc_bits=bits)
    samples = 2**20
    assert spec.adc_min * samples == -(2 ** (spec.sum_bits - 1))
    assert spec.adc_max * samples < 2 ** (spec.sum_bits - 1)
    assert spec.adc_min**2 * samples < 2 ** (spec.product_bits - 1)
    assert spec.adc_min * spec.adc_max * samples >= -(2 ** (spec.product_bits - 1))


@pytest.mark.parametrize("kind", ["coupling", "bias"])
@pytest.mark.parametrize("bits", [4, 9, 16])
def test_dac_codes_round_trip(kind, bits):
    spec = UnitSpec(**{f"{kind}_bits": bits})
    to_codes, to_values = getattr(spec, f"{kind}_codes"), getattr(spec, f"{kind}_values")
    limit = 2 ** (bits - 1) - 1
    codes = np.arange(-limit, limit + 1)
    values = to_values(codes)
    assert values[0] == -1.0
    assert values[-1] == 1.0
    np.testing.assert_array_equal(to_codes(values), codes)
    anywhere = np.linspace(-1, 1, 1001).reshape(7, 11, 13)
    assert np.abs(to_values(to_codes(anywhere)) - anywhere).max() <= 0.5 / limit + 1e-15
    np.testing.assert_array_equal(to_codes([0.5 / limit, 1.5 / limit]), [0, 2])  # half to even


@pytest.mark.parametrize("bad", [1.0000001, -2.0, float("nan"), float("inf")])
def test_values_beyond_the_dac_are_refused(bad):
    spec = UnitSpec()
    with pytest.raises(ValueError, match="couplings must lie within"):
        spec.coupling_codes([[0.0, bad]])
    with pytest.raises(ValueError, match="biases must lie within"):
        spec.bias_codes([bad])


@pytest.mark.parametrize("bits", [6, 16])
def test_temperature_codes_round_trip_and_never_exceed(bits):
    spec = UnitSpec(temperature_bits=bits, temperature_full_scale=0.037)
    assert spec.temperature_value(spec.temperature_max) == pytest.approx(0.037)
    for code in range(0, 2**bits, max(1, 2**bits // 997)):
        assert spec.temperature_code(spec.temperature_value(code)) == code
    for value in np.random.default_rng(0).uniform(0, 0.037, 100):
        code = spec.temperature_code(value)
        assert spec.temperature_value(code) <= value * (1 + 1e-6)
        assert spec.temperature_value(code + 1) > value
    for bad in (0.038, -1e-9, float("nan")):
        with pytest.raises(ValueError, match=r"temperature = .*legal: 0 to 0\.037"):
            spec.temperature_code(bad)


@pytest.mark.parametrize("second_moments", [True, False])
@pytest.mark.parametrize(("cells", "lanes", "adc_cycles"), [(2, 2, 4), (16, 4, 4), (4096, 1, 50)])
def test_the_shortest_interval_is_the_slowest_of_its_parts(
    cells, lanes, adc_cycles, second_moments
):
    spec = UnitSpec(cells=cells, lanes=lanes, adc_cycles=adc_cycles)
    shortest = spec.shortest_interval(second_moments)
    assert shortest > adc_cycles
    assert shortest >= spec.accumulate_cycles(second_moments)
    assert shortest <= MAX_INTERVAL_CYCLES, "more than the INTERVAL register takes"
    diagonals = cells // 2 + 1 if second_moments else 1
    assert spec.accumulate_cycles(second_moments) == cells // lanes * diagonals


def make_job(spec: UnitSpec, **changes) -> Job:
    n = spec.cells
    values = {
        "couplings": np.eye(n, dtype=int) * spec.coupling_max,
        "biases": np.zeros((1, n), dtype=int),
        "temperature": 1,
        "settle_cycles": 10,
        "interval_cycles": spec.shortest_interval(),
        "samples": 3,
    }
    return Job(**(values | changes))


def test_phases_scale_with_vectors_and_samples():
    spec = UnitSpec(cells=6, discharge_cycles=7)
    one = spec.phase_cycles(make_job(spec, second_moments=False, settle_cycles=1000))
    three = spec.phase_cycles(
        make_job(
            spec,
            second_moments=False,
            settle_cycles=1000,
            biases=np.zeros((3, 6), int),
            interval_cycles=50,
            samples=11,
        )
    )
    assert (one["discharge"], three["discharge"]) == (7, 21)
    assert (one["settle"], three["settle"]) == (1000, 3000)
    short = 2 * spec.shortest_interval()
    # the conversion of a vector's last sample goes on while the cells are discharged
    tail = spec.adc_cycles + spec.folds + 5
    assert one["sample"] == short + 1 + tail
    assert three["sample"] == 3 * (10 * 50 + 1) + tail
    # as do the codes of the next vector to its DACs, while the array settles
    assert three["load"] == one["load"] > spec.coupling_count


@pytest.mark.parametrize("stream_bits", [None, 32, 128])
@pytest.mark.parametrize("dac_lanes", [1, 4])
def test_arrays_of_jobs_take_what_each_takes(stream_bits, dac_lanes):
    """Closed forms for numbers and for arrays of them; runs of as many vectors each add up."""
    spec = UnitSpec(cells=12, lanes=3, stream_bits=stream_bits, dac_lanes=dac_lanes)
    rng = np.random.default_rng(3)
    vectors, settle = rng.integers(1, 64, 20), rng.integers(1, 60, 20)
    samples = rng.choice([1, 5], 20)
    about = {"interval_cycles": 9, "second_moments": False}
    found = spec.cycles_of(
        vectors=3 * vectors, settle_cycles=settle, samples=samples, runs=3, **about
    )
    for i, (k, s, n) in enumerate(zip(vectors, settle, samples, strict=True)):
        one = spec.cycles_of(vectors=int(k), settle_cycles=int(s), samples=int(n), **about)
        assert {phase: np.broadcast_to(count, 20)[i] for phase, count in found.items()} == {
            phase: 3 * count for phase, count in one.items()
        }


def test_a_solve_takes_as_long_as_what_limits_it():
    """128 columns on 128 cells, through ports as wide as a board has them."""
    spec = UnitSpec(cells=128, lanes=8, dac_lanes=8, rhs_depth=128)
    job = make_job(
        spec,
        couplings=np.zeros((128, 128), int),
        biases=np.zeros((128, 128), int),
        settle_cycles=23,
        samples=1,
        second_moments=False,
    )
    array, ports = sum(spec.phase_cycles(job).values()), spec.port_cycles(job)
    assert spec.elapsed_cycles(job) <= 1.3 * max(array, *ports.values())
    slow = replace(spec, stream_bits=None, dac_lanes=1)
    assert slow.elapsed_cycles(job) > 20 * spec.elapsed_cycles(job)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"couplings": np.eye(5, dtype=int), "biases": np.zeros((1, 5), int)}, "couplings have sh"),
        ({"couplings": np.eye(4, dtype=int) * 128}, "couplings hold .* 128; legal: 0 to 127"),
        ({"couplings": np.eye(4, dtype=int) * -128}, "couplings hold .* 128; legal"),
        ({"couplings": np.full((4, 4), -(2**63))}, "couplings hold .* 9223372036854775808; legal"),
        ({"biases": np.array([[0, 0, 2048, 0]])}, "biases hold .* 2048; legal: 0 to 2047"),
        ({"biases": np.zeros((4, 4), int), "second_moments": False}, "biases hold 4 .*1 to rhs_de"),
        ({"temperature": 1024}, "temperature = 1024 .*legal: 0 to 1023"),
        ({"settle_cycles": 0}, "settle_cycles = 0 .*legal: 1 to 4294967295"),
        ({"interval_cycles": 1}, "interval_cycles = 1 .*legal: "),
        ({"interval_cycles": 2**24}, "interval_cycles = 16777216 .*16777215"),
        ({"samples": 0}, "samples = 0 .*legal: 1 to 1048576"),
        ({"samples": 2**20 + 1}, "samples = 1048577 .*legal: 1 to 1048576"),
    ],
)
def test_a_job_that_the_unit_cannot_do_is_refused_by_name(changes, message):
    spec = UnitSpec(cells=4, rhs_depth=3)
    spec.check(make_job(spec))
    with pytest.raises(ValueError, match=message):
        spec.check(make_job(spec, **changes))


def test_json_round_trip_and_fingerprint():
    spec = UnitSpec(cells=9, lanes=3, clock_hz=1e9 / 3, tau_s=1.7e-9, adc_timeout_cycles=65534)
    assert UnitSpec.from_json(spec.to_json()) == spec
    assert list(json.loads(spec.to_json())) == [f.name for f in fields(UnitSpec)]
    assert UnitSpec.from_json(spec.to_json()).fingerprint == spec.fingerprint
    other = {n: high for n, (_, high) in FIELDS.items()} | {"cells": 18, "lanes": 1}
    other |= {"adc_cycles": 65534, "dac_timeout_cycles": 9}
    prints = {replace(spec, **{name: value}).fingerprint for name, value in other.items()}
    prints |= {replace(spec, **{name: legal[1]}).fingerprint for name, legal in CHOICES.items()}
    assert len(prints | {spec.fingerprint}) == len(FIELDS) + len(CHOICES) + 1
    assert 0 <= spec.fingerprint < 2**32


def test_json_of_another_shape_is_refused_by_name():
    values = json.loads(UnitSpec().to_json())
    fewer = {name: value for name, value in values.items() if name != "lanes"}
    for text, message in (
        ("[]", "expected an object with the fields cells, lanes"),
        ("3", "expected an object with the fields cells, lanes"),
        ("{", "not JSON: "),
        (json.dumps(values | {"watts": 3}), "unknown watts; legal: cells, lanes"),
        (json.dumps(fewer), "missing lanes; legal: cells, lanes"),
    ):
        with pytest.raises(ValueError, match=f"not a UnitSpec: {message}"):
            UnitSpec.from_json(text)
