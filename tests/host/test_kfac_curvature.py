"""The blocks are the curvature of the mean loss: against brute force, and against curvlinops."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from kfac_cases import CASES, DTYPE, Flow, block_of, brute_force, cases, dense_block
from torch import nn

from thermokron.host.kfac import KFAC
from thermokron.host.kfac.curvature.losses import curvature_of

F = nn.functional


def gathered(model, criterion, x, y, *, backward: bool = True, **options):
    """Layers with the factors of one pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kfac = KFAC(model, lr=0.1, damping=0.01, criterion=criterion, **options)
    loss = criterion(model(x), y)
    if backward:
        loss.backward()
    for layer in kfac.layers:
        layer.update_factors(0.0)
    kfac.close()
    return kfac.layers


def targets_like(outputs: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(outputs.shape, generator=generator, dtype=outputs.dtype)


def assert_exact(model, criterion, x, y, sharing="expand", **options) -> None:
    layers = gathered(model, criterion, x, y, fisher="ggn", sharing=sharing, **options)
    truth = brute_force(model, criterion, x, y, layers)
    for layer, matrix in zip(layers, truth, strict=True):
        expected = block_of(layer, matrix)
        assert expected.abs().max() > 0.0
        torch.testing.assert_close(dense_block(layer), expected, rtol=1e-9, atol=1e-12)


# ---- exact where the theory says so --------------------------------------------------------------


@pytest.mark.parametrize("examples", [1, 4])
@pytest.mark.parametrize(
    ("sharing", "name"),
    [("expand", name) for name in cases("expand", "both")]
    + [("reduce", name) for name in cases("reduce", "both")],
)
def test_deep_linear_networks_have_exact_blocks(sharing, name, examples) -> None:
    """For squared error, with any number of examples, positions and loss terms."""
    model, x = CASES[name].build(examples)
    y = targets_like(model(x))
    assert_exact(model, nn.MSELoss(), x, y, sharing)


@pytest.mark.parametrize("name", cases("single", "both"))
@pytest.mark.parametrize("loss", ["cross entropy", "squared error", "binary"])
def test_one_datum_has_exact_blocks_whatever_the_network(name, loss) -> None:
    model, x = CASES[name].build(examples=1)
    outputs = model(x)
    criterion, y = {
        "cross entropy": (nn.CrossEntropyLoss(), torch.tensor([1])),
        "squared error": (nn.MSELoss(), targets_like(outputs)),
        "binary": (nn.BCEWithLogitsLoss(), torch.ones_like(outputs)),
    }[loss]
    assert_exact(model, criterion, x, y)


@pytest.mark.parametrize("name", cases("norm"))
@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.CrossEntropyLoss()])
def test_norms_have_the_exact_diagonal(name, loss) -> None:
    """With any number of examples, nonlinearities and positions."""
    model, x = CASES[name].build(examples=5)
    outputs = model(x)
    y = torch.arange(5) % 2 if isinstance(loss, nn.CrossEntropyLoss) else targets_like(outputs)
    layers = gathered(model, loss, x, y, fisher="ggn")
    truth = brute_force(model, loss, x, y, layers)
    found = [(a, b) for a, b in zip(layers, truth, strict=True) if not hasattr(a, "input_factor")]
    assert len(found) == 1
    for layer, matrix in found:
        torch.testing.assert_close(dense_block(layer), torch.diag(matrix.diagonal()))


@pytest.mark.parametrize("name", ["mlp", "positions, a loss term each", "conv2d 1x1 output"])
def test_the_empirical_fisher_of_one_datum_is_the_outer_product_of_its_gradient(name) -> None:
    model, x = CASES[name].build(examples=1)
    x = x[:, :1, :1] if name.startswith("positions") else x
    criterion = nn.MSELoss()
    y = targets_like(model(x))
    for layer in gathered(model, criterion, x, y):
        v = layer.gradient().reshape(-1)
        torch.testing.assert_close(dense_block(layer), torch.outer(v, v))


def test_the_empirical_fisher_of_a_linear_model_by_brute_force() -> None:
    """1/R Σ ∇l ∇lᵀ, where residuals do not depend on inputs: A ⊗ G on a full grid of both."""
    layer = nn.Linear(2, 2, bias=False, dtype=DTYPE)
    inputs = torch.tensor([[1.0, 2.0], [0.5, -1.0], [3.0, 0.0]], dtype=DTYPE)
    residuals = torch.tensor([[1.0, -1.0], [2.0, 0.5]], dtype=DTYPE)
    x = inputs.repeat_interleave(2, dim=0)
    y = (layer(x) - residuals.repeat(3, 1)).detach()
    (found,) = gathered(layer, nn.MSELoss(), x, y)
    rows = []
    for i in range(len(x)):
        (v,) = torch.autograd.grad(F.mse_loss(layer(x[i]), y[i]), layer.weight)
        rows.append(v.reshape(-1))
    fisher = torch.stack(rows).T @ torch.stack(rows) / len(rows)
    torch.testing.assert_close(dense_block(found), fisher)


# ---- scale ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fisher", ["empirical", "mc", "ggn"])
@pytest.mark.parametrize("name", ["mlp", "positions, taken together", "conv2d strided"])
def test_the_same_data_twice_is_the_same_curvature(name, fisher) -> None:
    model, x = CASES[name].build()
    y = targets_like(model(x))
    (one, two) = (
        gathered(model, nn.MSELoss(), x.repeat(k, *[1] * (x.ndim - 1)), y.repeat(k, 1), **options)
        for k in (1, 2)
        for options in [{"fisher": fisher, "mc_samples": 4000 // k}]
    )
    # 12,000 draws of G's entries: within five standard deviations of about 1%
    tolerance = 0.1 if fisher == "mc" else 1e-9
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a.input_factor.value, b.input_factor.value)
        assert distance(a, b) < tolerance


def distance(a, b) -> float:
    one, two = a.output_factor.value, b.output_factor.value
    return ((one - two).norm() / two.norm()).item()


@pytest.mark.parametrize(
    ("loss", "shape"),
    [(nn.MSELoss(), (3,)), (nn.CrossEntropyLoss(), (3,)), (nn.BCEWithLogitsLoss(), (3,))],
)
def test_mc_is_ggn_on_average(loss, shape) -> None:
    """4,000 samples of 6 terms: relative standard deviation of G about √(2/24000)·3 < 3%."""
    model, x = CASES["mlp"].build(6)
    y = {
        nn.MSELoss: torch.zeros(6, 3, dtype=DTYPE),
        nn.CrossEntropyLoss: torch.arange(6) % 3,
        nn.BCEWithLogitsLoss: torch.ones(6, 3, dtype=DTYPE),
    }[type(loss)]
    exactly = gathered(model, loss, x, y, fisher="ggn")
    drawn = gathered(model, loss, x, y, fisher="mc", mc_samples=4000)
    for a, b in zip(drawn, exactly, strict=True):
        assert 0.0 < distance(a, b) < 0.1


def test_mc_draws_anew_each_time_and_repeats_with_its_seed() -> None:
    model, x = CASES["mlp"].build(6)
    y = torch.arange(6) % 3

    def draw(seed: int) -> torch.Tensor:
        layers = gathered(model, nn.CrossEntropyLoss(), x, y, fisher="mc", seed=seed)
        return layers[0].output_factor.value

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


@pytest.mark.parametrize("fisher", ["empirical", "ggn"])
def test_accumulated_batches_are_one_batch(fisher) -> None:
    """Whether or not the loss is divided: the loss module's own hook sees by how much."""
    criterion = nn.MSELoss()
    factors = []
    for parts, divisor in ((1, 1.0), (2, 1.0), (2, 2.0)):
        model, x = CASES["mlp"].build(6)
        y = targets_like(model(x))
        kfac = KFAC(model, lr=0.1, damping=0.01, criterion=criterion, fisher=fisher)
        for rows in torch.arange(6).chunk(parts):
            (criterion(model(x[rows]), y[rows]) / divisor).backward()
        kfac.step()
        factors.append([layer.output_factor.value for layer in kfac.layers])
        kfac.close()
    for other in factors[1:]:
        for a, b in zip(factors[0], other, strict=True):
            torch.testing.assert_close(a, b)


def test_a_summed_loss_has_the_curvature_of_the_mean() -> None:
    for fisher in ("empirical", "ggn"):
        model, x = CASES["positions, a loss term each"].build()
        y = targets_like(model(x))
        mean = gathered(model, nn.MSELoss(), x, y, fisher=fisher)
        total = gathered(model, nn.MSELoss(reduction="sum"), x, y, fisher=fisher)
        for a, b in zip(mean, total, strict=True):
            # squared error's mean is also over 2 outputs
            ratio = 2.0 if fisher == "ggn" else 4.0
            torch.testing.assert_close(b.output_factor.value, ratio * a.output_factor.value)


def test_rows_of_the_output_are_loss_terms_where_no_criterion_tells() -> None:
    for name in ("positions, a loss term each", "positions, taken together", "conv2d strided"):
        model, x = CASES[name].build()
        y = targets_like(model(x))
        told = gathered(model, nn.MSELoss(), x, y)
        kfac = KFAC(model, lr=0.1, damping=0.01)
        F.mse_loss(model(x), y).backward()
        for layer, other in zip(kfac.layers, told, strict=True):
            layer.update_factors(0.0)
            torch.testing.assert_close(layer.output_factor.value, other.output_factor.value)
        kfac.close()


@pytest.mark.parametrize(
    "output",
    [
        lambda y: {"loss": y.sum(), "logits": y},
        lambda y: (y.sum(), y),
        lambda y: [y.flatten(1)],
    ],
)
def test_models_may_return_several_things(output) -> None:
    model, x = CASES["linear"].build()
    wrapped = Flow(inner=model, pack=output)
    plain = gathered(model, nn.MSELoss(), x, torch.zeros(3, 3, dtype=DTYPE))
    kfac = KFAC(wrapped, lr=0.1, damping=0.01)
    result = wrapped(x)
    tensor = result["logits"] if isinstance(result, dict) else result[-1]
    F.mse_loss(tensor, torch.zeros(3, 3, dtype=DTYPE)).backward()
    (layer,) = kfac.layers
    layer.update_factors(0.0)
    torch.testing.assert_close(layer.output_factor.value, plain[0].output_factor.value)


# ---- losses --------------------------------------------------------------------------------------


LOSSES = {
    "cross entropy": (nn.CrossEntropyLoss(), "labels"),
    "weighted": (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0, 0.5], dtype=DTYPE)), "labels"),
    "smoothed": (
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0, 0.5], dtype=DTYPE), label_smoothing=0.2),
        "labels",
    ),
    "ignoring": (nn.CrossEntropyLoss(ignore_index=2), "labels"),
    "ignoring 255": (nn.CrossEntropyLoss(ignore_index=255), "void"),
    "ignoring -100": (nn.CrossEntropyLoss(), "masked"),
    "probabilities": (nn.CrossEntropyLoss(label_smoothing=0.1), "probabilities"),
    "summed": (nn.CrossEntropyLoss(reduction="sum"), "labels"),
    "squared": (nn.MSELoss(), "real"),
    "squared, summed": (nn.MSELoss(reduction="sum"), "real"),
    "binary": (nn.BCEWithLogitsLoss(), "bits"),
    "binary, weighted": (
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 3.0, 0.5], dtype=DTYPE)),
        "bits",
    ),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("positions", [False, True])
def test_the_square_root_is_that_of_the_losss_hessian(name, positions) -> None:
    """Σ_c s sᵀ / R = ∂²L/∂f², by autograd, for every loss and every way to give targets."""
    criterion, kind = LOSSES[name]
    generator = torch.Generator().manual_seed(0)
    classes_last = kind in ("real", "bits")
    shape = ((4, 2, 3) if classes_last else (4, 3, 2)) if positions else (4, 3)
    outputs = torch.randn(shape, generator=generator, dtype=DTYPE)
    rows = shape if classes_last else (shape[0], *shape[2:])
    labels = torch.randint(3, rows, generator=generator)
    labels.reshape(-1)[0] = 2
    y = {
        "labels": labels,
        "masked": labels.masked_fill(labels == 2, -100),
        "void": labels.masked_fill(labels == 2, 255),
        "probabilities": torch.softmax(outputs.flip(0), dim=1),
        "real": outputs.flip(0),
        "bits": (outputs.flip(0) > 0).to(DTYPE),
    }[kind]
    curvature = curvature_of(criterion)
    columns = [c.reshape(-1) for c in curvature.columns(outputs, y)]
    hessian = torch.autograd.functional.hessian(lambda f: criterion(f, y), outputs)
    hessian = hessian.reshape(outputs.numel(), -1)
    total = curvature.total(outputs, y) if criterion.reduction == "mean" else 1.0
    found = sum(torch.outer(c, c) for c in columns) / total
    # all terms go back at once: products between terms are not the Hessian's
    torch.testing.assert_close(found * (hessian != 0.0), hessian, atol=1e-12, rtol=1e-9)
    many, samples = 4000, torch.Generator().manual_seed(1)
    repeated = (t.repeat(many, *[1] * (t.ndim - 1)) for t in (outputs, y))
    drawn = curvature.sample(*repeated, samples).reshape(many, -1)
    mean = drawn.T @ drawn / many / total
    # entries' standard deviation is about the largest times √(2/4000) = 2%
    assert (mean - hessian).abs().max() < 0.15 * hessian.abs().max()


def test_a_loss_without_known_curvature_serves_the_empirical_fisher_alone() -> None:
    model, x = CASES["mlp"].build()
    gathered(model, nn.SmoothL1Loss(), x, torch.zeros(3, 3, dtype=DTYPE))
    with pytest.raises(ValueError, match=r"fisher = 'ggn' needs criterion.*SmoothL1Loss"):
        KFAC(model, lr=0.1, damping=0.1, fisher="ggn", criterion=nn.SmoothL1Loss())
    with pytest.raises(ValueError, match=r"fisher = 'mc' needs criterion.*it is None"):
        KFAC(model, lr=0.1, damping=0.1, fisher="mc")
    with pytest.raises(ValueError, match="loss_reduction = 'none' is unknown"):
        KFAC(model, lr=0.1, damping=0.1, criterion=nn.MSELoss(reduction="none"))
    with pytest.raises(ValueError, match=r"loss_reduction = 'sum', but criterion's .* 'mean'"):
        KFAC(model, lr=0.1, damping=0.1, criterion=nn.MSELoss(), loss_reduction="sum")
    with pytest.raises(TypeError, match=r"criterion = .* is not a torch\.nn\.Module"):
        KFAC(model, lr=0.1, damping=0.1, criterion=F.mse_loss)
    kfac = KFAC(model, lr=0.1, damping=0.1, criterion=nn.MSELoss(), fisher="ggn")
    F.mse_loss(model(x), torch.zeros(3, 3, dtype=DTYPE)).backward()
    with pytest.raises(RuntimeError, match="with the criterion given to KFAC"):
        kfac.step()


@pytest.mark.parametrize("fisher", ["mc", "ggn"])
def test_further_passes_leave_parameter_gradients_alone(fisher) -> None:
    model, x = CASES["transformer"].build()
    y = torch.zeros_like(x)
    F.mse_loss(model(x), y).backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    gathered(model, nn.MSELoss(), x, y, fisher=fisher)
    for p, gradient in zip(model.parameters(), plain, strict=True):
        torch.testing.assert_close(p.grad, gradient)


def test_two_passes_before_their_losses() -> None:
    """As with a discriminator that sees real and generated data: each loss finds its pass."""
    criterion = nn.MSELoss()
    one, x = CASES["mlp"].build(4)
    y = targets_like(one(x))
    (reference, _) = gathered(one, criterion, x, y, fisher="ggn")
    kfac = KFAC(one, lr=0.1, damping=0.1, criterion=criterion, fisher="ggn")
    first, second = one(x[:2]), one(x[2:])
    (criterion(first, y[:2]) + criterion(second, y[2:])).backward()
    kfac.step()
    torch.testing.assert_close(kfac.layers[0].output_factor.value, reference.output_factor.value)


# ---- another implementation ----------------------------------------------------------------------


@pytest.mark.parametrize("name", cases(curvlinops=True))
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("fisher", ["ggn", "empirical"])
@pytest.mark.parametrize("loss", ["squared error", "cross entropy"])
def test_the_factors_are_those_of_curvlinops(name, sharing, fisher, loss) -> None:
    curvlinops = pytest.importorskip(
        "curvlinops", reason="needs pip install 'thermokron[curvlinops]'"
    )
    model, x = CASES[name].build(examples=4)
    outputs = model(x)
    if loss == "cross entropy":
        if outputs.ndim > 2:
            model = Flow(body=model, classes_second=lambda f: f.flatten(1, -2).mT)
            outputs = model(x)
        criterion, y = nn.CrossEntropyLoss(), torch.arange(4) % outputs.shape[1]
        y = y[:, None].expand(4, outputs[0, 0].numel()) if outputs.ndim > 2 else y
    else:
        criterion, y = nn.MSELoss(), targets_like(outputs)
    ours = gathered(model, criterion, x, y, fisher=fisher, sharing=sharing)
    theirs = curvlinops.KFACLinearOperator(
        model,
        criterion,
        [p for p in model.parameters() if p.requires_grad],
        [(x, y)],
        fisher_type={"ggn": "type-2", "empirical": "empirical"}[fisher],
        kfac_approx=sharing,
        separate_weight_and_bias=False,
        check_deterministic=False,
    )
    theirs.compute_kronecker_factors()
    # its empirical Fisher of a mean squared error takes the entries' mean as C times less noise
    scale = math.sqrt(outputs.shape[-1]) if (fisher, loss) == ("empirical", "squared error") else 1
    for layer in ours:
        a, g = layer.input_factor.value, layer.output_factor.value * scale**2
        torch.testing.assert_close(a, theirs._input_covariances[layer.name], rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(
            g, theirs._gradient_covariances[layer.name], rtol=1e-5, atol=1e-9
        )
