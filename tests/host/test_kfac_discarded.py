"""What counts are the passes that made the gradient which a step finds; step() says the rest."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref

import pytest
import torch
from kfac_cases import Flow
from torch import nn

from thermokron.host.kfac import KFAC
from thermokron.model import NumericUnit, UnitFault, UnitSpec

X, Y = torch.randn(32, 8), torch.randint(3, (32,))
FISHERS = ("empirical", "mc", "ggn")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))


def watched(model: nn.Module | None = None, **options):
    model, criterion = model or network(), nn.CrossEntropyLoss()
    return model, KFAC(model, lr=0.05, criterion=criterion, **{"decay": 0.0} | options), criterion


def averages(kfac: KFAC) -> list[torch.Tensor]:
    return [factor.value for layer in kfac.layers for factor in layer.factors.values()]


def plain(fisher: str, x=X, y=Y) -> list[torch.Tensor]:
    model, kfac, criterion = watched(fisher=fisher)
    criterion(model(x), y).backward()
    kfac.step()
    return averages(kfac)


def assert_same(found, expected) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def zero_grad(model, criterion) -> None:
    criterion(model(10 * X), Y).backward()
    model.zero_grad()


def zeros_in_place(model, criterion) -> None:
    criterion(model(10 * X), Y).backward()
    model.zero_grad(set_to_none=False)


def scaled_and_thrown_away(model, criterion) -> None:
    (1024 * criterion(model(10 * X), Y)).backward()
    for p in model.parameters():
        p.grad.div_(1024.0)
    model.zero_grad(set_to_none=False)


def skipped(model, criterion) -> None:
    criterion(model(10 * X), Y)  # the loss was odd: no backward pass at all


def forward_alone(model, criterion) -> None:
    model(10 * X)


def sharpness_aware(model, criterion) -> None:
    """Foret et al. 2021: the gradient at a point nearby is the one that counts."""
    criterion(model(10 * X), Y).backward()
    steps = [0.05 * p.grad / p.grad.norm() for p in model.parameters()]
    with torch.no_grad():
        for p, step in zip(model.parameters(), steps, strict=True):
            p.add_(step)
    model.zero_grad()
    with torch.no_grad():
        for p, step in zip(model.parameters(), steps, strict=True):
            p.sub_(step)


def generator_through_discriminator(model, criterion) -> None:
    made = nn.Linear(4, 8)
    criterion(model(made(torch.randn(32, 4))), Y).backward()
    model.zero_grad()


def gradient_asked_for(model, criterion) -> None:
    """Of weights, to be looked at: it is nowhere."""
    torch.autograd.grad(criterion(model(10 * X), Y), list(model.parameters()))


def saliency(model, criterion) -> None:
    x = X.clone().requires_grad_()
    torch.autograd.grad(criterion(model(10 * x), Y), x)


@pytest.mark.parametrize("fisher", ["empirical", "ggn"])
@pytest.mark.parametrize(
    "before",
    [
        zero_grad,
        zeros_in_place,
        scaled_and_thrown_away,
        skipped,
        forward_alone,
        sharpness_aware,
        generator_through_discriminator,
        gradient_asked_for,
        saliency,
    ],
)
def test_passes_whose_gradient_was_thrown_away_leave_no_trace(before, fisher) -> None:
    model, kfac, criterion = watched(fisher=fisher)
    before(model, criterion)
    criterion(model(X), Y).backward()
    kfac.step()
    assert_same(averages(kfac), plain(fisher))


@pytest.mark.parametrize("fisher", ["empirical", "ggn"])
def test_gradients_that_are_only_looked_at_do_not_count_afterwards_either(fisher) -> None:
    model, kfac, criterion = watched(fisher=fisher)
    for half in (slice(0, 16), slice(16, 32)):
        (criterion(model(X[half]), Y[half]) / 2).backward()
        gradient_asked_for(model, criterion)
    kfac.step()
    assert_same(averages(kfac), plain(fisher))


@pytest.mark.parametrize("fisher", ["empirical", "ggn"])
@pytest.mark.parametrize("first", ["asked for", "thrown away"])
def test_a_graph_may_be_gone_through_twice(first, fisher) -> None:
    model, kfac, criterion = watched(fisher=fisher)
    loss = criterion(model(X), Y)
    if first == "asked for":
        torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    else:
        loss.backward(retain_graph=True)
        model.zero_grad()
    loss.backward()
    kfac.step()
    assert_same(averages(kfac), plain(fisher))


@pytest.mark.parametrize("fisher", FISHERS)
def test_two_networks_may_share_a_loss_module(fisher) -> None:
    """A generator and a discriminator, each with a K-FAC and an optimiser, in the usual loop."""
    torch.manual_seed(0)
    criterion = nn.CrossEntropyLoss()
    made, judged = nn.Linear(4, 8), nn.Linear(8, 2)
    ours, theirs = (
        KFAC(net, lr=0.1, criterion=criterion, fisher=fisher, decay=0.0) for net in (made, judged)
    )
    ones = torch.ones(32, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            noise = torch.randn(32, 4)
            fake = made(noise)
            judged.zero_grad()
            (criterion(judged(X), ones) + criterion(judged(fake.detach()), 0 * ones)).backward()
            theirs.step()
            made.zero_grad()
            criterion(judged(fake), ones).backward()
            ours.step()
    rows = torch.cat([noise, torch.ones(32, 1)], 1)
    torch.testing.assert_close(ours.layers[0].input_factor.value, rows.T @ rows / 32)
    rows = torch.cat([torch.cat([X, fake.detach()]), torch.ones(64, 1)], 1)
    torch.testing.assert_close(theirs.layers[0].input_factor.value, rows.T @ rows / 64)


def test_a_gradient_that_is_truly_zero_was_not_thrown_away() -> None:
    """Behind a head of zeros, and clipped, which looks like `zero_grad` at first sight."""
    model = network()
    nn.init.zeros_(model[2].weight)
    kfac = KFAC(model, lr=0.05, decay=0.0)
    nn.functional.cross_entropy(model(X), Y).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kfac.step()
    assert kfac.layers[0].has_factors


@pytest.mark.parametrize("fisher", ["empirical", "ggn"])
def test_accumulated_and_clipped_gradients_all_count(fisher) -> None:
    model, kfac, criterion = watched(fisher=fisher)
    for half in (slice(0, 16), slice(16, 32)):
        (criterion(model(X[half]), Y[half]) / 2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    kfac.step()
    assert_same(averages(kfac), plain(fisher))


@pytest.mark.parametrize("fisher", FISHERS)
def test_discard_forgets_what_was_gathered(fisher) -> None:
    model, kfac, criterion = watched(fisher=fisher)
    criterion(model(X), Y).backward()
    kfac.step()
    before = averages(kfac)
    criterion(model(10 * X), Y).backward()
    kfac.discard()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing is known of this gradient
        kfac.step()
    for one, other in zip(averages(kfac), before, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("fisher", FISHERS)
def test_nothing_is_held_between_steps(fisher) -> None:
    """Neither graphs of forward passes nor what backward passes brought that led nowhere."""
    model, kfac, criterion = watched(fisher=fisher)
    seen = []
    model[1].register_forward_hook(lambda m, args, output: seen.append(weakref.ref(output)))
    for _ in range(3):
        criterion(model(X), Y)
        x = X.clone().requires_grad_()
        torch.autograd.grad(criterion(model(x), Y), x)
    gc.collect()
    assert not any(ref() is not None for ref in seen)
    assert not any(kfac._watcher._gathering._waiting.values())


@pytest.mark.parametrize("fisher", FISHERS)
@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss()])
def test_outputs_that_are_not_finite_are_said_by_the_step(fisher, criterion) -> None:
    y = Y if isinstance(criterion, nn.CrossEntropyLoss) else torch.ones(32, 3)
    model = network()
    kfac = KFAC(model, lr=0.05, criterion=criterion, fisher=fisher)
    criterion(model(X), y).backward()
    kfac.step()
    before = averages(kfac)
    model.zero_grad()
    bad = X.clone()
    bad[0] = float("inf")
    criterion(model(bad), y).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    with pytest.raises(FloatingPointError, match="hold NaN or inf"):
        kfac.step()
    for found, expected in zip(averages(kfac), before, strict=True):
        assert torch.equal(found, expected)
    for p, g in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, g, equal_nan=True)
    model.zero_grad()
    criterion(model(X), y).backward()
    assert kfac.step().step == 1


@pytest.mark.parametrize("fisher", FISHERS)
def test_a_bad_pass_that_was_thrown_away_is_no_trouble(fisher) -> None:
    model, kfac, criterion = watched(fisher=fisher)
    criterion(model(X * float("nan")), Y).backward()
    model.zero_grad()
    criterion(model(X), Y).backward()
    kfac.step()
    assert_same(averages(kfac), plain(fisher) if fisher != "mc" else averages(kfac))


def test_faults_of_a_hook_and_of_a_schedule_are_said_by_the_step(monkeypatch) -> None:
    model, kfac, criterion = watched(factor_interval=lambda step: 1 - step)
    criterion(model(X), Y).backward()
    kfac.step()
    criterion(model(X), Y).backward()
    with pytest.raises(ValueError, match="factor_interval = 0 is out of range"):
        kfac.step()
    for fisher in FISHERS:
        model, kfac, criterion = watched(fisher=fisher)

        def odd(*args, **kwargs):
            raise IndexError("out of bounds")

        monkeypatch.setattr(kfac.layers[0], "record", odd)
        criterion(model(X), Y).backward()
        with pytest.raises(RuntimeError, match=r"K-FAC cannot take .* into account: out of bounds"):
            kfac.step()
        kfac.close()
        monkeypatch.undo()


def test_a_loss_that_is_called_otherwise_is_said_by_the_step() -> None:
    model, criterion = network(), nn.CrossEntropyLoss()
    kfac = KFAC(model, lr=0.1, criterion=criterion, fisher="mc")
    criterion.forward = lambda target, outputs: nn.functional.cross_entropy(outputs, target)
    criterion(Y, model(X)).backward()
    with pytest.raises(RuntimeError, match="K-FAC cannot take the loss"):
        kfac.step()


class Dies(NumericUnit):
    """Fails when it is told to."""

    dead = False

    def run(self, job, *, stream=None):
        if self.dead:
            raise UnitFault("the ADC never answered")
        return super().run(job, stream=stream)


@pytest.mark.parametrize("method", ["inverse", "solve"])
def test_a_failed_step_changes_nothing_and_may_be_repeated(method) -> None:
    found = []
    for fails in (False, True):
        unit = Dies(UnitSpec(cells=8), seed=1)
        model = network()
        kfac = KFAC(model, unit, lr=0.05, method=method, kl_clip=None)
        for _ in range(2):
            model.zero_grad()
            nn.functional.cross_entropy(model(X), Y).backward()
            if fails and kfac.steps == 1:
                state = copy.deepcopy(kfac.state_dict())
                gradients = [p.grad.clone() for p in model.parameters()]
                unit.dead = True
                with pytest.raises(UnitFault, match="never answered"):
                    kfac.step()
                unit.dead = False
                for p, g in zip(model.parameters(), gradients, strict=True):
                    assert torch.equal(p.grad, g)
                unit.stream = state["unit"]["stream"]
                torch.testing.assert_close(kfac.state_dict()["layers"], state["layers"])
                assert kfac.steps == 1
            kfac.step()
        found.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_experts_of_thrown_away_passes_do_not_count() -> None:
    """Loss terms of passes that made no use of a layer count only if the pass does."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.head = nn.Linear(8, 4), nn.Linear(8, 4), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor, which: str) -> torch.Tensor:
            return self.head(torch.tanh(getattr(self, which)(x)))

    def run(throw_away: bool) -> list[torch.Tensor]:
        model = Experts()
        model, kfac, criterion = watched(model)
        if throw_away:
            criterion(model(3 * X, "b"), Y).backward()
            model.zero_grad()
        for which in "ab":
            criterion(model(X, which), Y).backward()
        kfac.step()
        return averages(kfac)

    assert_same(run(True), run(False))


def test_loss_terms_that_a_layer_took_no_part_in_count_once_however_often_a_step_is_tried() -> None:
    def run(fails: bool) -> list[torch.Tensor]:
        model = nn.ModuleDict({"a": nn.Linear(8, 3), "b": nn.Linear(8, 3)})
        for p in model.parameters():
            nn.init.constant_(p, 0.1)
        outer, bad = Chosen(model), False
        kfac = KFAC(outer, lr=1.0, decay=0.0, kl_clip=lambda step: -1.0 if bad else 1.0)
        for which in "ab":
            nn.functional.cross_entropy(outer(X, which), Y).backward()
        bad = fails
        if fails:
            with pytest.raises(ValueError, match=r"kl_clip = -1.0 is out of range"):
                kfac.step()
        bad = False
        kfac.step()
        return averages(kfac)

    assert_same(run(True), run(False))


class Chosen(nn.Module):
    """One of several layers, by name."""

    def __init__(self, model: nn.ModuleDict) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor, which: str) -> torch.Tensor:
        return self.model[which](x)


def test_what_a_layer_said_of_one_pass_is_not_lost_with_another() -> None:
    """Only the first layer's gradient is thrown away between two accumulated passes."""
    model, kfac, criterion = watched(Flow(a=nn.Linear(8, 5), act=torch.tanh, b=nn.Linear(5, 3)))
    criterion(model(2 * X), Y).backward()
    model.a.zero_grad()
    criterion(model(X), Y).backward()
    kfac.step()
    rows = torch.cat([X, torch.ones(32, 1)], 1)
    torch.testing.assert_close(kfac.layers[0].input_factor.value, rows.T @ rows / 32)
    hidden = [torch.tanh(model.a(x)).detach() for x in (2 * X, X)]
    rows = torch.cat([torch.cat(hidden), torch.ones(64, 1)], 1)
    torch.testing.assert_close(kfac.layers[1].input_factor.value, rows.T @ rows / 64)
