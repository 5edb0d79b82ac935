"""Damping: its formulas, and how Levenberg and Marquardt adapt it."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from kfac_cases import CASES, DTYPE, Flow, damped_factors, dense_block, stepped
from torch import nn

from thermokron.host.kfac import KFAC, LevenbergMarquardt, exact
from thermokron.host.kfac.curvature.layers import KroneckerLayer
from thermokron.host.kfac.solve.damping import Trial
from thermokron.host.kfac.solve.methods import prepare
from thermokron.host.kfac.solve.prepared import Cost


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


def test_exact_damping_takes_eigenvalues_below_zero_for_zero() -> None:
    """Rounding may leave some there, and one of -λ would have no inverse."""
    kfac = KFAC(nn.Linear(2, 1, bias=False).to(DTYPE), lr=0.1, damping_mode="exact")
    (layer,) = kfac.layers
    layer.input_factor.update(torch.diag(torch.tensor([1.0, -0.03], dtype=DTYPE)), 0.0)
    layer.output_factor.update(torch.ones(1, 1, dtype=DTYPE), 0.0)
    block = prepare([layer], 0.03, method="eigen", inverse=exact, cost=Cost())[layer]
    update = block.apply(torch.ones(1, 2, dtype=DTYPE), exact, Cost())
    torch.testing.assert_close(update, torch.tensor([[1 / 1.03, 1 / 0.03]], dtype=DTYPE))
    assert block.kappa == pytest.approx(1.03 / 0.03)


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
        for matrix, _ in damped_factors(layer, 0.05)
    )
    size = max(m.shape[-1] for layer in kfac.layers for m, _ in damped_factors(layer, 0.05))
    assert worst <= kfac.metrics.kappa <= math.sqrt(size) * worst * 1.5


def test_the_model_foretells_a_quadratic_loss_but_for_the_damping() -> None:
    """One linear layer and squared error: the loss changes by M(δ) - ½λ‖δ‖², and λ falls."""
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


def test_a_step_that_another_has_followed_is_no_longer_judged() -> None:
    model, x = CASES["linear"].build(16)
    criterion, y = nn.MSELoss(), torch.zeros(16, 3, dtype=DTYPE)
    kfac = KFAC(model, lr=0.5, damping=LevenbergMarquardt(0.1, interval=3), criterion=criterion)
    calls = []

    def closure() -> torch.Tensor:
        calls.append(kfac.steps)
        return criterion(model(x), y)

    for adapts in (False, True, True, True):  # it is the turn of the first step, and the last
        criterion(model(x), y).backward()
        kfac.step()
        if adapts:
            kfac.adapt(closure)
    assert calls == [4, 4]


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
    assert calls == [0, 0, 5, 5, 10, 10]
    assert damping.value > 1e-3


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_without_damping_a_quadratic_loss_is_foretold_exactly(dropout) -> None:
    """A linear network and squared error, whatever moves the parameters: ρ = 1. With dropout, as
    both passes draw the same mask."""
    torch.manual_seed(0)
    model = Flow(drop=nn.Dropout(dropout), a=nn.Linear(5, 3)).to(DTYPE)
    x, y = torch.randn(16, 5, dtype=DTYPE), torch.randn(16, 3, dtype=DTYPE)
    criterion = nn.MSELoss()
    kfac = KFAC(
        model, lr=0.3, damping=LevenbergMarquardt(1e-12, minimum=1e-12), criterion=criterion
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
    criterion(model(x), y).backward()
    kfac.step()
    optimizer.step()
    assert kfac.adapt(lambda: criterion(model(x), y)) == pytest.approx(1.0, abs=1e-9)


def whole_curvature(model, criterion, x, y) -> torch.Tensor:
    """The generalised Gauss-Newton matrix of all parameters, by brute force."""
    outputs = model(x)
    hessian = torch.autograd.functional.hessian(lambda f: criterion(f, y), outputs.detach())
    hessian = hessian.reshape(outputs.numel(), -1)
    rows = [
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(v, all_of(model), retain_graph=True,
                                                              materialize_grads=True)])
        for v in outputs.reshape(-1)
    ]  # fmt: skip
    jacobian = torch.stack(rows)
    return jacobian.T @ hessian @ jacobian


def all_of(model: nn.Module) -> list[torch.Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize(
    "name",
    [
        "mlp",
        "positions, a loss term each",
        "conv2d groups",
        "embedding",
        "layer norm",
        "group norm",
        "batch norm 2d",
        "attention, extra keys",
        "transformer",
    ],
)
@pytest.mark.parametrize("loss", ["squared error", "cross entropy", "binary"])
def test_what_is_foretold_is_the_exact_quadratic_model(name, loss) -> None:
    """∇Lᵀδ + ½ δᵀ(C + λI)δ for a random δ, all parameters and their interactions included."""
    model, x = CASES[name].build(4)
    outputs = model(x).detach()
    criterion, y = {
        "cross entropy": (nn.CrossEntropyLoss(), torch.softmax(outputs.flip(0), 1)),
        "squared error": (nn.MSELoss(), outputs.flip(0)),
        "binary": (nn.BCEWithLogitsLoss(), (outputs.flip(0) > 0).to(DTYPE)),
    }[loss]
    curvature = whole_curvature(model, criterion, x, y)
    value = criterion(model(x), y)
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, all_of(model))])
    trial = Trial(model, criterion)
    trial.begin()
    delta = []
    with torch.no_grad():
        for p in all_of(model):
            delta.append(0.1 * torch.randn_like(p).reshape(-1))
            p += delta[-1].reshape(p.shape)
    delta = torch.cat(delta)
    change, predicted = trial.end(lambda: criterion(model(x), y), damping=0.3)
    expected = gradient @ delta + 0.5 * (delta @ curvature @ delta + 0.3 * delta @ delta)
    assert predicted == pytest.approx(expected.item())
    assert change == pytest.approx(criterion(model(x), y).item() - value.item())


def test_accumulated_batches_and_penalties_are_foretold() -> None:
    """Several calls of the criterion with weights of their own, and a term without it."""
    model, x = CASES["mlp"].build(6)
    criterion, y = nn.MSELoss(), torch.zeros(6, 3, dtype=DTYPE)

    def in_parts() -> torch.Tensor:
        return 0.5 * criterion(model(x[:3]), y[:3]) + 0.5 * criterion(
            input=model(x[3:]), target=y[3:]
        )

    def penalised() -> torch.Tensor:
        return criterion(model(x), y) + model.a.weight.square().sum()

    found = []
    for closure in (lambda: criterion(model(x), y), in_parts, penalised):
        trial = Trial(model, criterion)
        trial.begin()
        before = model.a.weight.detach().clone()
        with torch.no_grad():
            model.a.weight *= 1.01
        found.append(trial.end(closure, damping=0.0))
        slope = (2 * before * (model.a.weight - before)).sum().item()
        with torch.no_grad():
            model.a.weight.copy_(before)
    assert found[1] == pytest.approx(found[0])
    assert found[2][1] == pytest.approx(found[0][1] + slope)


@pytest.mark.parametrize("fisher", ["empirical", "ggn"])
def test_adaptation_leaves_model_generators_and_curvature_alone(fisher) -> None:
    model = Flow(
        conv=nn.Conv2d(1, 3, 3),
        norm=nn.BatchNorm2d(3),
        act=nn.ReLU(inplace=True),
        drop=nn.Dropout(0.5),
        flat=nn.Flatten(),
        head=nn.Linear(12, 2),
    )
    criterion, damping = nn.CrossEntropyLoss(), LevenbergMarquardt(0.1)
    kfac = KFAC(model, lr=0.1, damping=damping, criterion=criterion, fisher=fisher)
    x, y = torch.randn(8, 1, 4, 4), torch.arange(8) % 2
    criterion(model(x), y).backward()
    kfac.step()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    before = copy.deepcopy(model.state_dict())
    gradients = [p.grad.clone() for p in model.parameters()]
    generator = torch.get_rng_state()
    assert kfac.adapt(lambda: criterion(model(x.clone().requires_grad_()), y)) is not None
    assert torch.equal(torch.get_rng_state(), generator)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        assert isinstance(p, nn.Parameter)
        assert torch.equal(p.grad, gradient)
    assert not any(layer.update_factors(0.5) for layer in kfac.layers)


def test_adaptation_says_what_it_lacks() -> None:
    model, x = CASES["mlp"].build()
    fixed = KFAC(model, lr=0.1, damping=0.1)
    with pytest.raises(RuntimeError, match="needs damping=LevenbergMarquardt"):
        fixed.adapt(lambda: torch.tensor(0.0))
    fixed.close()
    with pytest.raises(ValueError, match="needs criterion, the loss module that is called"):
        KFAC(model, lr=0.1, damping=LevenbergMarquardt(0.1))
    criterion = nn.MSELoss()
    kfac = KFAC(model, lr=0.1, damping=LevenbergMarquardt(0.1), criterion=criterion)
    assert "damping=LevenbergMarquardt(0.1, interval=5" in repr(kfac)
    criterion(model(x), torch.zeros(3, 3, dtype=DTYPE)).backward()
    kfac.step()
    with pytest.raises(RuntimeError, match="did not call criterion on the model's output"):
        kfac.adapt(lambda: model(x).square().mean())
    assert kfac.adapt(lambda: model(x).square().mean()) is None  # there is no step left to judge


def test_a_loss_that_is_linear_in_the_outputs_has_no_curvature() -> None:
    model, x = CASES["linear"].build()
    criterion, y = nn.L1Loss(), torch.full((3, 3), 100.0, dtype=DTYPE)
    trial = Trial(model, criterion)
    trial.begin()
    with torch.no_grad():
        model.a.bias += 0.5
    change, predicted = trial.end(lambda: criterion(model(x), y), damping=0.0)
    assert change == pytest.approx(-0.5)
    assert predicted == pytest.approx(-0.5)
