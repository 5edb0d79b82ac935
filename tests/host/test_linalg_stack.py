"""Leading dimensions: many matrices, many right-hand sides, NumPy and torch alike."""

import pickle

import numpy as np
import pytest
import torch

from thermokron.host.linalg import NotPositiveDefinite, Stack, inv, program, solve
from thermokron.model import NumericUnit, UnitSpec

RNG = np.random.default_rng(0)
#: (2, 3, 6, 6)
STACK = np.stack([a @ a.T / 6 + np.eye(6) for a in RNG.standard_normal((6, 6, 6))])
STACK = STACK.reshape(2, 3, 6, 6)


def unit(cells=6, seed=0):
    return NumericUnit(
        UnitSpec(cells=cells, adc_bits=16, coupling_bits=14, bias_bits=16), seed=seed
    )


@pytest.mark.parametrize("shape", [(6,), (6, 4), (2, 3, 6, 4), (3, 6, 1), (2, 1, 6, 4)])
@pytest.mark.parametrize("cells", [6, 4])
def test_right_hand_sides_broadcast_as_numpy_has_it(shape, cells):
    b = RNG.standard_normal(shape)
    result = solve(unit(cells), STACK, b, rtol=1e-12)
    expected = np.linalg.solve(STACK, b if b.ndim > 1 else b[:, None])
    expected = expected if b.ndim > 1 else expected[..., 0]
    assert result.value.shape == result.standard_error.shape == expected.shape
    assert np.abs(result.value - expected).max() < 1e-10
    assert result.residual < 1e-12


def test_one_matrix_takes_leading_dimensions():
    M, b = STACK[0, 0], RNG.standard_normal((5, 2, 6, 3))
    result = program(unit(), M).solve(b, rtol=1e-12)
    assert np.abs(result.value - np.linalg.solve(M, b)).max() < 1e-10
    assert result.standard_error.shape == b.shape


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_inverses_are_of_their_kind(dtype):
    result = inv(unit(), torch.tensor(STACK, dtype=dtype), samples=4000)
    assert result.value.dtype == result.standard_error.dtype == dtype
    assert result.value.shape == result.standard_error.shape == STACK.shape
    wrong = result.value.double().numpy() - np.linalg.inv(STACK)
    assert np.abs(wrong).max() < 0.2
    assert not result.indefinite


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.longdouble])
def test_any_float_dtype(dtype):
    b = np.ones(6, dtype)
    assert solve(unit(), STACK.astype(dtype), b).value.dtype == dtype
    assert inv(unit(), STACK.astype(dtype)).value.dtype == dtype


def test_it_is_its_parts():
    """In the order of its entries, and at their cost."""
    whole = program(unit(), STACK).inv(samples=50)
    same = unit()
    parts = [program(same, M).inv(samples=50) for M in STACK.reshape(-1, 6, 6)]
    assert np.array_equal(whole.value.reshape(-1, 6, 6), [part.value for part in parts])
    assert np.array_equal(whole.standard_error.reshape(-1, 6, 6), [p.standard_error for p in parts])
    assert whole.runs == sum(part.runs for part in parts)
    assert whole.hardware_seconds == pytest.approx(sum(part.hardware_seconds for part in parts))
    assert pickle.loads(pickle.dumps(whole)).standard_error.shape == STACK.shape


def test_draws_of_each():
    draws = program(unit(), STACK).sample(2000).value
    assert draws.shape == (2, 3, 2000, 6)
    covariance = np.einsum("abki,abkj->abij", draws, draws) / 2000
    assert np.abs(covariance - np.linalg.inv(STACK)).max() < 0.2


def test_what_is_not_definite_is_mended_in_each():
    result = inv(unit(), STACK, samples=4)
    assert result.indefinite
    nearest = result.nearest_definite()
    assert not nearest.indefinite
    assert np.linalg.eigvalsh(nearest.value).min() > 0.0


def test_bounds_of_each():
    bounds = np.linalg.eigvalsh(STACK)[..., 0] * 0.9
    made = program(unit(), STACK, lambda_min=bounds)
    assert isinstance(made, Stack)
    assert "Stack of 6" in repr(made)
    with pytest.raises(ValueError, match=r"lambda_min has shape \(4,\); legal .* to \(2, 3\)"):
        program(unit(), STACK, lambda_min=np.ones(4))


def test_errors_say_of_which():
    bad = STACK.copy()
    bad[1, 2, 0, 0] = -1.0
    with pytest.raises(NotPositiveDefinite, match="M\\[0, 0\\] = -1") as caught:
        inv(unit(), bad)
    assert caught.value.__notes__ == ["It is M[1, 2] of a stack (2, 3)."]
    for shape in ((4, 6, 1), (2, 3, 5, 1), (7,)):
        with pytest.raises(ValueError, match="B has shape"):
            solve(unit(), STACK, np.ones(shape))
    with pytest.raises(ValueError, match=r"M has shape \(0, 6, 6\)"):
        program(unit(), np.ones((0, 6, 6)))
