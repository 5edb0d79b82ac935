"""From curvature to a step: damping, methods, refreshing, step control, metrics."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from kfac_cases import CASES, DTYPE, Flow, cases, dense_block
from torch import nn

from thermokron.host.kfac import KFAC, LevenbergMarquardt, Thermodynamic, diagonal, exact
from thermokron.host.kfac.layers import KroneckerLayer
from thermokron.model import NumericUnit, UnitSpec

F = nn.functional


def stepped(name: str = "mlp", *, seed: int = 0, **options):
    """Model, KFAC and plain gradients by layer after one step on a case."""
    model, x = CASES[name].build(8, seed)
    unit = options.pop("unit", None)
    kfac = KFAC(model, unit, **({"lr": 0.1, "damping": 0.05, "kl_clip": None} | options))
    y = torch.ones_like(model(x)).detach()
    F.mse_loss(model(x), y).backward()
    plain = {layer: layer.gradient().clone() for layer in kfac.layers}
    kfac.step()
    kfac.close()
    return model, kfac, plain


def train(model, kfac, steps: int, *, lr: float = 0.1, criterion=None):
    """Losses of full-batch steps on a fixed regression."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(32, 5, generator=generator, dtype=DTYPE)
    y = torch.sin(x @ torch.randn(5, 3, generator=generator, dtype=DTYPE))
    criterion = criterion or nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        if kfac is not None:
            kfac.step()
        optimizer.step()
        losses.append(loss.item())
    return losses


# ---- damping -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "conv2d groups", "embedding", "transformer"])
def test_exact_damping_is_the_damped_block_inverted(name) -> None:
    _, kfac, plain = stepped(name, damping_mode="exact", damping=0.02)
    for layer, v in plain.items():
        damped = dense_block(layer) + 0.02 * torch.eye(v.numel(), dtype=DTYPE)
        expected = torch.linalg.solve(damped, v.reshape(-1))
        torch.testing.assert_close(layer.gradient().reshape(-1), expected)
        if isinstance(layer, KroneckerLayer):
            eigenvalues = torch.linalg.eigvalsh(damped)
            assert kfac.metrics.kappa >= (eigenvalues[-1] / eigenvalues[0]) * (1 - 1e-9)


@pytest.mark.parametrize("name", ["mlp", "conv2d groups", "embedding"])
def test_factored_damping_is_its_formula(name) -> None:
    _, _, plain = stepped(name, damping=0.02)
    for layer, v in plain.items():
        a, g = layer.input_factor.value, layer.output_factor.value
        a = torch.diag(a) if layer.input_factor.diagonal else a
        blocks = layer.blocks or 1
        for i in range(blocks):
            a_i, g_i, v_i = (t[i] if layer.blocks else t for t in (a, g, v))
            pi = math.sqrt(a_i.diagonal().mean() / g_i.diagonal().mean())
            a_i = a_i + pi * math.sqrt(0.02) * torch.eye(len(a_i))
            g_i = g_i + math.sqrt(0.02) / pi * torch.eye(len(g_i))
            expected = torch.linalg.solve(g_i, torch.linalg.solve(a_i, v_i.mT).mT)
            found = layer.gradient()
            torch.testing.assert_close(found[i] if layer.blocks else found, expected)


def test_norms_divide_by_their_damped_curvature() -> None:
    _, kfac, plain = stepped("layer norm", damping=0.02)
    norm = kfac.layers[0]
    expected = plain[norm] / (norm.curvature.value + 0.02)
    torch.testing.assert_close(norm.gradient(), expected)


def test_kappa_bounds_the_condition_number_of_the_worst_factor() -> None:
    _, kfac, _ = stepped("conv2d groups")
    worst = max(
        torch.linalg.cond(matrix).max().item()
        for layer in kfac.layers
        for matrix, _ in layer.damped_factors(0.05)
    )
    size = max(m.shape[-1] for layer in kfac.layers for m, _ in layer.damped_factors(0.05))
    assert worst <= kfac.metrics.kappa <= math.sqrt(size) * worst * 1.5


def test_the_model_foretells_a_quadratic_loss_but_for_the_damping() -> None:
    """One linear layer and squared error: the block is the Hessian, so that the loss changes by
    M(δ) - ½λ‖δ‖², and λ falls."""
    model, x = CASES["linear"].build(16)
    y = torch.randn(16, 3, dtype=DTYPE)
    criterion = nn.MSELoss()
    damping = LevenbergMarquardt(0.1)
    kfac = KFAC(model, lr=0.5, damping=damping, criterion=criterion, fisher="ggn", kl_clip=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    loss = criterion(model(x), y)
    loss.backward()
    assert kfac.step().loss == pytest.approx(loss.item())
    optimizer.step()
    ratio = kfac.adapt(lambda: criterion(model(x), y))
    change = criterion(model(x), y).item() - loss.item()
    moved = sum(
        ((p - old) ** 2).sum().item() for p, old in zip(model.parameters(), before, strict=True)
    )
    assert ratio == pytest.approx(change / (change + 0.5 * 0.1 * moved))
    assert ratio > 0.75
    assert damping.value == pytest.approx(0.1 * 0.95**5)
    assert kfac.metrics.reduction_ratio == ratio
    assert kfac.metrics.loss_reduction == pytest.approx(-change)
    assert kfac.metrics.damping == 0.1


def test_levenberg_marquardt_thresholds_and_bounds() -> None:
    damping = LevenbergMarquardt(1.0, minimum=0.7, maximum=1.2)
    for ratio, expected in [
        (0.5, 1.0),
        (0.25, 1.0),
        (0.75, 1.0),
        (0.76, 0.95**5),
        (0.9, 0.7),
        (0.2, 0.7 / 0.95**5),
        (-3.0, 0.7 / 0.95**10),
        (math.nan, 1.2),
    ]:
        damping.adapt(ratio)
        assert damping.value == pytest.approx(expected), ratio
    with pytest.raises(ValueError, match="initial"):
        LevenbergMarquardt(0.0)
    with pytest.raises(ValueError, match="factor"):
        LevenbergMarquardt(1.0, factor=1.0)


def test_adaptation_asks_for_the_loss_every_fifth_step_and_raises_bad_damping() -> None:
    """With a learning rate far too large every step is too long: λ has to rise."""
    model, _ = CASES["mlp"].build()
    damping = LevenbergMarquardt(1e-3)
    criterion = nn.MSELoss()
    kfac = KFAC(model, lr=8.0, damping=damping, criterion=criterion, fisher="ggn", kl_clip=None)
    calls = []
    x, y = torch.randn(16, 5, dtype=DTYPE), torch.randn(16, 3, dtype=DTYPE)
    optimizer = torch.optim.SGD(model.parameters(), lr=8.0)
    for step in range(11):
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        kfac.step()
        optimizer.step()

        def again(step: int = step) -> torch.Tensor:
            calls.append(step)
            return criterion(model(x), y)

        kfac.adapt(again)
    assert calls == [0, 5, 10]
    assert damping.value > 1e-3


def test_adaptation_says_what_it_lacks() -> None:
    model, x = CASES["mlp"].build()
    fixed = KFAC(model, lr=0.1, damping=0.1)
    with pytest.raises(RuntimeError, match="needs damping=LevenbergMarquardt"):
        fixed.adapt(lambda: torch.tensor(0.0))
    fixed.close()
    kfac = KFAC(model, lr=0.1, damping=LevenbergMarquardt(0.1))
    assert "damping=LevenbergMarquardt(0.1, interval=5" in repr(kfac)
    loss = model(x).square().mean()
    loss.backward()
    kfac.step()
    with pytest.raises(RuntimeError, match="give loss or criterion"):
        kfac.adapt(lambda: model(x).square().mean())
    loss = model(x).square().mean()
    loss.backward()
    kfac.steps = 5
    kfac.step()
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    assert kfac.adapt(lambda: model(x).square().mean(), loss) is not None


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


# ---- refreshing ----------------------------------------------------------------------------------


def test_inverses_are_renewed_early_where_factors_have_moved() -> None:
    """A jump of the inputs' scale at step 3 moves A and G; a layer without data stays."""
    model = Flow(a=nn.Linear(4, 3), b=nn.Linear(3, 2))
    options = {"lr": 0.1, "damping": 0.01, "decay": 0.5, "inverse_interval": 100}
    counts = {}
    for threshold in (None, 0.5, 1e-6):
        kfac = KFAC(model, refresh_threshold=threshold, **options)
        counts[threshold] = []
        for step in range(6):
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(64, 4, generator=generator) * (10.0 if step == 3 else 1.0)
            model(x).square().mean().backward()
            counts[threshold].append(kfac.step().inversions)
            model.zero_grad()
        kfac.close()
    assert counts[None] == [4, 0, 0, 0, 0, 0]
    assert counts[0.5][:3] == [4, 0, 0]
    assert counts[0.5][3] == 4
    assert sum(counts[1e-6]) > sum(counts[0.5])


def test_nothing_is_renewed_that_would_be_the_same_again() -> None:
    """Neither between updates of the factors, nor for a layer that gets no data."""
    model = Flow(a=nn.Linear(4, 3), b=nn.Linear(3, 2))
    kfac = KFAC(model, lr=0.1, factor_interval=3)
    counts = []
    for part in (model, model, model, model, model.a, model.a, model.a):
        model.zero_grad()
        part(torch.randn(8, 4)).square().mean().backward()
        counts.append(kfac.step().inversions)
    assert counts == [4, 0, 0, 4, 0, 0, 2]
    kfac.close()
    kfac = KFAC(model, lr=0.1, factor_interval=3, damping=lambda step: 0.1 + step)
    for _ in range(2):
        model(torch.randn(8, 4)).square().mean().backward()
        assert kfac.step().inversions == 4


# ---- methods -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "conv2d depthwise", "embedding", "transformer"])
def test_solving_is_inverting(name) -> None:
    inverted, _, _ = stepped(name)
    solved, _, _ = stepped(name, method="solve")
    for p, q in zip(inverted.parameters(), solved.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_solving_on_the_unit_takes_the_apply_over() -> None:
    """Means are far more exact than covariances at the same number of samples, and the columns
    of V come as bias vectors: 4 columns of G X = V, 3 of A Y = Xᵀ, in one start each, with a run
    for the scale before, and one for the refinement."""
    spec = UnitSpec()
    reference, _, _ = stepped("linear without bias")
    model, kfac, _ = stepped("linear without bias", method="solve", unit=NumericUnit(spec, seed=1))
    found, truth = (m.a.weight.grad for m in (model, reference))
    inverse, _, _ = stepped("linear without bias", unit=NumericUnit(spec, seed=1))
    error = (found - truth).norm() / truth.norm()
    assert 0.0 < error < 0.02
    assert error < 0.5 * (inverse.a.weight.grad - truth).norm() / truth.norm()
    metrics = kfac.metrics
    assert metrics.inversions == 2
    assert metrics.runs == 6
    assert metrics.hardware_seconds > 0.0
    # solved anew at every step, whatever the interval
    kfac = KFAC(nn.Linear(3, 2), NumericUnit(spec), lr=1, damping=1, method="solve")
    for _ in range(2):
        kfac.layers[0].module(torch.randn(4, 3)).square().mean().backward()
        assert kfac.step().inversions == 2


@pytest.mark.parametrize("name", ["conv2d groups", "embedding", "attention", "layer norm"])
@pytest.mark.parametrize("method", ["inverse", "solve"])
def test_every_kind_of_layer_goes_through_the_unit(name, method) -> None:
    """With 20,000 samples the step is the host's within a few percent."""
    _, exact_kfac, _ = stepped(name, damping=0.3)
    unit = NumericUnit(UnitSpec(coupling_bits=12, adc_bits=12), seed=1)
    _, kfac, _ = stepped(name, damping=0.3, unit=unit, samples=20_000, method=method)
    assert kfac.metrics.inversions == exact_kfac.metrics.inversions
    for layer, other in zip(kfac.layers, exact_kfac.layers, strict=True):
        found, truth = layer.gradient(), other.gradient()
        assert (found - truth).norm() < 0.05 * truth.norm()


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
    losses = train(model, kfac, 30, lr=0.3, criterion=criterion)
    best = math.inf
    for lr in (0.1, 0.3, 1.0, 3.0):
        plain, _ = CASES["mlp"].build()
        best = min(best, train(plain, None, 30, lr=lr)[-1])
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


def test_samples_may_follow_a_schedule() -> None:
    model = nn.Linear(3, 2)
    kfac = KFAC(model, NumericUnit(UnitSpec()), lr=0.1, samples=lambda step: 100 * 10**step)
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


# ---- defaults ------------------------------------------------------------------------------------


NETWORKS = {
    "64-32-10": lambda: nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)),
    "64-256-256-10": lambda: nn.Sequential(
        *(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    ),
    "cnn": lambda: nn.Sequential(
        *(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten()),
        nn.Linear(256, 10),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_defaults_hold(name) -> None:
    """Digits at the optimiser's usual momentum: what was learned by epoch 5 is not lost again."""
    from thermokron.host.train.data import Digits

    data = Digits.load(0)
    torch.manual_seed(0)
    model = NETWORKS[name]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    kfac = KFAC(model, lr=optimizer, inverse_interval=10 if name == "64-256-256-10" else 1)
    losses = []
    for _ in range(12):
        for rows in torch.randperm(len(data.train_images)).split(144):
            optimizer.zero_grad()
            F.cross_entropy(model(data.train_images[rows]), data.train_labels[rows]).backward()
            kfac.step()
            optimizer.step()
        with torch.no_grad():
            losses.append(F.cross_entropy(model(data.train_images), data.train_labels).item())
    assert losses[4] < 0.1
    assert losses[-1] < losses[4]
