"""Defaults that need no tuning: damping relative to the curvature, and a KL clip that adapts."""

from __future__ import annotations

import math

import pytest
import torch
from kfac_cases import DTYPE, dense_block, stepped
from torch import nn

from thermokron.host.kfac import KFAC, LevenbergMarquardt, Relative, TrustRegion
from thermokron.host.kfac.curvature.layers import KroneckerLayer
from thermokron.host.kfac.solve.step_control import shortening


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(DTYPE)


def data(seed: int = 1, rows: int = 24):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 4, generator=draw, dtype=DTYPE)
    return x, torch.randint(3, (rows,), generator=draw)


def loop(model, kfac, optimizer, seeds) -> list[float]:
    """Steps on batches; the trust region's κ after each."""
    found = []
    for seed in seeds:
        x, y = data(seed)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        kfac.step()
        optimizer.step()
        found.append(kfac.training.trust.value)
    return found


# ---- damping -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "conv2d groups", "embedding", "layer norm"])
def test_relative_damping_is_a_part_of_each_layers_mean_curvature(name) -> None:
    _, kfac, plain = stepped(name, damping=Relative(0.3), damping_mode="exact")
    for layer, v in plain.items():
        mean = layer.mean_curvature()
        if not isinstance(layer, KroneckerLayer):
            expected = v / (layer.curvature.value + 0.3 * layer.curvature.value.mean())
            torch.testing.assert_close(layer.gradient(), expected)
            continue
        block = dense_block(layer)
        assert block.diagonal().mean().item() == pytest.approx(mean)
        damped = block + 0.3 * mean * torch.eye(v.numel(), dtype=DTYPE)
        expected = torch.linalg.solve(damped, v.reshape(-1))
        torch.testing.assert_close(layer.gradient().reshape(-1), expected)
    assert "Relative(part=0.3)" in repr(kfac)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_relative_damping_does_not_mind_the_units_of_inputs(scale) -> None:
    """A network whose first weights are divided by what its inputs are multiplied with."""
    updates = []
    for factor in (1.0, scale):
        torch.manual_seed(0)
        model = nn.Linear(4, 3, bias=False).to(DTYPE)
        x, y = data()
        with torch.no_grad():
            model.weight /= factor
        kfac = KFAC(model, lr=0.1, kl_clip=None)
        nn.functional.cross_entropy(model(factor * x), y).backward()
        kfac.step()
        updates.append(factor * model.weight.grad)
    torch.testing.assert_close(*updates)
    assert kfac.metrics.kappa < 1e2


def test_a_layer_without_curvature_keeps_a_damping() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).to(DTYPE)
    with torch.no_grad():
        model[0].bias.fill_(-1e3)  # dead
    kfac = KFAC(model, lr=0.1)
    x, y = data()
    nn.functional.cross_entropy(model(x), y).backward()
    kfac.step()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert not model[0].weight.grad.any()


# ---- the trust region ----------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "up"), [(1e-3, None), (0.1, True), (1e3, False)])
def test_kappa_follows_the_slope_along_the_last_step(rate, up) -> None:
    """Of (w - 1)²/2 from w = 0: too short a step, one that κ holds back, and one past the end."""
    model = nn.Linear(1, 1, bias=False).to(DTYPE)
    nn.init.zeros_(model.weight)
    big = 1e3 if up is False else 1e-3
    trust = TrustRegion(big, factor=0.5, maximum=1e4)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    kfac = KFAC(model, lr=optimizer, kl_clip=trust, damping=1e-9 if up is False else 1.0)
    one = torch.ones(8, 1, dtype=DTYPE)
    for _ in range(2):
        optimizer.zero_grad()
        (0.5 * (model(one) - 1.0).square().mean()).backward()
        kfac.step()
        optimizer.step()
    factor = {None: 1.0, True: 2.0, False: 0.5}[up]
    assert trust.value == pytest.approx(big * factor)


def test_momentum_counts_and_is_read_at_every_step() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    kfac = KFAC(model, lr=optimizer)
    rates = kfac.hyperparameters.rates
    assert rates(0, kfac.layers, in_the_end=True) == pytest.approx([1.0, 1.0])
    assert rates(0, kfac.layers) == pytest.approx([0.1, 0.1])
    optimizer.param_groups[0]["momentum"] = 0.5
    assert rates(0, kfac.layers, in_the_end=True) == pytest.approx([0.2, 0.2])
    optimizer.param_groups[0]["dampening"] = 0.5
    assert rates(0, kfac.layers, in_the_end=True) == pytest.approx([0.1, 0.1])
    unknown = KFAC(network(), lr=0.1)
    assert unknown.hyperparameters.rates(0, unknown.layers, in_the_end=True)[0] == pytest.approx(1)


def test_a_number_as_kl_clip_is_what_it_was() -> None:
    """It bounds η² vᵀg with the rate as it stands, and does not adapt."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    kfac = KFAC(model, lr=optimizer, damping=0.01, kl_clip=1e-6)
    x, y = data()
    nn.functional.cross_entropy(model(x), y).backward()
    gradients = [layer.gradient().clone() for layer in kfac.layers]
    nu = kfac.step().nu
    updates = [layer.gradient() / nu for layer in kfac.layers]
    expected = shortening(
        gradients, updates, rates=[0.1, 0.1], kl_clip=1e-6, norm_constraint=None, damping=0.01
    )
    assert nu == pytest.approx(expected)
    assert kfac.training.trust is None


def test_separate_kl_rates_leave_the_norm_constraint_alone() -> None:
    v = torch.tensor([3.0, 4.0])
    options = {"rates": [0.1], "kl_rates": [1.0]}
    assert shortening([v], [v], kl_clip=None, norm_constraint=0.05, **options) == pytest.approx(0.1)
    nu = shortening([v], [v], kl_clip=0.25, norm_constraint=None, **options)
    assert nu == pytest.approx(0.1)


def test_a_run_resumes_exactly(tmp_path) -> None:
    def fresh(seed):
        model = network(seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return model, KFAC(model, lr=optimizer), optimizer

    whole, first, second = fresh(0), fresh(0), fresh(5)
    expected = loop(*whole, range(8))
    loop(*first, range(4))
    torch.save([part.state_dict() for part in first], tmp_path / "state.pt")
    for part, state in zip(
        second, torch.load(tmp_path / "state.pt", weights_only=True), strict=True
    ):
        part.load_state_dict(state)
    assert loop(*second, range(4, 8)) == expected[4:]
    assert len(set(expected)) > 2
    for p, q in zip(whole[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(p, q)
    wrong = first[1].state_dict()
    wrong["trust"] = wrong["trust"] | {"value": 0.0}
    with pytest.raises(ValueError, match=r"kl_clip = 0.0 in the state; legal: above 0"):
        second[1].load_state_dict(wrong)


def test_a_failed_step_leaves_the_trust_region_as_it_was() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    kfac = KFAC(model, lr=optimizer)
    loop(model, kfac, optimizer, range(3))
    before = kfac.training.trust.state_dict()
    x, y = data()
    nn.functional.cross_entropy(model(x), y).backward()
    kfac.hyperparameters.given["norm_constraint"] = lambda step: -1.0
    with pytest.raises(ValueError, match="norm_constraint = -1"):
        kfac.step()
    after = kfac.training.trust.state_dict()
    assert after["value"] == before["value"]
    for name, parameters in before["before"].items():
        for key, was in parameters.items():
            assert torch.equal(after["before"][name][key], was)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: TrustRegion(0.0), ValueError, "initial = 0"),
        (lambda: TrustRegion(factor=1.0), ValueError, "factor = 1"),
        (lambda: TrustRegion(least=-1.0), ValueError, "least = -1"),
        (lambda: KFAC(network(), lr=0.1, damping=Relative(-1.0)), ValueError, "damping = -1.0"),
        (lambda: KFAC(network(), lr=0.1, kl_clip="wide"), TypeError, "kl_clip = 'wide'"),
        (
            lambda: KFAC(
                network(), lr="auto", criterion=nn.CrossEntropyLoss(), damping=Relative(1.0)
            ),
            ValueError,
            r"damping = Relative\(part=1.0\) has no λ .*legal with lr = 'auto'",
        ),
    ],
)
def test_wrong_options_are_named(make, error, text) -> None:
    with pytest.raises(error, match=text):
        make()


def test_defaults_are_what_the_documents_say() -> None:
    kfac = KFAC(network(), lr=0.1)
    assert kfac.hyperparameters.given["damping"] == 1.0
    assert kfac._solver.relative
    assert kfac.training.trust.value == 0.03
    automatic = KFAC(network(), lr="auto", criterion=nn.CrossEntropyLoss())
    assert isinstance(automatic.training.marquardt, LevenbergMarquardt)
    assert automatic.training.trust is None
    assert math.isclose(automatic.training.marquardt.value, 0.01)


def test_a_layer_of_hardly_any_curvature_is_damped_as_the_network_is() -> None:
    """Behind a scale of 1e-6 a step over its own curvature would be a million times too long."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.outer(x + 1e-6 * self.inner(x))

    torch.manual_seed(0)
    model = Scaled().to(DTYPE)
    kfac = KFAC(model, lr=0.1)
    x, y = data()
    nn.functional.cross_entropy(model(x), y).backward()
    assert kfac.step().nu > 0.01
    means = [layer.mean_curvature() for layer in kfac.layers]
    network = sum(m * n for m, n in zip(means, (20, 15), strict=True)) / 35
    assert means[0] < 1e-6 * network
    expected = {"inner": 0.01 * network, "outer": means[1]}
    assert {layer.name: v for layer, v in kfac._solver.each.items()} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"kl_clip": "adaptiv"}, "kl_clip = 'adaptiv' .* or more, None, 'adaptive', TrustRegion"),
        ({"damping": "big"}, r"damping = 'big' .* or more, Relative\(\.\.\.\), LevenbergMarquardt"),
    ],
)
def test_what_is_no_number_is_told_what_else_there_is(options, text) -> None:
    with pytest.raises(TypeError, match=text):
        KFAC(torch.nn.Linear(3, 2), lr=0.1, **options)
