"""`calibrate`: what it finds of a drawn device, what it cannot tell, files, drift, refusals."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from thermokron.host import calibrate, cli
from thermokron.host.calibration import (
    Calibrated,
    Calibration,
    ForeignCalibration,
    StaleCalibration,
)
from thermokron.host.calibration.programs import tournament
from thermokron.host.linalg import inv, program, solve
from thermokron.model import ArrayPhysics, NumericUnit, UnitSpec
from thermokron.model.device import Device

FLAWS = ArrayPhysics(
    coupling_mismatch=0.05,
    cell_offset=0.01,
    noise_mismatch=0.05,
    tau_mismatch=0.05,
    adc_gain_error=0.02,
    adc_offset=0.01,
    adc_noise=1e-3,
    device_seed=3,
)


def unit(physics=FLAWS, seed=1, **sizes):
    return NumericUnit(UnitSpec(**{"cells": 8} | sizes), physics, seed=seed)


@pytest.fixture(scope="module")
def known():
    return calibrate(unit(), samples=1024)


def true_values(physics, cells):
    """A drawn device in the units of `Values`: gains of geometric mean 1."""
    drawn = Device.draw(physics, cells)
    common = np.exp(np.log(drawn.adc_gains).mean())
    return {
        "couplings": drawn.coupling_factors / common,
        "gains": drawn.adc_gains / common,
        "adc_offsets": drawn.adc_offsets * common,
        "cell_offsets": drawn.cell_offsets,
        # a larger capacitor has the same noise current, see `ArrayPhysics.tau_mismatch`
        "noise": drawn.noise_factors / drawn.time_factors * common,
        "taus": drawn.time_factors / common,
    }


@pytest.mark.parametrize(
    ("cells", "adc_bits", "coupling_bits", "device"),
    [(8, 12, 8, 3), (16, 8, 8, 4), (7, 12, 12, 5), (2, 10, 6, 6)],
)
def test_a_drawn_device_is_found(cells, adc_bits, coupling_bits, device):
    """Every value within 4.5 standard errors, and χ² of each kind below its 1e-4 quantile.

    Chance of a false alarm: some 1e-3 for χ², and 1e-3 for the largest of 140 values.
    """
    from scipy.stats import chi2

    physics = replace(FLAWS, device_seed=device)
    values = calibrate(
        unit(physics, cells=cells, adc_bits=adc_bits, coupling_bits=coupling_bits), samples=4096
    ).values
    for name, true in true_values(physics, cells).items():
        found, error = getattr(values, name), getattr(values, f"{name}_error")
        deviations = (found - true) / error
        if true.ndim == 2:
            deviations = deviations[np.triu_indices(cells)]
        assert np.abs(deviations).max() < 4.5, name
        assert (deviations**2).sum() < chi2.isf(1e-4, deviations.size), name
        assert (error < 0.01).all(), name


def test_errors_fall_with_the_root_of_samples():
    few, many = (calibrate(unit(), samples=s).values for s in (256, 4096))
    for name in ("couplings_error", "gains_error", "cell_offsets_error", "noise_error"):
        ratio = np.median(getattr(few, name) / getattr(many, name))
        assert ratio == pytest.approx(4.0, rel=0.1), name


def test_conversion_noise_is_told_from_the_cells():
    physics = ArrayPhysics(adc_noise=0.01, adc_gain_error=0.02)
    values = calibrate(unit(physics, cells=4), samples=16384).values
    gains = Device.draw(physics, 4).adc_gains
    common = np.exp(np.log(gains).mean())
    assert values.adc_noise == pytest.approx(1e-4 * np.full(4, common**2), rel=0.03)
    assert np.abs(values.noise / common - 1.0).max() < 4.5 * values.noise_error.max()


def test_what_a_slow_clock_cannot_see_is_said_not_guessed():
    values = calibrate(unit(cells=4, tau_s=1e-11), samples=256).values
    assert np.isinf(values.taus_error).all()
    assert (values.couplings_error < 0.01).all()


@pytest.mark.parametrize("coupling_bits", [3, 4])
def test_few_bits_serve_too(coupling_bits):
    physics = replace(FLAWS, device_seed=9)
    sizes = {"cells": 6, "coupling_bits": coupling_bits, "adc_bits": 6, "rhs_depth": 1}
    values = calibrate(unit(physics, **sizes), samples=4096).values
    true = true_values(physics, 6)
    assert values.couplings == pytest.approx(true["couplings"], abs=0.01)


def test_a_unit_without_second_moments_has_all_but_noise():
    values = calibrate(unit(second_moments=False), samples=1024).values
    assert (values.noise == 1.0).all()
    assert values.couplings == pytest.approx(true_values(FLAWS, 8)["couplings"], abs=0.01)


@pytest.mark.parametrize("cells", [2, 3, 8, 13])
def test_every_pair_meets_once(cells):
    rounds = list(tournament(cells))
    assert all(len(set(pairs.ravel())) == pairs.size for pairs in rounds)
    met = {frozenset(map(int, pair)) for pairs in rounds for pair in pairs}
    assert len(met) == sum(map(len, rounds)) == cells * (cells - 1) // 2


def test_runs_grow_with_cells_not_with_couplings(known):
    assert known.runs == 2 + 7 + 2 + 1024 // 16 // 64
    assert known.seconds > 0.0


def test_progress_goes_from_nothing_to_all():
    told = []
    calibrate(unit(cells=4), samples=256, progress=lambda done, what: told.append((done, what)))
    parts = [done for done, _ in told]
    assert parts == sorted(parts)
    assert parts[0] == 0.0
    assert parts[-1] == pytest.approx(1.0, abs=0.05)
    assert {what for _, what in told} >= {"offsets", "couplings and gains", "noise"}


# ---- files --------------------------------------------------------------------------------------


def test_json_round_trip(known, tmp_path):
    again = Calibration.load(known.save(tmp_path / "board.json"))
    assert again.to_json() == known.to_json()
    for field in fields(known.values):
        assert np.array_equal(getattr(again.values, field.name), getattr(known.values, field.name))
    assert again.spec == known.spec
    assert again.date == known.date


def test_an_unknown_time_constant_survives_json():
    found = calibrate(unit(cells=2, tau_s=1e-11), samples=64)
    assert "Infinity" not in found.to_json()
    assert np.isinf(Calibration.from_json(found.to_json()).values.taus_error).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "recipe"}, "not a calibration"),
        ({"version": 7}, "version = 7"),
        ({"fingerprint": "0x00000000"}, "is not that of the spec"),
        ({"values": {"gains": [1.0]}}, "values of a calibration are"),
        ({"max_age_s": -1.0}, "max_age_s = -1.0 is out of range"),
        ({"date": "2026-01-01T00:00:00"}, "no time zone"),
        ({"spec": None}, "not a"),
    ],
)
def test_what_is_no_calibration_is_refused(known, change, message):
    with pytest.raises(ValueError, match=message):
        Calibration.from_json(json.dumps(json.loads(known.to_json()) | change))


@pytest.mark.parametrize("text", ["", "[]", "{", '"x"'])
def test_what_is_no_json_object_is_refused(text, tmp_path):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"broken\.json: not a calibration"):
        Calibration.load(path)


# ---- trust --------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", [program, inv, lambda u, M, **k: solve(u, M, np.ones(8), **k)])
def test_a_foreign_calibration_is_refused(known, use):
    with pytest.raises(ForeignCalibration, match=r"fingerprint 0x.*coupling_bits = 9, not 8"):
        use(unit(coupling_bits=9), np.eye(8), calibration=known)


def test_an_old_calibration_is_refused(known):
    old = replace(known, date=datetime.now(UTC) - timedelta(hours=25))
    with pytest.raises(StaleCalibration, match=r"legal: 0 to max_age_s = 86400"):
        program(unit(), np.eye(8), calibration=old)
    trusted = replace(old, max_age_s=1e6)
    assert program(unit(), np.eye(8), calibration=trusted) is not None


def test_one_from_the_future_is_refused(known):
    with pytest.raises(StaleCalibration):
        Calibrated(unit(), replace(known, date=datetime.now(UTC) + timedelta(hours=1)))


def test_it_grows_old_in_use(known):
    calibration = replace(known)
    bench = Calibrated(unit(), calibration)
    program(bench, np.eye(8))
    calibration.date -= timedelta(days=2)
    with pytest.raises(StaleCalibration):
        program(bench, np.eye(8))


def test_a_check_of_the_same_device_is_good():
    """Twelve checks with other noise; a false alarm of one has a chance of 1e-3 and less."""
    known = calibrate(unit(), samples=1024)
    for seed in range(2, 14):
        found = known.check(unit(seed=seed), samples=256)
        assert not found.stale, found
        assert str(found).startswith("good")
    known.require(unit())


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"coupling_mismatch": 0.08}, "couplings"),
        ({"adc_gain_error": 0.05}, "couplings"),
        ({"cell_offset": 0.02}, "offsets"),
        ({"noise_mismatch": 0.09}, "noise"),
    ],
)
def test_drift_is_seen_and_the_calibration_refused(known, change, kind):
    calibration = replace(known)
    drifted = unit(replace(FLAWS, **change), seed=5)
    found = calibration.check(drifted)
    assert found.stale
    assert found.drift[kind] > found.tolerance[kind]
    with pytest.raises(StaleCalibration, match="stale: calibrate again"):
        program(drifted, np.eye(8), calibration=calibration)


def test_a_small_drift_says_when_to_calibrate_again(known):
    """2% of 5%: a thousandth of a coupling, a tenth of what is tolerated."""
    calibration = replace(known, date=datetime.now(UTC) - timedelta(hours=1))
    found = calibration.check(unit(replace(FLAWS, coupling_mismatch=0.052), seed=5), samples=16384)
    assert not found.stale
    hours = (found.due - calibration.date) / timedelta(hours=1)
    expected = found.tolerance["couplings"] / found.drift["couplings"]
    assert hours == pytest.approx(expected, rel=0.01)
    assert 2.0 < hours < 50.0
    assert "at this pace good until" in str(found)


def test_another_board_of_the_same_design_is_found_out(known):
    found = replace(known).check(unit(replace(FLAWS, device_seed=4)))
    assert found.stale
    assert found.drift["couplings"] > 0.03


# ---- wrong input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"samples": 10}, ValueError, "samples = 10 is out of range; legal: 64 to 1048576"),
        ({"samples": 100.0}, TypeError, "samples"),
        ({"max_age_s": 0.0}, ValueError, "max_age_s"),
        ({"name": 7}, TypeError, "name = 7"),
    ],
)
def test_wrong_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        calibrate(unit(), **options)


def test_no_unit_no_calibration(known):
    with pytest.raises(TypeError, match="is not a unit"):
        calibrate("board")
    with pytest.raises(TypeError, match="calibration = 'x'"):
        Calibrated(unit(), "x")
    with pytest.raises(ValueError, match=r"noise = 'some' is unknown; legal: auto, exact"):
        Calibrated(unit(), known, noise="some")
    with pytest.raises(ValueError, match="samples = 1 is out of range"):
        replace(known).check(unit(), samples=1)


def test_an_array_beyond_its_range_is_not_calibrated():
    with pytest.raises(ValueError, match="clip"):
        calibrate(unit(ArrayPhysics(cell_offset=1.0), cells=4), samples=64)


# ---- the command --------------------------------------------------------------------------------


def test_the_command_writes_what_the_check_reads(tmp_path, capsys):
    physics, file = tmp_path / "flaws.json", tmp_path / "board.json"
    physics.write_text('{"coupling_mismatch": 0.05, "adc_gain_error": 0.02}')
    common = ["calibrate", "--cells", "4", "--physics", str(physics)]
    assert cli.main([*common, "--samples", "512", "-o", str(file), "--name", "board 7"]) == 0
    assert "board 7: 4 cells" in capsys.readouterr().out
    assert Calibration.load(file).name == "board 7"
    assert cli.main([*common, "--noise-seed", "3", "--check", str(file)]) == 0
    assert "good" in capsys.readouterr().out
    assert cli.main(["calibrate", "--cells", "4", "--check", str(file)]) == 1
    assert "stale: calibrate again" in capsys.readouterr().out
    assert cli.main(["calibrate", "--cells", "5", "--check", str(file)]) == 2
    assert "fingerprint" in capsys.readouterr().err
