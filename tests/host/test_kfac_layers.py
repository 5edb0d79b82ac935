"""Every kind of layer: what is recorded is what makes its gradient, and edges of coverage."""

from __future__ import annotations

import copy
import warnings
from functools import partial

import pytest
import torch
from kfac_cases import CASES, Flow, cases, quiet
from kfac_cases import backward_squares as backward
from torch import nn

from thermokron.host.kfac import KFAC
from thermokron.host.kfac.curvature.layers import KroneckerLayer

F = nn.functional


@pytest.mark.parametrize("name", cases())
def test_what_is_recorded_makes_the_gradient(name: str, monkeypatch) -> None:
    """∂L/∂W = Σ g aᵀ over all that a layer recorded, the bias as a homogeneous coordinate.

    Any mistake in padding, stride, groups, layout, or in what is hooked, shows here.
    """
    model, x = CASES[name].build()
    kfac = quiet(model)
    seen: dict[KroneckerLayer, torch.Tensor] = {}

    def record(layer, module, prepared, g, terms, *, reduce, again):
        g = layer.output_rows(module, g).flatten(-3, -2) / terms
        if prepared.dtype == torch.int64:
            a = F.one_hot(prepared.reshape(-1), layer.module.num_embeddings).to(g)
            if layer.module.padding_idx is not None:
                a[:, layer.module.padding_idx] = 0.0
        else:
            a = layer.input_rows(module, prepared).flatten(-3, -2)
        if layer.has_bias:
            a = torch.cat([a, torch.ones_like(a[..., :1])], dim=-1)
        seen[layer] = seen.get(layer, 0.0) + g.mT @ a

    kronecker = [layer for layer in kfac.layers if isinstance(layer, KroneckerLayer)]
    for layer in kronecker:
        monkeypatch.setattr(layer, "record", partial(record, layer))
    backward(model, x)
    assert set(seen) == set(kronecker)
    for layer, product in seen.items():
        torch.testing.assert_close(product, layer.gradient())


@pytest.mark.parametrize("name", cases())
def test_a_step_with_heavy_damping_points_along_the_gradient(name: str) -> None:
    """With λ → ∞ every update is V/λ: nothing is written to a wrong place."""
    model, x = CASES[name].build()
    kfac = quiet(model, damping=1e12, kl_clip=None)
    backward(model, x)
    plain = [(p, p.grad.clone()) for layer in kfac.layers for p in layer.parameters]
    kfac.step()
    for p, gradient in plain:
        torch.testing.assert_close(p.grad * 1e12, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["attention", "attention, sequence first", "transformer"])
@pytest.mark.parametrize("masks", ["none", "padding", "causal", "both", "per head"])
@pytest.mark.parametrize("weights", [True, False])
def test_watched_attention_computes_what_torch_computes(name, masks, weights) -> None:
    model, x = CASES[name].build()
    module = model.self_attn if name == "transformer" else model.attention
    if not module.batch_first:
        x = x.transpose(0, 1)
    options: dict = {"need_weights": weights}
    if masks in ("padding", "both"):
        hidden = torch.tensor([[False, False, True]] * 3)
        options["key_padding_mask"] = hidden
    if masks in ("causal", "both"):
        options["attn_mask"] = torch.ones(3, 3, dtype=torch.bool).triu(1)
        options["is_causal"] = masks == "causal"
    if masks == "per head":
        options["attn_mask"] = torch.randn(6, 3, 3, dtype=torch.float64)
        options["average_attn_weights"] = False
    expected = module(x, x.flip(0), x, **options)
    with quiet(model):
        assert "forward" in vars(module)
        found = module(x, x.flip(0), x, **options)
    assert "forward" not in vars(module)
    for ours, theirs in zip(found, expected, strict=True):
        if theirs is None:
            assert ours is None
        else:
            torch.testing.assert_close(ours, theirs)


def test_attention_without_a_batch_and_with_extra_keys() -> None:
    for name in ("attention", "attention, extra keys", "attention, other keys"):
        model, x = CASES[name].build()
        expected = model(x), model(x[0])
        with quiet(model):
            torch.testing.assert_close(model(x), expected[0])
            torch.testing.assert_close(model(x[0]), expected[1])


def test_attention_in_eval_mode_is_torchs_own() -> None:
    model, x = CASES["transformer"].build()
    model.eval()
    expected = model(x)
    with quiet(model) as kfac:
        assert torch.equal(model(x), expected)
        with pytest.raises(RuntimeError, match="no layer has seen a backward pass"):
            kfac.step()


def test_a_transformer_is_covered_with_all_its_projections() -> None:
    model, x = CASES["transformer"].build()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kfac = KFAC(model, lr=0.1, damping=0.01, kl_clip=None)
    assert [layer.name for layer in kfac.layers] == [
        "self_attn.query_proj",
        "self_attn.key_proj",
        "self_attn.value_proj",
        "self_attn.out_proj",
        "linear1",
        "linear2",
        "norm1",
        "norm2",
    ]
    backward(model, x)
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    kfac.step()
    for name, p in model.named_parameters():
        assert not torch.allclose(p.grad, plain[name], rtol=1e-3, atol=0.0), name


def test_what_is_not_covered_is_named_once_and_keeps_its_plain_gradient() -> None:
    model = Flow(
        up=nn.ConvTranspose1d(1, 2, 3),
        flat=nn.Flatten(),
        head=nn.Linear(16, 3),
        scale=nn.PReLU(),
    )
    with pytest.warns(UserWarning, match="plain gradients there") as record:
        kfac = KFAC(model, lr=0.1, damping=0.01, others="plain")
    assert len(record) == 1
    assert kfac.uncovered == [
        "up.weight, up.bias (no layer class is registered for ConvTranspose1d)",
        "scale.weight (no layer class is registered for PReLU)",
    ]
    text = repr(kfac)
    assert "plain gradient: up.weight, up.bias (no layer" in text
    assert "layer head: A 17, G 3" in text
    backward(model, torch.randn(4, 1, 6))
    plain = [p.grad.clone() for m in (model.up, model.scale) for p in m.parameters()]
    kfac.step()
    after = [p.grad for m in (model.up, model.scale) for p in m.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(plain, after, strict=True))


def test_options_that_make_another_gradient_are_not_covered() -> None:
    for options in ({"sparse": True}, {"scale_grad_by_freq": True}, {"max_norm": 1.0}):
        model = Flow(embed=nn.Embedding(5, 3, **options), head=nn.Linear(3, 2))
        kfac = quiet(model, others="plain")
        assert kfac.uncovered == [f"embed.weight (Embedding with {next(iter(options))})"]
        backward(model, torch.tensor([0, 1, 2]))
        kfac.step()


def test_subclasses_and_parametrizations() -> None:
    class Same(nn.Linear):
        pass

    class Other(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2.0

    normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    kfac = quiet(Flow(a=Same(3, 3), b=Other(3, 3), c=normed), others="plain")
    assert [layer.name for layer in kfac.layers] == ["a"]
    backward(kfac.layers[0].module, torch.randn(2, 3))
    kfac.step()


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(4, 4), (6, 4)),
        (nn.Conv1d(2, 2, 3, padding=1), (6, 2, 4)),
        (nn.LayerNorm(4), (6, 4)),
        (nn.GroupNorm(2, 4), (6, 4, 3)),
    ],
)
@pytest.mark.parametrize("fisher", ["empirical", "ggn"])
def test_activations_may_work_in_place(module, shape, fisher) -> None:
    torch.manual_seed(0)
    x, updates = torch.randn(shape), []
    criterion = nn.MSELoss()
    for inplace in (False, True):
        model = Flow(m=copy.deepcopy(module), act=nn.ReLU(inplace=inplace))
        kfac = quiet(model, criterion=criterion, fisher=fisher)
        criterion(model(x), torch.zeros(shape)).backward()
        kfac.step()
        updates.append([p.grad for p in model.parameters()])
        kfac.close()
    for a, b in zip(*updates, strict=True):
        assert a.abs().max() > 0.0
        assert torch.equal(a, b)


def test_layers_without_data_in_a_step() -> None:
    """Left alone while they have none, and preconditioned with what they had before."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.head = (nn.Linear(3, 3) for _ in range(3))
            self.norm = nn.LayerNorm(3)

        def forward(self, x: torch.Tensor, way: str) -> torch.Tensor:
            return self.head(self.left(x) if way == "left" else self.norm(self.right(x)))

    torch.manual_seed(0)
    model = Branches()
    kfac = KFAC(model, lr=0.1, damping=0.01)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for way in ("left", "right", "left", "left"):
        optimizer.zero_grad()
        model(torch.randn(8, 3), way).square().mean().backward()
        kfac.step()
        optimizer.step()
        other = model.right if way == "left" else model.left
        assert other.weight.grad is None
    by_name = {layer.name: layer for layer in kfac.layers}
    assert by_name["left"].input_factor.weight > by_name["right"].input_factor.weight > 0.0


def test_frozen_parts_of_attention() -> None:
    model, x = CASES["attention"].build()
    model.attention.in_proj_weight.requires_grad_(False)
    kfac = quiet(model, others="plain")
    assert [layer.name for layer in kfac.layers] == ["attention.out_proj"]
    assert kfac.uncovered == ["attention.in_proj_bias (MultiheadAttention has no layer for it)"]
    backward(model, x)
    kfac.step()
    model, x = CASES["attention"].build()
    model.attention.out_proj.requires_grad_(False)
    backward(model, x)
    assert len(quiet(model).layers) == 3


def test_modules_in_eval_mode_leave_no_trace() -> None:
    """A frozen batch norm inside a network in training: its statistics are not the batch's."""
    model, x = CASES["batch norm 2d"].build()
    model.norm.eval()
    kfac = quiet(model)
    backward(model, x)
    plain = model.norm.weight.grad.clone()
    with pytest.warns(
        UserWarning, match=r"for norm\.weight, norm\.bias \(K-FAC saw none of its data"
    ):
        kfac.step()
    assert [layer.name for layer in kfac.layers if layer.has_factors] == ["head"]
    assert torch.equal(model.norm.weight.grad, plain)


@pytest.mark.parametrize("fisher", ["empirical", "ggn"])
def test_passes_without_gradients_leave_no_trace(fisher) -> None:
    criterion = nn.MSELoss()
    updates = []
    for noise in (False, True):
        model, x = CASES["transformer"].build()
        kfac = quiet(model, criterion=criterion, fisher=fisher)
        if noise:
            with torch.no_grad():
                criterion(model(7.0 * x), x)
            model.eval()
            criterion(model(5.0 * x), x)
            model.train()
            model(3.0 * x)  # never judged, never backpropagated
        criterion(model(x), torch.zeros_like(x)).backward()
        kfac.step()
        updates.append([p.grad for p in model.parameters()])
        kfac.close()
    for a, b in zip(*updates, strict=True):
        assert torch.equal(a, b)


def test_close_takes_everything_off() -> None:
    model, x = CASES["transformer"].build()
    criterion = nn.MSELoss()
    before = model(x)
    kfac = quiet(model, criterion=criterion)
    kfac.close()
    kfac.close()
    for module in (*model.modules(), criterion):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in vars(module)
    assert torch.equal(model(x), before)


def test_layers_may_be_called_by_keyword_and_on_views() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Conv2d(2, 3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(input=x[:, 0].mT)[:, :3] + self.b(input=x.flip(-1))[:, :, 0].mT

    torch.manual_seed(0)
    model = Net()
    kfac = KFAC(model, lr=0.1, damping=0.01)
    backward(model, torch.randn(5, 2, 4, 4)[:, :, :, ::1].transpose(2, 3))
    assert kfac.step().inversions == 4


def test_a_single_example_without_its_dimension() -> None:
    model = Flow(conv=nn.Conv2d(2, 3, 2), flat=nn.Flatten(0), head=nn.Linear(12, 2))
    kfac = KFAC(model, lr=0.1, damping=0.01)
    backward(model, torch.randn(2, 3, 3))
    kfac.step()
    assert all(layer.has_factors for layer in kfac.layers)


def test_half_precision_inputs_do_not_overflow() -> None:
    model = nn.Linear(3, 2)
    kfac = KFAC(model, lr=0.1, damping=0.01)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(300.0 * torch.randn(4, 3))
    output.float().square().mean().backward()
    kfac.step()
    assert kfac.layers[0].input_factor.value.dtype == torch.float32
    assert torch.isfinite(model.weight.grad).all()
