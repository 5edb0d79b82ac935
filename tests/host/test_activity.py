"""What a unit was asked to do: counts are those of the jobs, from the run to the training."""

import math
from dataclasses import asdict, fields, replace

import numpy as np
import pytest

from thermokron.host.linalg import Activity, inv, solve
from thermokron.host.predict.hardware.costs import (
    UNIT_PARTS,
    side_by_side,
    unit_joules,
    unit_seconds,
)
from thermokron.host.predict.hardware.technologies import built_at_28nm
from thermokron.host.predict.hardware.trained import demand_of
from thermokron.host.predict.quantity import Values
from thermokron.host.studies.runs import Run, execute
from thermokron.host.train import TrainConfig
from thermokron.model import PHASES, NumericUnit, UnitSpec

SPEC = UnitSpec(cells=8, lanes=4, rhs_depth=4)


class Noted(NumericUnit):
    """Remembers the jobs it ran."""

    def __init__(self, spec):
        super().__init__(spec, seed=3)
        self.jobs = []

    def _execute(self, job, stream):
        self.jobs.append(job)
        return super()._execute(job, stream)


def matrix(n):
    root = np.random.default_rng(n).standard_normal((n, 2 * n))
    return root @ root.T / (2 * n) + 0.2 * np.eye(n)


@pytest.mark.parametrize("what", ["solve", "inv", "solve in blocks", "inv in blocks"])
def test_counts_are_those_of_the_jobs(what):
    n = 20 if "blocks" in what else 7
    unit = Noted(SPEC)
    if what.startswith("inv"):
        result = inv(unit, matrix(n), samples=200)
    else:
        result = solve(unit, matrix(n), np.eye(n)[:, :6], samples=20)
    found, jobs = result.activity, unit.jobs
    assert result.runs == len(jobs)
    assert found.vectors == sum(len(job.biases) for job in jobs) == unit.stream
    assert found.couplings == len(jobs) * SPEC.coupling_count
    assert found.biases == sum(job.biases.size for job in jobs)
    assert found.conversions == sum(job.samples * job.biases.size for job in jobs)
    triangles = [job.samples * SPEC.coupling_count for job in jobs if job.second_moments]
    assert found.products == sum(triangles)
    assert (found.products > 0) == ("inv" in what)
    couplings, biases, results = np.array([SPEC.port_bytes(job) for job in jobs]).T
    assert result.bytes_to_unit == found.matrices * couplings[0] + biases.sum()
    assert result.bytes_from_unit == results.sum()
    # a beat of each stream a cycle
    moved = result.bytes_to_unit + result.bytes_from_unit
    assert result.port_seconds == pytest.approx(moved / 8 * SPEC.clock_s)
    assert f"{result.port_seconds:.3g} s on its ports" in repr(result)
    assert result.cost.activity == found


def test_counts_add_up():
    one = Activity(*range(1, 7))
    assert one + Activity() == one
    assert asdict(one + one) == {name: 2 * count for name, count in asdict(one).items()}


@pytest.fixture(scope="module")
def trained():
    spec = UnitSpec(cells=70, lanes=14, clock_hz=1e9, tau_s=5e-9)
    config = TrainConfig(network="mlp", hidden=(8,), epochs=1)
    outcome = execute(Run(label="tiny", config=config, spec=spec))
    return spec, outcome.unit, len(outcome.step_loss), outcome


def test_a_run_of_training_knows_what_its_steps_asked_for(trained):
    spec, unit, _, outcome = trained
    assert set(unit) >= {field.name for field in fields(Activity)}
    assert unit["couplings"] == unit["runs"] * spec.coupling_count
    assert unit["biases"] == unit["vectors"] * spec.cells
    phases = sum(unit[phase] for phase in PHASES)
    assert phases == pytest.approx(outcome.hardware_seconds)
    assert phases / 2 < unit["span"] < phases  # of two layers the longer one
    least = unit["runs"] * (spec.coupling_count + 3)
    # the next vector's codes go to the DACs beside the array's work
    most = least + unit["vectors"] * (spec.cells + 4)
    assert least <= unit["load"] * spec.clock_hz < most


def test_a_trained_step_costs_what_its_clock_said(trained):
    spec, unit, steps, outcome = trained
    technology, values = built_at_28nm(spec), Values()
    demand = demand_of(technology, unit, steps, values)
    assert demand.seconds == pytest.approx(outcome.hardware_seconds / steps)
    parts = unit_seconds(technology, demand, values)
    assert tuple(parts) == UNIT_PARTS
    # codes of a byte for the couplings, of two for 70 biases: 18 beats of 64 bits a vector
    couplings = -(-spec.coupling_count // 8)
    bits = 64 * (unit["matrices"] * couplings + 18 * unit["vectors"]) / steps
    waited = unit["matrices"] / steps * 1e-6
    assert parts["transport"] == pytest.approx(bits / 5e11 + waited)
    read = 64 * 18 * unit["vectors"] / steps / 5e11
    assert parts["read"] == pytest.approx(read + unit["results"] / steps)


def test_more_ports_load_sooner_and_more_units_cost_more_area(trained):
    spec, unit, steps, _ = trained
    values = Values()
    seconds, joules, areas = [], [], []
    for ports, units in ((1, 1), (8, 1), (8, 2), (8, 3)):
        technology = built_at_28nm(spec, ports=ports, units=units)
        demand = demand_of(technology, unit, steps, values)
        work = sum(unit[phase] for phase in PHASES)
        share = side_by_side(units, work, unit["span"])
        seconds.append(unit_seconds(technology, demand, values, share=share))
        joules.append(sum(unit_joules(technology, demand, values, share=share).values()))
        areas.append(technology.area(values))
    assert seconds[1]["load"] < seconds[0]["load"] / 4
    assert seconds[1]["settle"] == seconds[0]["settle"]
    assert sum(seconds[2].values()) < sum(seconds[1].values())
    assert sum(seconds[3].values()) > sum(seconds[1].values()) / 2  # of two layers one is longer
    assert joules[2] > joules[1]  # a unit that waits has its static power
    assert areas[2] == pytest.approx(2 * areas[1])


def test_static_power_is_paid_by_every_unit_for_as_long_as_any_works(trained):
    spec, unit, steps, _ = trained
    values = Values()
    one = built_at_28nm(spec)
    demand = demand_of(one, unit, steps, values)
    alone = sum(unit_joules(one, demand, values).values())
    even = sum(unit_joules(one.with_units(2), demand, values).values())
    assert even == pytest.approx(alone)
    idle = sum(unit_joules(one.with_units(2), demand, values, share=1.0).values())
    watts = one.static_power(values)
    elapsed = sum(unit_seconds(one, demand, values).values())
    assert idle - alone == pytest.approx(watts * elapsed)


def test_a_span_is_no_shorter_than_its_share():
    assert side_by_side(1, 3.0, 2.0) == 1.0
    assert side_by_side(2, 3.0, 2.0) == pytest.approx((1.5 + 1.0) / 3.0)
    assert math.isclose(side_by_side(10**9, 3.0, 2.0), 2.0 / 3.0, rel_tol=1e-6)


def test_nothing_was_asked_without_a_unit():
    outcome = execute(
        Run(
            label="exact",
            config=TrainConfig(network="mlp", hidden=(4,), engine="exact", epochs=1),
        )
    )
    assert not any(outcome.unit.values())
    demand = demand_of(built_at_28nm(replace(SPEC)), outcome.unit, 1, Values())
    assert demand.seconds == 0.0
