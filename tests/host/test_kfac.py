"""K-FAC against computations written out by hand, and its behaviour at the edges."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from kfac_cases import backward, batch, damped_factors, linear

from thermokron.host.kfac import KFAC, Inverse, diagonal, exact

F = torch.nn.functional


# ---- the update ----------------------------------------------------------------------------------


def dense_update(layer, a, g, gradient, damping):
    """Column-stacked (A + π√λ I)⁻¹ ⊗ (G + √λ/π I)⁻¹ vec(V), as one dense linear system."""
    a_factor, g_factor = a.T @ a / len(a), g.T @ g / len(g)
    pi = math.sqrt(a_factor.diagonal().mean() / g_factor.diagonal().mean())
    a_damped = a_factor + pi * math.sqrt(damping) * torch.eye(len(a_factor))
    g_damped = g_factor + math.sqrt(damping) / pi * torch.eye(len(g_factor))
    block = torch.kron(a_damped, g_damped)
    solution = torch.linalg.solve(block, gradient.T.reshape(-1))
    return solution.reshape(gradient.shape[1], gradient.shape[0]).T


@pytest.mark.parametrize("bias", [True, False])
def test_single_layer_equals_the_dense_kronecker_system(bias: bool) -> None:
    layer = linear(5, 3, bias=bias)
    x, y = batch()
    kfac = KFAC(layer, lr=0.1, damping=0.02, kl_clip=None)
    backward(layer, x, y)
    a = torch.cat([x, torch.ones(len(x), 1)], 1) if bias else x
    # the loss is a mean over rows (and outputs): a row's own loss has a gradient of
    # 2 (Wx - y) / outputs, without the 1/B
    g = 2 * (layer(x) - y).detach() / 3
    columns = [layer.weight.grad] + ([layer.bias.grad[:, None]] if bias else [])
    expected = dense_update(layer, a, g, torch.cat(columns, 1).clone(), 0.02)
    kfac.step()
    torch.testing.assert_close(layer.weight.grad, expected[:, :5])
    if bias:
        torch.testing.assert_close(layer.bias.grad, expected[:, 5])


def test_deep_linear_network_inverts_each_diagonal_block_of_its_fisher() -> None:
    """For one example the empirical Fisher's blocks are exactly A ⊗ G, whatever the depth."""
    model = torch.nn.Sequential(linear(4, 3, seed=1), linear(3, 2, seed=2), linear(2, 2, seed=3))
    x, y = batch(rows=1, inputs=4, outputs=2)
    backward(model, x, y)
    damping = 1e-9
    plain = [torch.cat([m.weight.grad, m.bias.grad[:, None]], 1).clone() for m in model]
    kfac = KFAC(model, lr=1.0, damping=damping, kl_clip=None)
    backward(model, x, y)
    factors = [[m for m, _ in damped_factors(layer, damping)] for layer in _updated(kfac)]
    for gradient, (a, g) in zip(plain, factors, strict=True):
        v = gradient.T.reshape(-1)
        torch.testing.assert_close(torch.kron(a, g), torch.outer(v, v), atol=1e-3, rtol=1e-3)


def _updated(kfac: KFAC):
    for layer in kfac.layers:
        layer.update_factors(0.0)
    return kfac.layers


def test_leading_dimensions_count_as_examples() -> None:
    flat, deep = linear(5, 3), linear(5, 3)
    x, y = batch(rows=24)
    for layer, shape in ((flat, (24,)), (deep, (2, 3, 4))):
        kfac = KFAC(layer, lr=0.1, damping=0.01)
        backward(layer, x.reshape(*shape, 5), y.reshape(*shape, 3))
        kfac.step()
    torch.testing.assert_close(deep.weight.grad, flat.weight.grad)


def test_sum_and_mean_reductions_see_the_same_curvature() -> None:
    mean, total = linear(5, 3), linear(5, 3)
    x, y = batch()
    kfac_mean = KFAC(mean, lr=0.1, damping=0.01, kl_clip=None)
    kfac_total = KFAC(total, lr=0.1, damping=0.01, kl_clip=None, loss_reduction="sum")
    backward(mean, x, y)
    (((total(x) - y) ** 2).sum() / 3).backward()
    kfac_mean.step()
    kfac_total.step()
    torch.testing.assert_close(total.weight.grad, len(x) * mean.weight.grad)


def test_gradient_accumulation_pools_the_rows() -> None:
    whole, parts = linear(5, 3), linear(5, 3)
    x, y = batch(rows=20)
    kfac_whole = KFAC(whole, lr=0.1, damping=0.01)
    kfac_parts = KFAC(parts, lr=0.1, damping=0.01)
    backward(whole, x, y)
    for rows in (slice(0, 10), slice(10, 20)):
        F.mse_loss(parts(x[rows]), y[rows]).backward()
    kfac_whole.step()
    kfac_parts.step()
    for layer_a, layer_b in zip(kfac_whole.layers, kfac_parts.layers, strict=True):
        torch.testing.assert_close(layer_a.output_factor.value, layer_b.output_factor.value)


def test_a_newton_step_solves_linear_regression() -> None:
    """With isotropic residuals K-FAC is Newton's method, so one step nearly solves the problem."""
    layer = linear(6, 2)
    generator = torch.Generator().manual_seed(3)
    scales = torch.logspace(-1, 1, 6, dtype=torch.float64)
    x = torch.randn(4000, 6, generator=generator, dtype=torch.float64) * scales
    noise = 10.0 * torch.randn(4000, 2, generator=generator, dtype=torch.float64)
    target = x @ torch.ones(6, 2, dtype=torch.float64) * 0.01 + noise
    kfac = KFAC(layer, lr=1.0, damping=1e-8, kl_clip=None)
    backward(layer, x, target)
    gradient = layer.weight.grad.clone()
    kfac.step()
    # G ≈ 2² σ² / outputs² I and the Hessian is 2/outputs · A ⊗ I: the step is Newton's up to
    # the factor outputs · G / 2
    a = torch.cat([x, torch.ones(len(x), 1)], 1)
    newton = torch.linalg.solve(a.T @ a / len(a), torch.cat([gradient, torch.zeros(2, 1)], 1).T).T[
        :, :6
    ]
    cosine = F.cosine_similarity(layer.weight.grad.reshape(-1), newton.reshape(-1), dim=0)
    assert cosine > 0.99


# ---- averages, damping, clip, intervals ----------------------------------------------------------


def test_moving_average_is_bias_corrected() -> None:
    layer = linear(4, 2, bias=False)
    kfac = KFAC(layer, lr=0.1, damping=0.01, decay=0.8, kl_clip=None)
    seen = []
    for seed in range(4):
        x, y = batch(inputs=4, outputs=2, seed=seed)
        backward(layer, x, y)
        kfac.step()
        seen.append(x.T @ x / len(x))
    weights = np.array([0.8**3, 0.8**2, 0.8, 1.0])
    expected = sum(w * a for w, a in zip(weights / weights.sum(), seen, strict=True))
    torch.testing.assert_close(kfac.layers[0].input_factor.value, expected)


def test_damping_is_shared_by_the_ratio_of_the_mean_diagonals() -> None:
    layer = linear(4, 2)
    kfac = KFAC(layer, lr=0.1, damping=0.04)
    backward(layer, *batch(inputs=4, outputs=2))
    (known,) = _updated(kfac)
    a, g = known.input_factor.value, known.output_factor.value
    pi = math.sqrt((a.trace() / 5) / (g.trace() / 2))
    (a_damped, a_low), (g_damped, g_low) = damped_factors(known, 0.04)
    assert a_low == pytest.approx(pi * 0.2)
    assert g_low == pytest.approx(0.2 / pi)
    torch.testing.assert_close(a_damped - a, a_low * torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(g_damped - g, g_low * torch.eye(2, dtype=torch.float64))
    assert torch.linalg.eigvalsh(a_damped)[0] >= a_low * (1 - 1e-12)


def test_the_bound_that_is_passed_to_the_inverter_holds() -> None:
    seen = []

    def inverter(matrix: torch.Tensor, lambda_min: float) -> Inverse:
        seen.append((torch.linalg.eigvalsh(matrix)[0].item(), lambda_min))
        return exact(matrix, lambda_min)

    layer = linear(5, 3)
    kfac = KFAC(layer, lr=0.1, damping=0.01, inverse=inverter)
    backward(layer, *batch(rows=2))  # A is singular, so that the bound is tight
    kfac.step()
    assert len(seen) == 2
    for smallest, bound in seen:
        assert smallest >= bound * (1 - 1e-9)
    assert seen[0][0] == pytest.approx(seen[0][1])


def test_a_layer_behind_dead_units_stays_finite() -> None:
    layer = linear(5, 3)
    kfac = KFAC(layer, lr=0.1, damping=0.01)
    (layer(batch()[0]) * 0.0).mean().backward()
    kfac.step()
    assert torch.equal(layer.weight.grad, torch.zeros(3, 5, dtype=torch.float64))


def test_kl_clip_is_its_formula() -> None:
    lr, kappa = 0.5, 1e-3
    clipped, free = linear(5, 3), linear(5, 3)
    x, y = batch()
    kfac_clipped = KFAC(clipped, lr=lr, damping=0.01, kl_clip=kappa)
    kfac_free = KFAC(free, lr=lr, damping=0.01, kl_clip=None)
    backward(clipped, x, y)
    backward(free, x, y)
    plain = [p.grad.clone() for p in free.parameters()]
    metrics, unclipped = kfac_clipped.step(), kfac_free.step()
    product = sum((p.grad * g).sum() for p, g in zip(free.parameters(), plain, strict=True))
    nu = min(1.0, math.sqrt(kappa / (lr**2 * abs(product))))
    assert nu < 1.0
    assert metrics.clipped
    assert metrics.nu == pytest.approx(nu)
    assert (unclipped.nu, unclipped.clipped) == (1.0, False)
    for p, q in zip(clipped.parameters(), free.parameters(), strict=True):
        torch.testing.assert_close(p.grad, nu * q.grad)
    generous = KFAC(linear(5, 3), lr=lr, damping=0.01, kl_clip=1e6)
    backward(model := generous.layers[0].module, x, y)
    assert generous.step().nu == 1.0
    torch.testing.assert_close(model.weight.grad, free.weight.grad)


def test_intervals_say_when_factors_and_inverses_are_renewed() -> None:
    layer = linear(5, 3)
    kfac = KFAC(layer, lr=0.1, damping=0.01, factor_interval=2, inverse_interval=3)
    inversions, moments = [], []
    for seed in range(7):
        backward(layer, *batch(seed=seed))
        inversions.append(kfac.step().inversions)
        moments.append(kfac.layers[0].input_factor.moment)
    assert inversions == [2, 0, 0, 2, 0, 0, 2]
    changed = [not torch.equal(a, b) for a, b in itertools.pairwise(moments)]
    assert changed == [False, True, False, True, False, True]


def test_hyperparameters_may_follow_a_schedule() -> None:
    layer = linear(5, 3)
    kfac = KFAC(
        layer,
        lr=0.1,
        damping=lambda step: 0.1 / (step + 1),
        inverse_interval=lambda step: 1 if step < 2 else 100,
    )
    inversions = []
    for _ in range(4):
        backward(layer, *batch())
        inversions.append(kfac.step().inversions)
    assert inversions == [2, 2, 0, 0]
    broken = KFAC(linear(5, 3), lr=0.1, damping=lambda step: 0.1 - step)
    backward(broken.layers[0].module, *batch())
    broken.step()
    backward(broken.layers[0].module, *batch())
    with pytest.raises(ValueError, match=r"damping = -0\.9 is out of range"):
        broken.step()


def test_the_diagonal_control_ignores_correlations() -> None:
    matrix = torch.tensor([[2.0, 1.0], [1.0, 4.0]], dtype=torch.float64)
    expected = torch.tensor([[0.5, 0.0], [0.0, 0.25]], dtype=torch.float64)
    torch.testing.assert_close(diagonal(matrix, 0.1).value, expected)
    torch.testing.assert_close(exact(matrix, 0.1).value, torch.linalg.inv(matrix))


# ---- wrong inputs, representation, state ---------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"lr": -0.1}, ValueError, "lr = -0.1 is out of range; legal: 0 or more"),
        ({"lr": math.inf}, ValueError, "lr = inf is out of range"),
        (
            {"lr": "fast"},
            ValueError,
            "lr = 'fast' is unknown; legal: a number, an optimiser, 'auto'",
        ),
        ({"damping": -1.0}, ValueError, "damping = -1.0 is out of range; legal: 1e-16 or more"),
        ({"damping": float("nan")}, ValueError, "damping = nan"),
        ({"decay": 1.0}, ValueError, "decay = 1.0 is out of range; legal: 0 to below 1"),
        ({"factor_interval": 0}, ValueError, "factor_interval = 0 is out of range; legal: 1"),
        ({"inverse_interval": 1.5}, TypeError, "inverse_interval = 1.5 is not an integer"),
        ({"kl_clip": 0.0}, ValueError, "kl_clip = 0.0 is out of range"),
        ({"samples": 0}, ValueError, "samples = 0 is out of range"),
        ({"loss_reduction": "max"}, ValueError, "loss_reduction = 'max' is unknown; legal"),
        ({"inverse": 3}, TypeError, "inverse = 3 is not callable"),
    ],
)
def test_wrong_hyperparameters_are_named(changed, error, message) -> None:
    with pytest.raises(error, match=message.replace("(", r"\(")):
        KFAC(linear(2, 2), **({"lr": 0.1, "damping": 0.01} | changed))


def test_wrong_models_are_named() -> None:
    with pytest.raises(TypeError, match=r"model = 3 is not a torch\.nn\.Module"):
        KFAC(3, lr=0.1, damping=0.01)
    with pytest.raises(ValueError, match="nothing trainable that K-FAC covers: Linear, Conv"):
        KFAC(torch.nn.Tanh(), lr=0.1, damping=0.01)


def test_diverged_training_says_where() -> None:
    model = linear(5, 3)
    kfac = KFAC(model, lr=0.1, damping=0.01)
    x, y = batch()
    y[0, 0] = math.inf
    backward(model, x, y)
    with pytest.raises(FloatingPointError, match=r"gradients of layer '.*' hold NaN or inf"):
        kfac.step()


def test_repr_reads_well() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))
    text = repr(KFAC(model, lr=0.1, damping=0.01))
    for part in ("inverse=exact", "damping=0.01", "layer 0: A 65, G 32", "layer 2: A 33, G 10"):
        assert part in text


def test_state_round_trip_continues_the_same(tmp_path) -> None:
    torch.manual_seed(0)
    first, second = linear(5, 3), linear(5, 3)
    settings = {"lr": 0.1, "damping": 0.01, "inverse_interval": 3, "kl_clip": None}
    kfac, resumed = KFAC(first, **settings), KFAC(second, **settings)
    for seed in range(2):
        backward(first, *batch(seed=seed))
        kfac.step()
    torch.save(kfac.state_dict(), tmp_path / "state.pt")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt"))
    for seed in range(2, 5):
        for model, preconditioner in ((first, kfac), (second, resumed)):
            backward(model, *batch(seed=seed))
            metrics = preconditioner.step()
        assert torch.equal(first.weight.grad, second.weight.grad)
    assert metrics.step == 4
    other = KFAC(torch.nn.Sequential(linear(5, 3)), **settings)
    with pytest.raises(ValueError, match=r"state holds the layers"):
        other.load_state_dict(kfac.state_dict())
