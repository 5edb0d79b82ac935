"""Preparing blocks on the host: precision, equal inputs, Cholesky factors that are kept."""

from __future__ import annotations

import copy

import pytest
import torch
from kfac_cases import CASES, damped_factors
from torch import nn

from thermokron.host.kfac import KFAC
from thermokron.host.kfac.curvature import factors
from thermokron.host.kfac.curvature.factors import Factor
from thermokron.host.kfac.solve import dense, methods
from thermokron.host.kfac.solve.cost import Cost
from thermokron.host.kfac.solve.dense import TOLERANCE, cholesky, definite_cholesky
from thermokron.host.products import product

EPS = torch.finfo(torch.float32).eps


def inverted(matrix: torch.Tensor) -> torch.Tensor:
    return torch.cholesky_inverse(cholesky(matrix))


def damped_moments(size: int, rank: int, damping: float) -> torch.Tensor:
    """Second moments of `rank` correlated rows, mean of the diagonal 1, plus damping; float32."""
    generator = torch.Generator().manual_seed(size + rank)
    rows = torch.randn(rank, size, generator=generator) * torch.logspace(0, -1.5, size) + 0.3
    moments = rows.T @ rows / rank
    return moments / moments.diagonal().mean() + damping * torch.eye(size)


def network(width: int, dtype: torch.dtype = torch.float32) -> tuple[nn.Sequential, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 4)).to(dtype)
    return model, torch.randn(32, width, dtype=dtype)


def stepped(model: nn.Module, x: torch.Tensor, **options) -> KFAC:
    kfac = KFAC(model, **({"lr": 0.1, "damping": 0.1, "kl_clip": None} | options))
    nn.functional.cross_entropy(model(x), torch.arange(len(x)) % 4).backward()
    kfac.step()
    return kfac


# ---- precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 65, 128, 257, 512])
@pytest.mark.parametrize("rank", [16, 128, 1000])
def test_a_float32_inverse_is_as_exact_as_its_condition_number_promises(size, rank) -> None:
    """Relative error in the spectral norm, with the damping at which the rule just allows it."""
    damping = 1.0
    while True:
        matrix = damped_moments(size, rank, damping)
        kappa = matrix.abs().sum(dim=1).max().item() / damping
        if not dense.float32_suffices(kappa):
            break
        truth = torch.linalg.inv(matrix.double())
        difference = torch.linalg.matrix_norm(inverted(matrix).double() - truth, 2)
        error = (difference / torch.linalg.matrix_norm(truth, 2)).item()
        assert error < kappa * EPS / 3 < TOLERANCE
        damping /= 2
    assert damping < 1.0  # something was tested


@pytest.mark.parametrize("size", [16, 128, 512])
@pytest.mark.parametrize("spread", [0.01, 1.0])
@pytest.mark.parametrize("rank", [1, 16])
def test_the_hardest_moments_keep_to_the_tolerance(size, spread, rank) -> None:
    """Few rows of nearly equal entries, at the largest κ that float32 is used for."""
    generator = torch.Generator().manual_seed(size + rank)
    rows = 1.0 + spread * torch.randn(rank, size, generator=generator)
    moments = rows.T @ rows / rank
    damping = moments.abs().sum(dim=1).max().item() * EPS / 0.99e-3
    matrix = moments + damping * torch.eye(size)
    kappa = matrix.abs().sum(dim=1).max().item() / damping
    assert 0.98e-3 < kappa * EPS < TOLERANCE
    truth = torch.linalg.inv(matrix.double())
    difference = torch.linalg.matrix_norm(inverted(matrix).double() - truth, 2)
    assert difference / torch.linalg.matrix_norm(truth, 2) < TOLERANCE


def test_what_is_inverted_in_float32() -> None:
    """As docs/experiments.md says: where κ times 1.2e-7 is below 1e-3."""
    assert dense.float32_suffices(0.99e-3 / EPS)
    assert not dense.float32_suffices(1.01e-3 / EPS)


@pytest.mark.parametrize(
    ("width", "damping", "dtype", "single"),
    [
        (150, 0.1, torch.float32, True),
        (150, 1e-12, torch.float32, False),  # ill-conditioned
        (9, 0.1, torch.float32, True),
        (150, 0.1, torch.float64, False),
    ],
)
def test_factors_are_inverted_in_the_precision_that_they_need(
    width, damping, dtype, single
) -> None:
    model, x = network(width, dtype)
    kfac = stepped(model, x, damping=damping)
    layer = kfac.layers[0]
    (_, low), _ = damped_factors(layer, damping)
    a = layer.input_factor.damped(low)
    assert a.dtype == torch.float64
    found, double = kfac.training.blocks[layer].a, inverted(a).to(dtype)
    assert found.dtype == dtype
    assert torch.equal(found, double) != single
    error = (found.double() - inverted(a)).norm() / inverted(a).norm()
    assert error < (a.abs().sum(dim=1).max() / low * EPS if single else EPS)


@pytest.mark.parametrize("size", [128, 256, 130])
def test_cholesky_factors_of_any_size(size) -> None:
    matrix = damped_moments(size, 64, 0.1).double()
    factor = cholesky(matrix)
    assert factor.shape == matrix.shape
    torch.testing.assert_close(factor @ factor.mT, matrix)
    torch.testing.assert_close(factor, factor.tril())
    with pytest.raises(torch.linalg.LinAlgError):
        cholesky(matrix - 10.0 * torch.eye(size))


@pytest.mark.parametrize("shape", [(6,), (128,), (3, 6), (2, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eigenvalues_lost_to_rounding_are_raised_to_their_bound(shape, dtype) -> None:
    """Of the last matrix alone, where there are several; to the rounding of the type."""
    *blocks, size = shape
    torch.manual_seed(0)
    vectors, _ = torch.linalg.qr(torch.randn(*blocks, size, size, dtype=torch.float64))
    values = torch.linspace(0.02, 3.0, size, dtype=torch.float64).repeat(*blocks, 1)
    values[(-1,) * len(blocks)][0] = -1e-3
    matrix = vectors @ torch.diag_embed(values) @ vectors.mT
    lifted = vectors @ torch.diag_embed(values.clamp(min=0.01)) @ vectors.mT
    least = torch.full(blocks, 0.01, dtype=torch.float64) if blocks else 0.01
    factor, repairs = definite_cholesky(matrix.to(dtype), least)
    assert repairs == 1
    assert factor.dtype == torch.float64
    torch.testing.assert_close(factor, factor.tril())
    assert (factor.diagonal(dim1=-2, dim2=-1) > 0.0).all()
    difference = torch.linalg.matrix_norm(factor @ factor.mT - lifted, 2).max()
    assert difference < (10 + size) * torch.finfo(dtype).eps * 3.0
    sound = lifted.to(dtype)
    factor, repairs = definite_cholesky(sound, least)
    assert repairs == 0
    assert torch.equal(factor, cholesky(sound))


@pytest.mark.parametrize("method", ["inverse", "solve"])
def test_moments_that_lost_their_definiteness_make_steps_that_damping_bounds(method) -> None:
    """Where κ ε is far above 1, float32 moments are not semidefinite. The step still descends, and
    is no longer than ‖V‖/λ, as the least eigenvalues of the damped factors have the product λ."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 1))
    x, criterion = 1000.0 * torch.rand(256, 64), nn.MSELoss()
    kfac = KFAC(model, lr=0.1, damping=0.03, criterion=criterion, method=method, kl_clip=None)
    criterion(model(x), x.sum(dim=1, keepdim=True)).backward()
    plain = {layer: layer.gradient().clone() for layer in kfac.layers}
    metrics = kfac.step()
    assert metrics.repairs > 0
    assert metrics.kappa * EPS > 1.0
    for layer, v in plain.items():
        update = layer.gradient()
        assert (update * v).sum() > 0.0
        assert update.norm() <= v.norm() / 0.03 * (1 + 1e-3)


@pytest.mark.parametrize("shape", [(300, 300, 300), (200, 40, 3000), (7, 500, 9), (800, 800, 800)])
@pytest.mark.parametrize("layout", ["rows", "columns", "parts"])
def test_products_are_those_of_torch(shape, layout) -> None:
    """To the rounding of sums of k terms, √k ε for random signs, eight times over."""
    m, k, n = shape
    torch.manual_seed(1)
    left, right = torch.randn(m, k), torch.randn(k, n)
    if layout == "columns":
        left, right = left.T.contiguous().T, right.T.contiguous().T
    elif layout == "parts":
        left, right = torch.randn(m, k + 1)[:, :k], torch.randn(k, n + 1)[:, :n]
    found, truth = product(left, right), left.double() @ right.double()
    assert found.dtype == torch.float32
    assert (found - truth).norm() < 8 * EPS * truth.norm()
    assert torch.equal(found, product(left, right))
    assert product(left.double(), right.double()).dtype == torch.float64
    with torch.autocast("cpu"):
        assert product(left, right).dtype == torch.bfloat16


def test_a_step_in_float32_is_that_in_float64() -> None:
    """Of a network whose products and inverses are all made in float32 on the fast path."""
    model, x = network(300)
    other = copy.deepcopy(model).double()
    stepped(model, x)
    stepped(other, x.double())
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert (p.grad - q.grad).norm() < 1e-4 * q.grad.norm()


# ---- equal inputs --------------------------------------------------------------------------------


def attended(case: str, **options) -> KFAC:
    model, x = CASES[case].build(8)
    kfac = KFAC(model, **({"lr": 0.1, "damping": 0.1, "kl_clip": None} | options))
    model(x).square().mean().backward()
    kfac.step()
    return kfac


def test_layers_with_equal_inputs_are_damped_by_their_own_gradients() -> None:
    """π² = mean diag A / mean diag G of each: a weak head is not damped as a strong one beside it
    would have it."""
    kfac = attended("attention")
    assert kfac.metrics.inversions == 8
    for layer in kfac.layers:
        a, g = layer.input_factor, layer.output_factor
        low_a = (0.1 * a.mean_diagonal() / g.mean_diagonal()) ** 0.5
        block = kfac.training.blocks[layer]
        torch.testing.assert_close(block.a, inverted(a.damped(low_a)))
        torch.testing.assert_close(block.g, inverted(g.damped(0.1 / low_a)))


def test_second_moments_of_shared_inputs_are_summed_once(monkeypatch) -> None:
    """Over two accumulated batches: A of the three and of the output, and four G, each time."""
    model, x = CASES["attention"].build(8)
    other, _ = CASES["attention, other keys"].build(8)
    count = []
    monkeypatch.setattr(factors, "product", lambda a, b: count.append(1) or a @ b)
    for network, products in ((model, 6), (other, 7)):
        kfac = KFAC(network, lr=0.1)
        for batch in (x[:4], x[4:]):
            count.clear()
            network(batch).square().mean().backward()
            assert len(count) == products
        kfac.step()
        key, value = kfac.layers[1:3]
        assert torch.equal(key.input_factor.value, value.input_factor.value)
    rows = x.reshape(-1, 4)
    expected = torch.cat([rows, torch.ones_like(rows[:, :1])], 1)
    expected = expected.T @ expected / len(rows)
    again = KFAC(model, lr=0.1)
    for batch in (x[:4], x[4:]):
        model(batch).square().mean().backward()
    again.step()
    for layer in again.layers[:3]:
        torch.testing.assert_close(layer.input_factor.value, expected)


def test_shared_decompositions_are_those_of_each() -> None:
    kfac = attended("attention", damping_mode="exact")
    assert kfac.metrics.inversions == 6
    for layer in kfac.layers:
        alone = methods.prepare([layer], 0.1, method="eigen", inverse=kfac.inverse, cost=Cost())[
            layer
        ]
        shared = kfac.training.blocks[layer]
        assert torch.equal(shared.qa, alone.qa)
        assert torch.equal(shared.la, alone.la)
        assert shared.kappa == alone.kappa


def test_keys_and_values_of_other_inputs_share_without_the_query() -> None:
    kfac = attended("attention, other keys")
    groups = [[layer.name for layer in group] for group in methods.alike(kfac.layers)]
    assert groups == [
        ["attention.query_proj"],
        ["attention.key_proj", "attention.value_proj"],
        ["attention.out_proj"],
    ]


def test_layers_that_only_look_alike_stay_apart() -> None:
    """Equal size and weight of the average, and A that differ in one entry."""
    model = nn.ModuleList(nn.Linear(3, 2) for _ in range(2))
    kfac = KFAC(model, lr=0.1)
    for layer in kfac.layers:
        layer.input_factor.update(torch.eye(4), 0.5)
        layer.output_factor.update(torch.eye(2), 0.5)
    assert methods.alike(kfac.layers) == [kfac.layers]
    kfac.layers[1].input_factor.moment[3, 3] = 2.0
    assert methods.alike(kfac.layers) == [[layer] for layer in kfac.layers]


# ---- solving on the host -------------------------------------------------------------------------


def test_the_host_solves_with_the_factor_that_it_kept(monkeypatch) -> None:
    count, inner = [], torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda m: count.append(1) or inner(m))
    model, x = network(9)
    kfac = KFAC(model, lr=0.1, damping=0.1, method="solve", inverse_interval=3, kl_clip=None)
    inversions = []
    for _ in range(4):
        model.zero_grad()
        nn.functional.cross_entropy(model(x), torch.arange(32) % 4).backward()
        plain = [layer.gradient().double() for layer in kfac.layers]
        before = len(count)
        inversions.append(kfac.step().inversions)
        assert (len(count) > before) == (inversions[-1] > 0)
        for layer, v in zip(kfac.layers, plain, strict=True):
            block = kfac.training.blocks[layer]
            a, g = ((factor @ factor.mT).double() for factor in (block.a, block.g))
            torch.testing.assert_close(g @ layer.gradient().double() @ a, v, rtol=1e-5, atol=1e-7)
    assert inversions == [4, 0, 0, 4]


@pytest.mark.parametrize("method", ["inverse", "solve"])
def test_a_wide_float32_network_resumes_exactly(method, tmp_path) -> None:
    """On the fast path, with blocks that were made before the break and are used after it."""

    def train(first: int, last: int, model: nn.Module, kfac: KFAC) -> None:
        for step in range(first, last):
            model.zero_grad()
            rows = x[step % 2 :: 2]
            nn.functional.cross_entropy(model(rows), torch.arange(len(rows)) % 4).backward()
            kfac.step()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad

    model, x = network(384)
    start = copy.deepcopy(model)
    options = {"lr": 0.1, "damping": 0.1, "method": method, "inverse_interval": 3}
    kfac = KFAC(model, **options)
    train(0, 2, model, kfac)
    torch.save({"model": model.state_dict(), "kfac": kfac.state_dict()}, tmp_path / "state.pt")
    train(2, 5, model, kfac)
    again = KFAC(start, **options)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    start.load_state_dict(state["model"])
    again.load_state_dict(state["kfac"])
    train(2, 5, start, again)
    assert again.metrics == kfac.metrics
    for p, q in zip(model.parameters(), start.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_moments_that_are_not_finite_are_found_by_their_diagonal(value) -> None:
    rows, dense = torch.randn(5, 3), Factor((3, 3))
    assert dense.is_finite(rows.T @ rows)
    assert dense.is_finite(torch.full((3, 3), 3e38))  # whose sum overflows
    rows[2, 1] = value
    assert not dense.is_finite(rows.T @ rows)
    for diagonal in (Factor((2,), diagonal=True), Factor((1, 2), diagonal=True)):
        assert not diagonal.is_finite(torch.tensor([1.0, value]).reshape(diagonal.shape))
