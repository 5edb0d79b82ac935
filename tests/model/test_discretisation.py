"""Van Loan's method against quadrature, Lyapunov's equation and the array's closed form."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg

from thermokron.model import ArrayPhysics, NoiseArray, UnitSpec, van_loan


def random_drift(n: int, seed: int, *, symmetric: bool) -> np.ndarray:
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((n, n))
    stable = a @ a.T / n + 0.05 * np.eye(n)
    return -stable if symmetric else -stable + (a - a.T)


def random_diffusion(n: int, seed: int) -> np.ndarray:
    b = np.random.default_rng(seed).standard_normal((n, n))
    return b @ b.T


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dt", [1e-3, 0.4, 7.0])
def test_van_loan_is_the_integral(symmetric, dt):
    f, d = random_drift(5, 1, symmetric=symmetric), random_diffusion(5, 2)
    transition, covariance = van_loan(f, d, dt)
    integral, _ = scipy.integrate.quad_vec(
        lambda s: scipy.linalg.expm(f * s) @ d @ scipy.linalg.expm(f * s).T, 0, dt, epsrel=1e-12
    )
    np.testing.assert_allclose(transition, scipy.linalg.expm(f * dt), rtol=0, atol=1e-12)
    np.testing.assert_allclose(covariance, integral, rtol=0, atol=1e-10 * np.abs(integral).max())


@pytest.mark.parametrize("dt", [1e3, 1e6])
def test_a_long_step_ends_at_lyapunovs_solution(dt):
    f, d = random_drift(6, 3, symmetric=False), random_diffusion(6, 4)
    transition, covariance = van_loan(f, d, dt)
    stationary = scipy.linalg.solve_continuous_lyapunov(f, -d)
    assert np.abs(transition).max() < 1e-15
    np.testing.assert_allclose(
        covariance, stationary, rtol=0, atol=1e-10 * np.abs(stationary).max()
    )


def test_no_time_and_no_drift():
    d = random_diffusion(3, 5)
    transition, covariance = van_loan(random_drift(3, 6, symmetric=True), d, 0.0)
    np.testing.assert_array_equal(transition, np.eye(3))
    np.testing.assert_array_equal(covariance, np.zeros((3, 3)))
    transition, covariance = van_loan(np.zeros((3, 3)), d, 9.0)
    np.testing.assert_allclose(covariance, 9.0 * d)


@pytest.mark.parametrize(
    ("drift", "diffusion", "dt", "message"),
    [
        (np.eye(2), np.eye(3), 1.0, r"drift of shape \(2, 2\) and diffusion of shape \(3, 3\)"),
        (np.ones(2), np.ones(2), 1.0, "must be"),
        (np.eye(2) * np.nan, np.eye(2), 1.0, "must be finite"),
        (np.eye(2), np.eye(2), -1.0, "dt = -1"),
        (np.eye(2), np.eye(2), 1e4, "outgrows float64"),
    ],
)
def test_what_it_cannot_do_is_refused(drift, diffusion, dt, message):
    with pytest.raises(ValueError, match=message):
        van_loan(drift, diffusion, dt)


@pytest.mark.parametrize("condition", [3, 100])
@pytest.mark.parametrize("mismatch", [None, 0.5])
@pytest.mark.parametrize("taus", [0.01, 1.0, 300.0])
def test_the_arrays_closed_form_is_van_loans_integral(spd_codes, condition, mismatch, taus):
    spec = UnitSpec(cells=9, coupling_bits=14)
    physics = ArrayPhysics(noise_mismatch=mismatch, coupling_mismatch=0.001)
    array = NoiseArray(spec, physics, spd_codes(spec, condition), 700)
    transition, covariance = van_loan(-array.matrix, 2 * np.diag(array.temperatures), taus)

    q = array.eigenvectors
    np.testing.assert_allclose(
        (q * np.exp(-array.eigenvalues * taus)) @ q.T,
        transition,
        rtol=0,
        atol=1e-10 * np.abs(transition).max(),
    )
    scale = np.abs(covariance).max()
    closed = q @ array.mode_covariance(taus) @ q.T
    np.testing.assert_allclose(closed, covariance, rtol=0, atol=1e-10 * scale)
    factor = array.noise_factor(taus)
    factor = np.diag(factor) if factor.ndim == 1 else factor
    np.testing.assert_allclose(q @ factor @ factor.T @ q.T, covariance, rtol=0, atol=1e-10 * scale)
