"""Where couplings are too coarse for a matrix: error bars say so, and plans."""

import numpy as np
import pytest

from thermokron.host.linalg import NotConverged, Unreachable, inv, plan, solve
from thermokron.model import ArrayPhysics, NumericUnit, UnitSpec


def spd(n, kappa, seed=0):
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    return (q * np.geomspace(1.0, 1.0 / kappa, n)) @ q.T


def unit(seed=0, physics=None, **fields):
    return NumericUnit(UnitSpec(cells=8, **fields), physics, seed=seed)


@pytest.mark.parametrize(("bits", "kappa"), [(8, 1e4), (8, 1e5), (4, 300), (3, 300)])
def test_error_bars_hold_where_the_smallest_eigenvalue_is_below_a_couplings_step(bits, kappa):
    """Errors are of the size of the answer, in one mode that was never programmed: the rms score
    of a problem is near 1, where it was 2 to 13 with the modes as they were programmed."""
    for seed in range(4):
        M, b = spd(8, kappa, seed), np.random.default_rng(seed).standard_normal((8, 3))
        found = solve(unit(seed, coupling_bits=bits), M, b, refine=0)
        wrong = found.value - np.linalg.solve(M, b)
        assert np.linalg.norm(wrong) > 0.3 * np.linalg.norm(np.linalg.solve(M, b))
        assert 0.4 < np.sqrt(np.mean((wrong / found.standard_error) ** 2)) < 1.5
        found = inv(unit(seed, coupling_bits=bits), M)
        wrong = found.value - np.linalg.inv(M)
        assert np.sqrt(np.mean((wrong / found.standard_error) ** 2)) < 1.6


def test_a_plan_does_not_blame_the_unit():
    with pytest.raises(Unreachable, match=r"cannot be reached .* What would reach it: "):
        plan(unit(), spd(8, 1e6), tolerance=0.05)


def test_a_plan_explains_itself_where_one_way_clips():
    found = plan(unit(coupling_bits=16, seed=1), spd(8, 1e6), tolerance=0.9)
    assert "By means it is out of reach: readings clip at any amplitude." in found.explain()


def test_a_tolerance_that_flaws_made_impossible_is_told():
    flawed = ArrayPhysics(coupling_mismatch=0.1, cell_offset=0.02, adc_offset=0.02, device_seed=1)
    for call in (
        lambda: inv(unit(physics=flawed), spd(8, 10), tolerance=0.02),
        lambda: solve(unit(physics=flawed), spd(8, 10), np.ones(8), tolerance=0.02),
    ):
        with pytest.warns(NotConverged, match=r"tolerance = 0.02 is missed: the error is about 0"):
            call()
