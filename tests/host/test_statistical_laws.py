"""The closed forms of the statistical engine against the sums that they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from thermokron.host.engines.conversion import Conversion
from thermokron.host.engines.laws import Law, convolved, correlated, geometric
from thermokron.model import ArrayPhysics, UnitSpec
from thermokron.model.converters import AnalogToDigital
from thermokron.model.device import Device

RATES = [1e-9, 0.003, 0.2, 0.2, 1.5, 40.0]


@pytest.mark.parametrize("count", [1, 2, 7, 300])
def test_series(count):
    a, b = torch.tensor([0.0, 1e-9, 0.3, 0.3, 50.0]), torch.tensor([0.2, 2e-9, 0.3, 0.0, 900.0])
    a, b = a.double(), b.double()
    i = torch.arange(count).double()[:, None]
    expected = torch.exp(-a * i).sum(0)
    torch.testing.assert_close(geometric(a, count), expected, rtol=1e-12, atol=0.0)
    expected = (torch.exp(-b * i) * torch.exp(-a * (count - 1 - i))).sum(0)
    torch.testing.assert_close(convolved(a, b, count), expected, rtol=1e-12, atol=1e-300)
    j = i[:, None]
    expected = (torch.exp(-a * (i - j).abs()) * torch.exp(-b * (i + j))).sum((0, 1))
    # differences of sums of `count`: an accuracy of 10^-16 over the rate's share in a step
    torch.testing.assert_close(correlated(a, b, count), expected, rtol=1e-6, atol=0.0)


class Brute:
    """The covariances of a law, sample by sample."""

    def __init__(self, law: Law) -> None:
        times = law.settle + law.interval * np.arange(law.samples)
        rates = law.rates.numpy()
        k, m, i, j = rates[:, None, None, None], rates[:, None, None], times[:, None], times
        first = np.minimum(i, j)
        later = np.where(i >= j, k, m) * np.abs(i - j)
        # Cov(z_k(i), z_l(j)) over C_kl, (n, n, N, N)
        self.all = (1.0 - np.exp(-(k + m) * first)) * np.exp(-later)
        self.mean = 1.0 - np.exp(-rates[:, None] * times)
        self.own = np.einsum("kkij->kij", self.all)


@pytest.mark.parametrize("samples", [2, 25])
@pytest.mark.parametrize("settle", [0.05, 3.0, 1e4])
def test_moments_of_sums(samples, settle):
    rates = torch.tensor(RATES[1:], dtype=torch.float64)
    law = Law(rates, settle, 0.7, samples)
    brute = Brute(law)
    np.testing.assert_allclose(law.mean(), brute.mean.sum(1), rtol=1e-10)
    np.testing.assert_allclose(law.energy(pairs=True), np.einsum("klii->kl", brute.all), rtol=1e-9)
    np.testing.assert_allclose(law.covariance(pairs=True), brute.all.sum((2, 3)), rtol=1e-8)
    for method in (law.energy, law.covariance):
        np.testing.assert_allclose(method(pairs=False), np.diag(method(pairs=True)), rtol=1e-9)
    ends = torch.arange(1.0, 6.0).double()
    means = ends.numpy()[:, None] * brute.mean
    centred = means - means.mean(1, keepdims=True)
    np.testing.assert_allclose(law.transient(ends), centred @ centred.T, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("settle", "tolerance"), [(0.05, 0.12), (3.0, 0.03), (1e4, 0.004)])
def test_variance_of_products(settle, tolerance):
    """About the mean of 400 samples, of which the law forgets how it correlates with the rest."""
    law = Law(torch.tensor([0.2, 0.5, 1.5, 40.0]).double(), settle, 0.7, 400)
    own = Brute(law).own
    centring = np.eye(400) - 1 / 400
    own = centring @ own @ centring
    exact = np.einsum("kij,lij->kl", own, own)
    np.testing.assert_allclose(law.scatter(), exact, rtol=tolerance)


def test_independent_samples_are_a_sample_of_size_n_less_one():
    law = Law(torch.tensor([1.0, 2.0]).double(), 1e3, 1e3, 50)
    np.testing.assert_allclose(law.scatter(), 49.0, rtol=1e-12)
    np.testing.assert_allclose(law.covariance(pairs=False), 50.0, rtol=1e-12)


FLAWS = {
    "ideal": ArrayPhysics(),
    "flawed": ArrayPhysics(
        adc_gain_error=0.05, adc_offset=0.02, adc_noise=0.01, adc_inl_lsb=0.8, device_seed=3
    ),
}


@pytest.mark.parametrize("flaws", FLAWS)
@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.35, 0.9, 1.1, 3.0])
def test_codes_of_a_normal_voltage(flaws, sigma):
    """Against two million conversions, at quantiles of the normal law; `sigma` in ADC steps."""
    spec, physics = UnitSpec(cells=6, adc_bits=5), FLAWS[flaws]
    static = Device.draw(physics, 6)
    spread = (sigma * spec.adc_step) ** 2
    centre = np.array([-1.1, -0.93, -0.3, 0.012, 0.41, 0.99])
    conversion = Conversion(spec, physics, static, centre[None], np.full(6, spread))
    x = norm.ppf((np.arange(2000) + 0.5) / 2000)[:, None, None] * np.ones((1, 1000, 6))
    noise = norm.ppf((np.arange(1000) + 0.5) / 1000)[None, :, None] * np.ones((2000, 1, 6))
    voltages = centre + np.sqrt(spread) * x
    codes = voltages * 2.0 ** (spec.adc_bits - 1)
    AnalogToDigital(spec, physics, static).convert(codes, noise.copy())
    codes = codes.reshape(-1, 6)
    voltages = voltages.reshape(-1, 6)
    # INL is taken for its tangent, which by the rails is off
    use = slice(None) if flaws == "ideal" else slice(2, 5)
    mean, variance = codes.mean(0)[use], codes.var(0)[use]
    rails = ((codes == spec.adc_min) | (codes == spec.adc_max)).mean(0)
    slope = conversion.slope[0, use]
    np.testing.assert_allclose(conversion.mean[0, use], mean, atol=0.002)
    np.testing.assert_allclose(conversion.clipped[0, use], rails[use], atol=0.002)
    np.testing.assert_allclose(
        conversion.error[0, use] + slope**2 * spread, variance, atol=0.003, rtol=0.004
    )
    if sigma:
        both = ((codes - codes.mean(0)) * (voltages - centre)).mean(0)[use]
        np.testing.assert_allclose(slope * spread, both, rtol=0.01, atol=1e-4)
