"""Every parameter with a gradient is preconditioned, or named once with the reason; what is chosen
and registered; factors too large to be dense."""

from __future__ import annotations

import warnings

import pytest
import torch
from kfac_cases import Flow, quiet
from torch import nn
from torch.nn.utils import prune

from thermokron.host.kfac import KFAC, register_layer
from thermokron.host.kfac.curvature.layers import (
    FreeLayer,
    KroneckerLayer,
    LinearLayer,
    NormLayer,
    registry,
)
from thermokron.model import NumericUnit, UnitSpec

X, Y = torch.randn(32, 8), torch.randint(3, (32,))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def step(model: nn.Module, kfac: KFAC) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Gradients that a step left as they were, and what it warned of."""
    model.zero_grad()
    nn.functional.cross_entropy(model(X), Y).backward()
    plain = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        kfac.step()
    kept = {n: g for n, g in plain.items() if torch.equal(model.get_parameter(n).grad, g)}
    return kept, [str(w.message) for w in told]


class Adapted(nn.Module):
    """A layer with a low-rank one beside it, in place of a linear layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.down, self.up = base, nn.Linear(8, 2), nn.Linear(2, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))


def prune_weight(model) -> None:
    prune.l1_unstructured(model[0], "weight", 0.5)


def prune_bias(model) -> None:
    prune.l1_unstructured(model[0], "bias", 0.5)


def normalise(model) -> None:
    nn.utils.parametrizations.weight_norm(model[0])


def replace(model) -> None:
    model[0] = nn.Linear(8, 16)


def grow(model) -> None:
    model[0].weight = nn.Parameter(torch.randn(20, 8))
    model[0].bias = nn.Parameter(torch.randn(20))
    model[2].weight = nn.Parameter(torch.randn(3, 20))


def append(model) -> None:
    model.append(nn.Linear(3, 3))


def adapt(model) -> None:
    model[0] = Adapted(model[0])


def add_parameter(model) -> None:
    model.scale = nn.Parameter(torch.ones(()))
    model.register_forward_hook(lambda module, args, output: output * module.scale)


@pytest.mark.parametrize(
    "change",
    [prune_weight, prune_bias, normalise, replace, grow, append, adapt, add_parameter],
)
def test_what_changes_later_is_named_once_and_keeps_its_gradient(change) -> None:
    model = network()
    kfac = KFAC(model, lr=0.1)
    assert step(model, kfac) == ({}, [])
    change(model)
    kept, told = step(model, kfac)
    assert kept
    (text,) = told
    assert "plain gradients there" in text
    for name in kept:
        assert name in text
    assert "made" in text  # what is to be done
    again, told = step(model, kfac)
    assert set(again) == set(kept)
    assert told == []


@pytest.mark.parametrize("others", ["diagonal", "plain"])
def test_what_was_changed_before_is_named_or_gets_a_diagonal(others) -> None:
    for change in (prune_weight, prune_bias, normalise):
        model = network()
        change(model)
        with pytest.warns(UserWarning, match="K-FAC") as told:
            kfac = KFAC(model, lr=0.1, others=others)
        (text,) = (str(w.message) for w in told)
        kept, more = step(model, kfac)
        assert more == []
        assert bool(kept) == (others == "plain")
        for name in kept:
            assert name in text


def test_weights_tied_later_are_named() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 3))
    kfac = KFAC(model, lr=0.1)
    step(model, kfac)
    model[2].weight = model[0].weight
    kept, (text,) = step(model, kfac)
    assert set(kept) == {"0.weight", "0.bias", "2.bias"}
    assert "another layer shares it now" in text


def test_layers_compiled_later_are_preconditioned_still() -> None:
    model = network()
    kfac = KFAC(model, lr=0.1)
    step(model, kfac)
    model[0] = torch.compile(model[0], backend="eager")
    kept, told = step(model, kfac)
    assert kept == {}
    assert told == []


def test_a_layer_that_brings_no_data_any_more_is_named() -> None:
    """Its weight is used by hand, past the module: the curvature is that of earlier steps."""
    model = network()
    kfac = KFAC(model, lr=0.1)
    step(model, kfac)
    first = model[0]

    class ByHand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kept = first

        def forward(self, x):
            return nn.functional.linear(x, first.weight, first.bias)

    model[0] = ByHand()
    _, (text,) = step(model, kfac)
    assert "none of the data behind the gradient of 0.kept.weight, 0.kept.bias" in text
    assert step(model, kfac)[1] == []


# ---- choice --------------------------------------------------------------------------------------


def test_layers_are_chosen_by_name_class_and_module() -> None:
    def covered(**options) -> list[str]:
        model = nn.ModuleDict(
            {"encode": network(), "norm": nn.LayerNorm(3), "head": nn.Linear(3, 2)}
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return [layer.name for layer in KFAC(model, lr=0.1, **options).layers]

    every = ["encode.0", "encode.2", "norm", "head"]
    assert covered() == every
    assert covered(include="encode") == ["encode.0", "encode.2"]
    assert covered(include=["encode.*", "head"], exclude="encode.0") == ["encode.2", "head"]
    assert covered(exclude=nn.LayerNorm) == ["encode.0", "encode.2", "head"]
    assert covered(exclude=("?orm", "encode")) == ["head"]
    model = network()
    assert [layer.name for layer in KFAC(model, lr=0.1, exclude=model[0]).layers] == ["2"]
    kfac = KFAC(model, lr=0.1, exclude=model[0])
    kept, told = step(model, kfac)
    assert set(kept) == {"0.weight", "0.bias"}
    assert told == []  # who leaves a layer out knows it
    assert kfac.uncovered == []
    assert "plain gradient: 0.weight, 0.bias (left out)" in repr(kfac)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"include": "encode"}, ValueError, "include = 'encode' fits no module of the model"),
        ({"exclude": nn.Conv2d}, ValueError, "exclude = .*Conv2d.* fits no module of the model"),
        ({"exclude": 3}, TypeError, "exclude = 3 is out of range; legal: names of modules"),
        ({"exclude": [3]}, TypeError, "exclude = 3 is out of range; legal: names of modules"),
        ({"exclude": ""}, ValueError, "model holds nothing trainable that K-FAC covers"),
        ({"dense_limit": 0}, ValueError, "dense_limit = 0 is out of range; legal: 1 or more"),
        ({"others": "none"}, ValueError, "others = 'none' is unknown"),
    ],
)
def test_wrong_choices_are_refused(options, error, text) -> None:
    with pytest.raises(error, match=text):
        KFAC(network(), lr=0.1, **options)


# ---- registration --------------------------------------------------------------------------------


class Turned(nn.Module):
    """A linear layer with a weight (in, out) and no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3) / 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


class TurnedLayer(LinearLayer):
    transposed = True

    @property
    def sizes(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1]

    def stacked(self, tensors):
        return tensors[0].T

    def set_gradient(self, value: torch.Tensor) -> None:
        self.weight.grad.copy_(value.T)


class Scaled(nn.LayerNorm):
    """Computes what LayerNorm does, in a forward of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(x, (8,), self.weight, self.bias, self.eps)


@pytest.fixture
def registry_as_before(monkeypatch):
    monkeypatch.setattr(registry, "_KNOWN", dict(registry._KNOWN))


@pytest.mark.usefixtures("registry_as_before")
def test_classes_of_others_are_registered() -> None:
    model = nn.Sequential(Scaled(8), Turned())
    with pytest.raises(ValueError, match="model holds nothing trainable that K-FAC covers"):
        KFAC(model, lr=0.1)
    register_layer(Scaled, NormLayer)
    register_layer(Turned, TurnedLayer)
    same = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 3, bias=False))
    same[1].weight.data = model[1].weight.data.T.clone()
    gradients = []
    for each in (model, same):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            kfac = KFAC(each, lr=0.1)
        step(each, kfac)
        gradients.append([p.grad for p in each.parameters()])
    gradients[0][-1] = gradients[0][-1].T
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)

    class Further(Turned):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2.0 * super().forward(x)

    with pytest.warns(UserWarning, match="Further extends Turned by a forward of its own"):
        KFAC(nn.Sequential(nn.Linear(8, 8), Further()), lr=0.1)


def test_what_is_no_class_is_not_registered() -> None:
    with pytest.raises(TypeError, match="module_class = 3 is out of range"):
        register_layer(3, NormLayer)
    with pytest.raises(TypeError, match=r"layer_class = .*LayerNorm.* is out of range"):
        register_layer(Scaled, nn.LayerNorm)


# ---- second names --------------------------------------------------------------------------------


class Head(nn.Module):
    def __init__(self, table: nn.Parameter | None) -> None:
        super().__init__()
        self.decoder = nn.Linear(6, 12)
        if table is not None:
            self.decoder.weight = table
        self.bias = self.decoder.bias
        self.weight = self.decoder.weight


class Language(nn.Module):
    def __init__(self, *, named: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.mix = nn.Embedding(12, 6), nn.Linear(6, 6)
        if named:
            self.head = Head(self.words.weight)
        else:
            self.head = nn.Module()
            self.head.decoder = nn.Linear(6, 12)
            self.head.decoder.weight = self.words.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head.decoder(torch.tanh(self.mix(self.words(x))))


def test_a_second_name_around_a_layer_is_no_use() -> None:
    tokens = torch.randint(12, (4, 5))
    found = []
    for named in (False, True):
        model = Language(named=named)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            kfac = KFAC(model, lr=0.1)
            nn.functional.cross_entropy(model(tokens).mT, tokens).backward()
            kfac.step()
        assert [layer.name for layer in kfac.layers] == ["words", "mix"]
        found.append([p.grad for p in (model.words.weight, model.head.decoder.bias)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


# ---- parameters of nobody ------------------------------------------------------------------------


class Tokens(nn.Module):
    """A token of its own, positions, and a scale that the output ends with."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.token = nn.Parameter(0.1 * torch.randn(4))
        self.table = nn.Parameter(0.1 * torch.randn(3, 4))
        self.mix, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([x, self.token.expand(len(x), 1, 4)], 1)[:, :3] + self.table
        return self.scale * self.head(torch.tanh(self.mix(x)).mean(1))


@pytest.mark.parametrize("fisher", ["mc", "ggn"])
def test_the_curvature_of_a_free_parameter_is_its_diagonal_in_the_mean(fisher) -> None:
    """1/R Σ_n d_n² by brute force, from 400 draws: each with a deviation of about √2 of the mean
    for one loss term and more, so that five of the mean's are 35% of it."""
    model, criterion = Tokens(), nn.CrossEntropyLoss()
    x, y = torch.randn(6, 2, 4), torch.arange(6) % 3
    free = [model.token, model.table, model.scale]
    exact = [torch.zeros_like(p) for p in free]
    for one in x:
        outputs = model(one[None])[0]
        p = torch.softmax(outputs, 0).detach()
        for column in (torch.diag(p.sqrt()) - torch.outer(p, p.sqrt())).T:
            for total, g in zip(
                exact, torch.autograd.grad(outputs, free, column, retain_graph=True), strict=True
            ):
                total += g.square() / len(x)
    with pytest.warns(
        UserWarning, match=r"only diagonal curvature.* token, table, scale \(held by"
    ):
        kfac = KFAC(model, lr=0.1, criterion=criterion, fisher=fisher, decay=0.0)
    layers = [layer for layer in kfac.layers if isinstance(layer, FreeLayer)]
    assert [layer.name for layer in layers] == ["token", "table", "scale"]
    sums = [torch.zeros_like(p) for p in free]
    for _ in range(400):
        model.zero_grad()
        criterion(model(x), y).backward()
        for layer, total in zip(layers, sums, strict=True):
            layer.update_factors(0.0)
            total += layer.curvature.value.reshape(total.shape) / 400
        kfac.discard()
    for found, expected in zip(sums, exact, strict=True):
        assert ((found - expected).abs() < 0.35 * expected + 0.02 * expected.max()).all()


def test_free_parameters_with_training_labels() -> None:
    """h = R v², v the gradient of the mean, whatever is accumulated, scaled or divided."""
    x, y = torch.randn(6, 2, 4), torch.arange(6) % 3
    for criterion in (nn.CrossEntropyLoss(), None):
        model = Tokens()
        kfac = quiet(model, criterion=criterion, decay=0.0, damping=1e-3, kl_clip=None)
        loss = nn.functional.cross_entropy if criterion is None else criterion
        scale = 1.0 if criterion is None else 64.0
        (scale * loss(model(x), y)).backward()
        v = [model.get_parameter(n).grad / scale for n in ("token", "table", "scale")]
        for p in model.parameters():
            p.grad /= scale
        kfac.step()
        for layer, gradient in zip(kfac.layers[-3:], v, strict=True):
            torch.testing.assert_close(
                layer.curvature.value.reshape(gradient.shape), 6 * gradient.square()
            )
            expected = gradient / (6 * gradient.square() + 1e-3)
            torch.testing.assert_close(layer.parameters[0].grad, expected)


# ---- factors too large ---------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"method": "solve"}, {"damping_mode": "exact"}, "unit"])
def test_a_factor_beyond_the_limit_is_diagonal_and_says_so(options) -> None:
    """Every way to apply a block divides by the damped diagonal: that of G, or of A."""
    unit = None
    if options == "unit":
        options, unit = (
            {"settle": "30tau", "samples": 400},
            NumericUnit(UnitSpec(cells=8, adc_bits=14)),
        )
    x = torch.randn(16, 4)
    for inputs, outputs, letter in ((4, 9, "G"), (9, 4, "A")):
        torch.manual_seed(0)
        model = nn.Linear(inputs, outputs, bias=False)
        with pytest.warns(
            UserWarning, match=rf"only the diagonal of {letter} of \(model\) \(9 rows"
        ):
            kfac = KFAC(model, unit, lr=0.1, damping=0.1, dense_limit=8, kl_clip=None, **options)
        data = x if inputs == 4 else torch.randn(16, 9)
        model(data).square().sum(-1).mean().backward()
        v = model.weight.grad.clone()
        kfac.step()
        a, g = (factor.value for factor in kfac.layers[0].factors.values())
        if options.get("damping_mode"):
            va, qa = torch.linalg.eigh(torch.diag(a) if letter == "A" else a)
            vg, qg = torch.linalg.eigh(torch.diag(g) if letter == "G" else g)
            expected = qg @ (qg.T @ v @ qa / (vg[:, None] * va + 0.1)) @ qa.T
        else:
            mean = [m.mean() if m.ndim == 1 else m.trace() / len(m) for m in (a, g)]
            pi = (mean[0] / mean[1]).sqrt()
            dense = [torch.diag(m) if m.ndim == 1 else m for m in (a, g)]
            left = dense[1] + 0.1**0.5 / pi * torch.eye(outputs)
            right = dense[0] + 0.1**0.5 * pi * torch.eye(inputs)
            expected = torch.linalg.solve(right, torch.linalg.solve(left, v), left=False)
        tolerance = 1e-4 if unit is None else 0.1
        assert (model.weight.grad - expected).norm() < tolerance * expected.norm()


def test_a_vocabulary_beyond_the_limit_is_tied_by_diagonals() -> None:
    """The same as with dense factors, of which only the diagonal is looked at."""
    tokens = torch.randint(12, (4, 5))
    factors = []
    for limit in (None, 8):
        model = Language(named=True)
        kfac = quiet(model, decay=0.0, dense_limit=limit)
        nn.functional.cross_entropy(model(tokens).mT, tokens).backward()
        kfac.step()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())
        tied = kfac.layers[0]
        assert isinstance(tied, KroneckerLayer)
        factors.append((tied.input_factor.value, tied.output_factor.value))
    (dense_right, dense_left), (right, left) = factors
    torch.testing.assert_close(left, dense_left.diagonal())
    torch.testing.assert_close(right, dense_right)


def test_a_state_of_another_limit_is_refused() -> None:
    states = []
    for limit in (None, 12):
        model = network()
        kfac = quiet(model, dense_limit=limit)
        step(model, kfac)
        states.append(kfac.state_dict())
    with pytest.raises(ValueError, match=r"output_factor of layer '0' is \(16, 16\)"):
        kfac.load_state_dict(states[0])


def test_flow_is_covered_by_name() -> None:
    """Nothing is said where everything is covered."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert KFAC(Flow(a=nn.Linear(8, 3)), lr=0.1).uncovered == []
