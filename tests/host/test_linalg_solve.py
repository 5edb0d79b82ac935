"""`solve`: exactness, its standard error, many columns, large matrices, wrong input."""

import itertools
import re

import numpy as np
import pytest

from thermokron.host.linalg import solve
from thermokron.model import NumericUnit, UnitSpec


def spd(n, kappa, seed=0):
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    return (q * np.geomspace(1.0, 1.0 / kappa, n)) @ q.T


def columns(n, k, seed=0):
    return np.random.default_rng(seed).standard_normal((n, k))


def unit(seed=0, **fields):
    return NumericUnit(UnitSpec(**fields), seed=seed)


def relative_error(result, M, B):
    exact = np.linalg.solve(M, B)
    return np.linalg.norm(result.value - exact) / np.linalg.norm(exact)


@pytest.mark.parametrize("n", [1, 10, 16, 17, 64])
def test_every_size_is_solved(n):
    M, B = spd(n, 30), columns(n, 3)
    result = solve(unit(), M, B)
    assert result.value.shape == result.standard_error.shape == (n, 3)
    assert relative_error(result, M, B) < 0.01
    left = np.linalg.norm(B - M @ result.value, axis=0) / np.linalg.norm(B, axis=0)
    assert result.residual == pytest.approx(left.max(), rel=1e-6)


def test_a_vector_stays_a_vector():
    M, b = spd(12, 10), columns(12, 1)[:, 0]
    result = solve(unit(), M, b)
    assert result.value.shape == result.standard_error.shape == (12,)
    assert relative_error(result, M, b) < 0.01


def test_more_columns_than_the_bias_store_holds():
    u = unit(rhs_depth=4)
    M, B = spd(16, 10), columns(16, 18)
    result = solve(u, M, B, samples=200, refine=0)
    assert result.runs == 5 + 5 + result.reruns  # one reading of each first
    assert relative_error(result, M, B) < 0.05


@pytest.mark.parametrize("n", [16, 40])
def test_each_refinement_takes_off_what_rounded_couplings_leave(n):
    M, B = spd(n, 20), columns(n, 4)
    errors = [relative_error(solve(unit(), M, B, refine=r), M, B) for r in range(4)]
    assert errors[0] < 0.1
    for before, after in itertools.pairwise(errors):
        assert after < 0.25 * before


def test_coarse_couplings_converge_where_plain_refinement_would_not():
    M, B = spd(16, 100), columns(16, 4)
    residuals = [solve(unit(coupling_bits=4), M, B, refine=r).residual for r in (0, 3, 12)]
    assert residuals[0] > residuals[1] > residuals[2]


def test_right_hand_sides_of_any_scale_and_zero():
    M = spd(16, 10)
    B = columns(16, 4) * [1e-9, 1.0, 1e9, 0.0]
    result = solve(unit(), M, B)
    exact = np.linalg.solve(M, B)
    for j in range(3):
        assert np.linalg.norm(result.value[:, j] - exact[:, j]) < 0.01 * np.linalg.norm(exact[:, j])
    assert not result.value[:, 3].any()
    assert not result.standard_error[:, 3].any()


@pytest.mark.parametrize(
    ("n", "fields", "options", "low", "high"),
    [
        (16, {"coupling_bits": 16}, {"refine": 0}, 0.85, 1.15),
        (16, {"coupling_bits": 16, "tau_s": 1e-6}, {"refine": 0, "interval": 0.5}, 0.8, 1.15),
        (16, {"coupling_bits": 16, "adc_bits": 6}, {"refine": 0}, 0.85, 1.15),
        (16, {"coupling_bits": 16, "adc_bits": 3}, {"refine": 0}, 0.5, 1.15),
        (16, {}, {"refine": 1}, 0.75, 1.4),
        # what lasting errors have left of the last step is judged generously
        (40, {}, {"refine": 1}, 0.5, 1.2),
    ],
)
def test_standard_error_is_calibrated(n, fields, options, low, high):
    # rms of z over 8 matrices with 12 columns each; with 16 coupling bits, sampling alone, it is
    # known to about 2%, so that low and high are a false alarm in less than 1e-6
    z = []
    for seed in range(8):
        M, B = spd(n, 20, seed), columns(n, 12, seed)
        result = solve(unit(seed=seed, **fields), M, B, **options)
        z.append((result.value - np.linalg.solve(M, B)) / result.standard_error)
    assert low < np.sqrt(np.mean(np.square(z))) < high


def test_error_falls_as_one_over_the_root_of_samples():
    # a squared error scatters by 0.25 of itself (300 seeds), the logarithm of the ratio by
    # 0.25 √(2/32)/2 = 0.031: 17 % is 5 of these, a false alarm in 1e-6
    M, B = spd(16, 20), columns(16, 8)
    finest = {"coupling_bits": 16, "bias_bits": 16, "adc_bits": 16}  # sampling is all that is left

    def squared_error(seed, samples):
        result = solve(unit(seed, **finest), M, B, samples=samples, refine=0)
        return relative_error(result, M, B) ** 2

    few, many = (np.mean([squared_error(s, n) for s in range(32)]) for n in (8, 128))
    assert np.sqrt(few / many) == pytest.approx(4.0, rel=0.17)


def test_torch_and_numpy_agree():
    torch = pytest.importorskip("torch")
    M, B = spd(20, 10), columns(20, 2).astype(np.float32)
    array = solve(unit(), M, B)
    tensor = solve(unit(), torch.tensor(M), torch.tensor(B))
    assert tensor.value.dtype == torch.float32
    assert array.value.dtype == np.float32
    assert np.array_equal(tensor.value.numpy(), array.value)


def test_the_same_seed_gives_the_same_numbers():
    M, B = spd(20, 10), columns(20, 2)
    first, again = (solve(unit(seed=4), M, B) for _ in range(2))
    assert np.array_equal(first.value, again.value)
    assert np.array_equal(first.standard_error, again.standard_error)


@pytest.mark.parametrize(
    ("B", "message"),
    [
        (np.ones(3), "B has shape (3,); M, (4, 4), wants (4,), (4, k) or (..., 4, k)"),
        (np.ones((4, 0)), "B has shape (4, 0)"),
        (np.ones((4, 1, 1)), "B has shape (4, 1, 1)"),
        (np.array([1, 2, np.nan, 0]), "B holds NaN"),
        (np.ones(4) * 1j, "B has dtype complex128"),
    ],
)
def test_wrong_right_hand_sides_are_named(B, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        solve(unit(), np.eye(4), B)


def test_wrong_matrices_and_options_are_named():
    with pytest.raises(ValueError, match="M is not positive definite"):
        solve(unit(), -np.eye(4), np.ones(4))
    with pytest.raises(ValueError, match="M is not positive definite"):
        solve(unit(), np.eye(40) + 0.9 * (np.eye(40, k=1) + np.eye(40, k=-1)), np.ones(40))
    with pytest.raises(ValueError, match="refine = -1 is out of range"):
        solve(unit(), np.eye(4), np.ones(4), refine=-1)
    with pytest.raises(ValueError, match="samples = 0 is out of range"):
        solve(unit(), np.eye(4), np.ones(4), samples=0)
