"""Error bars cover as they say: 68% within one of them, 95% within two, flaws or none."""

import numpy as np
import pytest

from thermokron.host.linalg import solve
from thermokron.model import ArrayPhysics, NumericUnit, UnitSpec

FINE = {"coupling_bits": 16, "bias_bits": 16, "adc_bits": 16}


def spd(n, kappa, seed=0):
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    return (q * np.geomspace(1.0, 1.0 / kappa, n)) @ q.T


def columns(n, k, seed=0):
    return np.random.default_rng(1000 + seed).standard_normal((n, k))


def covered(scores):
    """Parts within one standard error and within two, and the rms."""
    size = np.abs(np.concatenate([each.ravel() for each in scores]))
    return float((size < 1).mean()), float((size < 2).mean()), float(np.sqrt((size**2).mean()))


FLAWS = {
    "ideal": lambda seed: None,
    "board": lambda seed: ArrayPhysics.discrete_board(device_seed=seed),
    "gains": lambda seed: ArrayPhysics(adc_gain_error=0.01, device_seed=seed),
    "offsets": lambda seed: ArrayPhysics(adc_offset=0.01, device_seed=seed),
    "inputs": lambda seed: ArrayPhysics(cell_offset=0.01, device_seed=seed),
    "couplings": lambda seed: ArrayPhysics(coupling_mismatch=0.05, device_seed=seed),
    "noise": lambda seed: ArrayPhysics(noise_mismatch=0.5, adc_noise=0.003, device_seed=seed),
}


@pytest.mark.parametrize("refine", [0, 1, 3])
@pytest.mark.parametrize("flaw", FLAWS)
def test_a_solution_believes_its_own_residual(flaw, refine):
    """30 problems and devices, 8 cells, 4 columns.

    A model of sampling and rounding alone is 2 to 47 standard errors off here but where the array
    is ideal. Errors in one mode are known about to their size, so that fewer lie within one
    standard error and nearly all within two. In six other sets of 30 problems the three numbers
    have means from 0.61 to 0.73, 0.968 to 1 and 0.86 to 0.97, and standard deviations of at most
    0.032, 0.005 and 0.016: bounds are 4.5 of these away or more, of the same flaw.
    """
    scores = []
    for seed in range(30):
        M, B = spd(8, 10, seed), columns(8, 4, seed)
        unit = NumericUnit(UnitSpec(cells=8, **FINE), FLAWS[flaw](seed), seed=seed)
        result = solve(unit, M, B, refine=refine, samples=200)
        scores.append((result.value - np.linalg.solve(M, B)) / result.standard_error)
    one, two, rms = covered(scores)
    assert 0.49 < one < 0.82
    assert two > 0.945
    assert 0.77 < rms < 1.06


def test_blocks_believe_their_residual_too():
    """40 rows on 16 cells; bounds as above, with more entries to each problem."""
    scores = []
    for seed in range(6):
        M, B = spd(40, 20, seed), columns(40, 4, seed)
        physics = ArrayPhysics.discrete_board(device_seed=seed)
        unit = NumericUnit(UnitSpec(cells=16, **FINE), physics, seed=seed)
        result = solve(unit, M, B, refine=1, samples=200)
        scores.append((result.value - np.linalg.solve(M, B)) / result.standard_error)
    one, two, rms = covered(scores)
    assert 0.5 < one < 0.85
    assert two > 0.9
    assert 0.7 < rms < 1.3
