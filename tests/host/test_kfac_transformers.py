"""Torch's transformers: the same curvature in both layouts, and the same dropout."""

from __future__ import annotations

import pytest
import torch
from kfac_cases import brute_force, dense_block
from torch import nn

from thermokron.host.kfac import KFAC
from thermokron.host.kfac.curvature.layers import NormLayer


class Pooled(nn.Module):
    """A transformer, and the mean of its tokens: one loss term per example."""

    def __init__(self, stack: str, *, batch_first: bool) -> None:
        super().__init__()
        options = {"dropout": 0.0, "batch_first": batch_first, "dtype": torch.float64}
        torch.manual_seed(0)
        kind = {"encoder": nn.TransformerEncoderLayer, "decoder": nn.TransformerDecoderLayer}[stack]
        whole = {"encoder": nn.TransformerEncoder, "decoder": nn.TransformerDecoder}[stack]
        more = {"enable_nested_tensor": False} if stack == "encoder" else {}
        norm = nn.LayerNorm(4, dtype=torch.float64)
        self.stack = whole(kind(4, 2, 5, **options), 1, norm, **more)
        self.head = nn.Linear(4, 2, dtype=torch.float64)
        self.batch_first = batch_first
        for p in self.parameters():
            p.data += 0.1 * torch.randn_like(p)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        others = [x.flip(-1)] if isinstance(self.stack, nn.TransformerDecoder) else []
        return self.head(self.stack(x, *others).mean(dim=1 if self.batch_first else 0))


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_transformers_have_the_same_curvature_in_both_layouts(stack, sharing) -> None:
    """That of norms is exact in both, linear layers take positions of an example together."""
    x = torch.randn(5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    criterion, y, found = nn.MSELoss(), torch.zeros(5, 2, dtype=torch.float64), []
    for batch_first in (True, False):
        model = Pooled(stack, batch_first=batch_first)
        kfac = KFAC(model, lr=0.1, criterion=criterion, fisher="ggn", sharing=sharing)
        criterion(model(x), y).backward()
        for layer in kfac.layers:
            layer.update_factors(0.0)
        kfac.close()
        found.append(kfac.layers)
        norms = [layer for layer in kfac.layers if isinstance(layer, NormLayer)]
        assert len(norms) == {"encoder": 3, "decoder": 4}[stack]
        for norm, exact in zip(norms, brute_force(model, criterion, x, y, norms), strict=True):
            torch.testing.assert_close(dense_block(norm).diagonal(), exact.diagonal())
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(dense_block(one), dense_block(two))


@pytest.mark.parametrize("weights", [True, False])
def test_watched_attention_drops_as_torch_does(weights) -> None:
    """The same share of weights, of the same expectation: 4,096 of them, within 5 deviations."""
    torch.manual_seed(0)
    module = nn.MultiheadAttention(64, 1, dropout=0.25, batch_first=True, bias=False)
    module.in_proj_weight.data.zero_()
    for weight in (module.in_proj_weight[128:], module.out_proj.weight):
        weight.data.copy_(torch.eye(64))
    x = torch.eye(64)[None]  # so that what comes out are the weights themselves, 1/64 each
    with KFAC(module, lr=0.1):
        output = module(x, x, x, need_weights=weights)[0] * 64.0
    torch.testing.assert_close(output.unique(), torch.tensor([0.0, 4.0 / 3.0]))
    assert abs((output == 0.0).float().mean().item() - 0.25) < 5.0 * (0.25 * 0.75 / 4096) ** 0.5
