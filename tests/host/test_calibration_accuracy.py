"""What a calibration wins back of the accuracy that a flawed array has lost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import solve_continuous_lyapunov

from thermokron.host import calibrate
from thermokron.host.calibration import Calibrated
from thermokron.host.calibration.noise import exact_excess, scaled_excess
from thermokron.host.linalg import inv, load, program, solve
from thermokron.model import ArrayPhysics, NumericUnit, UnitSpec

#: The array that the design is about.
FLAWS = ArrayPhysics(
    coupling_mismatch=0.05,
    cell_offset=0.01,
    noise_mismatch=0.05,
    tau_mismatch=0.05,
    adc_gain_error=0.02,
    adc_offset=0.01,
)


def spd(n, kappa, seed=0):
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    return (q * np.geomspace(1.0, 1.0 / kappa, n)) @ q.T


def relative(value, exact):
    return float(np.linalg.norm(value - exact) / np.linalg.norm(exact))


@pytest.fixture(scope="module")
def calibrated():
    """A flawed unit of 16 cells and so many bits, and its calibration; each made once."""
    made = {}

    def of(bits):
        if bits not in made:
            spec = UnitSpec(cells=16, coupling_bits=bits, adc_bits=bits)
            physics = replace(FLAWS, device_seed=bits)
            made[bits] = spec, physics, calibrate(NumericUnit(spec, physics), samples=8192)
        return made[bits]

    return of


@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("kappa", [5, 30])
@pytest.mark.parametrize("kind", ["means", "covariance"])
def test_four_fifths_of_the_lost_accuracy_come_back(calibrated, bits, kappa, kind):
    """Errors in the root mean square of three matrices; on four other devices 0.95 to 1.00."""
    spec, physics, known = calibrated(bits)
    errors = []
    for seed in range(3):
        M = spd(16, kappa, seed)
        B = np.random.default_rng(seed).standard_normal((16, 8))
        for flawed, calibration in ((None, None), (physics, None), (physics, known)):
            unit = NumericUnit(spec, flawed, seed=seed + 7)
            if kind == "means":
                found = solve(unit, M, B, samples=1000, refine=0, calibration=calibration)
                errors.append(relative(found.value, np.linalg.solve(M, B)))
            else:
                found = inv(unit, M, samples=100_000, calibration=calibration)
                errors.append(relative(found.value, np.linalg.inv(M)))
    ideal, flawed, corrected = np.sqrt(np.mean(np.reshape(errors, (3, 3)) ** 2, axis=0))
    assert flawed > 1.5 * ideal, "nothing was lost"
    assert 1.0 - (corrected - ideal) / (flawed - ideal) > 0.8


@pytest.mark.parametrize("samples", [1_000, 30_000, 900_000])
def test_a_board_of_one_percent_parts_is_as_good_as_its_error_bar(samples):
    """Without calibration it is eight times as far off at 900,000 samples."""
    spec, physics = UnitSpec(cells=8, coupling_bits=12), ArrayPhysics.discrete_board()
    known = calibrate(NumericUnit(spec, physics))
    M = 0.5 * np.eye(8) + 0.5
    exact = np.linalg.inv(M)
    found = inv(NumericUnit(spec, physics), M, samples=samples, calibration=known)
    assert np.linalg.norm(found.value - exact) < 1.5 * np.linalg.norm(found.standard_error)
    plain = inv(NumericUnit(spec, physics), M, samples=samples)
    assert np.linalg.norm(plain.value - exact) < 1.5 * np.linalg.norm(plain.standard_error)
    if samples == 900_000:
        assert np.linalg.norm(plain.standard_error) > 5 * np.linalg.norm(found.standard_error)


def test_the_error_bar_of_a_calibrated_solution_covers(calibrated):
    """χ² over entries of one matrix, whose coupling errors all columns have in common."""
    spec, physics, known = calibrated(12)
    scores = []
    for seed in range(6):
        M, B = spd(16, 10, seed), np.random.default_rng(seed).standard_normal((16, 16))
        unit = NumericUnit(spec, physics, seed=seed)
        found = solve(unit, M, B, samples=1000, refine=0, calibration=known)
        scores.append((found.value - np.linalg.solve(M, B)) / found.standard_error)
    assert 0.7 < np.sqrt(np.mean(np.square(scores))) < 1.3


def test_codes_are_those_whose_effect_is_nearest(calibrated):
    spec, _, known = calibrated(8)
    programmed = program(NumericUnit(spec), spd(16, 5), calibration=known)
    factors = known.values.couplings
    root = np.sqrt(factors.diagonal())

    def effect(codes):
        return codes / spec.coupling_max * factors / (root[:, None] * root)

    codes = programmed.plan.codes.astype(int)
    off = np.abs(effect(codes) - programmed.matrix)
    assert (off <= np.abs(effect(codes + 1) - programmed.matrix) + 1e-12).all()
    assert (off <= np.abs(effect(codes - 1) - programmed.matrix) + 1e-12).all()
    assert (codes.diagonal() == spec.coupling_max).all()
    assert np.array_equal(codes, codes.T)


def test_smaller_matrices_and_blocks_are_corrected_too(calibrated):
    spec, physics, known = calibrated(12)
    for n in (5, 40):
        M, B = spd(n, 10), np.random.default_rng(n).standard_normal((n, 4))
        exact = np.linalg.solve(M, B)
        plain = solve(NumericUnit(spec, physics), M, B, refine=0)
        found = solve(NumericUnit(spec, physics), M, B, refine=0, calibration=known)
        assert relative(found.value, exact) < 0.1 * relative(plain.value, exact)


def test_draws_have_the_mean_that_is_asked_for(calibrated):
    spec, physics, known = calibrated(12)
    M, b = spd(16, 5), np.full(16, 0.5)
    programmed = program(NumericUnit(spec, physics), M, calibration=known)
    draws = programmed.sample(4000, b).value
    spread = np.sqrt(np.diag(np.linalg.inv(M)) / 4000)
    assert np.abs((draws.mean(axis=0) - np.linalg.solve(M, b)) / spread).max() < 4.5


def test_a_unit_may_bring_its_calibration(calibrated):
    spec, physics, known = calibrated(8)
    M, B = spd(16, 10), np.eye(16)
    bench = Calibrated(NumericUnit(spec, physics), known)
    found = solve(bench, M, B, refine=0)
    again = solve(NumericUnit(spec, physics), M, B, refine=0, calibration=known)
    assert np.array_equal(found.value, again.value)
    assert bench.stream == bench.unit.stream > 0


def test_a_calibrated_matrix_survives_its_state(calibrated):
    spec, physics, known = calibrated(8)
    M, B = spd(16, 10), np.eye(16)
    programmed = program(Calibrated(NumericUnit(spec, physics), known), M)
    again = load(Calibrated(NumericUnit(spec, physics), known), programmed.state_dict())
    assert np.array_equal(programmed.solve(B).value, again.solve(B).value)


def test_single_precision_matrices_are_programmed_alike(calibrated):
    spec, physics, known = calibrated(8)
    M = spd(16, 10)
    double, single = (
        program(NumericUnit(spec, physics), each, calibration=known, check=False, lambda_min=0.01)
        for each in (M, M.astype(np.float32))
    )
    assert (double.plan.codes != single.plan.codes).mean() < 0.01
    assert single.solve(np.eye(16, dtype=np.float32)).value.dtype == np.float32


# ---- unequal noise ------------------------------------------------------------------------------


def test_the_excess_of_unequal_noise_solves_lyapunovs_equation():
    """SciPy is the judge: κAZ + ZAκ = 2κf."""
    rng = np.random.default_rng(1)
    A = spd(12, 20)
    noise, rates = 1.0 + 0.3 * rng.random(12), 1.0 + 0.3 * rng.random(12)
    drift = rates[:, None] * A
    covariance = solve_continuous_lyapunov(drift, 2.0 * np.diag(rates * noise))
    excess = exact_excess(A, noise, rates)
    assert np.linalg.inv(A) + excess == pytest.approx(covariance, rel=1e-9, abs=1e-9)


def test_cells_alone_are_scaled_exactly():
    noise = np.array([0.9, 1.0, 1.2])
    covariance = np.diag(noise / np.array([1.0, 0.5, 0.8]))
    excess = scaled_excess(covariance, noise)
    assert covariance - excess == pytest.approx(np.diag([1.0, 2.0, 1.25]))


def test_each_correction_of_noise_brings_what_it_says():
    spec = UnitSpec(cells=16, coupling_bits=12)
    physics = ArrayPhysics(noise_mismatch=0.3, device_seed=2)
    known = calibrate(NumericUnit(spec, physics))
    M = spd(16, 5)
    errors = {}
    for kind in ("none", "scaled", "exact"):
        unit = Calibrated(NumericUnit(spec, physics), known, noise=kind)
        errors[kind] = relative(inv(unit, M, samples=400_000).value, np.linalg.inv(M))
    assert errors["none"] > 0.1
    assert errors["scaled"] < 0.4 * errors["none"]
    assert errors["exact"] < 0.012  # sampling is √(17/400,000) = 0.0065


# ---- offsets without a calibration --------------------------------------------------------------


@pytest.mark.parametrize("offsets", ["blank", "chopped"])
@pytest.mark.parametrize("n", [16, 12])
def test_offsets_are_taken_off(offsets, n):
    """And the error bar says what it costs: within 8%, three times what seeds differ by."""
    physics = ArrayPhysics(cell_offset=0.01, adc_offset=0.01, device_seed=3)
    M, B = spd(n, 10), np.random.default_rng(0).standard_normal((n, 200))
    unit = NumericUnit(UnitSpec(cells=16, coupling_bits=16), physics, seed=3)
    programmed = program(unit, M)
    exact = np.linalg.solve(M, B)
    found = programmed.solve(B, samples=20, settle=1e-4, offsets=offsets)
    plain = programmed.solve(B, samples=20, settle=1e-4)
    assert relative(found.value, exact) < 0.3 * relative(plain.value, exact)
    score = np.sqrt(np.mean(((found.value - exact) / found.standard_error) ** 2))
    assert score == pytest.approx(1.0, abs=0.08)


def test_what_taking_offsets_off_costs():
    M, B = spd(16, 10), np.random.default_rng(0).standard_normal((16, 32))
    programmed = program(NumericUnit(UnitSpec(cells=16)), M)
    programmed.solve(B)  # how strongly to drive is known from here on
    vectors = {
        kind: programmed.solve(B, offsets=kind).activity.vectors
        for kind in ("kept", "blank", "chopped")
    }
    assert vectors == {"kept": 32, "blank": 48, "chopped": 64}


def test_an_unknown_way_with_offsets_is_refused():
    with pytest.raises(ValueError, match=r"offsets = 'off' is unknown; legal: kept, blank"):
        solve(NumericUnit(UnitSpec(cells=4)), np.eye(4), np.ones(4), offsets="off")
    with pytest.raises(ValueError, match="rhs_depth = 1"):
        solve(NumericUnit(UnitSpec(cells=4, rhs_depth=1)), np.eye(4), np.ones(4), offsets="chopped")
