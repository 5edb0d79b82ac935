"""The statistical engine: its read-outs have the distribution of the numeric engine's.

Both run the same jobs many times, at streams of their own. Means and variances of every entry, and
covariances of entries, are compared in standard errors; one in 10^5 sets of them would be refused
by chance. Tails by the Kolmogorov-Smirnov test of two samples.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from thermokron.host import StatisticalUnit, open_unit
from thermokron.model import ArrayPhysics, Job, NumericUnit, Readout, UnitSpec

SPEC = UnitSpec(cells=6)
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
UNEQUAL = ArrayPhysics(noise_mismatch=0.6, device_seed=2)


def couplings(spec: UnitSpec = SPEC, seed: int = 0) -> np.ndarray:
    factors = np.random.default_rng(seed).standard_normal((spec.cells, 2 * spec.cells))
    matrix = factors @ factors.T / (2 * spec.cells) + 0.1 * np.eye(spec.cells)
    return spec.coupling_codes(matrix / (1.01 * np.abs(matrix).max()))


JOBS = {
    "one reading, hardly settled": {"samples": 1, "settle_cycles": 2},
    "a few, correlated": {"samples": 7, "settle_cycles": 1, "interval_cycles": 7},
    "many, hardly settled": {"samples": 60, "settle_cycles": 1},
    "many, correlated": {"samples": 300, "interval_cycles": 7},
    "second moments, few": {"samples": 9, "second_moments": True},
    "second moments": {"samples": 200, "second_moments": True},
    "second moments with a mean": {"samples": 400, "second_moments": True, "bias": 0.07},
    "fewer effective samples than cells": {
        "samples": 24,
        "interval_cycles": 7,
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


@pytest.mark.parametrize("physics", [FLAWED, UNEQUAL], ids=["flawed", "unequal"])
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


def test_a_cold_array_is_sampled_one_by_one() -> None:
    cold = replace(job("many, correlated"), temperature=0)
    numeric, statistical = (
        NumericUnit(SPEC).run(cold),
        StatisticalUnit(SPEC, dtype="float64").run(cold),
    )
    assert numeric == statistical  # there is no noise


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
    spec = UnitSpec(cells=1500)
    big = Job(
        couplings=spec.coupling_codes(0.8 * np.eye(spec.cells)),
        biases=spec.bias_codes(np.full((2, spec.cells), 0.1)),
        temperature=3,
        settle_cycles=20,
        interval_cycles=30,
        samples=1,
        second_moments=False,
    )
    with open_unit("statistical", spec) as unit:
        found = unit.run(big)
    assert np.abs(found.sums / 2**11 - 0.125).max() < 0.1


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
