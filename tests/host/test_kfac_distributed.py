"""K-FAC on several processes: one process with the whole batch, and no process goes on alone."""

from __future__ import annotations

import math
import os
import time

import pytest
import torch
from processes import CLASSES, INPUTS, Training, launch, many, same, train
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from thermokron.host.kfac import KFAC
from thermokron.host.kfac.curvature.layers import find_layers
from thermokron.host.kfac.curvature.pooled import packed, unpacked
from thermokron.host.kfac.solve.division import Division, work
from thermokron.model import NumericUnit, UnitFault, UnitSpec

VIEWS = {"gradient_as_bucket_view": True}
UNUSED = {"find_unused_parameters": True}

#: What has to equal one process with the whole batch, by the number of processes.
EQUAL = {
    2: {
        "empirical": Training(),
        "single precision": Training({"damping": 0.1}, dtype=torch.float32),
        "solve": Training({"method": "solve", "inverse_interval": 3}, steps=20),
        "ggn, exact, uneven": Training({"fisher": "ggn", "damping_mode": "exact"}, shares=(1, 2)),
        "nothing recorded": Training({"factor_interval": 4, "inverse_interval": 2}, steps=8),
        "no criterion": Training(criterion=False, steps=8),
        "reduce, groups": Training(
            {"sharing": "reduce", "refresh_threshold": 0.1, "inverse_interval": 5}, "conv", 10
        ),
        "accumulated": Training(accumulate=3, shares=(1, 2), ddp=VIEWS, steps=10),
        "accumulated experts": Training(
            {}, "experts", 10, accumulate=2, sort=True, ddp=UNUSED, inner=True
        ),
        "zero gradients": Training({}, "dead", 4, ddp=VIEWS, zero={"set_to_none": False}),
        "adapted damping": Training({"fisher": "ggn"}, adapt=True, steps=12),
        "automatic": Training(
            {"lr": "auto", "damping": None}, lr=1.0, momentum=0.0, shares=(1, 2), steps=12
        ),
        "an empty share": Training(shares=(1, 0), steps=6, summed=True),
    },
    4: {
        "empirical": Training(shares=(3, 1)),
        "ggn": Training({"fisher": "ggn", "inverse_interval": 2}, steps=10),
        "experts": Training({}, "experts", 10, sort=True, ddp=UNUSED),
    },
}
#: What is noise, and has other noise on each process.
NOISY = {
    "mc": Training({"fisher": "mc", "lr": 0.05}, steps=8),
    "signs": Training({"fisher": "ggn"}, "positions", steps=8),
    "units": Training(unit=(0, 1), steps=6),
    "units that invert": Training({"method": "inverse", "samples": 50}, unit=(7, 6), steps=3),
    "a unit on one process": Training(unit=(-1, 3), steps=4),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Of each process, all trainings."""
    found = {}
    for size, trainings in EQUAL.items():
        both = trainings | (NOISY if size == 2 else {})
        runs = launch(tmp_path_factory.mktemp("store"), size, many, both)
        assert [run.error for run in runs] == [None] * size
        found[size] = [run.value for run in runs]
    return found


@pytest.mark.parametrize(
    ("size", "name"), [(n, name) for n, cases in EQUAL.items() for name in cases]
)
def test_it_is_one_process_with_the_whole_batch(trained, size, name) -> None:
    training, found = EQUAL[size][name], trained[size][0][name]
    alone = train(0, training)
    assert len(alone["losses"]) == training.steps
    assert alone["losses"][-1] < alone["losses"][0] - 1e-4 or name == "zero gradients"
    exact = training.dtype == torch.float64
    assert found["losses"] == pytest.approx(alone["losses"], abs=1e-10 if exact else 1e-5)
    for layer, factors in alone["kfac"]["layers"].items():
        for factor, average in factors.items():
            other = found["kfac"]["layers"][layer][factor]
            assert other["weight"] == average["weight"]
            tolerance = 1e-9 if exact else 1e-4
            assert torch.allclose(other["moment"], average["moment"], tolerance, tolerance)


@pytest.mark.parametrize(
    ("size", "name"),
    [(n, name) for n, cases in EQUAL.items() for name in cases] + [(2, name) for name in NOISY],
)
def test_all_processes_have_the_same_bits(trained, size, name) -> None:
    first, *others = (found[name] for found in trained[size])
    for other in others:
        for part in ("model", "optimizer", "kfac"):
            assert same(first[part], other[part]), part
        for one, its in zip(first["metrics"], other["metrics"], strict=True):
            assert (one.loss, one.nu, one.kappa) == (its.loss, its.nu, its.kappa)


def test_every_process_inverts_and_what_each_did_adds_up(trained) -> None:
    alone = train(0, EQUAL[4]["empirical"])
    by_rank = [found["empirical"]["metrics"] for found in trained[4]]
    for step, one in enumerate(alone["metrics"]):
        counts = [metrics[step].inversions for metrics in by_rank]
        assert sum(counts) == one.inversions
        assert sum(count > 0 for count in counts) == 3  # a process for each of the linear layers


def test_every_process_draws_by_itself(trained) -> None:
    for name in ("mc", "signs"):
        alone, (found, other) = train(0, NOISY[name]), (each[name] for each in trained[2])
        assert found["draws"] != other["draws"]
        a, b = (each["kfac"]["layers"]["0"]["output_factor"]["moment"] for each in (alone, found))
        assert not torch.allclose(a, b, rtol=1e-3)
        assert torch.allclose(a.trace(), b.trace(), rtol=0.7)


def test_every_unit_solves_for_its_process(trained) -> None:
    for name in ("units", "units that invert"):
        by_rank = [found[name] for found in trained[2]]
        assert all(m.runs > 0 and m.hardware_seconds > 0 for r in by_rank for m in r["metrics"])
        assert by_rank[0]["stream"] == by_rank[1]["stream"] > 0
        exact = train(0, with_(NOISY[name], options={}, unit=None))
        assert by_rank[0]["losses"] == pytest.approx(exact["losses"], abs=0.2)
    none, one = (found["a unit on one process"] for found in trained[2])
    assert all(m.runs == 0 and m.inversions == 0 for m in none["metrics"])
    assert all(m.runs > 0 for m in one["metrics"])
    assert set(none["owners"].values()) == {1}
    assert none["kfac"]["choices"]["method"] == "solve"


# ---- resuming ----------------------------------------------------------------------------------


def broken(rank: int, training: Training, at: int) -> tuple:
    """A training as it is, and one that is begun, saved by rank 0, and resumed."""
    whole = train(rank, training)
    begun = train(rank, with_(training, steps=at))
    state = [begun]
    distributed.broadcast_object_list(state)
    return whole, train(rank, with_(training, state=state[0]))


def with_(training: Training, **changes) -> Training:
    return Training(**(vars(training) | changes))


def several(rank: int, trainings: dict, at: int) -> dict:
    return {name: broken(rank, training, at) for name, training in trainings.items()}


def test_resumed_equals_uninterrupted(tmp_path) -> None:
    trainings = {
        "mc": with_(NOISY["mc"], options={"fisher": "mc", "inverse_interval": 5}),
        "solve": Training({"method": "solve", "inverse_interval": 5}, steps=8),
        "units": with_(NOISY["units"], options={"inverse_interval": 5}),
        "one unit": with_(NOISY["a unit on one process"], options={"inverse_interval": 5}),
    }
    for run in launch(tmp_path, 2, several, trainings, 3):
        assert run.error is None
        for name, (whole, resumed) in run.value.items():
            assert whole["losses"][3:] == resumed["losses"], name
            assert same(whole["model"], resumed["model"]), name
            assert same(whole["kfac"], resumed["kfac"]), name


def test_resumed_with_another_number_of_processes(tmp_path) -> None:
    exact, noisy = Training({"inverse_interval": 4}), Training(unit=(0, 1, 2, 3))
    parts = {"exact": exact, "noisy": noisy}
    losses = {name: [] for name in parts}
    for size, steps in ((2, 4), (4, 8), (1, 12)):
        parts = {name: with_(part, steps=steps) for name, part in parts.items()}
        found = many(0, parts) if size == 1 else launch(tmp_path, size, many, parts)[0].value
        for name, each in found.items():
            losses[name] += each["losses"]
            torch.save({k: each[k] for k in ("model", "optimizer", "kfac")}, tmp_path / "state.pt")
            state = torch.load(tmp_path / "state.pt", weights_only=True)
            assert state["kfac"]["steps"] == steps
            parts[name] = with_(parts[name], state=state)
    assert losses["exact"] == pytest.approx(train(0, with_(exact, steps=12))["losses"], abs=1e-10)
    assert losses["noisy"] == pytest.approx(losses["exact"], abs=0.3)


# ---- when something goes wrong -----------------------------------------------------------------


def dies(rank: int) -> None:
    model = DistributedDataParallel(nn.Linear(INPUTS, CLASSES))
    kfac = KFAC(model, lr=0.1)
    for step in range(3):
        model(torch.randn(4, INPUTS)).square().sum().backward()
        if (rank, step) == (1, 2):
            os._exit(3)
        kfac.step()


def is_silent(rank: int) -> None:
    model = DistributedDataParallel(nn.Linear(INPUTS, CLASSES))
    kfac = KFAC(model, lr=0.1)
    model(torch.randn(4, INPUTS)).square().sum().backward()
    if rank == 1:
        time.sleep(4.0)
    kfac.step()


def test_a_process_that_dies_ends_the_others_with_a_message(tmp_path) -> None:
    runs = launch(tmp_path, 3, dies)
    assert runs[1].code == 3
    for rank in (0, 2):
        assert runs[rank].kind == "RuntimeError"
        assert f"K-FAC on rank {rank} of 3 could not exchange" in runs[rank].error
        assert runs[rank].code == 0
    assert max(run.seconds for run in runs) < 25.0


def test_a_process_that_is_silent_is_waited_for_as_long_as_the_group_says(tmp_path) -> None:
    first, _ = launch(tmp_path, 2, is_silent, timeout=1.5)
    assert first.kind == "RuntimeError"
    assert "could not exchange what was recorded: another process has ended, or has" in first.error
    assert first.seconds < 25.0


class Faulty(NumericUnit):
    """Fails once."""

    fails = False

    def _execute(self, job, stream):
        if self.fails:
            self.fails = False
            raise UnitFault("no answer from the converter")
        return super()._execute(job, stream)


def failures(rank: int) -> dict:
    """What happens in the process, by what goes wrong."""
    told = {}

    def attempt(name, function, *args, **kwargs):
        try:
            told[name] = function(*args, **kwargs)
        except Exception as error:
            told[name] = type(error).__name__, str(error)

    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(INPUTS, 5), nn.Tanh(), nn.Linear(5, CLASSES))
    model, criterion = DistributedDataParallel(inner), nn.CrossEntropyLoss()
    x, y = torch.randn(8, INPUTS), torch.arange(8) % CLASSES

    def backward(inputs, target=y):
        model.zero_grad()
        criterion(model(inputs), target).backward()

    unit = Faulty(UnitSpec(cells=8, lanes=2), seed=rank)
    makes = {
        "loss": {"fisher": "ggn"},
        "gradient": {},
        "unit": {"unit": unit},
    }
    for name, options in makes.items():
        kfac = KFAC(model, lr=0.1, criterion=criterion, **options)
        backward(x)
        kfac.step()
        before = kfac.state_dict()
        bad = x.clone()
        if rank == 1 and name != "unit":
            bad[0] = math.nan
        backward(bad)
        if name == "loss":  # of one process alone, before DDP's mean spreads it
            for p in inner.parameters():
                p.grad = torch.ones_like(p)
        gradients = [p.grad.clone() for p in inner.parameters()]
        unit.fails = rank == 1 and name == "unit"
        attempt(name, kfac.step)
        after = kfac.state_dict()
        told[f"{name}: unchanged"] = all(
            same(before[key], after[key]) for key in ("steps", "layers", "blocks", "generator")
        ) and all(
            torch.equal(p.grad.nan_to_num(), old.nan_to_num())
            for p, old in zip(inner.parameters(), gradients, strict=True)
        )
        if name != "unit":
            backward(x)
        attempt(f"{name}: again", lambda kfac=kfac: kfac.step().step)
        told[f"{name}: gradients"] = [p.grad.clone() for p in inner.parameters()]
        kfac.close()
    attempt("closed on one", step_of_closed, rank, inner)
    attempt("not averaged", step_of_plain, rank, x, y)
    attempt("local", step_of_plain, rank, x, y, process_group=False)
    attempt("damping", KFAC, model, lr=0.1, damping=0.1 + rank)
    attempt("seed", KFAC, model, lr=0.1, seed=rank)
    attempt("fisher", KFAC, model, lr=0.1, criterion=criterion, fisher=("mc", "ggn")[rank])
    attempt("model", KFAC, nn.Linear(2, 2 + rank), lr=0.1)
    one = NumericUnit(UnitSpec(cells=8, lanes=2), seed=5)
    attempt("equal units", KFAC, model, one, lr=0.1)
    other = NumericUnit(UnitSpec(cells=8 * (1 + rank), lanes=2), seed=rank)
    attempt("unlike units", KFAC, model, other, lr=0.1)
    attempt("no group", KFAC, model, lr=0.1, process_group="gloo")
    attempt("other group", foreign, rank, model)
    return told


def step_of_closed(rank: int, model: nn.Module) -> None:
    kfac = KFAC(model, lr=0.1)
    if rank == 1:
        kfac.close()
    model(torch.ones(2, INPUTS)).sum().backward()
    kfac.step()


def step_of_plain(rank: int, x, y, **options) -> int:
    """A step without DistributedDataParallel, with data of one's own."""
    torch.manual_seed(0)
    model = nn.Linear(INPUTS, CLASSES)
    kfac = KFAC(model, lr=0.1, **options)
    nn.functional.cross_entropy(model(x * (1.0 + rank)), y).backward()
    return kfac.step().step


def foreign(rank: int, model: nn.Module) -> str:
    group = distributed.new_group([0])
    kfac = KFAC(model, lr=0.1, process_group=group)
    return type(kfac._ranks).__name__


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    runs = launch(tmp_path_factory.mktemp("store"), 2, failures)
    assert [run.error for run in runs] == [None, None]
    return [run.value for run in runs]


@pytest.mark.parametrize(
    ("name", "kinds", "texts"),
    [
        ("loss", ["FloatingPointError"] * 2, ["on rank 1, the outputs", "the outputs that"]),
        ("gradient", ["FloatingPointError"] * 2, ["hold NaN or inf"] * 2),
        ("unit", ["RuntimeError", "UnitFault"], ["on rank 1, UnitFault: no answer", "no answer"]),
        ("closed on one", ["RuntimeError"] * 2, ["on rank 1, RuntimeError: this", "is closed"]),
        ("not averaged", ["RuntimeError"] * 2, ["is not the same on rank 0 and rank 1"] * 2),
        ("damping", ["ValueError"] * 2, ["damping, at step 0 = 1.1 on rank 1 and 0.1 on"] * 2),
        ("seed", ["ValueError"] * 2, ["seed = 1 on rank 1 and 0 on rank 0"] * 2),
        ("fisher", ["ValueError"] * 2, ["fisher = 'ggn' on rank 1 and 'mc' on rank 0"] * 2),
        ("model", ["ValueError"] * 2, ["model = {'': 'A 3, G 3'} on rank 1"] * 2),
        ("equal units", ["ValueError"] * 2, ["have the same seed 5, and would draw"] * 2),
        ("unlike units", ["ValueError"] * 2, ["spec of the unit = "] * 2),
        ("no group", ["TypeError"] * 2, ["process_group = 'gloo' is no process group"] * 2),
    ],
)
def test_what_one_process_fails_with_ends_the_step_of_all(failed, name, kinds, texts) -> None:
    for told, kind, text in zip(failed, kinds, texts, strict=True):
        assert told[name][0] == kind
        assert text in told[name][1]


@pytest.mark.parametrize("name", ["loss", "gradient", "unit"])
def test_a_step_that_failed_has_changed_nothing_and_the_next_is_well(failed, name) -> None:
    for told in failed:
        assert told[f"{name}: unchanged"]
        assert told[f"{name}: again"] == 1
    assert same(*(told[f"{name}: gradients"] for told in failed))


def test_a_process_may_keep_to_itself(failed) -> None:
    for told in failed:
        assert told["local"] == 0
    assert failed[0]["other group"] == "Ranks"  # of one process
    assert failed[1]["other group"][0] == "ValueError"
    assert "process_group is one that this process is not in" in failed[1]["other group"][1]


# ---- parts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (5, 5), (3, 4, 4), (2, 3, 3)])
def test_triangles_are_packed_and_unpacked(shape) -> None:
    size = shape[-1]
    matrix = torch.randn(shape)
    matrix = matrix + matrix.mT
    flat = packed(matrix)
    assert flat.shape[-1] <= size * (size + 1) // 2 + (size + 1) // 2
    assert torch.equal(unpacked(flat, size), matrix)


def test_layers_are_divided_by_their_work() -> None:
    widths = [3, 40, 20, 20, 3]
    model = nn.Sequential(*(nn.Linear(n, n, bias=False) for n in widths), nn.LayerNorm(3))
    layers = find_layers(model).layers
    shares = [Division(layers, rank, [0, 2]) for rank in range(3)]
    assert shares[0].owner == shares[1].owner == shares[2].owner
    assert [shares[0].owner[layer] for layer in layers] == [2, 0, 2, 2, 2, 2]
    assert work(layers[1]) == 6 * 40**3
    assert [layer for layer in layers if shares[1].is_own(layer)] == []
