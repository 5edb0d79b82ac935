"""The statistical engine: its read-outs have the distribution of the numeric engine's.

Both run the same jobs many times, at streams of their own. Means and variances of every entry, and
covariances of entries, are compared in standard errors; one in 10^5 sets of them would be refused
by chance. Tails by the Kolmogorov-Smirnov test of two samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from thermokron.host import StatisticalUnit, linalg, open_unit
from thermokron.host.train import TrainConfig, train
from thermokron.host.train.training import one_thread
from thermokron.model import ArrayPhysics, Job, NumericUnit, Readout, UnitSpec

SPEC = UnitSpec(cells=6)


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Threads that wait for each other take most of the time of small tensors."""
    with one_thread():
        yield


RUNS = 1500
ALARM = 1e-5
FLAWED = ArrayPhysics(
    coupling_mismatch=0.03,
    cell_offset=0.02,
    adc_gain_error=0.02,
    adc_offset=0.01,
    adc_noise=0.003,
    adc_inl_lsb=0.7,
    device_seed=5,
)
UNEQUAL = ArrayPhysics(noise_mismatch=0.6, tau_mismatch=0.2, device_seed=2)


def couplings(spec: UnitSpec = SPEC, seed: int = 0) -> np.ndarray:
    factors = np.random.default_rng(seed).standard_normal((spec.cells, 2 * spec.cells))
    matrix = factors @ factors.T / (2 * spec.cells) + 0.1 * np.eye(spec.cells)
    return spec.coupling_codes(matrix / (1.01 * np.abs(matrix).max()))


JOBS = {
    "one reading, hardly settled": {"samples": 1, "settle_cycles": 2},
    "a few, correlated": {"samples": 7, "settle_cycles": 1, "interval_cycles": 8},
    "many, hardly settled": {"samples": 60, "settle_cycles": 1},
    "many, correlated": {"samples": 300, "interval_cycles": 8},
    "second moments, few": {"samples": 9, "second_moments": True},
    "second moments": {"samples": 200, "second_moments": True},
    "second moments, hardly settled": {
        "samples": 40,
        "settle_cycles": 1,
        "interval_cycles": 8,
        "second_moments": True,
        "bias": 0.03,
    },
    "second moments with a mean": {"samples": 400, "second_moments": True, "bias": 0.07},
    "fewer effective samples than cells": {
        "samples": 24,
        "interval_cycles": 8,
        "second_moments": True,
    },
}


def job(name: str, spec: UnitSpec = SPEC) -> Job:
    given = dict(JOBS[name])
    bias = given.pop("bias", 0.0 if given.get("second_moments") else 0.07)
    vector = bias * np.linspace(-1.0, 1.0, spec.cells)
    known = {
        "couplings": couplings(spec),
        "biases": spec.bias_codes(vector[None]),
        "temperature": spec.temperature_max // 20,
        "settle_cycles": 60,
        "interval_cycles": 30,
        "second_moments": False,
    }
    return Job(**(known | given))


def entries(readouts: list[Readout]) -> np.ndarray:
    """Sums, and the upper triangle of products, one read-out a row."""
    rows = []
    for readout in readouts:
        parts = [readout.sums.ravel()]
        if readout.products is not None:
            parts.append(readout.products[np.triu_indices(len(readout.products))])
        rows.append(np.concatenate(parts))
    return np.array(rows, float)


def both(
    a_job: Job, physics: ArrayPhysics | None = None, spec: UnitSpec = SPEC
) -> tuple[np.ndarray, np.ndarray]:
    found = []
    for unit in (NumericUnit(spec, physics, seed=3), StatisticalUnit(spec, physics, seed=4)):
        found.append(entries([unit.run(a_job) for _ in range(RUNS)]))
    return found[0], found[1]


def assert_alike(numeric: np.ndarray, statistical: np.ndarray, *, slack: float = 0.0) -> None:
    """`slack` is what variances may differ by, relatively, beside their standard error."""
    limit = stats.norm.isf(ALARM / numeric.shape[1] / 2)
    variances = numeric.var(axis=0), statistical.var(axis=0)
    error = np.sqrt((variances[0] + variances[1]) / RUNS) + 1e-9
    z = (numeric.mean(axis=0) - statistical.mean(axis=0)) / error
    assert np.abs(z).max() < limit
    moving = variances[0] > 0.05  # integers that hardly ever move have no variance to compare
    ratio = np.log(variances[1][moving] / variances[0][moving])
    fourth = stats.kurtosis(numeric[:, moving], axis=0) + 2.0
    assert (np.abs(ratio) < limit * np.sqrt(2.0 * fourth / RUNS) + slack).all()


@pytest.mark.parametrize("name", JOBS)
def test_means_and_variances_are_those_of_the_numeric_engine(name: str) -> None:
    few = name == "fewer effective samples than cells"
    assert_alike(*both(job(name)), slack=0.25 if few else 0.05)


@pytest.mark.parametrize(
    "physics",
    [
        pytest.param(FLAWED, id="flawed"),
        pytest.param(UNEQUAL, id="unequal", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "name", ["one reading, hardly settled", "many, correlated", "second moments"]
)
def test_flaws_of_a_device_are_in_them(name: str, physics: ArrayPhysics) -> None:
    assert_alike(*both(job(name), physics), slack=0.05)


@pytest.mark.parametrize(
    "name", ["one reading, hardly settled", "many, correlated", "second moments"]
)
def test_covariances_of_entries(name: str) -> None:
    found = [np.corrcoef(a.T) for a in both(job(name))]
    count = found[0].shape[0]
    limit = stats.norm.isf(ALARM / count**2) * np.sqrt(2.0 / RUNS)
    assert np.abs(np.arctanh(0.999 * found[0]) - np.arctanh(0.999 * found[1])).max() < limit + 0.05


@pytest.mark.parametrize(
    "name", ["one reading, hardly settled", "many, correlated", "second moments"]
)
def test_tails(name: str) -> None:
    numeric, statistical = both(job(name))
    for entry in range(numeric.shape[1]):
        result = stats.ks_2samp(numeric[:, entry], statistical[:, entry])
        assert result.pvalue > ALARM / numeric.shape[1]


def test_a_coarse_converter_and_one_that_clips() -> None:
    coarse = UnitSpec(cells=6, adc_bits=4)
    hot = replace(job("many, correlated", coarse), temperature=coarse.temperature_max // 4)
    assert_alike(*both(hot, spec=coarse), slack=0.1)
    clipping = replace(job("many, correlated"), temperature=SPEC.temperature_max)
    units = NumericUnit(SPEC, seed=3), StatisticalUnit(SPEC, seed=4)
    counts = [np.mean([unit.run(clipping).clipped.sum() for _ in range(300)]) for unit in units]
    assert counts[0] > 1.0
    assert counts[1] == pytest.approx(counts[0], rel=0.15)
    numeric, statistical = both(clipping)
    error = np.sqrt((numeric.var(axis=0) + statistical.var(axis=0)) / RUNS)
    assert (np.abs(numeric.mean(axis=0) - statistical.mean(axis=0)) < 5.0 * error).all()


@pytest.mark.parametrize(
    "sigma",
    [pytest.param(0.1, marks=pytest.mark.slow), 0.3, pytest.param(0.5, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("name", ["many, correlated", "second moments with a mean"])
def test_noise_that_hardly_dithers(sigma: float, name: str) -> None:
    """A few steps of a coarse converter, `sigma` of them the noise of the quietest cells."""
    spec = UnitSpec(cells=6, adc_bits=6)
    cold = job(name, spec).with_biases(job(name, spec).biases, interval_cycles=60)
    heat = (sigma * spec.adc_step) ** 2
    cold = replace(cold, temperature=spec.temperature_code(heat))
    assert_alike(*both(cold, spec=spec), slack=0.15)


def test_sums_and_what_is_about_them_are_jointly_right() -> None:
    """Σxxᵀ - Σx Σxᵀ/N of few samples has the spread of a sample covariance, N - 1 of them."""
    a_job = job("second moments with a mean").with_biases(
        job("second moments with a mean").biases, samples=20, interval_cycles=100
    )
    found = []
    for unit in (NumericUnit(SPEC, seed=3), StatisticalUnit(SPEC, seed=4)):
        rows = []
        for _ in range(RUNS):
            readout = unit.run(a_job)
            assert readout.products is not None
            about = readout.products - np.outer(readout.sums[0], readout.sums[0]) / 20
            rows.append(about[np.triu_indices(6)])
        found.append(np.array(rows))
    assert_alike(*found)
    # none of these is a square of anything: as many would be negative by chance
    assert (found[1][:, 0] > 0.0).all()


def test_modes_that_grow_clip_and_are_refused() -> None:
    codes = SPEC.coupling_codes(0.3 * np.eye(6) - 0.5 * (1.0 - np.eye(6)))
    base = job("many, correlated")
    for samples in (1, 7, 1000):
        growing = Job(
            couplings=codes,
            biases=base.biases,
            temperature=base.temperature,
            settle_cycles=100,
            interval_cycles=base.interval_cycles,
            samples=samples,
            second_moments=True,
        )
        for dtype in ("float32", "float64"):
            readout = StatisticalUnit(SPEC, dtype=dtype).run(growing)
            assert (readout.clipped == samples).all()
            assert (np.abs(readout.sums) >= samples * SPEC.adc_max).all()
    indefinite = np.full((6, 6), 0.5) + 0.5 * np.eye(6)
    indefinite[0, 1:] = indefinite[1:, 0] = 0.95  # an eigenvalue of -0.35
    with pytest.raises(linalg.NotPositiveDefinite):
        linalg.program(StatisticalUnit(SPEC), indefinite, lambda_min=0.05, guard="none").inv()


@pytest.mark.parametrize("adc_bits", [8, 14])
def test_errors_of_linear_algebra_are_those_that_it_states(adc_bits: int) -> None:
    """At any number of samples, in no time; `standard_error` was made for the numeric engine."""
    rng = np.random.default_rng(3)
    data = rng.standard_normal((400, 80))
    matrix = data.T @ data / 400 + 0.2 * np.eye(80)
    spec = UnitSpec(cells=80, coupling_bits=16, adc_bits=adc_bits)
    columns = rng.standard_normal((80, 5))
    with open_unit("statistical", spec, seed=5, dtype="float64") as unit:
        inverse = linalg.inv(unit, matrix, samples=2**20)
        error = (inverse.value - np.linalg.inv(matrix)) / inverse.standard_error
        # two in a thousand, which is less than eight bits of a converter are known by
        assert 0.9 < np.sqrt(np.mean(error**2)) < 1.1 or adc_bits == 8
        solved = linalg.solve(unit, matrix, columns, samples=2**16, refine=0, settle=1e-6)
        error = (solved.value - np.linalg.solve(matrix, columns)) / solved.standard_error
        assert np.sqrt(np.mean(error**2)) < 1.5


def test_k_fac_trains_as_on_the_numeric_engine() -> None:
    """Losses of one seed on three engines: closer to each other than to where they began."""
    runs = {
        engine: train(TrainConfig(engine=engine, epochs=4), spec=UnitSpec(cells=65))
        for engine in ("numeric", "statistical", "exact")
    }
    last = {engine: run.train_loss[-1] for engine, run in runs.items()}
    assert runs["statistical"].label == "K-FAC, statistical"
    assert runs["statistical"].hardware_seconds == pytest.approx(
        runs["numeric"].hardware_seconds, rel=0.05
    )
    assert last["statistical"] == pytest.approx(last["numeric"], rel=0.5)
    assert last["statistical"] < 0.2 * runs["statistical"].initial_loss


def test_a_cold_array_has_no_noise() -> None:
    cold = replace(job("many, correlated"), temperature=0)
    numeric, statistical = (
        NumericUnit(SPEC).run(cold),
        StatisticalUnit(SPEC, dtype="float64").run(cold),
    )
    assert np.abs(numeric.sums - statistical.sums).max() <= 1  # of 300 samples
    one = replace(cold, samples=16)
    assert NumericUnit(SPEC).run(one) == StatisticalUnit(SPEC, dtype="float64").run(one)


def test_what_is_drawn_depends_on_seed_and_stream_alone() -> None:
    several = Job(
        couplings=couplings(),
        biases=SPEC.bias_codes(np.full((3, 6), 0.1)),
        temperature=50,
        settle_cycles=5,
        interval_cycles=30,
        samples=1,
        second_moments=False,
    )
    unit = StatisticalUnit(SPEC, seed=7)
    together = unit.run(several, stream=4)
    assert unit.run(several, stream=4) == together
    alone = [
        unit.run(several.with_biases(several.biases[k : k + 1]), stream=4 + k) for k in range(3)
    ]
    assert np.array_equal(np.concatenate([r.sums for r in alone]), together.sums)
    assert StatisticalUnit(SPEC, seed=8).run(several, stream=4) != together
    assert unit.stream == 0
    unit.run(several)
    assert unit.stream == 3


def test_cycles_are_those_of_the_unit() -> None:
    a_job = job("second moments")
    assert StatisticalUnit(SPEC).run(a_job).cycles == SPEC.phase_cycles(a_job)


def test_the_largest_array() -> None:
    """4,096 cells, of which 40 are coupled: the law of a million samples, and one reading."""
    spec = UnitSpec(cells=4096)
    codes = np.diag(np.full(spec.cells, spec.coupling_max, np.int16))
    codes[:40, :40] = np.round(spec.coupling_max * (0.5 * np.eye(40) + 0.3))
    reading = Job(
        couplings=codes,
        biases=spec.bias_codes(np.full((2, spec.cells), 0.1)),
        temperature=3,
        settle_cycles=40,
        interval_cycles=30,
        samples=1,
        second_moments=False,
    )
    with open_unit("statistical", spec) as unit:
        found = [unit.run(reading.with_biases(reading.biases, samples=n)) for n in (1, 2**20)]
    matrix = spec.coupling_values(codes[:40, :40])
    wanted = np.full(spec.cells, 0.1)
    wanted[:40] = np.linalg.solve(matrix, wanted[:40])
    for readout, samples, tolerance in zip(found, (1, 2**20), (0.1, 2e-4), strict=True):
        assert np.abs(readout.sums / samples * spec.adc_step - wanted).max() < tolerance


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dtype": "float16"}, "dtype = 'float16' is unknown; legal: float32, float64"),
        ({"device": "abacus"}, "device = 'abacus' is not there"),
        ({"waves": "a.vcd"}, "statistical engine has no signals"),
        ({"timeout_s": 3.0}, "statistical engine waits for nobody"),
    ],
)
def test_what_it_refuses(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_unit("statistical", SPEC, **given)  # type: ignore[arg-type]


def test_others_take_no_dtype() -> None:
    with pytest.raises(ValueError, match="dtype, device: the numeric engine"):
        open_unit("numeric", SPEC, dtype="float32")


@pytest.mark.parametrize("engine", ["numeric", "statistical"])
def test_an_engine_of_means_alone_refuses_second_moments(engine: str) -> None:
    spec = UnitSpec(cells=2, second_moments=False)
    job = Job(
        couplings=spec.coupling_codes(np.eye(2)),
        biases=np.zeros((1, 2), dtype=np.int16),
        temperature=1,
        settle_cycles=1,
        interval_cycles=spec.shortest_interval(),
        samples=2,
    )
    with (
        open_unit(engine, spec, seed=0) as unit,
        pytest.raises(ValueError, match="second_moments = True, and the unit has no product"),
    ):
        unit.run(job)
