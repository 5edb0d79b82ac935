"""Working precision from an analog start: refinement to a residual, and SciPy's operators."""

import numpy as np
import pytest
from scipy.sparse import coo_matrix, csr_array
from scipy.sparse.linalg import LinearOperator, aslinearoperator, cg, gcrotmk

from thermokron.host.linalg import NotConverged, inv, program, solve
from thermokron.model import NumericUnit, UnitSpec


def spd(n, kappa, seed=0):
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    return (q * np.geomspace(1.0, 1.0 / kappa, n)) @ q.T


def unit(cells=32, seed=0, **fields):
    return NumericUnit(UnitSpec(cells=cells, **fields), seed=seed)


def residual(M, x, b):
    return np.linalg.norm(b - M @ x, axis=0) / np.linalg.norm(b, axis=0)


@pytest.mark.parametrize(
    ("bits", "kappa", "passes"), [(12, 100, 15), (8, 100, 18), (6, 100, 35), (4, 10, 35)]
)
@pytest.mark.parametrize("n", [32, 48])
def test_a_residual_is_reached(bits, kappa, passes, n):
    """One reading a pass; 32 rows are a matrix on the array, 48 one in blocks."""
    M, b = spd(n, kappa), np.random.default_rng(1).standard_normal((n, 3))
    on_array = program(unit(coupling_bits=bits), M, tolerance=0.03)
    result = on_array.solve(b, rtol=1e-10)
    assert residual(M, result.value, b).max() <= 1e-10
    assert result.residual == pytest.approx(residual(M, result.value, b).max(), rel=1e-2)
    assert np.abs(result.value - np.linalg.solve(M, b)).max() < 1e-7
    if n == 32:
        assert result.runs - result.reruns <= passes


def test_the_residual_is_that_of_the_users_units():
    """Rows of very different size, which the array has scaled."""
    size = np.geomspace(1e-6, 1e6, 32)
    M = spd(32, 10) * size * size[:, None]
    b = np.random.default_rng(1).standard_normal(32) * size**2
    result = solve(unit(), M, b, rtol=1e-9)
    assert residual(M, result.value, b) <= 1e-9


def test_it_costs_a_product_a_pass():
    M, b = spd(32, 30), np.random.default_rng(1).standard_normal((32, 1))
    on_array = program(unit(), M)
    once, more = (on_array.solve(b, refine=passes).digital_flops for passes in (1, 2))
    assert 2 * 32**2 < more - once < 3 * 32**2


def test_it_says_what_it_did_not_reach():
    M, b = spd(32, 1e5), np.random.default_rng(1).standard_normal(32)
    with pytest.warns(NotConverged, match=r"rtol = 1e-10 was not reached: a residual of 0\.\d+ "):
        result = solve(unit(coupling_bits=4), M, b, rtol=1e-10)
    assert 1e-10 < result.residual < 1.0
    with pytest.warns(NotConverged, match="after [3-9] runs"):
        solve(unit(), spd(32, 100), b, rtol=1e-10, refine=2)


@pytest.mark.parametrize("rtol", [0.0, -1.0, 1e-16, 1.5, float("nan"), "small"])
def test_a_residual_that_cannot_be_asked_for(rtol):
    with pytest.raises((ValueError, TypeError), match="rtol"):
        solve(unit(cells=4), np.eye(4), np.ones(4), rtol=rtol)


# ---- SciPy -------------------------------------------------------------------------------------


def test_it_preconditions_scipys_solvers():
    M, b = spd(32, 100), np.random.default_rng(1).standard_normal(32)
    operator = program(unit(), M).linear_operator(settle=1e-3)
    for method, fewer in ((cg, 1.5), (gcrotmk, 2.0)):
        products = []

        def counted(x, products=products):
            products.append(1)
            return M @ x

        counts = []
        for preconditioner in (None, operator):
            products.clear()
            x, info = method(LinearOperator(M.shape, counted), b, rtol=1e-8, M=preconditioner)
            assert info == 0
            counts.append(len(products))
        assert counts[0] > fewer * counts[1]
        assert residual(M, x, b) < 1e-7


@pytest.mark.parametrize("given", [csr_array, coo_matrix, aslinearoperator])
def test_scipys_matrices_are_taken(given):
    M = spd(8, 10)
    assert np.array_equal(inv(unit(8), given(M)).value, inv(unit(8), M).value)


# ---- inverses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "bits", "samples", "steps"), [(32, 8, 1000, 7), (32, 3, 1000, 14), (32, 8, 8, 20)]
)
def test_newton_and_schulz_need_few_steps_from_here(n, bits, samples, steps):
    """The last is singular: no more samples than rows, made definite first. None diverges."""
    M = spd(n, 30) * np.geomspace(0.1, 10.0, n) * np.geomspace(0.1, 10.0, n)[:, None]
    rough = inv(unit(coupling_bits=bits), M, samples=samples)
    found, exact = rough.newton_schulz(), np.linalg.inv(M)
    assert found.residual <= 1e-12
    scale = np.sqrt(M.diagonal())
    assert np.abs((found.value - exact) * scale * scale[:, None]).max() < 1e-10
    assert (found.standard_error < 1e-6 * np.abs(exact).max()).all()
    spent = found.digital_flops - rough.digital_flops
    assert 4 * n**3 < spent < 4 * n**3 * steps + 16 * n**3
    stack = inv(unit(), np.stack([M, M])).newton_schulz()
    assert np.allclose(stack.value, exact, rtol=1e-8, atol=1e-12 * np.abs(exact).max())


@pytest.mark.filterwarnings("ignore::thermokron.host.linalg.NotConverged")
@pytest.mark.parametrize("bits", [3, 4, 6])
def test_what_rounding_did_is_never_made_worse(bits):
    """At 3 bits its first order is larger than the inverse itself, and left out."""
    for seed in range(4):
        M = spd(16, 10, seed)
        plain, corrected = (
            inv(unit(16, coupling_bits=bits), M, samples=30_000, correct=correct).value
            for correct in (None, "rounding")
        )
        exact = np.linalg.inv(M)
        assert np.linalg.norm(corrected - exact) <= np.linalg.norm(plain - exact)
    if bits == 3:
        with pytest.warns(NotConverged, match=r"correct = 'rounding' is left out: rounding moves"):
            inv(unit(16, coupling_bits=bits), M, correct="rounding")


def test_newton_and_schulz_say_what_they_cannot():
    M = spd(8, 10)
    with pytest.raises(ValueError, match="this result is no inverse"):
        solve(unit(8), M, np.ones(8)).newton_schulz()
    with pytest.raises(ValueError, match="rtol = 0"):
        inv(unit(8), M).newton_schulz(0.0)
    with pytest.warns(NotConverged, match="rtol = 1e-15 was not reached: a residual of"):
        inv(unit(), spd(32, 1e4)).newton_schulz(1e-15)
