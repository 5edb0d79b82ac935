"""A unit's predicted time is its engines' cycles; what passes its link is what its port counts."""

import warnings
from dataclasses import replace

import numpy as np
import pytest

from thermokron.host.engines import open_unit
from thermokron.host.kfac import KFAC
from thermokron.host.linalg.settling import settled
from thermokron.host.predict.conditions import CONDITIONS
from thermokron.host.predict.hardware.demand import (
    Demand,
    blocks,
    eliminate,
    of_runs,
    result_words,
    solve,
)
from thermokron.host.predict.hardware.technologies import as_built, technology
from thermokron.host.predict.machines.cards import machine
from thermokron.host.predict.observations import observed
from thermokron.host.predict.optimizers import optimizer
from thermokron.host.predict.prediction import Question
from thermokron.host.predict.quantity import Values, exactly
from thermokron.host.predict.workloads.networks import network
from thermokron.host.train import TrainConfig, train
from thermokron.model import Job, UnitSpec

SPECS = {
    "eight cells": UnitSpec(cells=8, lanes=4, rhs_depth=4),
    "five cells, slow converters": UnitSpec(cells=5, lanes=1, adc_bits=6, adc_cycles=21),
    "twelve cells, few bits": UnitSpec(cells=12, lanes=6, coupling_bits=4, discharge_cycles=3),
    "two cells": UnitSpec(cells=2, adc_bits=16, clock_hz=100e6),
    "twenty cells, wide DACs": UnitSpec(cells=20, lanes=10, adc_bits=8, dac_lanes=4),
    "six cells, no streams": UnitSpec(cells=6, dac_lanes=2, stream_bits=None),
}


def random_job(rng: np.random.Generator, spec: UnitSpec) -> Job:
    second_moments = bool(rng.integers(2))
    vectors = 1 if second_moments else int(rng.integers(1, spec.rhs_depth + 1))
    shortest = spec.shortest_interval(second_moments)
    n = spec.cells
    return Job(
        couplings=spec.coupling_codes(0.7 * np.eye(n) + 0.3 / n),
        biases=spec.bias_codes(rng.uniform(-0.2, 0.2, (vectors, n))),
        temperature=int(rng.integers(1, spec.temperature_max)),
        settle_cycles=int(rng.integers(1, 200)),
        interval_cycles=int(rng.integers(shortest, shortest + 30)),
        samples=int(rng.integers(1, 40)),
        second_moments=second_moments,
    )


def predicted(spec: UnitSpec, job: Job) -> Demand:
    return of_runs(
        as_built(spec),
        spec.cells,
        Values(),
        runs=1,
        vectors=len(job.biases),
        settling=job.settle_cycles,
        samples=job.samples,
        spacing=job.interval_cycles,
        second_moments=job.second_moments,
    )


@pytest.mark.parametrize("engine", ["numeric", pytest.param("compiled", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SPECS)
def test_predicted_time_is_the_gateware_s_over_random_jobs(name, engine):
    """Forty jobs of each; on the RTL, whose cycles tests/rtl compares with all engines', slowly."""
    spec, rng = SPECS[name], np.random.default_rng(len(name))
    with open_unit(engine, spec, seed=1) as unit:
        for _ in range(40):
            job = random_job(rng, spec)
            cycles = unit.run(job).cycles
            found = predicted(spec, job)
            told = {
                "load": found.load,
                "settle": found.settle,
                "sample": found.sample,
                "results": found.results,
            }
            expected = {
                "load": cycles["load"],
                "settle": cycles["discharge"] + cycles["settle"],
                "sample": cycles["sample"],
                "results": cycles["results"],
            }
            assert {p: round(s * spec.clock_hz, 6) for p, s in told.items()} == expected
            to_unit = sum(spec.port_bytes(job)[:2])
            assert (4 * found.words_to, 4 * found.words_from) == (to_unit, spec.port_bytes(job)[2])


@pytest.mark.parametrize("settle", ["3.3tau", "0.001tau", 0.03, 0.1])
def test_settling_takes_the_cycles_that_a_solve_gives_it(settle):
    """Of the slowest mode that conditions tell of, rounded up as there."""
    spec = SPECS["five cells, slow converters"]
    values = Values(fixed={"condition, 1/λ_min": 7.0})
    cycles, _ = settled(spec, 1.0 / 7.0, settle)
    found = solve(as_built(spec), spec.cells, 1, CONDITIONS, values, settle=settle)
    vectors = 1.0 + float(values(CONDITIONS.reruns))
    discharge = spec.cycles_of(
        vectors=1, settle_cycles=cycles, interval_cycles=0, samples=1, second_moments=False
    )["discharge"]
    settling = found.settle * spec.clock_hz - discharge * vectors
    assert settling == pytest.approx(cycles * vectors)


#: Network of a training, its workload, and its steps an epoch.
TRAININGS = {"mlp": ("digits", 65), "cnn": ("cnn", 73), "vit": ("vit", 65), "graph": ("graph", 65)}


def steps_of(name: str, spec: UnitSpec, monkeypatch) -> tuple[list, TrainConfig]:
    taken = []
    step = KFAC.step

    def noted(self, *args, **options):
        result = step(self, *args, **options)
        taken.append(self.metrics)
        return result

    config = TrainConfig(network=name, engine="numeric", epochs=2, seed=0)
    with monkeypatch.context() as patched, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patched.setattr(KFAC, "step", noted)
        train(config, spec=spec)
    return taken, config


@pytest.mark.parametrize("name", TRAININGS)
def test_whole_steps_are_predicted_for_another_unit(name, monkeypatch):
    """What of a step depends on the data is seen on one unit; another's time follows, reruns too.

    The other has more cells than any factor, other converters, and another clock, with as many
    cycles in a τ, on which it depends how well the guard knows the slowest mode.
    """
    workload, cells = TRAININGS[name]
    one = UnitSpec(cells=cells, adc_bits=8)
    other = UnitSpec(
        cells=cells + 15,
        adc_bits=10,
        adc_cycles=12,
        discharge_cycles=30,
        tau_s=one.tau_s / 2,
        clock_hz=one.clock_hz * 2,
    )
    taken, config = steps_of(name, one, monkeypatch)
    begun = len(taken) // 4  # steps in which it is not known yet how strongly to drive
    question = Question(
        network(workload, config.batch_size),
        machine("v100"),
        optimizer("kfac-solve"),
        as_built(one),
    )
    seen = observed(question, taken[begun:])
    asked = replace(question, technology=as_built(other), conditions=seen)
    demand = asked.demand(Values())
    found, _ = steps_of(name, other, monkeypatch)
    later = found[begun:]
    for told, name_of in (
        (demand.seconds, "hardware_seconds"),
        (demand.load, "load_seconds"),
        (demand.sample, "sample_seconds"),
        (4 * demand.words_to, "bytes_to_unit"),
        (4 * demand.words_from, "bytes_from_unit"),
        (demand.runs, "runs"),
    ):
        mean = np.mean([getattr(metrics, name_of) for metrics in later])
        assert told == pytest.approx(mean, rel=0.05), name_of


def test_blocks_are_those_of_elimination(monkeypatch):
    """Through an array of 33 cells a factor of 65 rows goes in blocks of 32 and 33.

    κ is that of whole factors, and pivots have their own: within a fifth.
    """
    whole, small = (UnitSpec(cells=cells, adc_bits=8) for cells in (65, 33))
    assert blocks(as_built(small), 65) == [32, 33]
    assert blocks(as_built(small), 33) == [33]
    taken, config = steps_of("mlp", whole, monkeypatch)
    question = Question(
        network("digits", config.batch_size),
        machine("v100"),
        optimizer("kfac-solve"),
        as_built(whole),
    )
    seen = observed(question, taken[5:])
    demand = replace(question, technology=as_built(small), conditions=seen).demand(Values())
    later = steps_of("mlp", small, monkeypatch)[0][5:]
    for told, name in (
        (demand.seconds, "hardware_seconds"),
        (demand.load, "load_seconds"),
        (demand.sample, "sample_seconds"),
    ):
        mean = np.mean([getattr(metrics, name) for metrics in later])
        assert told == pytest.approx(mean, rel=0.2), name


@pytest.mark.parametrize("samples", [1, 3, 1000, 2**18])
def test_results_are_as_wide_as_they_are_large(samples):
    spec = UnitSpec(cells=4, adc_bits=12)
    assert result_words(as_built(spec), float(samples)) == spec.result_words(samples)
    narrow = result_words(as_built(spec, word_bits=16), float(samples))
    assert 16 * narrow[0] >= 12 + (samples - 1).bit_length() > 16 * (narrow[0] - 1)


def test_larger_work_takes_longer():
    built = technology("cmos28")
    base = solve(built, 64, 32, CONDITIONS, Values())
    for more in (
        solve(built, 65, 32, CONDITIONS, Values()),
        solve(built, 64, 33, CONDITIONS, Values()),
        solve(built, 64, 32, CONDITIONS, Values(), samples=2),
        solve(built, 64, 32, CONDITIONS, Values(), settle=0.01),
        solve(built, 64, 32, CONDITIONS, Values(fixed={"condition, 1/λ_min": 20.0})),
        solve(built, 64, 32, CONDITIONS, Values(fixed={"tau": 1e-6})),
    ):
        assert more.seconds > base.seconds
    slow = replace(CONDITIONS, kappa=exactly("condition, 1/λ_min", 30, "1", "test"))
    whole = eliminate(as_built(UnitSpec(cells=64)), 64, slow, Values())
    assert whole == Demand()
