"""Loss modules as training loops call them: by name, several times, on parts of a model."""

from __future__ import annotations

import warnings
import weakref
from functools import partial

import pytest
import torch
from kfac_cases import DTYPE, Flow, brute_force, dense_block, mean_positions
from torch import nn

from thermokron.host.kfac import KFAC, LevenbergMarquardt
from thermokron.host.kfac.curvature.layers import KroneckerLayer, NormLayer

FISHERS = ["empirical", "mc", "ggn"]
X = torch.linspace(-1, 1, 96, dtype=DTYPE).reshape(24, 4).sin()
Y = torch.arange(24) % 3


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Flow(a=nn.Linear(4, 4), act=torch.tanh, b=nn.Linear(4, 3)).to(DTYPE)


def watched(model: nn.Module, criterion: nn.Module, **options) -> KFAC:
    return KFAC(model, **({"lr": 0.1, "kl_clip": None, "criterion": criterion} | options))


def factors(kfac: KFAC) -> list[torch.Tensor]:
    """Of all layers, after a step."""
    kfac.step()
    kfac.close()
    return [m for layer in kfac.layers for m in moments(layer)]


def moments(layer) -> list[torch.Tensor]:
    if isinstance(layer, KroneckerLayer):
        return [layer.input_factor.value, layer.output_factor.value]
    return [layer.curvature.value]


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


# ---- how it is called ----------------------------------------------------------------------------


@pytest.mark.parametrize("fisher", FISHERS)
def test_outputs_and_targets_may_be_given_by_name_in_any_order(fisher) -> None:
    criterion, found = nn.CrossEntropyLoss(ignore_index=1), []
    for call in (
        lambda f: criterion(f, Y),
        lambda f: criterion(f, target=Y),
        lambda f: criterion(target=Y, input=f),
    ):
        model = network()
        kfac = watched(model, criterion, fisher=fisher)
        call(model(X)).backward()
        found.append(factors(kfac))
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])


def test_a_loss_of_its_own_kind_may_have_any_arguments() -> None:
    class Norm(nn.Module):
        reduction = "mean"

        def forward(self, outputs: torch.Tensor) -> torch.Tensor:
            return outputs.square().mean()

    model, criterion = network(), Norm()
    kfac = watched(model, criterion)
    criterion(model(X)).backward()
    kfac.step()


def test_damping_adapts_to_outputs_given_by_name() -> None:
    criterion, ratios = nn.CrossEntropyLoss(), []
    for call in (
        lambda f: criterion(f, Y),
        lambda f: criterion(target=Y, input=f),
    ):
        model = network()
        kfac = watched(model, criterion, damping=LevenbergMarquardt(0.1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        call(model(X)).backward()
        kfac.step()
        optimizer.step()
        ratios.append(kfac.adapt(lambda call=call, model=model: call(model(X))))
        kfac.close()
    assert ratios[0] is not None
    assert ratios[0] == pytest.approx(ratios[1])


# ---- several passes, several losses --------------------------------------------------------------


class Experts(nn.Module):
    """The upper half of a batch is for one expert, the lower half for another."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.first, self.second = (nn.Linear(4, 4) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)
        self.to(DTYPE)

    def forward(self, x: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.trunk(x))
        parts = []
        if first.any():
            parts.append(self.norm(self.first(x[first])))
        if not first.all():
            parts.append(self.second(x[~first]))
        return self.head(torch.tanh(torch.cat(parts)))


@pytest.mark.parametrize("fisher", ["empirical", "ggn"])
def test_layers_that_some_accumulated_batches_leave_out(fisher) -> None:
    """As one batch has it, where the examples of all count, and not only the expert's own."""
    found = []
    for parts in (1, 2, 3):
        model, criterion = Experts(), nn.CrossEntropyLoss()
        kfac = watched(model, criterion, fisher=fisher)
        first = torch.arange(24) < 12
        for rows in torch.arange(24).chunk(parts):
            (criterion(model(X[rows], first[rows]), Y[rows]) / parts).backward()
        found.append(factors(kfac))
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])


@pytest.mark.parametrize("scale", [1.0, 0.5, 64.0])
def test_two_forward_passes_before_their_losses_are_told_apart(scale) -> None:
    found = []
    for ahead in (False, True):
        model, criterion = network(), nn.CrossEntropyLoss()
        kfac = watched(model, criterion)
        if ahead:
            a, b = model(X[:8]), model(X[8:])
            loss = criterion(b, Y[8:]) + criterion(a, Y[:8])
        else:
            loss = criterion(model(X[:8]), Y[:8]) + criterion(model(X[8:]), Y[8:])
        (scale * loss).backward()
        found.append(factors(kfac))
    assert_same(found[1], found[0])


@pytest.mark.parametrize("fisher", ["empirical", "ggn"])
def test_a_loss_of_two_passes_together(fisher) -> None:
    """As with pairs of examples: each pass brings its part of the loss terms."""
    found = []
    for together in (False, True):
        model, criterion = network(), nn.CrossEntropyLoss()
        kfac = watched(model, criterion, fisher=fisher)
        outputs = model(X) if not together else torch.cat([model(X[:12]), model(X[12:])])
        criterion(outputs, Y).backward()
        found.append(factors(kfac))
    assert_same(found[1], found[0])


@pytest.mark.parametrize(
    ("fisher", "judged"), [("empirical", True), ("empirical", False), ("ggn", True)]
)
def test_a_layer_used_twice_without_the_model_being_called(fisher, judged) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)
            self.to(DTYPE)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.tanh(self.a(torch.tanh(self.a(x)))))

    found = []
    for call in (lambda m: m, lambda m: m.forward):
        model, criterion = Twice(), nn.CrossEntropyLoss()
        kfac = watched(model, criterion if judged else None, fisher=fisher)
        for rows in (slice(8), slice(8, 24)):  # two passes
            criterion(call(model)(X[rows]), Y[rows]).backward()
        found.append(factors(kfac))
    assert_same(found[1], found[0])


@pytest.mark.parametrize("fisher", ["empirical", "ggn"])
def test_a_loss_ends_a_pass_of_submodules(fisher) -> None:
    """Two of them, and one backward pass for both."""
    found = []
    for call in (lambda m: m, lambda m: m.forward):
        model, criterion = network(), nn.CrossEntropyLoss()
        kfac = watched(model, criterion, fisher=fisher)
        (criterion(call(model)(X[:8]), Y[:8]) + criterion(call(model)(X[8:]), Y[8:])).backward()
        found.append(factors(kfac))
    assert_same(found[1], found[0])


class Judging(nn.Module):
    """Calls the loss module itself, before or after another layer is used."""

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.head, self.extra = (nn.Linear(4, n, dtype=DTYPE) for n in (4, 3, 2))
        self.judge = criterion

    def forward(self, early: bool) -> torch.Tensor:
        x = torch.tanh(self.trunk(X))
        loss = self.judge(self.head(x), Y) if early else 0.0
        extra = self.extra(x).square().mean()
        return extra + (loss if early else self.judge(self.head(x), Y))


def test_layers_used_after_a_loss_inside_the_model_belong_to_its_pass() -> None:
    found = []
    for early in (False, True):
        criterion = nn.CrossEntropyLoss(ignore_index=1)
        model = Judging(criterion)
        kfac = watched(model, criterion)
        model(early).backward()
        found.append(factors(kfac))
    assert_same(found[1], found[0])


class Tasks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.first, self.second = (nn.Linear(4, n, dtype=DTYPE) for n in (4, 3, 3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.tanh(self.trunk(x))
        return self.first(x), self.second(x)


@pytest.mark.parametrize("fisher", FISHERS)
def test_a_second_loss_on_one_pass_is_told_once(fisher) -> None:
    model, criterion = Tasks(), nn.CrossEntropyLoss()
    kfac = watched(model, criterion, fisher=fisher)
    first, second = model(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # in the user's own pass nothing is said
        (criterion(first, Y) + criterion(second, Y)).backward()
    with pytest.warns(UserWarning, match="criterion was called again on the outputs of one") as w:
        kfac.step()
    assert w[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = model(X)
        (criterion(first, Y) + criterion(second, Y)).backward()
        kfac.step()


@pytest.mark.parametrize("fisher", FISHERS)
def test_losses_that_have_nothing_to_do_with_the_pass_say_nothing(fisher) -> None:
    """Of another model, logged, of accumulated batches, and of a watcher that was forgotten."""
    criterion, other = nn.CrossEntropyLoss(), network(1)
    watched(network(2), criterion, fisher=fisher)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for more in (False, True):
            model = network()
            kfac = watched(model, criterion, fisher=fisher)
            loss = criterion(model(X), Y)
            if more:
                (7.0 * criterion(other(X[:5]), Y[:5])).backward()
                with torch.no_grad():
                    criterion(model(X[:3]), Y[:3])
            loss.backward()
            found.append(factors(kfac))
    assert_same(found[1], found[0])


# ---- several loss terms in an example ------------------------------------------------------------


class Mixing(nn.Module):
    """Every token's output sees every token; classes second, or rows of all examples together."""

    def __init__(self, rows: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.first = nn.LayerNorm(4, dtype=DTYPE), nn.Linear(4, 4, dtype=DTYPE)
        self.second, self.rows = nn.Linear(4, 3, dtype=DTYPE), rows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.first(self.norm(x)))
        x = self.second(torch.tanh(x + 3.0 * x.mean(dim=1, keepdim=True)))
        return x.flatten(0, 1) if self.rows else x.mT


@pytest.mark.parametrize("rows", [False, True])
def test_ggn_leaves_out_products_of_different_loss_terms(rows) -> None:
    """The mean over 600 draws is the exact diagonal of a norm, and exact G's trace; without
    signs both would be more than twice too large."""
    x = torch.randn(4, 6, 4, dtype=DTYPE, generator=torch.Generator().manual_seed(3))
    model, criterion = Mixing(rows), nn.CrossEntropyLoss()
    y = torch.arange(24) % 3 if rows else torch.arange(24).reshape(4, 6) % 3
    kfac = watched(model, criterion, fisher="ggn", decay=0.0)
    criterion(model(x), y).backward()
    once = {layer: _gathered(layer) for layer in kfac.layers}
    sums = dict.fromkeys(kfac.layers, 0.0)
    for _ in range(600):
        criterion(model(x), y).backward()
        for layer in kfac.layers:
            sums[layer] = sums[layer] + _gathered(layer) / 600
    kfac.close()
    (norm,) = (layer for layer in kfac.layers if isinstance(layer, NormLayer))
    (exact,) = brute_force(model, criterion, x, y, [norm])
    found, exact = sums[norm].reshape(-1), exact.diagonal()
    # the deviation of one draw is below 1.5 times the mean: 6% of it, five times that
    assert ((found - exact).abs() < 0.3 * exact + 0.02 * exact.max()).all()
    assert found.sum().item() == pytest.approx(exact.sum().item(), rel=0.15)
    first, second = (layer for layer in kfac.layers if isinstance(layer, KroneckerLayer))
    truth = _output_trace(model, x, y)
    assert sums[first].trace().item() == pytest.approx(truth, rel=0.15)
    # the last layer's terms do not meet: exact in every draw
    torch.testing.assert_close(once[second], sums[second])


def _gathered(layer) -> torch.Tensor:
    layer.update_factors(0.0)
    layer.discard()
    return moments(layer)[-1]


def _output_trace(model, x, y) -> float:
    """tr G of the first layer, the columns of every loss term sent back alone."""
    seen = []
    hook = model.first.register_forward_hook(lambda m, a, output: seen.append(output))
    outputs = model(x)
    hook.remove()
    p = torch.softmax(outputs, 1)
    total, terms = 0.0, y.numel()
    for index in torch.cartesian_prod(*(torch.arange(k) for k in y.shape)):
        at = (
            (int(index), slice(None))
            if y.ndim == 1
            else (int(index[0]), slice(None), int(index[1]))
        )
        q = p[at].detach()
        for column in (torch.diag(q.sqrt()) - torch.outer(q, q.sqrt())).T:
            vector = torch.zeros_like(outputs)
            vector[at] = column
            (g,) = torch.autograd.grad(outputs, seen[0], vector, retain_graph=True)
            total += g.square().sum().item()
    return total / terms


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_one_loss_term_per_example_draws_nothing(sharing) -> None:
    torch.manual_seed(0)
    model = Flow(a=nn.Linear(4, 4), act=torch.tanh, pool=mean_positions, b=nn.Linear(4, 3))
    criterion = nn.CrossEntropyLoss()
    kfac = watched(model.to(DTYPE), criterion, fisher="ggn", sharing=sharing)
    before = kfac.training.generator.get_state()
    criterion(model(X.reshape(8, 3, 4)), Y[:8]).backward()
    kfac.step()
    assert torch.equal(kfac.training.generator.get_state(), before)
    assert torch.isfinite(dense_block(kfac.layers[0])).all()


def test_ggn_holds_one_column_of_gradients_at_a_time() -> None:
    model, criterion = Flow(net=network(), act=torch.tanh), nn.CrossEntropyLoss()
    kfac = watched(model, criterion, fisher="ggn")
    seen: list[weakref.ref] = []

    def record(original, module, prepared, gradient, *args, **kwargs) -> None:
        assert sum(r() is not None for r in seen) <= len(kfac.layers)
        seen.append(weakref.ref(gradient))
        original(module, prepared, gradient, *args, **kwargs)

    for layer in kfac.layers:
        layer.record = partial(record, layer.record)
    criterion(model(X), Y).backward()
    assert len(seen) == 3 * len(kfac.layers)
    kfac.close()
