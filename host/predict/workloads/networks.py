"""Workloads by name.

vit-s16     ViT-S/16 on ImageNet, as AlgoPerf has it
ogbg-gnn    AlgoPerf's graph network on OGBG-molpcba, for graphs of mean size
bert-base   masked tokens, sequences of 128
gpt2-small  next tokens, sequences of 1024
resnet-50   ImageNet
mlp:WxD     D hidden layers of width W, W inputs, 10 classes, such as mlp:1024x3
digits, cnn, vit, graph
            the tasks of `thermokron train`: its mlp of 32 hidden units, and the others
module:function
            what a function of yours returns, see `thermokron.host.train.tasks`
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from thermokron.host.predict.workloads.workload import Workload
from thermokron.host.train import check_packages

if TYPE_CHECKING:
    import torch

__all__ = ["NETWORKS", "network"]

ALGOPERF = (
    "mlcommons/algorithmic-efficiency@2c90454 algoperf/workloads/{}; batch of 8 GPUs: {}, 1/8 on "
    "each"
)
MLP = re.compile(r"mlp:(\d+)x(\d+)")
#: What a width, and the number of layers, may be.
WIDEST, DEEPEST = 65536, 1000


class Step(NamedTuple):
    """A network with what it is run on."""

    model: Any
    inputs: tuple[Any, ...]
    loss: Callable[[Any], torch.Tensor]
    source: str


def network(name: str, batch: int | None = None) -> Workload:
    """The workload of a network; the same object for the same arguments.

    Parameters
    ----------
    name : str
        See above.
    batch : int, optional
        Examples a step on one machine; what the source has if not given.

    Raises
    ------
    ValueError
        If there is no such network, or the batch is empty.
    """
    if batch is not None and (not isinstance(batch, int) or batch < 1):
        raise ValueError(f"batch = {batch!r}; legal: 1 or more")
    check_packages()
    if ":" in name and not name.startswith("mlp:"):
        return _of_task(name, batch)
    return _traced(name, batch)


def _of_task(name: str, batch: int | None) -> Workload:
    """That of a function of the user's, as `thermokron train` takes them."""
    import torch

    from thermokron.host.predict.workloads.tracing import trace
    from thermokron.host.train import TrainConfig
    from thermokron.host.train.named import make_task, naming
    from thermokron.host.train.tasks import batch_of

    config = TrainConfig(network=name)
    chosen = config.batch_size if batch is None else batch
    with make_task(config, torch.Generator()) as task:
        examples = torch.arange(chosen) % len(task.train)  # type: ignore[arg-type]
        with naming(name, "taking a batch of its training examples", passing=(ValueError,)):
            inputs, targets = batch_of(task.train, examples)

        def loss(output: Any) -> torch.Tensor:
            value: torch.Tensor = task.loss(output, targets.to("meta"))
            return value

        return trace(
            task.model,
            *inputs,
            loss=loss,
            name=name,
            batch=chosen,
            source=f"{name}, a function of yours",
        )


@cache
def _traced(name: str, batch: int | None) -> Workload:
    build, usual = _builder(name)
    import torch

    from thermokron.host.predict.workloads.tracing import trace

    chosen = usual if batch is None else batch
    with torch.device("meta"):
        step = build(chosen)
    return trace(
        step.model, *step.inputs, loss=step.loss, name=name, batch=chosen, source=step.source
    )


def _builder(name: str) -> tuple[Callable[[int], Step], int]:
    """What makes a network for a batch, and the usual batch."""
    found = MLP.fullmatch(name)
    if found is not None:
        width, depth = int(found[1]), int(found[2])
        for what, size, most in (("width", width, WIDEST), ("layers", depth, DEEPEST)):
            if not 1 <= size <= most:
                raise ValueError(f"network = {name!r} has {size} as its {what}; legal: 1 to {most}")
        return partial(_mlp, width, depth), 128
    if name not in NETWORKS:
        legal = ", ".join([*NETWORKS, "mlp:WIDTHxLAYERS such as mlp:1024x3"])
        raise ValueError(f"network = {name!r} is unknown; legal: {legal}")
    return NETWORKS[name]


def _labelled(logits: torch.Tensor) -> torch.Tensor:
    """Cross entropy with one label for every row of the output."""
    import torch

    rows = logits.reshape(-1, logits.shape[-1])
    return torch.nn.functional.cross_entropy(rows, _integers(len(rows)))


def _integers(*shape: int) -> torch.Tensor:
    import torch

    return torch.empty(*shape, dtype=torch.int64)


def _mlp(width: int, depth: int, batch: int) -> Step:
    import torch

    from thermokron.host.predict.workloads.architectures import mlp

    inputs = (torch.empty(batch, width),)
    return Step(mlp(width, depth), inputs, _labelled, "assumed")


def _vit_s16(batch: int) -> Step:
    import torch

    from thermokron.host.predict.workloads.architectures import VisionTransformer

    source = ALGOPERF.format("imagenet_vit", 1024)

    def mixed(logits: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits, torch.empty(batch, 1000))

    return Step(VisionTransformer(), (torch.empty(batch, 3, 224, 224),), mixed, source)


def _ogbg_gnn(batch: int) -> Step:
    import torch

    from thermokron.host.predict.workloads.architectures import MessagePassing

    atoms, bonds = 26 * batch, 56 * batch  # on average; every bond in both directions
    inputs = (
        torch.empty(atoms, 9),
        torch.empty(bonds, 3),
        _integers(bonds),
        _integers(bonds),
        _integers(atoms),
        _integers(bonds),
        torch.zeros(batch, 128),
    )

    def loss(logits: torch.Tensor) -> torch.Tensor:
        targets = torch.empty(batch, 128)
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)

    return Step(MessagePassing(), inputs, loss, ALGOPERF.format("ogbg", 512))


def _bert_base(batch: int) -> Step:
    from thermokron.host.predict.workloads.architectures import Bert

    source = "Devlin et al. 2018, arXiv 1810.04805; sequences of 128, 20 masked tokens in each"
    inputs = (_integers(batch, 128), _integers(batch, 128), _integers(batch * 20))
    return Step(Bert(), inputs, _labelled, source)


def _gpt2_small(batch: int) -> Step:
    from thermokron.host.predict.workloads.architectures import GPT2

    source = "Radford et al. 2019, Language Models are Unsupervised Multitask Learners"
    return Step(GPT2(), (_integers(batch, 1024),), _labelled, source)


def _resnet_50(batch: int) -> Step:
    import torch

    from thermokron.host.predict.workloads.architectures import ResNet50

    source = "He et al. 2015, arXiv 1512.03385; stride in the 3 x 3 convolutions"
    return Step(ResNet50(), (torch.empty(batch, 3, 224, 224),), _labelled, source)


# ---- the package's own ---------------------------------------------------------------------------

OWN = "thermokron.host.train, its batch"


def _digits(batch: int) -> Step:
    import torch

    from thermokron.host.train.networks import mlp

    model = mlp((64, 32, 10), torch.Generator("cpu"))
    return Step(model, (torch.empty(batch, 64),), _labelled, OWN)


def _cnn(batch: int) -> Step:
    import torch

    from thermokron.host.train.networks import cnn

    return Step(cnn((8, 16)), (torch.empty(batch, 64),), _labelled, OWN)


def _vit(batch: int) -> Step:
    import torch

    from thermokron.host.train.networks import VisionTransformer

    return Step(VisionTransformer((64, 64)), (torch.empty(batch, 64),), _labelled, OWN)


def _graph(batch: int) -> Step:
    import torch

    from thermokron.host.train.molecules import ATOMS, FEATURES
    from thermokron.host.train.networks import GraphNetwork

    class Packed(GraphNetwork):
        """The same for a known number of atoms: where they are depends on data."""

        def forward(
            self, atoms: torch.Tensor, bonds: torch.Tensor, real: torch.Tensor | None = None
        ) -> torch.Tensor:
            assert real is not None
            padded, state = atoms, atoms.flatten(0, 1)[real]
            for step in self.steps:
                neighbours = (bonds @ padded).flatten(0, 1)[real]
                state = torch.tanh(step(torch.cat([state, neighbours], dim=-1)))
                rows = state.new_zeros(bonds.shape[:2].numel(), state.shape[-1])
                padded = rows.index_copy(0, real, state).reshape(*bonds.shape[:2], -1)
            outputs: torch.Tensor = self.readout(padded.sum(dim=1) / self.TYPICAL_ATOMS)
            return outputs.squeeze(-1)

    model = Packed((32, 32))
    real = _integers(round(model.TYPICAL_ATOMS * batch))
    inputs = torch.empty(batch, ATOMS, FEATURES), torch.empty(batch, ATOMS, ATOMS), real

    def loss(outputs: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.mse_loss(outputs, torch.empty(batch))

    return Step(model, inputs, loss, OWN)


#: By name, what makes a network for a batch, and the usual batch.
NETWORKS: dict[str, tuple[Callable[[int], Step], int]] = {
    "vit-s16": (_vit_s16, 128),
    "ogbg-gnn": (_ogbg_gnn, 64),
    "bert-base": (_bert_base, 32),
    "gpt2-small": (_gpt2_small, 8),
    "resnet-50": (_resnet_50, 32),
    "digits": (_digits, 144),
    "cnn": (_cnn, 144),
    "vit": (_vit, 144),
    "graph": (_graph, 50),
}
