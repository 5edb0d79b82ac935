"""Rate and momentum from the exact quadratic model of the batch."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from thermokron.host.kfac import KFAC, LevenbergMarquardt
from thermokron.model import NumericUnit, UnitSpec

DTYPE = torch.float64


def network(seed: int = 0, outputs: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs)).to(DTYPE)


def data(rows: int = 24, seed: int = 1, outputs: int = 3):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 4, generator=draw, dtype=DTYPE)
    return x, torch.randint(outputs, (rows,), generator=draw)


class Loop:
    """Training with rate and momentum chosen, all in one place."""

    def __init__(self, model=None, criterion=None, unit=None, **options) -> None:
        self.model = model or network()
        self.criterion = criterion or nn.CrossEntropyLoss()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0)
        self.kfac = KFAC(self.model, unit, lr="auto", criterion=self.criterion, **options)

    def advance(self, x, y, closure=None):
        self.optimizer.zero_grad()
        self.criterion(self.model(x), y).backward()
        metrics = self.kfac.step() if closure is None else self.kfac.step(closure)
        self.optimizer.step()
        return metrics


def parameters(model) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).clone()


def dense_model(model, criterion, x, y) -> tuple[torch.Tensor, torch.Tensor]:
    """∇L and the generalised Gauss-Newton matrix of a batch, entry by entry."""
    values = [p.detach() for p in model.parameters()]
    names = [name for name, _ in model.named_parameters()]

    def outputs(*values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))

    f = outputs(*values).detach()
    rows = [
        j.reshape(f.numel(), -1) for j in torch.autograd.functional.jacobian(outputs, tuple(values))
    ]
    jacobian = torch.cat(rows, 1)
    gradient = torch.autograd.functional.jacobian(lambda f: criterion(f, y), f).reshape(-1)
    hessian = torch.autograd.functional.hessian(lambda f: criterion(f, y), f)
    hessian = hessian.reshape(f.numel(), f.numel())
    return jacobian.T @ gradient, jacobian.T @ hessian @ jacobian


def boxed(curved: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
    """The minimum of a quadratic model with 0 ≤ α ≤ 1, 0 ≤ μ ≤ 0.95, by projected descent."""
    bounds = torch.tensor([1.0, 0.95], dtype=DTYPE)[: len(slopes)]
    scale = curved.diagonal().rsqrt()  # of coordinates that are alike
    along = torch.zeros_like(slopes)
    system = curved * scale[:, None] * scale
    for _ in range(20_000):
        along = (along - 0.5 * (system @ along + slopes * scale)).clamp(min=0.0)
        along = torch.minimum(along, bounds / scale)
    return along * scale


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), nn.MSELoss()])
def test_the_step_is_the_minimum_over_proposal_and_last_step(criterion) -> None:
    """Against the dense matrix, on batches that differ: δ = αΔ + μδ₀, and what λ makes of ρ."""
    loop = Loop(criterion=criterion, damping=LevenbergMarquardt(0.05, interval=1))
    last = None
    for step in range(4):
        x, y = data(seed=step)
        if isinstance(criterion, nn.MSELoss):
            y = torch.nn.functional.one_hot(y, 3).to(DTYPE)
        before, damping = parameters(loop.model), loop.kfac.training.marquardt.value
        # the same proposal, from an exact copy that has no say in its length
        other = KFAC(
            twin := copy.deepcopy(loop.model),
            lr=1.0,
            criterion=criterion,
            damping=damping,
            kl_clip=None,
        )
        for mine, theirs in zip(other.layers, loop.kfac.layers, strict=True):
            mine.load_state_dict(theirs.state_dict())
        criterion(twin(x), y).backward()
        other.step()
        proposal = -torch.cat([p.grad.reshape(-1) for p in twin.parameters()])
        gradient, curvature = dense_model(loop.model, criterion, x, y)
        metrics = loop.advance(x, y)
        basis = proposal[:, None] if last is None else torch.stack([proposal, last], 1)
        damped = curvature + damping * torch.eye(len(curvature), dtype=DTYPE)
        along = boxed(basis.T @ damped @ basis, basis.T @ gradient)
        delta = parameters(loop.model) - before
        torch.testing.assert_close(delta, basis @ along)
        assert metrics.rate == pytest.approx(float(along[0]))
        assert metrics.momentum == pytest.approx(0.0 if last is None else float(along[1]))
        with torch.no_grad():
            change = criterion(loop.model(x), y) - criterion(twin(x), y)
        foretold = gradient @ delta + 0.5 * delta @ damped @ delta
        assert metrics.reduction_ratio == pytest.approx(float(change / foretold))
        assert metrics.loss_reduction == pytest.approx(-float(change))
        last = delta


def test_one_step_solves_least_squares() -> None:
    """For a linear network the model is the loss, and K-FAC's block exact but for the damping."""
    torch.manual_seed(0)
    x, y = torch.randn(40, 4, dtype=DTYPE), torch.randn(40, 3, dtype=DTYPE)
    loop = Loop(
        model=nn.Linear(4, 3).to(DTYPE), criterion=nn.MSELoss(), damping=1e-10, fisher="ggn"
    )
    metrics = loop.advance(x, y)
    rows = torch.cat([x, torch.ones(40, 1, dtype=DTYPE)], 1)
    residual = y - rows @ torch.linalg.lstsq(rows, y).solution
    with torch.no_grad():
        reached = nn.functional.mse_loss(loop.model(x), y)
    assert reached.item() == pytest.approx(residual.square().mean().item(), rel=1e-6)
    assert metrics.rate == pytest.approx(1.0, rel=1e-3)


# ---- which batch ---------------------------------------------------------------------------------


class Wrapped(nn.Module):
    """Returns its outputs in one way or another."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.net = way, network()

    def forward(self, x):
        f = self.net(x)
        return {"tuple": (x, f), "dict": {"logits": f}, "extra": f[:, None]}.get(self.way, f)


@pytest.mark.parametrize(
    "way", ["itself", "cast", "tuple", "dict", "view", "extra", "keyword", "closure"]
)
def test_the_batch_is_known_whatever_the_model_returns(way) -> None:
    x, y = data()
    reference = Loop(damping=0.1)
    for _ in range(3):
        reference.advance(x, y)
    model, criterion = Wrapped(way), nn.CrossEntropyLoss()
    kfac = KFAC(model, lr="auto", criterion=criterion, damping=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    take = {
        "tuple": lambda f: f[1],
        "dict": lambda f: f["logits"],
        "cast": lambda f: f.to(torch.float32),
        "view": lambda f: f.reshape(2, 12, 3).flatten(0, 1),
        "extra": lambda f: f.squeeze(1),
    }.get(way, lambda f: f)

    def loss():
        if way == "keyword":
            return criterion(input=model(x), target=y)
        return criterion(take(model(x)) * (2.0 - 1.0 if way == "closure" else 1), y)

    for _ in range(3):
        optimizer.zero_grad()
        if way == "closure":  # of a product with 1.0 nobody can tell what it came from
            loss().backward()
            kfac.step(loss)
        else:
            outputs = model(x)
            if way == "keyword":
                criterion(input=outputs, target=y).backward()
            else:
                criterion(take(outputs), y).backward()
            kfac.step()
        optimizer.step()
    exact = {} if way != "cast" else {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(parameters(model), parameters(reference.model), **exact)


def test_accumulated_batches_are_one_and_thrown_away_ones_none() -> None:
    x, y = data()
    one, parts = Loop(damping=0.1), Loop(damping=0.1)
    for _ in range(3):
        one.advance(x, y)
        parts.optimizer.zero_grad()
        parts.criterion(parts.model(10 * x), y).backward()
        parts.optimizer.zero_grad()
        for half in (slice(0, 12), slice(12, 24)):
            (parts.criterion(parts.model(x[half]), y[half]) / 2).backward()
        parts.kfac.step()
        parts.optimizer.step()
    torch.testing.assert_close(parameters(parts.model), parameters(one.model))


def test_what_cannot_be_made_again_asks_for_a_closure() -> None:
    x, y = data()
    loop = Loop()
    loop.criterion(2.0 * loop.model(x), y).backward()
    gradients = [p.grad.clone() for p in loop.model.parameters()]
    with pytest.raises(RuntimeError, match=r"legal: loss = criterion\(model\(inputs\), targets\)"):
        loop.kfac.step()
    for p, g in zip(loop.model.parameters(), gradients, strict=True):
        assert torch.equal(p.grad, g)
    loop.kfac.step(lambda: loop.criterion(2.0 * loop.model(x), y))
    with pytest.raises(RuntimeError, match="did not call criterion on the model's output"):
        loop.advance(x, y, closure=lambda: loop.model(x).sum())


def test_buffers_dropout_and_generators_are_left_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
    loop = Loop(model=model.to(DTYPE))
    x, y = data()
    torch.manual_seed(3)
    loop.criterion(loop.model(x), y).backward()
    buffers = [b.clone() for b in model.buffers()]
    state = torch.get_rng_state()
    metrics = loop.kfac.step()
    assert torch.equal(torch.get_rng_state(), state)
    for b, was in zip(model.buffers(), buffers, strict=True):
        assert torch.equal(b, was)
    assert model.training
    assert math.isfinite(metrics.rate)


# ---- state and faults ----------------------------------------------------------------------------


def test_resumed_equals_uninterrupted(tmp_path) -> None:
    whole, first = Loop(), Loop()
    for step in range(6):
        whole.advance(*data(seed=step))
    for step in range(3):
        first.advance(*data(seed=step))
    state = {"model": first.model.state_dict(), "kfac": first.kfac.state_dict()}
    torch.save(state, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    second = Loop(model=network(seed=7))
    second.model.load_state_dict(state["model"])
    second.kfac.load_state_dict(state["kfac"])
    for step in range(3, 6):
        second.advance(*data(seed=step))
    assert torch.equal(parameters(whole.model), parameters(second.model))
    wrong = copy.deepcopy(state["kfac"])
    wrong["last"]["0.weight"] = torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"the last step of 0.weight is \(2, 2\)"):
        second.kfac.load_state_dict(wrong)


def test_a_failed_step_changes_nothing() -> None:
    """Neither gradients nor λ, the last step and the averages."""
    x, y = data()
    loop = Loop(damping=LevenbergMarquardt(0.1, interval=1))
    loop.advance(x, y)
    before = copy.deepcopy(loop.kfac.state_dict())
    loop.optimizer.zero_grad()
    loop.criterion(loop.model(x), y).backward()
    gradients = [p.grad.clone() for p in loop.model.parameters()]
    calls = []

    def fails():
        calls.append(1)
        if len(calls) == 3:
            raise KeyError("no data")
        return loop.criterion(loop.model(x), y)

    with pytest.raises(KeyError, match="no data"):
        loop.kfac.step(fails)
    for p, g in zip(loop.model.parameters(), gradients, strict=True):
        assert torch.equal(p.grad, g)
    after = loop.kfac.state_dict()
    assert after["damping"] == before["damping"]
    assert all(torch.equal(after["last"][n], v) for n, v in before["last"].items())
    assert after["layers"]["0"]["input_factor"]["weight"] == pytest.approx(
        before["layers"]["0"]["input_factor"]["weight"]
    )
    loop.kfac.step()


def test_a_unit_may_make_the_proposal() -> None:
    x, y = data(rows=64)
    model = network().float()
    unit = NumericUnit(UnitSpec(cells=8), seed=0)
    loop = Loop(model=model, unit=unit)
    losses = [loop.advance(x.float(), y).loss for _ in range(8)]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"lr": "automatic"}, ValueError, "lr = 'automatic' is unknown; legal: a number"),
        ({"lr": "auto"}, ValueError, "lr = 'auto' needs criterion"),
    ],
)
def test_wrong_options_are_refused(options, error, text) -> None:
    with pytest.raises(error, match=text):
        KFAC(network(), **options)


def test_adapt_has_nothing_to_do() -> None:
    loop = Loop()
    loop.advance(*data())
    with pytest.raises(RuntimeError, match="lr = 'auto' adapts the damping in step"):
        loop.kfac.adapt(lambda: torch.zeros(()))


def test_a_closure_that_nothing_needs_is_refused() -> None:
    model, (x, y) = network(), data()
    kfac = KFAC(model, lr=0.1)
    nn.functional.cross_entropy(model(x), y).backward()
    with pytest.raises(TypeError, match="a closure with lr = 'auto' alone"):
        kfac.step(lambda: nn.functional.cross_entropy(model(x), y))
    kfac.step()
