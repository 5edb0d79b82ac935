"""Moments, products and sums in single precision at least, whatever the network's type and the
caller's state; and no step that is not a number."""

from __future__ import annotations

import pytest
import torch
from kfac_cases import CASES, Flow, backward_squares, cases
from torch import nn

from thermokron.host.kfac import KFAC
from thermokron.host.kfac.solve.step_control import shortening

HALVES = [torch.float16, torch.bfloat16]
FISHERS = ("empirical", "mc", "ggn")


def network(width: int = 16) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def moments(kfac: KFAC) -> list[torch.Tensor]:
    return [factor.moment for layer in kfac.layers for factor in layer.factors.values()]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("fisher", FISHERS)
@pytest.mark.parametrize("around", ["forward", "everything"])
def test_autocasting_reaches_no_moment(dtype, fisher, around) -> None:
    """Factors are those of single precision up to the rounding of what the network itself makes:
    with 8 and 11 bits of mantissa within a percent or two of their norm."""
    x, y = torch.randn(64, 16) + 1.5, torch.randint(10, (64,))
    found = []
    for cast in (False, True):
        model, criterion = network(), nn.CrossEntropyLoss()
        kfac = KFAC(model, lr=0.1, criterion=criterion, fisher=fisher)
        with torch.autocast("cpu", dtype=dtype, enabled=cast):
            loss = criterion(model(x), y)
            if around == "everything":
                loss.backward()
                kfac.step()
        if around == "forward":
            loss.backward()
            kfac.step()
        found.append(moments(kfac))
    for single, cast in zip(*found, strict=True):
        assert cast.dtype == torch.float32
        if fisher != "mc":  # whose labels may be drawn otherwise where probabilities were rounded
            assert (cast - single).norm() < 0.03 * single.norm()


@pytest.mark.parametrize("fisher", FISHERS)
def test_many_rows_do_not_overflow_under_autocast(fisher) -> None:
    """Σ a² over 8,192 rows of entries near 3 is above 65,504, the largest of float16."""
    model, criterion = network(), nn.CrossEntropyLoss()
    kfac = KFAC(model, lr=0.01, criterion=criterion, fisher=fisher)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, y = torch.randn(64, 128, 16) + 3.0, torch.randint(10, (64 * 128,))
    for _ in range(2):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = criterion(model(x).flatten(0, 1), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        kfac.step()
        scaler.step(optimizer)
        scaler.update()
    mean = kfac.layers[0].input_factor.value
    rows = x.flatten(0, 1)
    torch.testing.assert_close(mean[:16, :16], rows.T @ rows / len(rows), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", cases())
def test_networks_in_half_precision_take_the_step_of_single(name, dtype) -> None:
    """Of every kind of layer, with moments in float32, to the rounding of the network itself."""
    found = []
    for kind in (torch.float32, dtype):
        model, x = CASES[name].build()
        model = model.to(kind)
        x = x.to(kind) if x.is_floating_point() else x
        kfac = KFAC(model, lr=0.1, damping=1.0)
        backward_squares(model, x)
        kfac.step()
        assert all(moment.dtype == torch.float32 for moment in moments(kfac))
        found.append([p.grad.float() for p in model.parameters() if p.grad is not None])
        kfac.close()
    for single, half in zip(*found, strict=True):
        assert torch.isfinite(half).all()
        assert (half - single).norm() <= 0.15 * single.norm() + 1e-3


@pytest.mark.parametrize(
    "options", [{"method": "inverse"}, {"method": "solve"}, {"damping_mode": "exact"}], ids=str
)
def test_sums_of_half_precision_do_not_overflow(options) -> None:
    """Squares of an update of this network go beyond 65,504: a sum in its type made ν zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 3)).half()
    kfac = KFAC(model, lr=0.01, damping=3e-5, **options)
    loss = nn.functional.cross_entropy(
        model(torch.randn(64, 256).half()).float(), torch.randint(3, (64,))
    )
    loss.backward()
    metrics = kfac.step()
    assert metrics.nu > 0.0
    assert all(p.grad.any() for p in model.parameters())


def test_sums_that_single_precision_does_not_hold_are_made_in_double() -> None:
    v = torch.full((1, 4), 1e25)
    options = {"rates": [1e-20], "norm_constraint": None}
    expected = (1e-4 / (1e-40 * 4e50)) ** 0.5
    assert shortening([v], [v], kl_clip=1e-4, **options) == pytest.approx(expected)
    huge = torch.full((1, 4), 1e300, dtype=torch.float64)
    with pytest.raises(FloatingPointError, match="lower lr, or raise damping"):
        shortening([huge], [huge], kl_clip=1e-4, rates=[1.0], norm_constraint=None)


def test_an_update_that_the_type_of_the_network_does_not_hold_changes_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 2).half()
    kfac = KFAC(model, lr=0.01, damping=1e-12, kl_clip=None)
    (3e-7 * model(torch.zeros(8, 4).half()).float().sum()).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    with pytest.raises(FloatingPointError, match=r"too large for torch\.float16"):
        kfac.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert not any(layer.has_factors for layer in kfac.layers)


@pytest.mark.parametrize("fisher", FISHERS)
def test_the_callers_defaults_reach_nothing(fisher) -> None:
    """Default type and device, gradient mode, anomaly detection, inference of something else."""
    found = []
    for odd in (False, True):
        model = Flow(a=nn.Linear(4, 4), norm=nn.LayerNorm(4), act=torch.tanh, b=nn.Linear(4, 3))
        torch.manual_seed(1)
        for p in model.parameters():
            nn.init.normal_(p)
        criterion = nn.CrossEntropyLoss()
        kfac = KFAC(model, lr=0.1, criterion=criterion, fisher=fisher, mc_samples=2)
        x = torch.linspace(-1.0, 1.0, 96).reshape(8, 3, 4)
        y = torch.arange(24).reshape(8, 3) % 3
        before = torch.get_default_dtype()
        try:
            for part in (slice(0, 4), slice(4, 8)):
                loss = criterion(model(x[part]).mT, y[part])
                if odd:
                    torch.set_default_dtype(torch.float64)
                    with torch.device("meta"), torch.autograd.set_detect_anomaly(True, False):
                        loss.backward()
                else:
                    loss.backward()
            if odd:
                with torch.device("meta"), torch.enable_grad():
                    kfac.step()
            else:
                kfac.step()
        finally:
            torch.set_default_dtype(before)
        found.append([p.grad for p in model.parameters()] + moments(kfac))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
        assert not other.requires_grad


def test_create_graph_leaves_no_graph_behind() -> None:
    model, criterion = network(), nn.CrossEntropyLoss()
    for fisher in FISHERS:
        kfac = KFAC(model, lr=0.1, criterion=criterion, fisher=fisher)
        model.zero_grad()
        criterion(model(torch.randn(8, 16)), torch.randint(10, (8,))).backward(create_graph=True)
        kfac.step()
        assert not any(moment.requires_grad for moment in moments(kfac))
        kfac.close()
