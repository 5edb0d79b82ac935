"""What K-FAC covers of a model, and what it leaves alone."""

from __future__ import annotations

import warnings

import pytest
import torch
from kfac_cases import backward, batch, linear

from thermokron.host.kfac import KFAC

F = torch.nn.functional


class Mixed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.ConvTranspose1d(1, 1, 3, padding=1)
        self.head = torch.nn.Linear(6, 2)
        self.unused = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x[:, None])[:, 0])


def test_one_warning_names_what_is_not_covered_and_it_keeps_its_plain_gradient() -> None:
    torch.manual_seed(0)
    model = Mixed()
    with pytest.warns(UserWarning, match=r"cover conv\.weight, conv\.bias \(no layer") as record:
        kfac = KFAC(model, lr=0.1, damping=0.01, others="plain")
    assert len(record) == 1
    model(torch.randn(8, 6)).square().mean().backward()
    conv, head = model.conv.weight.grad.clone(), model.head.weight.grad.clone()
    kfac.step()
    assert torch.equal(model.conv.weight.grad, conv)
    assert not torch.allclose(model.head.weight.grad, head)
    assert model.unused.weight.grad is None  # a layer without data


def test_frozen_parameters() -> None:
    frozen = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))
    frozen[0].requires_grad_(False)
    frozen[1].bias.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kfac = KFAC(frozen, lr=0.1, damping=0.01)
    assert [(layer.name, layer.has_bias) for layer in kfac.layers] == [("1", False)]
    frozen(torch.randn(5, 3)).square().mean().backward()
    kfac.step()
    assert frozen[0].weight.grad is None


def test_frozen_later_is_left_alone() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))
    kfac = KFAC(model, lr=0.1, damping=0.01)
    model[0].requires_grad_(False)
    model(torch.randn(5, 3)).square().mean().backward()
    assert kfac.step().inversions == 2
    assert model[0].weight.grad is None


def test_evaluation_leaves_no_trace() -> None:
    model = linear(5, 3)
    kfac = KFAC(model, lr=0.1, damping=0.01)
    x, y = batch()
    with torch.no_grad():
        model(x)
    model.eval()
    F.mse_loss(model(x), y).backward()
    model.train()
    model(x)  # never followed by a backward pass
    with pytest.raises(RuntimeError, match=r"call step\(\) after"):
        kfac.step()


def test_in_place_activations_and_a_layer_called_twice() -> None:
    shared = linear(5, 5)
    model = torch.nn.Sequential(shared, torch.nn.ReLU(inplace=True), shared)
    kfac = KFAC(model, lr=0.1, damping=0.01)
    x, _ = batch()
    backward(model, x, torch.zeros(20, 5))
    hidden = torch.relu(shared(x)).detach()
    a = torch.cat([torch.cat([x, hidden]), torch.ones(40, 1)], 1)
    (layer,) = kfac.layers
    layer.update_factors(0.0)
    torch.testing.assert_close(layer.input_factor.value, a.T @ a / 40)


def test_close_removes_the_hooks() -> None:
    model = linear(5, 3)
    with KFAC(model, lr=0.1, damping=0.01) as kfac:
        assert model._forward_hooks
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    kfac.close()
    backward(model, *batch())
    with pytest.raises(RuntimeError, match="closed"):
        kfac.step()


def test_complex_numbers_and_parametrized_biases_are_named() -> None:
    model = torch.nn.ModuleDict(
        {
            "wave": torch.nn.Linear(3, 2, dtype=torch.complex64),
            "head": torch.nn.Linear(3, 2),
        }
    )
    torch.nn.utils.parametrize.register_parametrization(model["head"], "bias", torch.nn.Tanh())
    with pytest.warns(
        UserWarning, match=r"wave\.weight, wave\.bias \(.*; head\.param.* \(parametrized"
    ):
        kfac = KFAC(model, lr=0.1, damping=0.01, kl_clip=None, others="plain")
    (layer,) = kfac.layers
    assert not layer.has_bias
    model["head"](torch.randn(5, 3)).square().mean().backward()
    plain = model["head"].weight.grad.clone()
    kfac.step()
    assert not torch.allclose(model["head"].weight.grad, plain)
