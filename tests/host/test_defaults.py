"""Defaults hold: no run ends with a higher training loss than it had after five epochs.

Three sets of defaults: those of `thermokron train` for a network that it knows, those for one that
it does not, and those of `KFAC` itself, beside SGD with momentum 0.9, at either end of the rates
for which they are meant.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from thermokron.host import open_unit
from thermokron.host.kfac import KFAC
from thermokron.host.kfac.solve.step_control import shortening
from thermokron.host.train import TrainConfig, train
from thermokron.host.train.evaluation import evaluate
from thermokron.host.train.named import make_task
from thermokron.host.train.tasks import batch_of
from thermokron.host.train.training import one_thread
from thermokron.model import UnitSpec

NETWORKS = {
    "mlp": {"network": "mlp"},
    "large mlp": {"network": "mlp", "hidden": (256, 256)},
    "cnn": {"network": "cnn"},
    "vit": {"network": "vit"},
    "graph": {"network": "graph"},
}
EPOCHS = 12
#: What is run from end to end; simulating 16 cells under the large MLP would take hours.
RUNS = [
    *(("exact", name, seed) for name in NETWORKS for seed in (0, 1, 2)),
    *(("numeric", name, seed) for name in NETWORKS if name != "large mlp" for seed in (0, 1)),
]


def known(name: str, engine: str, seed: int) -> list[float]:
    """Losses by epoch with what suits a network that is known."""
    result = train(TrainConfig(**NETWORKS[name], engine=engine, seed=seed))
    return [result.initial_loss, *result.train_loss]


def unknown(name: str, engine: str, seed: int) -> list[float]:
    """The same with what a network that is not known gets."""
    generator = torch.Generator().manual_seed(seed)
    suited = TrainConfig(**NETWORKS[name], seed=seed)
    with make_task(suited, generator) as task:
        config = TrainConfig(
            network="own:task",
            engine=engine,
            seed=seed,
            epochs=EPOCHS,
            batch_size=suited.batch_size,
        )
        result = train(config, task=task)
    return [result.initial_loss, *result.train_loss]


def library(name: str, engine: str, seed: int, lr: float = 0.1) -> list[float]:
    """The same with `KFAC(model, unit, lr=optimizer)`."""
    generator = torch.Generator().manual_seed(seed)
    config = TrainConfig(**NETWORKS[name], seed=seed)
    unit = open_unit("numeric", UnitSpec(), seed=seed) if engine == "numeric" else None
    with one_thread(), make_task(config, generator) as task, unit or nullcontext():
        optimizer = torch.optim.SGD(task.model.parameters(), lr=lr, momentum=0.9)
        kfac = KFAC(task.model, unit, lr=optimizer)
        losses = [evaluate(task, task.train).loss]
        for _ in range(EPOCHS):
            order = torch.randperm(len(task.train), generator=generator)
            for rows in order.split(config.batch_size):
                inputs, targets = batch_of(task.train, rows)
                optimizer.zero_grad()
                task.loss(task.model(*inputs), targets).backward()
                kfac.step()
                optimizer.step()
            losses.append(evaluate(task, task.train).loss)
    return losses


def library_slow(name: str, engine: str, seed: int) -> list[float]:
    return library(name, engine, seed, lr=0.01)


def check(losses: list[float]) -> None:
    assert len(losses) > 10  # twice five epochs or more
    assert losses[5] < 0.95 * losses[0]  # else there would be nothing to lose
    assert losses[-1] <= losses[5]


@pytest.mark.parametrize("name", ["mlp", "cnn", "graph"])
def test_what_suits_a_known_network_holds(name: str) -> None:
    losses = known(name, "exact", 2)
    check(losses)
    assert losses[5] < 0.3 * losses[0]


def test_what_suits_a_known_network_holds_on_a_unit() -> None:
    check(known("mlp", "numeric", 2))


@pytest.mark.parametrize("name", ["mlp", "cnn", "graph"])
def test_what_an_unknown_network_gets_holds(name: str) -> None:
    check(unknown(name, "exact", 2))


@pytest.mark.parametrize("lr", [0.01, 0.1])
@pytest.mark.parametrize("name", ["mlp", "large mlp", "cnn", "graph"])
def test_defaults_of_the_library_hold(name: str, lr: float) -> None:
    check(library(name, "exact", 2, lr))


def test_a_wrong_inverse_makes_no_long_step() -> None:
    """Turned by a right angle, so that vᵀg is 0 and says nothing of v."""
    g, options = (
        torch.tensor([3.0, 4.0]),
        {"rates": [0.1], "kl_clip": 1e-4, "norm_constraint": None},
    )
    turned = 1e3 * torch.tensor([-4.0, 3.0])
    nu = shortening([g], [turned], damping=0.01, **options)
    assert 0.01 * (0.1 * nu * turned.norm()) ** 2 == pytest.approx(1e-4)
    right = g / (torch.tensor([0.5, 0.0]) + 0.01)
    assert shortening([g], [right], damping=0.01, **options) == pytest.approx(
        (1e-4 / (0.1**2 * (g @ right).item())) ** 0.5
    )


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "name", "seed"), RUNS)
@pytest.mark.parametrize("defaults", [known, unknown, library, library_slow])
def test_defaults_hold_everywhere(defaults, engine: str, name: str, seed: int) -> None:
    check(defaults(name, engine, seed))
