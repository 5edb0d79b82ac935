"""When inverses are renewed, and the two ways to apply them."""

from __future__ import annotations

import pytest
import torch
from kfac_cases import Flow, stepped
from torch import nn

from thermokron.host.kfac import KFAC
from thermokron.host.kfac.solve.cost import Cost
from thermokron.model import NumericUnit, UnitSpec

# ---- refreshing ----------------------------------------------------------------------------------


def test_inverses_are_renewed_early_where_factors_have_moved() -> None:
    """A jump of the inputs' scale at step 3 moves A and G; a layer without data stays."""
    model = Flow(a=nn.Linear(4, 3), b=nn.Linear(3, 2))
    options = {"lr": 0.1, "damping": 0.01, "decay": 0.5, "inverse_interval": 100}
    counts = {}
    for threshold in (None, 0.5, 1e-6):
        kfac = KFAC(model, refresh_threshold=threshold, **options)
        counts[threshold] = []
        for step in range(6):
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(64, 4, generator=generator) * (10.0 if step == 3 else 1.0)
            model(x).square().mean().backward()
            counts[threshold].append(kfac.step().inversions)
            model.zero_grad()
        kfac.close()
    assert counts[None] == [4, 0, 0, 0, 0, 0]
    assert counts[0.5][:3] == [4, 0, 0]
    assert counts[0.5][3] == 4
    assert sum(counts[1e-6]) > sum(counts[0.5])


@pytest.mark.parametrize("moved", ["input_factor", "output_factor"])
def test_either_factor_by_itself_renews_a_block(moved) -> None:
    """At just more than the threshold, of the Frobenius norm that it had."""
    model = nn.Linear(4, 3)
    kfac = KFAC(model, lr=0.1, inverse_interval=100, refresh_threshold=0.5)
    model(torch.randn(8, 4)).square().mean().backward()
    kfac.step()
    (layer,) = kfac.layers
    factor = getattr(layer, moved)
    kfac.training.blocks.outdate(layer)  # as an update of the factors does
    then = factor.moment
    for part, stale in ((1.49, False), (1.51, True), (0.51, False), (0.49, True)):
        factor.moment = part * then
        cost = Cost()
        assert kfac.training.blocks.stale(layer, 0.03, due=False, threshold=0.5, cost=cost) == stale
        assert cost.digital_flops > 0


def test_nothing_is_renewed_that_would_be_the_same_again() -> None:
    """Neither between updates of the factors, nor for a layer that gets no data."""
    model = Flow(a=nn.Linear(4, 3), b=nn.Linear(3, 2))
    kfac = KFAC(model, lr=0.1, factor_interval=3)
    counts = []
    for part in (model, model, model, model, model.a, model.a, model.a):
        model.zero_grad()
        part(torch.randn(8, 4)).square().mean().backward()
        counts.append(kfac.step().inversions)
    assert counts == [4, 0, 0, 4, 0, 0, 2]
    kfac.close()
    kfac = KFAC(model, lr=0.1, factor_interval=3, damping=lambda step: 0.1 + step)
    for _ in range(2):
        model(torch.randn(8, 4)).square().mean().backward()
        assert kfac.step().inversions == 4


# ---- methods -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "conv2d depthwise", "embedding", "transformer"])
def test_solving_is_inverting(name) -> None:
    inverted, _, _ = stepped(name)
    solved, _, _ = stepped(name, method="solve")
    for p, q in zip(inverted.parameters(), solved.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_solving_on_the_unit_takes_the_apply_over() -> None:
    """The columns of V come as bias vectors, 4 of G X = V, 3 of A Y = Xᵀ, in one start each.

    One reading, settled to a tenth, is within some percent; settled fully, with finer couplings
    and at a lower temperature, within a few.
    """
    reference, _, _ = stepped("linear without bias")
    errors = {}
    for settle, bits, temperature_bits in ((0.1, 8, 10), (1e-4, 12, 16)):
        # the noise of a reading is that of the lowest temperature
        spec = UnitSpec(coupling_bits=bits, temperature_bits=temperature_bits)
        unit = NumericUnit(spec, seed=1)
        model, kfac, _ = stepped("linear without bias", unit=unit, settle=settle)
        found, truth = (m.a.weight.grad for m in (model, reference))
        errors[bits] = ((found - truth).norm() / truth.norm()).item()
    assert 0.0 < errors[12] < 0.03 < errors[8] < 0.2
    metrics = kfac.metrics
    assert metrics.inversions == 2
    assert 2 <= metrics.runs <= 6  # columns whose bias was too weak at first run again
    assert metrics.hardware_seconds > 0.0
    spec = UnitSpec()
    # solved anew at every step, whatever the interval
    kfac = KFAC(nn.Linear(3, 2), NumericUnit(spec), lr=1, damping=1, method="solve")
    for _ in range(2):
        kfac.layers[0].module(torch.randn(4, 3)).square().mean().backward()
        assert kfac.step().inversions == 2


@pytest.mark.parametrize("name", ["conv2d groups", "embedding", "attention", "layer norm"])
@pytest.mark.parametrize("method", ["inverse", "solve"])
def test_every_kind_of_layer_goes_through_the_unit(name, method) -> None:
    """With 20,000 samples, well settled, the step is the host's within a few percent."""
    _, exact_kfac, _ = stepped(name, damping=0.3)
    unit = NumericUnit(UnitSpec(coupling_bits=12, adc_bits=12), seed=1)
    _, kfac, _ = stepped(name, damping=0.3, unit=unit, samples=20_000, settle=1e-4, method=method)
    assert kfac.metrics.inversions == exact_kfac.metrics.inversions
    for layer, other in zip(kfac.layers, exact_kfac.layers, strict=True):
        found, truth = layer.gradient(), other.gradient()
        assert (found - truth).norm() < 0.08 * truth.norm()
