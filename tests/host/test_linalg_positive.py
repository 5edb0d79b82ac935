"""Signed matrices on arrays whose couplings have one sign."""

from __future__ import annotations

import numpy as np
import pytest

from thermokron.host.linalg import positive, program
from thermokron.model import NumericUnit, UnitSpec


def matrix(n: int, condition: float, seed: int) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    found = (q * np.geomspace(1 / condition, 1, n)) @ q.T
    return (found + found.T) / 2


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n", "condition"), [(3, 3.0), (7, 1000.0), (40, 30.0)])
def test_it_is_positive_acts_as_the_matrix_and_is_no_slower(n, condition, seed):
    M = matrix(n, condition, seed)
    doubled = positive(M)
    assert doubled.shape == (2 * n, 2 * n)
    assert doubled.min() >= 0.0
    assert M.min() < 0.0
    x = np.random.default_rng(seed).standard_normal(n)
    np.testing.assert_allclose(doubled @ np.append(x, -x), np.append(M @ x, -M @ x), atol=1e-12)
    together = doubled[:n, :n] + doubled[:n, n:]
    np.testing.assert_allclose(doubled @ np.append(x, x), np.tile(together @ x, 2), atol=1e-12)
    assert np.linalg.eigvalsh(together - M)[0] > -1e-12
    assert np.linalg.eigvalsh(doubled)[0] == pytest.approx(np.linalg.eigvalsh(M)[0], rel=1e-9)


def test_without_negative_entries_nothing_couples_twins():
    M = np.array([[1.0, 0.5], [0.5, 1.0]])
    np.testing.assert_array_equal(positive(M), np.kron(np.eye(2), M))


def test_an_array_solves_and_inverts_with_it():
    """In the mean over pairs (u - v)/2, as exactly as the array says."""
    n, M = 6, matrix(6, 10.0, 0)
    unit = NumericUnit(UnitSpec(cells=2 * n, coupling_bits=16, adc_bits=14, bias_bits=16), seed=3)
    on_array = program(unit, positive(M))
    b = np.random.default_rng(1).standard_normal(n)
    solved = on_array.solve(np.append(b, -b), samples=4000)
    found = (solved.value[:n] - solved.value[n:]) / 2
    assert (np.abs(found - np.linalg.solve(M, b)) < 4.42 * solved.standard_error[:n]).all()
    inverse = on_array.inv(samples=4000)
    z = inverse.value.reshape(2, n, 2, n)
    folded = (z[0, :, 0] - z[0, :, 1] - z[1, :, 0] + z[1, :, 1]) / 2
    exact = np.linalg.inv(M)
    # a Wishart matrix of 4,000 samples, correlated by 4 %, and 16 bits of couplings
    assert np.linalg.norm(folded - exact) < 2 * np.sqrt(n / 4000) * np.linalg.norm(exact)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="symmetric"):
        positive(np.array([[1.0, 0.5], [-0.5, 1.0]]))
    with pytest.raises(ValueError, match="M "):
        positive(np.array([[1.0, np.nan], [np.nan, 1.0]]))


def test_a_tensor_comes_back_as_one():
    torch = pytest.importorskip("torch")
    M = matrix(4, 5.0, 2)
    found = positive(torch.from_numpy(M).float())
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), positive(M), rtol=1e-5, atol=1e-6)
