"""The error and settling formulas against brute force and the design's rules of thumb."""

from __future__ import annotations

import numpy as np
import pytest

from thermokron.model import (
    covariance_error,
    covariance_settling,
    mean_error,
    mean_settling,
)

RATES = np.array([0.1, 0.25, 1.0])


@pytest.mark.parametrize("interval", [0.5, 3.0, 20.0])
def test_the_errors_are_sums_of_autocovariances(interval):
    """Var of a mean of N correlated numbers is Σ_ij of their autocovariance over N²."""
    temperature, n = 0.01, 2000
    lags = np.abs(np.subtract.outer(np.arange(n), np.arange(n))) * interval
    s = temperature / RATES

    def brute(variance, rate):
        return variance * np.exp(-rate * lags).sum() / n**2

    mean = sum(brute(s[k], RATES[k]) for k in range(3))
    covariance = sum(
        brute(s[k] * s[m] * (2 if k == m else 1), RATES[k] + RATES[m])
        for k in range(3)
        for m in range(3)
    )
    slack = 1.5 / (n * RATES[0] * interval) + 1e-9
    got = mean_error(RATES, temperature, interval=interval, samples=n)
    assert mean <= got * (1 + 1e-9)
    assert got == pytest.approx(mean, rel=slack)
    got = covariance_error(RATES, temperature, interval=interval, samples=n)
    assert covariance <= got * (1 + 1e-9)
    assert got == pytest.approx(covariance, rel=slack)


def test_rules_of_thumb():
    """At Δ = 2τ/λ samples are as good as independent within 4 %; at τ/2λ watching costs 8 %."""

    def variance(interval, samples=1):
        return covariance_error([1.0], 1.0, interval=interval, samples=samples)

    assert variance(2.0) / 2.0 == pytest.approx(1.037, abs=1e-3)
    continuous = variance(1e-6, 10**6)  # a run of length 1, finely sampled
    assert variance(0.5) * 0.5 / continuous == pytest.approx(1.082, abs=1e-3)


def test_settling():
    assert mean_settling(0.1, 0.01) == pytest.approx(np.log(100) / 0.1)
    assert np.exp(-0.1 * mean_settling(0.1, 0.01)) == pytest.approx(0.01)
    assert np.exp(-2 * 0.1 * covariance_settling(0.1, 0.01)) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.0, 1.0], 1.0, 1.0, 5), "eigenvalues = "),
        (([], 1.0, 1.0, 5), "eigenvalues = "),
        (([1.0], -1.0, 1.0, 5), "temperature = -1"),
        (([1.0], 1.0, 0.0, 5), "interval = 0"),
        (([1.0], 1.0, float("nan"), 5), "interval = nan"),
        (([1.0], 1.0, 1.0, 0), "samples = 0"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(arguments, message):
    rates, temperature, interval, samples = arguments
    for formula in (mean_error, covariance_error):
        with pytest.raises(ValueError, match=message):
            formula(rates, temperature, interval=interval, samples=samples)


@pytest.mark.parametrize("settling", [mean_settling, covariance_settling])
def test_settling_refuses_by_name(settling):
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="rate = "):
            settling(rate, 0.1)
    for bias in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="bias = "):
            settling(1.0, bias)
