"""What K-FAC leaves behind: nothing in buffers and generators; and what it refuses to take over."""

from __future__ import annotations

import copy

import pytest
import torch
from kfac_cases import backward_squares, quiet
from torch import nn
from torch.utils.checkpoint import checkpoint

from thermokron.host.kfac import KFAC, Relative

X, Y = torch.randn(64, 8), torch.randint(10, (64,))
FISHERS = ("empirical", "mc", "ggn")


class Noisy(nn.Module):
    """Adds noise from a generator of its own, and counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("nothing", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x + 0.1 * torch.randn(x.shape, generator=self.generator)


class Checkpointed(nn.Module):
    def __init__(self, *, preserve: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), Noisy()
        )
        self.head, self.preserve = nn.Linear(16, 10), preserve

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        keep = {"use_reentrant": False, "preserve_rng_state": self.preserve}
        return self.head(checkpoint(self.body, x, **keep))


@pytest.mark.parametrize("preserve", [True, False])
@pytest.mark.parametrize("fisher", FISHERS)
def test_checkpointed_regions_run_again_without_a_trace(fisher, preserve) -> None:
    """Buffers, the network's generators and torch's are those of training without K-FAC."""
    found = []
    for watched in (False, True):
        model, criterion = Checkpointed(preserve=preserve), nn.CrossEntropyLoss()
        kfac = KFAC(model, lr=0.1, criterion=criterion, fisher=fisher) if watched else None
        torch.manual_seed(1)
        for _ in range(2):
            criterion(model(X), Y).backward()
            if kfac is not None:
                kfac.discard()
        found.append(
            [b.clone() for b in model.buffers()]
            + [p.grad for p in model.parameters()]
            + [model.body[4].generator.get_state(), torch.get_rng_state()]
        )
        assert model.body[4]._buffers["nothing"] is None
    for with_it, without in zip(*found, strict=True):
        assert torch.equal(with_it, without)


@pytest.mark.parametrize("fisher", ["mc", "ggn"])
def test_an_exception_in_a_region_leaves_no_trace_either(fisher) -> None:
    model, criterion = Checkpointed(), nn.CrossEntropyLoss()
    kfac = KFAC(model, lr=0.1, criterion=criterion, fisher=fisher)
    calls = []

    def fails_once(module, args, output):
        calls.append(torch._C._current_graph_task_id() != -1)
        if calls.count(True) == 1:
            raise ValueError("odd")

    model.body[2].register_forward_hook(fails_once)
    loss = criterion(model(X), Y)
    before = [b.clone() for b in model.buffers()]
    loss.backward()
    for b, was in zip(model.body[1].buffers(), before, strict=False):
        # the backward pass itself runs the region once more, as without K-FAC
        assert b.shape == was.shape
    assert int(model.body[1].num_batches_tracked) == 2
    with pytest.raises(RuntimeError, match="into account: odd"):
        kfac.step()


# ---- parameter groups ----------------------------------------------------------------------------


def test_every_layer_has_the_rate_of_its_group() -> None:
    """ν of a KL clip over two layers with their own rates; groups may come later."""

    def clip(*groups, more=None):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 10))
        parameters = [list(model[0].parameters()), list(model[2].parameters())]
        optimizer = torch.optim.SGD(
            [{"params": p, "lr": lr} for p, lr in zip(parameters, groups, strict=False)], lr=1.0
        )
        kfac = KFAC(model, lr=optimizer, kl_clip=1e-6)
        if more is not None:
            optimizer.add_param_group({"params": parameters[len(groups)], "lr": more})
        nn.functional.cross_entropy(model(X), Y).backward()
        return kfac.step().nu ** -2

    first, second = clip(1.0, 0.0), clip(0.0, 1.0)
    assert clip(0.5, 0.25) == pytest.approx(0.25 * first + 0.0625 * second, rel=1e-5)
    assert clip(0.5, more=0.25) == pytest.approx(clip(0.5, 0.25))
    assert clip(0.5) == pytest.approx(0.25 * first, rel=1e-5)  # the other one is not trained


def test_weight_and_bias_in_two_groups_take_the_larger_rate() -> None:
    found = []
    for split in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(8, 10)
        groups = (
            [{"params": [model.weight], "lr": 0.5}, {"params": [model.bias], "lr": 0.1}]
            if split
            else model.parameters()
        )
        kfac = KFAC(model, lr=torch.optim.SGD(groups, lr=0.5), kl_clip=1e-6)
        nn.functional.cross_entropy(model(X), Y).backward()
        found.append(kfac.step().nu)
    assert found[0] == found[1]


# ---- states --------------------------------------------------------------------------------------


def trained(inputs: int = 8, dtype: torch.dtype = torch.float32, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(inputs, 4), nn.LayerNorm(4), nn.Linear(4, 3)).to(dtype)
    criterion = nn.MSELoss()
    kfac = quiet(model, criterion=criterion, **options)
    criterion(
        model(torch.randn(16, inputs, dtype=dtype)), torch.zeros(16, 3, dtype=dtype)
    ).backward()
    kfac.step()
    return kfac


def assert_same(found, expected) -> None:
    """Of nested dicts and tensors."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"inputs": 9}, r"input_factor of layer '0' is \(10, 10\), torch.float32 in the state"),
        (
            {"dtype": torch.float64},
            r"torch.float64 in the state; here it is \(9, 9\), torch.float32",
        ),
        ({"fisher": "ggn"}, "fisher = 'ggn', this KFAC has 'empirical'"),
        ({"sharing": "reduce"}, "sharing = 'reduce', this KFAC has 'expand'"),
        ({"method": "solve"}, "block of layer '0' is made|method"),
        ({"damping": Relative(0.01)}, "damping_of = 'its layer', this KFAC has 'all layers'"),
        ({"damping_mode": "exact"}, "damping_mode = 'exact', this KFAC has 'factored'"),
    ],
)
def test_a_state_of_another_kind_is_refused_whole(other, text) -> None:
    state = trained(**other).state_dict()
    kfac = trained(method="inverse")
    before = copy.deepcopy(kfac.state_dict())
    with pytest.raises(ValueError, match=text):
        kfac.load_state_dict(state)
    assert_same(kfac.state_dict(), before)


@pytest.mark.parametrize(
    "damage",
    [
        lambda s: s["layers"]["0"]["input_factor"]["moment"].fill_(float("nan")),
        lambda s: s["layers"]["0"]["input_factor"].update(weight=0.0),
        lambda s: s["layers"]["0"].pop("input_factor"),
        lambda s: s["layers"]["0"]["input_factor"].pop("moment"),
        lambda s: s["layers"]["0"]["input_factor"].update(moment=3),
        lambda s: s["layers"].update({"0": None}),
        lambda s: s["layers"]["1"]["curvature"].update(moment=torch.zeros(3)),
        lambda s: s["blocks"]["0"].pop("a"),
        lambda s: s["blocks"]["0"].update(a=torch.zeros(3, 3)),
        lambda s: s["blocks"].update(nobody=s["blocks"]["0"]),
        lambda s: s["current"].update(nobody=0.1),
        lambda s: s["current"].update({"0": float("nan")}),
        lambda s: s["blocks"]["0"].update(a=s["blocks"]["0"]["a"] * float("inf")),
        lambda s: s["blocks"]["0"].update(a=s["blocks"]["0"]["a"].half()),
        lambda s: s["made_of"].update({"0": (1, 2)}),
        lambda s: s["made_of"].update({"0": (torch.zeros(2, 2), torch.zeros(3, 3))}),
        lambda s: s.update(steps=-1),
        lambda s: s.update(steps="two"),
        lambda s: s.update(generator=torch.zeros(3, dtype=torch.uint8)),
        lambda s: s.pop("choices"),
        lambda s: s.update(layers=[]),
    ],
)
def test_a_damaged_state_is_refused_whole(damage) -> None:
    kfac = trained()
    before = copy.deepcopy(kfac.state_dict())
    state = copy.deepcopy(before)
    damage(state)
    with pytest.raises(ValueError, match=r"state|steps"):
        kfac.load_state_dict(state)
    assert_same(kfac.state_dict(), before)


@pytest.mark.parametrize("state", [None, 3, [], "state", {}])
def test_what_is_no_state_is_refused(state) -> None:
    with pytest.raises(ValueError, match=r"state is not one of KFAC\.state_dict"):
        trained().load_state_dict(state)


def test_loading_forgets_what_was_gathered() -> None:
    kfac = trained()
    state = copy.deepcopy(kfac.state_dict())
    model = kfac.layers[0].module
    backward_squares(model, 100.0 * torch.randn(4, 8))
    kfac.load_state_dict(state)
    assert not any(factor.pending for layer in kfac.layers for factor in layer.factors.values())
