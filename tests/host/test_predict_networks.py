"""Presets against published sizes, and what torch counts."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from thermokron.host.predict.workloads import networks
from thermokron.host.predict.workloads.networks import NETWORKS, network

#: Trained numbers: as published, or as AlgoPerf's shapes give them.
PUBLISHED = {
    "vit-s16": 22_122_472,
    "ogbg-gnn": 3_554_176,
    "bert-base": 109_514_298,  # Hugging Face's BertForMaskedLM
    "gpt2-small": 124_439_808,
    "resnet-50": 25_557_032,
}
#: Multiply-adds of one image forward.
MULTIPLIED = {"vit-s16": 4.6e9, "resnet-50": 4.1e9}


@pytest.mark.parametrize("name", PUBLISHED)
def test_as_many_parameters_as_published(name) -> None:
    assert network(name).parameters == PUBLISHED[name]


@pytest.mark.parametrize("name", MULTIPLIED)
def test_as_many_products_as_published(name) -> None:
    workload = network(name)
    forward = sum(e.flops * e.count for e in workload.operations if e.phase == "forward")
    assert forward / workload.batch / 2 == pytest.approx(MULTIPLIED[name], rel=0.03)


@pytest.mark.parametrize("name", [*NETWORKS, "mlp:32x3"])
def test_operations_are_those_that_torch_counts(name) -> None:
    build, batch = networks._builder(name)
    with torch.device("meta"):
        step = build(batch)
        with FlopCounterMode(display=False) as counted:
            step.loss(step.model.to("meta").train()(*step.inputs)).backward()
    assert network(name).flops == counted.get_total_flops()


@pytest.mark.parametrize("name", [*NETWORKS, "mlp:32x3"])
def test_every_parameter_is_covered(name) -> None:
    workload = network(name)
    assert not workload.uncovered
    assert workload.source
    assert workload.name == name
    assert all(block.rows >= workload.batch for block in workload.blocks)


def test_encoder_of_bert_is_that_of_the_paper() -> None:
    blocks = network("bert-base").blocks
    layers = [b for b in blocks if b.name.startswith("encoder.")]
    assert sum(b.inputs * b.outputs for b in layers) + 12 * 4 * 768 == 85_054_464
    shared = [b for b in layers if b.shared]
    assert len(shared) == 36
    assert {b.shared.rpartition(".")[2] for b in shared} == {"query"}
    words = next(b for b in blocks if b.name == "words")
    assert words.diagonal_outputs  # of more rows than K-FAC's dense_limit
    assert words.rows == 32 * 128 + 32 * 20


def test_factors_of_vit_are_those_of_algoperf() -> None:
    sizes = network("vit-s16").sizes()
    assert sizes[1536] == sizes[1537] == 12
    assert sizes[769] == 1  # patches with the bias
    assert network("vit-s16").blocks[1].rows == 128 * 196


def test_graphs_have_mean_size() -> None:
    workload = network("ogbg-gnn")
    rows = {block.rows for block in workload.blocks}
    assert rows == {64, 64 * 26, 64 * 56}
    assert workload.largest == 4 * 256 + 1


def test_batch_scales_what_depends_on_it() -> None:
    small, large = network("vit-s16", 16), network("vit-s16", 128)
    assert large.flops == 8 * small.flops
    assert large.parameters == small.parameters
    assert large.sizes() == small.sizes()
    assert large.blocks[0].rows == 8 * small.blocks[0].rows


def test_mlps_by_width_and_depth() -> None:
    workload = network("mlp:64x3", 8)
    assert [(b.inputs, b.outputs) for b in workload.blocks] == [(65, 64)] * 3 + [(65, 10)]
    assert workload.batch == 8


def test_asked_for_again_it_is_the_same() -> None:
    assert network("digits") is network("digits")
    assert network("digits", 8) is not network("digits")


@pytest.mark.parametrize(
    ("name", "batch", "message"),
    [
        ("vit", 0, "batch = 0; legal: 1 or more"),
        ("vit", 2.5, r"batch = 2\.5; legal: 1 or more"),
        ("vgg", None, "network = 'vgg' is unknown; legal: vit-s16, ogbg-gnn, .*mlp:WIDTHxLAYERS"),
        ("mlp:0x3", None, "0 as its width; legal: 1 to 65536"),
        ("mlp:8x0", None, "0 as its layers; legal: 1 to 1000"),
        ("mlp:8", None, "is unknown; legal"),
    ],
)
def test_refused_by_name(name, batch, message) -> None:
    with pytest.raises(ValueError, match=message):
        network(name, batch)
