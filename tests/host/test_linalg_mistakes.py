"""What is refused, one of each kind: the message names what was given, and what is legal."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
import torch

from thermokron.host import calibrate
from thermokron.host.calibration import ForeignCalibration, StaleCalibration
from thermokron.host.linalg import Clipping, NotPositiveDefinite, inv, program, solve
from thermokron.model import ArrayPhysics, NumericUnit, UnitSpec

EYE = np.eye(4)


def unit(physics=None, **fields):
    return NumericUnit(UnitSpec(**{"cells": 4} | fields), physics, seed=0)


def changed(row, column, value):
    M = np.eye(4)
    M[row, column] = value
    return M


def symmetric(row, column, value):
    return changed(row, column, value) + changed(column, row, value) - EYE


#: (name, matrix, error, message).
MATRICES = [
    ("no matrix", np.ones(4), ValueError, r"M has shape \(4,\); it must be square, \(n, n\)"),
    ("not square", np.ones((4, 3)), ValueError, r"M has shape \(4, 3\); it must be square"),
    ("empty", np.ones((0, 0)), ValueError, r"M has shape \(0, 0\)"),
    ("an empty stack", np.ones((0, 4, 4)), ValueError, r"M has shape \(0, 4, 4\)"),
    ("complex", EYE * 1j, ValueError, "M has dtype complex128; real numbers are needed"),
    ("text", np.array([["a"]]), ValueError, "M has dtype <U1; real numbers are needed"),
    ("complex tensor", torch.eye(4) * 1j, ValueError, r"M is complex \(torch.complex64\)"),
    ("NaN", changed(1, 2, np.nan), ValueError, "M holds NaN; every entry must be finite"),
    ("infinite", changed(1, 2, np.inf), ValueError, "M holds inf; every entry must be finite"),
    ("asymmetric", changed(1, 2, 0.5), ValueError, r"M is not symmetric: M\[1, 2\] = 0.5, M\[2"),
    ("zero on the diagonal", changed(2, 2, 0.0), NotPositiveDefinite, r"M\[2, 2\] = 0"),
    ("negative diagonal", -EYE, NotPositiveDefinite, r"M\[0, 0\] = -1"),
    (
        "a 2 x 2 minor",
        symmetric(0, 1, 1.5),
        NotPositiveDefinite,
        r"\|M\[0, 1\]\| = 1.5 is not below sqrt\(M\[0, 0\] M\[1, 1\]\) = 1",
    ),
    (
        "indefinite as a whole",
        1.9 * EYE - 0.9 * np.ones((4, 4)),
        NotPositiveDefinite,
        "it has a direction y with yᵀMy/yᵀy = -1",
    ),
]


@pytest.mark.parametrize(
    ("M", "error", "message"), [m[1:] for m in MATRICES], ids=[m[0] for m in MATRICES]
)
def test_matrices(M, error, message):
    for use in (inv, program, lambda u, matrix: solve(u, matrix, np.ones(4))):
        with pytest.raises(error, match=message):
            use(unit(), M)


#: (name, call, error, message).
CALLS = [
    (
        "B of another size",
        lambda: solve(unit(), EYE, np.ones(3)),
        r"B has shape \(3,\); M, \(4, 4\)",
    ),
    ("B a number", lambda: solve(unit(), EYE, 1.0), r"B has shape \(\)"),
    ("B with NaN", lambda: solve(unit(), EYE, [1, 2, 3, np.nan]), "B holds NaN"),
    ("no samples", lambda: inv(unit(), EYE, samples=0), "samples = 0 is out of range; legal: 2 to"),
    ("one sample", lambda: inv(unit(), EYE, samples=1), "samples = 1 is out of range; legal: 2 to"),
    (
        "half a sample",
        lambda: solve(unit(), EYE, np.ones(4), samples=0.5),
        "samples = 0.5 is not an integer; legal: 1 to",
    ),
    (
        "samples for ever",
        lambda: solve(unit(), EYE, np.ones(4), samples=2**30),
        "samples = 1073741824 is out of range; legal: 1 to",
    ),
    (
        "interval",
        lambda: inv(unit(), EYE, interval=0.0),
        "interval = 0.* out of range; legal: 0.001",
    ),
    (
        "settle as a part",
        lambda: program(unit(), EYE).solve(np.ones(4), settle=1.0),
        "settle = 1.0 is out of range; legal",
    ),
    (
        "settle as a time",
        lambda: program(unit(), EYE).solve(np.ones(4), settle="5 s"),
        "settle = '5 s' is no time; legal",
    ),
    ("refine", lambda: solve(unit(), EYE, np.ones(4), refine=101), "refine = 101 is out of range"),
    ("rtol", lambda: solve(unit(), EYE, np.ones(4), rtol=0.0), "rtol = 0.* is out of range; legal"),
    (
        "guard",
        lambda: inv(unit(), EYE, guard="maybe"),
        "guard = 'maybe' is unknown; legal: lanczos",
    ),
    ("correct", lambda: inv(unit(), EYE, correct="all"), "correct = 'all' is unknown; legal: None"),
    (
        "offsets",
        lambda: solve(unit(), EYE, np.ones(4), offsets="no"),
        "offsets = 'no' is unknown; legal",
    ),
    (
        "a bound above the diagonal",
        lambda: inv(unit(), EYE, lambda_min=1.5),
        "lambda_min = 1.5 is out of range; legal: above 0 to M's smallest diagonal entry, 1",
    ),
    ("a bound of 0", lambda: inv(unit(), EYE, lambda_min=0.0), "lambda_min = 0 is out of range"),
    (
        "an inverse of a unit of means",
        lambda: inv(unit(second_moments=False), EYE),
        "second_moments = False in the unit's spec, so it cannot make an inverse",
    ),
    (
        "not equilibrated, in blocks",
        lambda: inv(unit(), np.eye(6), equilibrate=False),
        "equilibrate = False, but M has 6 rows; legal: up to the unit's 4 cells",
    ),
    ("no unit", lambda: inv(UnitSpec(), EYE), "unit"),
]


@pytest.mark.parametrize(("call", "message"), [c[1:] for c in CALLS], ids=[c[0] for c in CALLS])
def test_calls(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_beyond_what_couplings_can_hold():
    """κ of 1e8, which 8 bits make singular: guarded, and said to be."""
    M = np.ones((4, 4)) + 1e-8 * EYE
    assert inv(unit(), M).shrinkage > 0.0
    with pytest.raises(NotPositiveDefinite):
        inv(unit(), M, guard="none")


def test_a_unit_that_clips_whatever_is_done():
    """Couplings off by half make one of its modes grow; the matrix alone is not blamed."""
    M, refusals = 0.2 * EYE + 0.8 * np.ones((4, 4)), []
    for seed in range(30):
        physics = ArrayPhysics(coupling_mismatch=0.5, device_seed=seed)
        try:
            inv(unit(physics), M)
        except Clipping as error:
            refusals.append(str(error))
    assert refusals
    assert all("the unit's couplings are off" in refusal for refusal in refusals)


def test_calibrations_of_others_and_of_long_ago():
    known = calibrate(unit(ArrayPhysics.discrete_board()))
    with pytest.raises(ForeignCalibration, match="coupling_bits = 6, not 8"):
        inv(unit(coupling_bits=6), EYE, calibration=known)
    old = replace(known, date=known.date - timedelta(days=400))
    with pytest.raises(StaleCalibration, match=r"s old; legal: 0 to max_age_s"):
        inv(unit(), EYE, calibration=old)
    with pytest.raises(TypeError, match=r"calibration = 'board\.json' is none"):
        inv(unit(), EYE, calibration="board.json")
