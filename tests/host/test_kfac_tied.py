"""Weights that several modules share: in the same way, and each in its own."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from kfac_cases import DTYPE, Flow, brute_force, dense_block, quiet
from kfac_cases import backward_squares as backward
from torch import nn

from thermokron.host.kfac import KFAC
from thermokron.host.kfac.curvature.layers import KroneckerLayer
from thermokron.host.kfac.curvature.layers.tied import balanced
from thermokron.model import NumericUnit, UnitSpec

F = nn.functional
VOCABULARY, WIDTH = 4, 3


class Language(nn.Module):
    """Predicts a token from the one before, by an output layer tied to the embedding."""

    def __init__(self, bias: bool = False, vocabulary: int = VOCABULARY) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(vocabulary, WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, vocabulary, bias=bias)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.mix(self.embed(tokens))))


class Apart(nn.Module):
    """Uses the weight in both ways, but never one after the other: no products between uses."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=bias)
        self.head.weight = self.embed.weight
        self.mix = nn.Linear(WIDTH, 2, bias=False)
        self.to(DTYPE)

    def forward(self, tokens: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.mix(self.embed(tokens)), self.head(x)], dim=-1)


def apart(bias: bool, tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The tied weight's block by K-FAC, and by brute force."""
    model, criterion = Apart(bias), nn.MSELoss()
    x = torch.randn(len(tokens), WIDTH, dtype=DTYPE)
    kfac = quiet(model, criterion=criterion, fisher="ggn")
    inputs = torch.tensor(tokens), x
    outputs = model(*inputs)
    y = torch.zeros_like(outputs)
    criterion(outputs, y).backward()
    layer = kfac.layers[0]
    layer.update_factors(0.0)
    kfac.close()
    truth = brute_force(lambda both: model(*both), criterion, inputs, y, [layer])
    return dense_block(layer), truth[0]


# ---- used in two ways ----------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
def test_embedding_and_output_layer_have_the_exact_block_where_it_is_a_product(bias) -> None:
    """With every token as frequent as any other, both blocks are the identity on the rows."""
    found, truth = apart(bias, [0, 1, 2, 3] * 2)
    torch.testing.assert_close(found, truth)


@pytest.mark.parametrize("bias", [False, True])
def test_otherwise_partial_traces_are_those_of_the_block(bias) -> None:
    found, truth = apart(bias, [0, 0, 0, 1, 2, 0])
    assert (found - truth).norm() > 1e-3 * truth.norm()
    shape = (VOCABULARY, WIDTH + bias) * 2
    for sides in ("iaja->ij", "iaib->ab"):
        a, b = (torch.einsum(sides, matrix.reshape(shape)) for matrix in (found, truth))
        torch.testing.assert_close(a, b)


def test_products_are_balanced_whatever_their_scales() -> None:
    generator = torch.Generator().manual_seed(0)

    def spd(n: int) -> torch.Tensor:
        root = torch.randn(2, n, n, generator=generator, dtype=DTYPE)  # two blocks
        return root @ root.mT

    def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.kron(a, b) for a, b in zip(left, right, strict=True)])

    left, rights = spd(3), [spd(2), spd(2)]
    both = balanced([(left, rights[0]), (5.0 * left, 0.1 * rights[1])])
    torch.testing.assert_close(product(*both), product(left, rights[0] + 0.5 * rights[1]))
    traces = [t.diagonal(dim1=-2, dim2=-1).sum(-1) for t in both]
    torch.testing.assert_close(*traces)
    # how a block's scale is shared out to its factors does not matter
    other = spd(3)
    for a, b in zip(
        balanced([(left, rights[0]), (other, rights[1])]),
        balanced([(1e6 * left, 1e-6 * rights[0]), (other, rights[1])]),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    dead = balanced([(0.0 * left, rights[0]), (0.0 * other, rights[1])])
    assert all(torch.equal(t, torch.zeros_like(t)) for t in dead)


def test_one_layer_holds_embedding_output_layer_and_its_own_bias() -> None:
    model = Language(bias=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kfac = KFAC(model, lr=0.1, damping=1e12, kl_clip=None)
    assert [layer.name for layer in kfac.layers] == ["embed", "mix"]
    assert "layer embed: A 4, G 4, tied in embed and head" in repr(kfac)
    backward(model, torch.tensor([0, 3, 1]))
    plain = [p.grad.clone() for p in model.parameters()]
    kfac.step()  # with λ → ∞ every update is V/λ: each part comes back to its place
    for p, gradient in zip(model.parameters(), plain, strict=True):
        torch.testing.assert_close(p.grad * 1e12, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"damping_mode": "exact"},
        {"sharing": "reduce", "method": "solve"},
        {"unit": True, "samples": 2000},
    ],
    ids=str,
)
def test_tied_language_models_train(options) -> None:
    """Every token foretells the next: far further than gradient descent gets in as many steps at
    the best of four rates."""
    tokens = (torch.arange(64).reshape(16, 4) * 3) % 7
    targets = (tokens + 3) % 7
    criterion = nn.CrossEntropyLoss()

    def run(lr: float, preconditioned: bool) -> float:
        model = Language(bias=True, vocabulary=7)
        unit = NumericUnit(UnitSpec(), seed=0) if options.get("unit") else None
        chosen = options | {"unit": unit, "lr": lr, "damping": 0.01, "kl_clip": 1e-2}
        chosen |= {"criterion": criterion, "fisher": "ggn"}
        kfac = KFAC(model, **chosen) if preconditioned else None
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
        for _ in range(40):
            optimizer.zero_grad()
            loss = criterion(model(tokens).mT, targets)
            loss.backward()
            if kfac is not None:
                kfac.step()
            optimizer.step()
        return loss.item() if math.isfinite(loss.item()) else math.inf

    assert run(0.1, True) < 0.2 * min(run(lr, False) for lr in (0.1, 0.3, 0.6, 1.0))


def test_linear_layers_may_share_a_weight_and_have_biases_of_their_own() -> None:
    torch.manual_seed(0)
    model = Flow(
        a=nn.Linear(3, 3), act=torch.tanh, b=nn.Linear(3, 3), c=nn.Linear(3, 3, bias=False)
    )
    model.b.weight = model.c.weight = model.a.weight
    kfac = KFAC(model, lr=0.1, damping=0.01)
    (layer,) = kfac.layers
    assert len(layer.parameters) == 3
    x = torch.randn(7, 3)
    backward(model, x)
    expected = torch.cat(
        [p.grad.reshape(3, -1) for p in (model.a.weight, model.a.bias, model.b.bias)], 1
    )
    torch.testing.assert_close(layer.gradient(), expected)
    plain = [p.grad.clone() for p in model.parameters()]
    kfac.step()
    for p, gradient in zip(model.parameters(), plain, strict=True):
        assert (p.grad * gradient).sum() > 0.0
        assert not torch.allclose(p.grad / gradient, (p.grad / gradient).mean())
    # neither bias is an input of the other's layer
    assert layer.input_factor.value[3, 4] == 0.0


def test_the_output_projection_of_attention_may_be_a_linear_layers_weight() -> None:
    """Inside attention the sequence comes first, in the linear layer the examples do."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.before = nn.Linear(4, 4)
            self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
            self.attend.out_proj.weight = self.before.weight
            self.attend.out_proj.bias = self.before.bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.before(x)
            return self.attend(x, x, x)[0]

    model = Net()
    kfac = KFAC(model, lr=0.1, damping=0.01, sharing="reduce")
    (layer,) = [one for one in kfac.layers if one.name == "before"]
    backward(model, torch.randn(5, 3, 4))
    layer.update_factors(0.0)
    assert layer.input_factor.value[-1, -1] == 1.0
    seen = []
    handles = [
        module.register_forward_hook(lambda m, args, out: seen.append(args[0].detach()))
        for module in layer.modules
    ]
    model(torch.randn(5, 3, 4))
    assert [tuple(t.shape) for t in seen] == [(5, 3, 4), (3, 5, 4)]
    for handle in handles:
        handle.remove()
    rows = [layer.input_rows(m, t).shape for m, t in zip(layer.modules, seen, strict=True)]
    assert rows == [(5, 3, 4), (5, 3, 4)]


# ---- used in one way -----------------------------------------------------------------------------


def test_tied_modules_of_one_kind_form_one_layer() -> None:
    torch.manual_seed(0)
    tied = Flow(a=nn.Linear(3, 3), act=torch.tanh, b=nn.Linear(3, 3))
    tied.b.weight, tied.b.bias = tied.a.weight, tied.a.bias
    one = nn.Linear(3, 3)
    one.load_state_dict(tied.a.state_dict())
    twice = Flow(a=one, act=torch.tanh, b=one)
    x = torch.randn(7, 3)
    for model in (tied, twice):
        kfac = KFAC(model, lr=0.1, damping=0.01)
        assert [layer.name for layer in kfac.layers] == ["a"]
        backward(model, x)
        kfac.step()
    assert torch.equal(tied.a.weight.grad, one.weight.grad)


def test_convolutions_that_share_a_kernel_keep_their_own_strides() -> None:
    """∂L/∂W = Σ g aᵀ, over both, each with its own patches."""
    torch.manual_seed(0)
    model = Flow(
        a=nn.Conv2d(2, 2, 3, padding=1),
        b=nn.Conv2d(2, 2, 3, stride=2, dilation=2),
        flat=nn.Flatten(),
    )
    model.b.weight, model.b.bias = model.a.weight, model.a.bias
    kfac = KFAC(model, lr=0.1, damping=0.01)
    (layer,) = kfac.layers
    products = []
    original = layer.record

    def record(module, prepared, g, terms, *, reduce, again):
        rows = layer.output_rows(module, g).flatten(0, 1) / 4
        products.append(rows.mT @ layer.input_rows(module, prepared).flatten(0, 1))
        original(module, prepared, g, terms, reduce=reduce, again=again)

    layer.record = record
    model(torch.randn(4, 2, 7, 7)).square().mean().backward()
    torch.testing.assert_close(sum(products), model.a.weight.grad.flatten(1))


def test_embeddings_that_share_a_table_keep_their_own_padding() -> None:
    model = nn.ModuleDict({"a": nn.Embedding(4, 3, padding_idx=0), "b": nn.Embedding(4, 3)})
    model["b"].weight = model["a"].weight
    kfac = KFAC(model, lr=0.1, damping=0.01)
    (layer,) = kfac.layers
    assert isinstance(layer, KroneckerLayer)
    index = torch.tensor([0, 1, 0])
    (model["a"](index) + model["b"](index)).square().mean().backward()
    layer.update_factors(0.0)
    torch.testing.assert_close(layer.input_factor.value, torch.tensor([2.0, 2.0, 0.0, 0.0]) / 6)


def test_a_state_goes_on_with_a_tied_weight() -> None:
    models = [Language(bias=True) for _ in range(2)]
    first, second = (KFAC(m, lr=0.1, inverse_interval=2) for m in models)
    tokens = torch.tensor([[0, 3, 1], [2, 2, 1]])
    backward(models[0], tokens)
    first.step()
    second.load_state_dict(first.state_dict())
    for model, kfac in zip(models, (first, second), strict=True):
        backward(model, tokens)
        kfac.step()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


# ---- what stays uncovered ------------------------------------------------------------------------


def test_what_else_is_shared_keeps_its_plain_gradient_and_is_named() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.decode = nn.Conv1d(1, 2, 3), nn.ConvTranspose1d(2, 1, 3)
            self.decode.weight = self.encode.weight
            self.norms = nn.ModuleList([nn.LayerNorm(6), nn.LayerNorm(6)])
            self.norms[1].weight = self.norms[0].weight
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
            self.b.bias = self.a.bias
            self.head = nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norms[1](self.norms[0](self.decode(self.encode(x))))
            return self.head(self.b(self.a(x)))

    torch.manual_seed(0)
    model = Net()
    with pytest.warns(UserWarning, match="plain gradients there"):
        kfac = KFAC(model, lr=0.1, damping=0.01, others="plain")
    assert [layer.name for layer in kfac.layers] == ["head"]
    assert kfac.uncovered == [
        "encode.weight, encode.bias (Conv1d, shares parameters with decode)",
        "decode.bias (ConvTranspose1d, shares parameters with encode)",
        "norms.0.weight, norms.0.bias (LayerNorm, shares parameters with norms.1)",
        "norms.1.bias (LayerNorm, shares parameters with norms.0)",
        "a.weight, a.bias (Linear, shares parameters with b)",
        "b.weight (Linear, shares parameters with a)",
    ]
    backward(model, torch.randn(4, 1, 6))
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    kfac.step()
    for name, p in model.named_parameters():
        assert torch.equal(p.grad, plain[name]) != name.startswith("head"), name
