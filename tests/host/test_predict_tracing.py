"""What a step asks for: products and bytes of any torch module, and the blocks of K-FAC."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from thermokron.host.kfac import KFAC
from thermokron.host.kfac.curvature.layers import KroneckerLayer
from thermokron.host.predict.workloads.tracing import trace, without_data
from thermokron.host.predict.workloads.workload import Workload


def products(workload: Workload, phase: str) -> dict[tuple[int, int, int, int], int]:
    found: dict[tuple[int, int, int, int], int] = {}
    for each in workload.operations:
        if each.kind == "gemm" and each.phase == phase:
            key = each.m, each.k, each.n, each.blocks
            found[key] = found.get(key, 0) + each.count
    return found


def test_a_linear_layer_is_one_product_forward_and_two_backward() -> None:
    model = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3, bias=False))
    workload = trace(model, torch.ones(4, 7))
    assert products(workload, "forward") == {(4, 7, 5, 1): 1, (4, 5, 3, 1): 1}
    # of the inputs of the first layer no gradient is wanted
    assert products(workload, "backward") == {(5, 4, 7, 1): 1, (3, 4, 5, 1): 1, (4, 3, 5, 1): 1}
    assert workload.parameters == 7 * 5 + 5 + 5 * 3
    assert workload.batch == 4


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_is_the_product_of_its_patches(groups) -> None:
    model = nn.Conv2d(4, 6, 3, groups=groups, bias=False)
    workload = trace(model, torch.ones(2, 4, 7, 7))
    positions, patch = 2 * 5 * 5, 4 // groups * 9
    assert products(workload, "forward") == {(6 // groups, patch, positions, groups): 1}
    assert products(workload, "backward") == {(6 // groups, positions, patch, groups): 1}
    block = workload.blocks[0]
    assert (block.inputs, block.outputs, block.rows) == (patch, 6 // groups, positions)
    assert block.blocks == groups


def test_bytes_are_those_of_what_is_read_and_written() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.layer(x).t().reshape(-1)  # a copy
            return y.view(16, 8)[:4].relu()  # views

    workload = trace(Scaled(), torch.ones(16, 8))
    forward = {
        each.name: each.bytes
        for each in workload.operations
        if each.kind == "memory" and each.phase == "forward"
    }
    assert forward["aten.clone"] == 2 * 128 * 4
    assert forward["aten.relu"] == 2 * 32 * 4
    assert set(forward) == {"aten.clone", "aten.relu", "aten.sum"}


def test_an_embedding_reads_the_rows_that_it_gathers() -> None:
    workload = trace(nn.Embedding(1000, 8), torch.zeros(3, 5, dtype=torch.int64))
    (gathered,) = (each for each in workload.operations if each.name == "aten.embedding")
    assert gathered.bytes == 15 * (8 + 2 * 8 * 4)
    assert workload.blocks[0].diagonal_inputs
    assert workload.blocks[0].rows == 15
    assert workload.blocks[0].dense == ((8, 1000),)


CASES = {
    "mlp": (nn.Sequential(nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 2)), (5, 9)),
    "strided": (nn.Conv2d(3, 8, 5, stride=2, padding=2, dilation=2), (2, 3, 32, 32)),
    "one axis": (nn.Conv1d(3, 8, 3), (2, 3, 32)),
    "transposed": (
        nn.Sequential(nn.ConvTranspose2d(3, 8, 3, stride=2), nn.Flatten(), nn.LazyLinear(3)),
        (2, 3, 5, 5),
    ),
    "attention": (
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True),
        (3, 7, 16),
    ),
    "sequence first": (nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0), (7, 3, 16)),
}


@pytest.mark.parametrize("name", CASES)
def test_operations_are_those_that_torch_counts(name) -> None:
    model, shape = CASES[name]
    model(torch.ones(shape))  # lazy layers find their sizes
    workload = trace(model, torch.ones(shape))
    with torch.device("meta"), FlopCounterMode(display=False) as counted:
        without_data(model)(torch.ones(shape)).sum().backward()
    assert workload.flops == counted.get_total_flops()


@pytest.mark.parametrize("name", [name for name in CASES if name != "transposed"])
def test_blocks_are_those_that_kfac_has(name) -> None:
    model, shape = CASES[name]
    model = copy.deepcopy(model)
    blocks = trace(model, torch.ones(shape)).blocks
    kfac = KFAC(model, lr=0.1)
    model(torch.rand(shape)).sum().backward()
    kfac.step()
    layers = [layer for layer in kfac.layers if isinstance(layer, KroneckerLayer)]
    assert [block.name for block in blocks] == [layer.name for layer in layers]
    for block, layer in zip(blocks, layers, strict=True):
        assert layer.input_factor.moment.shape == (block.inputs, block.inputs)
        assert layer.output_factor.moment.shape == (block.outputs, block.outputs)


def test_rows_are_examples_times_positions_or_examples() -> None:
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    x = torch.ones(3, 7, 16)
    expand = trace(model, x)
    assert {block.rows for block in expand.blocks} == {21}
    assert {block.rows for block in trace(model, x, sharing="reduce").blocks} == {3}
    assert expand.diagonal == 2 * 21 * 16  # of both norms
    with pytest.raises(ValueError, match=r"sharing = 'some'.*legal: expand, reduce"):
        trace(model, x, sharing="some")


def test_equal_inputs_are_shared() -> None:
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    shared = {block.name: block.shared for block in trace(model, torch.ones(3, 7, 16)).blocks}
    first = "self_attn.query_proj"
    assert [name for name, other in shared.items() if other == first] == [
        "self_attn.query_proj",
        "self_attn.key_proj",
        "self_attn.value_proj",
    ]
    assert not any(other for other in shared.values() if other != first)

    class Across(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.attention(x, y, y)[0]

    workload = trace(Across(), torch.ones(5, 2, 16), torch.ones(9, 2, 16))
    assert [block.rows for block in workload.blocks] == [10, 18, 18, 10]
    assert [block.shared for block in workload.blocks] == [
        "",
        "attention.key_proj",
        "attention.key_proj",
        "",
    ]


def test_uses_of_one_weight_add_up() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(50, 8), nn.Linear(8, 50, bias=False)
            self.head.weight = self.words.weight

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.head(self.words(tokens))

    tokens = torch.zeros(3, 5, dtype=torch.int64)
    dense, large = (trace(Tied(), tokens, dense_limit=limit) for limit in (None, 20))
    assert dense.parameters == 400
    assert [(b.inputs, b.outputs, b.rows) for b in dense.blocks] == [(8, 50, 30)]
    assert not dense.blocks[0].diagonal_outputs
    assert large.blocks[0].diagonal_outputs
    assert large.largest == 8


def test_what_is_not_covered_is_named() -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.unused = nn.Linear(4, 4)
            self.rare = nn.Embedding(5, 4, sparse=True)
            self.token = nn.Parameter(torch.zeros(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x + self.token)

    workload = trace(Partly(), torch.ones(2, 4))
    assert [block.name for block in workload.blocks] == ["layer"]
    unused, rare = sorted(workload.uncovered, reverse=True)
    assert "unused (the example does not reach it)" in unused
    assert "rare.weight (Embedding with sparse)" in rare


class DependsOnData(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        return y if y.sum() > 0 else -y


REFUSED = {
    "depends on data": (
        nn.Sequential(nn.Linear(4, 4), DependsOnData()),
        torch.ones(2, 4),
        r"module '1' \(DependsOnData\) does not run on tensors without data: .*legal",
    ),
    "wrong shape": (nn.Linear(4, 4), torch.ones(2, 5), r"module '\(model\)' \(Linear\)"),
    "empty batch": (nn.Linear(4, 4), torch.ones(0, 4), "batch = 0; legal: 1 or more"),
    "no length": (nn.Linear(4, 4), torch.tensor(1.0), "no input is a tensor with a length"),
    "lazy": (nn.LazyLinear(4), torch.ones(2, 4), "lazy parameters: weight, bias"),
    "norm": (nn.LayerNorm(4), torch.ones(2, 4), "model LayerNorm has nothing.*legal: Linear"),
    "lstm": (nn.LSTM(4, 4), torch.ones(2, 3, 4), "model LSTM has nothing.*weight_ih_l0.*for LSTM"),
    "frozen": (
        nn.Linear(4, 4).requires_grad_(False),
        torch.ones(2, 4),
        "model Linear has nothing",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name) -> None:
    model, x, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        trace(model, x)


def test_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match=r"model = 3 is not a torch\.nn\.Module"):
        trace(3, torch.ones(2))


def test_a_loss_that_fails_is_named() -> None:
    with pytest.raises(ValueError, match="the loss does not run"):
        trace(nn.Linear(4, 4), torch.ones(2, 4), loss=lambda y: y.sum() * y.sum().item())


def test_the_model_is_left_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()).eval()
    before = copy.deepcopy(model.state_dict())
    trace(model, torch.ones(3, 4))
    assert not model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_a_copy_without_data_keeps_what_is_tied() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    copied = without_data(model)
    assert copied[1].weight is copied[0].weight
    assert {p.device.type for p in copied.parameters()} == {"meta"}
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_several_outputs_are_added_up() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> dict[str, object]:
            return {"one": self.one(x), "others": [self.other(x), "a word"]}

    assert len(trace(Two(), torch.ones(3, 4)).blocks) == 2
