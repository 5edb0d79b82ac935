"""K-FAC in the loops that people have: scalers, half precision, compilers, clipping, penalties."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from thermokron.host.kfac import KFAC, LevenbergMarquardt

X, Y = torch.linspace(-1, 1, 64).reshape(16, 4).sin(), torch.arange(16) // 6
CURVATURES = ["empirical", "mc", "ggn"]


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3))


class Loop:
    """A network, its optimiser with momentum, its schedule and K-FAC."""

    def __init__(self, model: nn.Module | None = None, rate: float = 0.1, **options) -> None:
        self.model = network() if model is None else model
        self.criterion = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=rate, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 20)
        options = {"lr": self.optimizer, "criterion": self.criterion, "damping": 0.1} | options
        self.kfac = KFAC(self.model, **options)

    def step(self, net: Callable[[torch.Tensor], torch.Tensor] | None = None) -> float:
        self.optimizer.zero_grad()
        loss = self.criterion((net or self.model)(X), Y)
        loss.backward()
        self.kfac.step()
        self.optimizer.step()
        self.scheduler.step()
        return loss.item()

    def parameters(self) -> list[torch.Tensor]:
        return [p.detach().clone() for p in self.model.parameters()]

    def averages(self) -> list[torch.Tensor]:
        return [f.value.clone() for layer in self.kfac.layers for f in layer.factors.values()]


def assert_same(found: Loop, expected: Loop, **tolerance) -> None:
    for of in (Loop.parameters, Loop.averages):
        for a, b in zip(of(found), of(expected), strict=True):
            torch.testing.assert_close(a, b, **tolerance)


# ---- gradient scaler -----------------------------------------------------------------------------


@pytest.mark.parametrize("fisher", CURVATURES)
def test_a_step_that_a_scaler_skips_is_no_step(fisher) -> None:
    """The third of five overflows: the others are those of a run that knows nothing of it."""
    plain = Loop(fisher=fisher)
    for _ in range(4):
        plain.step()
    loop = Loop(fisher=fisher)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
    skipped = []
    for step in range(5):
        drawn = loop.kfac.training.generator.get_state()
        loop.optimizer.zero_grad()
        loss = loop.criterion(loop.model(X), Y)
        scaled = scaler.scale(loss)
        (scaled * 1e38 if step == 2 else scaled).backward()
        scaler.unscale_(loop.optimizer)
        before = loop.averages() if step else []
        try:
            loop.kfac.step()
        except FloatingPointError:
            skipped.append(step)
            loop.kfac.training.generator.set_state(drawn)  # what was drawn for it is spent
            assert all(map(torch.equal, loop.averages(), before))
        parameters, scale = loop.parameters(), scaler.get_scale()
        scaler.step(loop.optimizer)
        scaler.update()
        if step == 2:
            assert all(map(torch.equal, loop.parameters(), parameters))
            assert scaler.get_scale() < scale
        else:
            loop.scheduler.step()
    assert skipped == [2]
    assert loop.kfac.steps == 4
    assert_same(loop, plain)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_scaler_finds_its_scale_and_training_goes_on(autocast) -> None:
    """As in the page on loops, from a scale that is far too large."""
    loop = Loop(kl_clip=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126, growth_interval=4)
    losses = []
    for _ in range(30):
        loop.optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = loop.criterion(loop.model(X), Y)
        scaler.scale(16.0 * loss).backward()
        scaler.unscale_(loop.optimizer)
        for p in loop.model.parameters():
            p.grad /= 16.0
        with suppress(FloatingPointError):
            loop.kfac.step()
        scaler.step(loop.optimizer)
        scaler.update()
        losses.append(loss.item())
    assert 10 < loop.kfac.steps < 30
    assert losses[-1] < 0.8 * losses[0]
    assert all(f.dtype == torch.float32 for x in loop.kfac.layers for f in x.factors.values())


# ---- half precision without autocasting ----------------------------------------------------------


@pytest.mark.parametrize("fisher", CURVATURES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_in_half_precision_trains(dtype, fisher) -> None:
    loop = Loop(network().to(dtype), fisher=fisher, kl_clip=1e-2)
    losses = []
    for _ in range(25):
        loop.optimizer.zero_grad()
        loss = loop.criterion(loop.model(X.to(dtype)), Y)
        loss.backward()
        loop.kfac.step()
        loop.optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(m.dtype == torch.float32 for m in loop.averages())
    assert all(p.grad.dtype == dtype for p in loop.model.parameters())
    exact = Loop(network().to(dtype).float(), fisher=fisher, kl_clip=None)
    half = Loop(network().to(dtype), fisher=fisher, kl_clip=None)
    exact.criterion(exact.model(X.to(dtype).float()), Y).backward()
    half.criterion(half.model(X.to(dtype)), Y).backward()
    for each in (exact, half):
        each.kfac.step()
    for a, b in zip(half.model.parameters(), exact.model.parameters(), strict=True):
        assert (a.grad - b.grad).norm() < 0.1 * b.grad.norm()


# ---- torch.compile -------------------------------------------------------------------------------


def wide() -> nn.Sequential:
    """With what is fused and what is watched in other ways than linear layers are."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (2, 2)),
        nn.Linear(2, 4),
        nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0),
        nn.Flatten(),
        nn.Linear(8, 8),
        nn.GELU(),
        nn.LayerNorm(8),
        nn.Linear(8, 3),
    )


@pytest.mark.parametrize(
    ("backend", "when", "fisher"),
    [
        ("eager", "before", "empirical"),
        ("eager", "after", "ggn"),
        ("aot_eager", "before", "ggn"),
        ("aot_eager", "after", "empirical"),
        ("aot_eager", "after", "mc"),
        ("aot_eager", "before, given", "mc"),
    ],
)
def test_compiled_networks_take_the_same_steps_and_are_compiled_once(backend, when, fisher) -> None:
    """Damping and rate follow schedules, which a compiler must not take for constants."""
    options = {"fisher": fisher, "damping": lambda step: 0.3 / (1 + step)}
    plain = Loop(wide(), **options)
    torch.compiler.reset()
    counters = torch._dynamo.utils.counters
    model = wide()
    compiled = torch.compile(model, backend=backend)
    loop = Loop(compiled if when == "before, given" else model, **options)
    net = torch.compile(model, backend=backend) if when == "after" else compiled
    counters.clear()
    seen = []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step in range(20):
            assert loop.step(net) == pytest.approx(plain.step(), rel=1e-4)
            if step in (1, 19):
                seen.append((counters["stats"]["unique_graphs"], dict(counters["graph_break"])))
    assert seen[0] == seen[1]
    assert seen[0][0] > 0
    assert not counters["recompiles"]
    assert not [w for w in told if "dynamo" in str(w.message).lower()]
    assert_same(loop, plain, rtol=1e-3, atol=1e-4)
    loop.kfac.close()
    torch.compiler.reset()


@pytest.mark.parametrize("fisher", ["empirical", "ggn"])
def test_what_was_compiled_and_run_before_says_so(fisher) -> None:
    """Compiled code takes no notice of hooks that come later."""
    torch.compiler.reset()
    model, criterion = network(), nn.CrossEntropyLoss()
    compiled = torch.compile(model, backend="aot_eager")
    criterion(compiled(X), Y).backward()
    kfac = KFAC(model, lr=0.1, criterion=criterion, fisher=fisher)
    model.zero_grad()
    criterion(compiled(X), Y).backward()
    with pytest.raises(RuntimeError, match=r"torch\.compiler\.reset\(\)"):
        kfac.step()
    torch.compiler.reset()
    model.zero_grad()
    criterion(compiled(X), Y).backward()
    assert kfac.step().nu <= 1.0
    torch.compiler.reset()


@pytest.mark.parametrize("fisher", ["mc", "ggn"])
def test_parts_that_were_compiled_for_one_backward_pass_are_refused(fisher) -> None:
    """Their buffers may be written over in the first of several."""
    torch.compiler.reset()

    def act(x: torch.Tensor) -> torch.Tensor:
        return torch.layer_norm(x.sin().exp(), (8,))

    compiled = torch.compile(act, backend="aot_eager")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(compiled(self.a(x)))

    compiled(torch.zeros(16, 8, requires_grad=True)).sum().backward()
    model, criterion = Net(), nn.CrossEntropyLoss()
    kfac = KFAC(model, lr=0.1, criterion=criterion, fisher=fisher)
    criterion(model(X), Y).backward()
    with pytest.raises(RuntimeError, match="compiled before KFAC was made; legal: "):
        kfac.step()
    torch.compiler.reset()
    model.zero_grad()
    criterion(model(X), Y).backward()
    kfac.step()
    torch.compiler.reset()


def test_a_forward_pass_that_fails_leaves_the_compiler_as_it_was() -> None:
    import torch._functorch.config as config

    before = config.donated_buffer
    model, criterion = network(), nn.CrossEntropyLoss()
    KFAC(model, lr=0.1, criterion=criterion, fisher="ggn")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.zeros(2, 5))
    assert config.donated_buffer == before


# ---- clipping, accumulation, groups --------------------------------------------------------------


def test_clipping_after_the_step_is_clipping_of_the_step() -> None:
    loop, plain = Loop(kl_clip=None), Loop(kl_clip=None)
    for each in (loop, plain):
        each.criterion(each.model(X), Y).backward()
        each.kfac.step()
    gradients = [p.grad for p in plain.model.parameters()]
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    assert norm > 0.1
    found = torch.nn.utils.clip_grad_norm_(loop.model.parameters(), 0.1)
    assert float(found) == pytest.approx(norm)
    for p, g in zip(loop.model.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, g * 0.1 / norm, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("fisher", CURVATURES)
def test_clipping_before_the_step_shortens_it_and_leaves_curvature_alone(fisher) -> None:
    loop, plain = (Loop(fisher=fisher, kl_clip=None) for _ in range(2))
    for each in (loop, plain):
        each.criterion(each.model(X), Y).backward()
    norm = torch.nn.utils.clip_grad_norm_(loop.model.parameters(), 0.01)
    for each in (loop, plain):
        each.kfac.step()
    assert_same(loop, plain)
    for p, q in zip(loop.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad * 0.01 / norm, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("fisher", ["empirical", "ggn"])
def test_accumulated_batches_are_one_batch(fisher, scaled) -> None:
    """Of unequal sizes, each loss weighted by its part, under a scaler too."""
    whole, loop = Loop(fisher=fisher), Loop(fisher=fisher)
    scale = 512.0 if scaled else 1.0
    for _ in range(3):
        whole.step()
        loop.optimizer.zero_grad()
        for rows in (slice(0, 3), slice(3, 10), slice(10, 16)):
            part = len(X[rows]) / len(X)
            (loop.criterion(loop.model(X[rows]), Y[rows]) * part * scale).backward()
        for p in loop.model.parameters():
            p.grad /= scale
        loop.kfac.step()
        loop.optimizer.step()
        loop.scheduler.step()
    assert_same(loop, whole, rtol=1e-3, atol=1e-5)


def test_parameter_groups_that_are_added_later_have_their_own_rates() -> None:
    """As when a head is trained first: the KL clip knows no more than what moves."""
    model = network()
    head, body = model[3], model[0]
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    kfac = KFAC(model, lr=optimizer, kl_clip=1e-6, damping=0.1)

    def nu() -> float:
        model.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        kfac.step()
        rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
        updates = [(p, rates.get(id(p), 0.0)) for p in model.parameters()]
        plain = torch.autograd.grad(nn.functional.cross_entropy(model(X), Y), model.parameters())
        change = sum(
            rate**2 * float((p.grad * g).sum()) for (p, rate), g in zip(updates, plain, strict=True)
        )
        # ν is in the update already, once
        return change * kfac.metrics.nu

    assert nu() == pytest.approx(1e-6, rel=1e-3)
    optimizer.add_param_group({"params": body.parameters(), "lr": 3.0})
    assert nu() == pytest.approx(1e-6, rel=1e-3)
    optimizer.param_groups[1]["lr"] = 0.0
    assert nu() == pytest.approx(1e-6, rel=1e-3)


# ---- checkpointing -------------------------------------------------------------------------------


@pytest.mark.parametrize("fisher", CURVATURES)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_networks(reentrant, fisher) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.parts[0](x)
            return self.parts[3](checkpoint(self.parts[1:3], x, use_reentrant=reentrant))

    loop, plain = Loop(Net(), fisher=fisher), Loop(fisher=fisher)
    if reentrant and fisher != "empirical":
        with pytest.raises(RuntimeError, match=r"use_reentrant=True\); legal: use_reentrant=False"):
            loop.step()
        return
    for _ in range(3):
        loop.step()
        plain.step()
    assert_same(loop, plain)


# ---- the ends of scales --------------------------------------------------------------------------


@pytest.mark.parametrize("damping_mode", ["factored", "exact"])
@pytest.mark.parametrize("method", ["inverse", "solve"])
def test_double_precision_with_a_damping_of_1e_16(method, damping_mode) -> None:
    """A linear model in one step: the whole damping is not more than rounding leaves of it."""
    if damping_mode == "exact" and method == "solve":
        return
    torch.manual_seed(0)
    model, criterion = nn.Linear(4, 2).double(), nn.MSELoss(reduction="sum")
    x = torch.randn(64, 4, dtype=torch.float64)
    y = x @ torch.randn(4, 2, dtype=torch.float64) + 0.5
    options = {"method": method, "damping_mode": damping_mode}
    kfac = KFAC(
        model, lr=1.0, damping=1e-16, kl_clip=None, criterion=criterion, fisher="ggn", **options
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0 / len(x))
    criterion(model(x), y).backward()
    metrics = kfac.step()
    optimizer.step()
    assert metrics.repairs == 0
    assert all(m.dtype == torch.float64 for f in kfac.layers for m in [f.input_factor.value])
    assert float(criterion(model(x), y)) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dampings_down_to_the_least_that_is_legal(dtype) -> None:
    with pytest.raises(ValueError, match="damping = 1e-17 is out of range; legal: 1e-16 or more"):
        Loop(damping=1e-17)
    for damping in (1e-16, 1e-12):
        loop = Loop(network().to(dtype), damping=damping)
        loop.criterion(loop.model(X.to(dtype)), Y).backward()
        loop.kfac.step()
        assert all(torch.isfinite(p.grad).all() for p in loop.model.parameters())


@pytest.mark.parametrize("fisher", CURVATURES)
@pytest.mark.parametrize("method", ["inverse", "solve"])
@pytest.mark.parametrize("damping_mode", ["factored", "exact"])
def test_factors_of_one_row(damping_mode, method, fisher) -> None:
    """v/(a g + λ) by hand, or what factored damping makes of it."""
    if damping_mode == "exact" and method == "solve":
        return
    torch.manual_seed(0)
    model, criterion = nn.Linear(1, 1, bias=False), nn.MSELoss()
    x, y = torch.randn(12, 1), torch.randn(12, 1)
    kfac = KFAC(
        model,
        lr=0.1,
        damping=0.01,
        kl_clip=None,
        criterion=criterion,
        fisher=fisher,
        method=method,
        damping_mode=damping_mode,
    )
    criterion(model(x), y).backward()
    plain = model.weight.grad.item()
    kfac.step()
    a = float(x.square().mean())
    g = float(kfac.layers[0].output_factor.value)
    if fisher == "ggn":
        assert g == pytest.approx(2.0)
    if damping_mode == "exact":
        expected = plain / (a * g + 0.01)
    else:
        pi = math.sqrt(a / g)
        expected = plain / ((a + pi * 0.1) * (g + 0.1 / pi))
    assert model.weight.grad.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("fisher", CURVATURES)
def test_batches_without_rows(fisher) -> None:
    """A mean over nothing is NaN, which the step refuses; a sum is nothing, and says so."""
    loop = Loop(fisher=fisher)
    loop.step()
    before = loop.averages()
    loop.optimizer.zero_grad()
    loop.criterion(loop.model(X[:0]), Y[:0]).backward()
    with suppress(FloatingPointError):
        loop.kfac.step()
    assert all(map(torch.equal, loop.averages(), before))
    model, criterion = network(), nn.CrossEntropyLoss(reduction="sum")
    kfac = KFAC(model, lr=0.1, criterion=criterion, fisher=fisher)
    criterion(model(X), Y).backward()
    criterion(model(X[:0]), Y[:0]).backward()
    plain = copy.deepcopy(network())
    other = nn.CrossEntropyLoss(reduction="sum")
    reference = KFAC(plain, lr=0.1, criterion=other, fisher=fisher)
    other(plain(X), Y).backward()
    kfac.step()
    reference.step()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


# ---- losses with derivatives of outputs ----------------------------------------------------------


class Field(nn.Module):
    """u(x), smooth."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(1, 16), nn.Linear(16, 16), nn.Linear(16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))


def residual(field: nn.Module, points: torch.Tensor) -> torch.Tensor:
    """u' + u, which is zero for exp(-x)."""
    x = points.detach().requires_grad_()
    u = field(x)
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    return slope + u


@pytest.mark.parametrize("fisher", CURVATURES)
def test_losses_with_derivatives_of_outputs_are_trained(fisher) -> None:
    """The residual of a differential equation, and a value at the boundary; one loss for both."""
    field, criterion = Field(), nn.MSELoss()
    optimizer = torch.optim.SGD(field.parameters(), lr=0.1, momentum=0.9)
    kfac = KFAC(field, lr=optimizer, damping=0.01, criterion=criterion, fisher=fisher, kl_clip=1e-3)
    points, zero = torch.linspace(0, 1, 32)[:, None], torch.zeros(1, 1)
    losses = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(120):
            optimizer.zero_grad()
            outputs = torch.cat([residual(field, points), field(zero)])
            loss = criterion(outputs, torch.cat([torch.zeros(32, 1), torch.ones(1, 1)]))
            loss.backward()
            plain = [p.grad.clone() for p in field.parameters()]
            kfac.step()
            descent = sum(
                (g * p.grad).sum() for g, p in zip(plain, field.parameters(), strict=True)
            )
            assert descent > 0.0
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert kfac.metrics.loss == pytest.approx(losses[-1])


def test_the_gradient_of_such_a_loss_is_left_alone() -> None:
    """K-FAC's own passes are no part of it: with heavy damping the step points along it."""
    for fisher in CURVATURES:
        field, criterion = Field(), nn.MSELoss()
        points, target = torch.linspace(0, 1, 32)[:, None], torch.zeros(32, 1)
        criterion(residual(field, points), target).backward()
        plain = torch.cat([p.grad.flatten() for p in field.parameters()])
        field.zero_grad()
        options = {"criterion": criterion, "fisher": fisher, "damping_mode": "exact"}
        kfac = KFAC(field, lr=0.1, damping=1e6, kl_clip=None, **options)
        criterion(residual(field, points), target).backward()
        kfac.step()
        found = torch.cat([p.grad.flatten() for p in field.parameters()])
        assert torch.allclose(found * 1e6, plain, rtol=1e-3, atol=1e-5 * plain.norm().item())


def test_damping_that_adapts_foretells_such_a_loss() -> None:
    """A small step of a smooth loss: the model is right to first order."""
    field, criterion = Field(), nn.MSELoss()
    optimizer = torch.optim.SGD(field.parameters(), lr=0.01)
    kfac = KFAC(
        field, lr=optimizer, damping=LevenbergMarquardt(1e-3, interval=1), criterion=criterion
    )
    points, target = torch.linspace(0, 1, 32)[:, None], torch.zeros(32, 1)
    criterion(residual(field, points), target).backward()
    kfac.step()
    optimizer.step()
    ratio = kfac.adapt(lambda: criterion(residual(field, points), target))
    assert ratio == pytest.approx(1.0, abs=0.05)
