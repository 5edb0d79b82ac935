"""How far a step goes, what it reports, and that steps train."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from kfac_cases import CASES, DTYPE, cases, losses_of, stepped
from torch import nn

from thermokron.host.kfac import KFAC, Thermodynamic, diagonal, exact
from thermokron.host.kfac.solve.step_control import shortening
from thermokron.model import NumericUnit, UnitSpec

F = torch.nn.functional


# ---- step control --------------------------------------------------------------------------------


def test_norm_constraint_bounds_the_step() -> None:
    _, free, _ = stepped(lr=0.5)
    length = math.sqrt(sum(layer.gradient().square().sum() for layer in free.layers))
    model, kfac, _ = stepped(lr=0.5, norm_constraint=0.1)
    assert kfac.metrics.nu == pytest.approx(0.1 / (0.5 * length))
    norm = torch.cat([p.grad.reshape(-1) for p in model.parameters()]).norm()
    assert 0.5 * norm == pytest.approx(0.1)
    _, loose, _ = stepped(lr=0.5, norm_constraint=10 * length)
    assert loose.metrics.nu == 1.0
    _, both, _ = stepped(lr=0.5, norm_constraint=0.1, kl_clip=1e-9)
    assert both.metrics.nu < kfac.metrics.nu


def test_the_kl_clip_takes_the_size_of_the_sum() -> None:
    """A solution that is sampled may point uphill as a whole: such a step is clipped alike."""
    v = torch.tensor([[3.0, -4.0]])
    options = {"rates": [0.1, 0.1], "kl_clip": 1e-4, "norm_constraint": None}
    expected = math.sqrt(1e-4 / (0.1**2 * 25.0))
    assert shortening([v], [v], **{**options, "rates": [0.1]}) == pytest.approx(expected)
    assert shortening([v], [-v], **{**options, "rates": [0.1]}) == pytest.approx(expected)
    assert shortening([v, v], [v, -v], **options) == 1.0  # the size of the sum, not a sum of sizes


def test_clips_may_be_switched_off_by_a_schedule() -> None:
    _, kfac, _ = stepped(kl_clip=lambda step: None, norm_constraint=lambda step: 1e-6)
    assert kfac.metrics.nu < 1e-3


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"fisher": "true"}, ValueError, "fisher = 'true' is unknown; legal"),
        ({"sharing": "sum"}, ValueError, "sharing = 'sum' is unknown"),
        ({"damping_mode": "both"}, ValueError, "damping_mode = 'both' is unknown"),
        ({"method": "qr"}, ValueError, "method = 'qr' is unknown"),
        ({"norm_constraint": 0.0}, ValueError, "norm_constraint = 0.0 is out of range"),
        ({"refresh_threshold": -1.0}, ValueError, "refresh_threshold = -1.0 is out of range"),
        ({"mc_samples": 0}, ValueError, "mc_samples = 0 is out of range"),
        ({"seed": -1}, ValueError, "seed = -1 is out of range"),
        ({"damping_mode": "exact", "inverse": diagonal}, ValueError, "only the host makes"),
        ({"damping_mode": "exact", "method": "solve"}, ValueError, "needs damping_mode"),
        ({"method": "solve", "inverse": diagonal}, ValueError, "which only inverts"),
    ],
)
def test_wrong_choices_are_named(changed, error, message) -> None:
    with pytest.raises(error, match=message):
        KFAC(nn.Linear(2, 2), **({"lr": 0.1, "damping": 0.01} | changed))


def test_exact_damping_needs_the_host() -> None:
    with pytest.raises(ValueError, match="damping_mode = 'exact' needs eigendecompositions"):
        KFAC(nn.Linear(2, 2), NumericUnit(UnitSpec()), lr=1, damping=1, damping_mode="exact")


# ---- metrics -------------------------------------------------------------------------------------


def test_metrics_are_numbers_for_any_logger() -> None:
    model, x = CASES["mlp"].build()
    criterion = nn.MSELoss()
    kfac = KFAC(model, NumericUnit(UnitSpec()), lr=0.1, damping=0.05, criterion=criterion)
    loss = criterion(model(x), torch.zeros(3, 3, dtype=DTYPE))
    loss.backward()
    logged = kfac.step().as_dict()
    assert kfac.metrics.as_dict() == logged
    assert all(type(value) is float for value in logged.values())
    assert logged["loss"] == loss.item()
    assert logged["damping"] == 0.05
    assert logged["hardware_seconds"] > 0.0
    assert {"nu", "kappa", "clipped_samples", "runs"} <= set(logged)
    assert "loss_reduction" not in logged


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fisher": "ggn"},
        {"fisher": "mc"},
        {"fisher": "ggn", "damping_mode": "exact"},
        {"fisher": "ggn", "sharing": "reduce", "method": "solve"},
        {"inverse": Thermodynamic(NumericUnit(UnitSpec(), seed=0), samples=500)},
        {"inverse": exact, "inverse_interval": 3, "factor_interval": 2},
    ],
    # not `str`: an address in a name differs between the processes of a test run
    ids=["default", "ggn", "mc", "ggn exact", "ggn reduce solve", "unit", "intervals"],
)
def test_it_trains(options) -> None:
    """Far below plain gradient descent at its best learning rate of a few, in 30 steps."""
    criterion = nn.MSELoss()
    model, _ = CASES["mlp"].build()
    kfac = KFAC(model, lr=0.3, damping=0.01, kl_clip=1e-2, criterion=criterion, **options)
    losses = losses_of(model, kfac, 30, lr=0.3, criterion=criterion)
    best = math.inf
    for lr in (0.1, 0.3, 1.0, 3.0):
        plain, _ = CASES["mlp"].build()
        best = min(best, losses_of(plain, None, 30, lr=lr)[-1])
    assert losses[-1] < 0.9 * best
    assert losses[-1] <= losses[5]


@pytest.mark.parametrize("name", cases())
def test_no_case_is_broken_by_ggn_on_the_host(name) -> None:
    """Every network takes a step that lowers its loss."""
    model, x = CASES[name].build(8)
    y = torch.ones_like(model(x)).detach()
    criterion = nn.MSELoss()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kfac = KFAC(model, lr=0.05, damping=0.1, criterion=criterion, fisher="ggn")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        losses.append(loss.item())
        loss.backward()
        kfac.step()
        optimizer.step()
    assert losses[2] < losses[1] < losses[0]


# ---- steps that are refused ----------------------------------------------------------------------


def test_a_refused_step_changes_no_layer() -> None:
    """Whichever layer held the NaN: those before it have not moved, and go on as if without."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.norm(self.a(x)), self.b(z)])

    torch.manual_seed(0)
    model, x = Branches().to(DTYPE), torch.randn(8, 4, dtype=DTYPE)
    poor = x.clone()
    poor[2, 1] = math.inf
    kfac = KFAC(model, lr=0.1, damping=0.1)
    model(x, x).square().mean().backward()
    kfac.step()
    state = copy.deepcopy(kfac.state_dict())
    for _ in range(2):
        model.zero_grad()
        model(3.0 * x, poor).square().mean().backward()
        plain = [p.grad.clone() for p in model.parameters()]
        with pytest.raises(FloatingPointError, match="activations of layer 'b' hold NaN or inf"):
            kfac.step()
        for p, gradient in zip(model.parameters(), plain, strict=True):
            torch.testing.assert_close(p.grad, gradient, rtol=0, atol=0, equal_nan=True)
        now = kfac.state_dict()
        assert now["steps"] == state["steps"] == 1
        assert now["current"] == state["current"]
        for name, layer in state["layers"].items():
            for factor, was in layer.items():
                assert torch.equal(now["layers"][name][factor]["moment"], was["moment"]), name
                assert now["layers"][name][factor]["weight"] == was["weight"]
    model.zero_grad()
    model(3.0 * x, x).square().mean().backward()
    assert kfac.step().inversions == 4  # as all have moved


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("interval", [1, 2])
def test_a_gradient_that_is_not_finite_is_refused(value, interval) -> None:
    """Also where only the gradient shows it, as after an overflow between backward and step."""
    model, x = CASES["mlp"].build()
    kfac = KFAC(model, lr=0.1, factor_interval=interval)
    model(x).square().mean().backward()
    kfac.step()
    before = {layer: layer.input_factor.value for layer in kfac.layers}
    model.zero_grad()
    model(2.0 * x).square().mean().backward()
    model.b.weight.grad[0, 0] = value
    plain = [p.grad.clone() for p in model.parameters()]
    with pytest.raises(FloatingPointError, match="the gradient of layer 'b' holds NaN or inf"):
        kfac.step()
    for p, gradient in zip(model.parameters(), plain, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=0, atol=0, equal_nan=True)
    assert kfac.steps == 1
    for layer, moment in before.items():
        assert torch.equal(layer.input_factor.value, moment)
    model.b.weight.grad[0, 0] = 0.0
    kfac.step()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


# ---- beside optimisers, schedulers and copies ----------------------------------------------------


def test_the_rate_may_be_read_from_the_optimiser() -> None:
    """Whatever a scheduler makes of it, and after the optimiser's state was loaded."""
    model, x = CASES["mlp"].build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    kfac = KFAC(model, lr=optimizer, damping=1e3, kl_clip=None, norm_constraint=1e-9, decay=0.0)
    optimizer.load_state_dict(optimizer.state_dict())
    assert "lr=that of SGD" in repr(kfac)
    nus = []
    for _ in range(3):
        model(x).square().mean().backward()
        nus.append(kfac.step().nu)
        model.zero_grad()  # the model stays as it is: only the rate changes
        optimizer.step()
        scheduler.step()
    assert nus[1] == pytest.approx(2 * nus[0])
    assert nus[2] == pytest.approx(4 * nus[0])


@pytest.mark.parametrize(
    "schedule",
    [
        lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10),
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=2),
    ],
    ids=["warm-up", "cosine"],
)
def test_a_schedule_may_begin_or_end_at_zero(schedule) -> None:
    """Where η is 0 no clip shortens the update, and the step is nothing."""
    model, x = CASES["mlp"].build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
    scheduler = schedule(optimizer)
    kfac = KFAC(model, lr=optimizer, kl_clip=1e-9, norm_constraint=1e-9)
    nus = {}
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        rate = optimizer.param_groups[0]["lr"]
        before = model.a.weight.detach().clone()
        nus[rate] = kfac.step().nu
        optimizer.step()
        assert torch.equal(model.a.weight, before) == (rate == 0.0)
        scheduler.step()
    assert nus.pop(0.0) == 1.0
    assert all(nu < 1e-3 for nu in nus.values())


def test_samples_may_follow_a_schedule() -> None:
    model = nn.Linear(3, 2)
    kfac = KFAC(
        model,
        NumericUnit(UnitSpec()),
        lr=0.1,
        method="inverse",
        samples=lambda step: 100 * 10**step,
    )
    seconds = []
    for _ in range(2):
        model(torch.randn(4, 3)).square().mean().backward()
        seconds.append(kfac.step().hardware_seconds)
    assert 5.0 < seconds[1] / seconds[0] < 10.5


def test_a_deep_copy_of_the_model_is_not_watched() -> None:
    """An exponential moving average of the weights, made by copying the model."""
    model, x = CASES["transformer"].build()
    kfac = KFAC(model, NumericUnit(UnitSpec()), lr=0.1, criterion=nn.MSELoss())
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(x), model(x))
    twin(x).square().mean().backward()
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(RuntimeError, match="no layer has seen a backward pass"):
        kfac.step()
    twin.linear1.weight.data.zero_()
    assert model.linear1.weight.abs().max() > 0.0
    model(x).square().mean().backward()
    kfac.step()
