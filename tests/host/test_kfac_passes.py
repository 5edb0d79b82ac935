"""Which passes K-FAC learns from: checkpointed, repeated, scaled, copied, compiled ones."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from kfac_cases import CASES, Flow
from torch import nn
from torch.utils.checkpoint import checkpoint

from thermokron.host.kfac import KFAC

F = nn.functional
X, Y = torch.linspace(-1, 1, 24).reshape(6, 4).sin(), torch.arange(6) % 3


class Net(nn.Module):
    """Three layers, the middle of which may be checkpointed."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.reentrant = reentrant

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.b(torch.tanh(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        if self.reentrant is None:
            return self.c(self.middle(x))
        return self.c(checkpoint(self.middle, x, use_reentrant=self.reentrant))


def watched(model: nn.Module | None = None, **options):
    """A network, its K-FAC, and its loss module."""
    model = Net() if model is None else model
    criterion = nn.CrossEntropyLoss()
    return model, KFAC(model, lr=0.1, kl_clip=None, criterion=criterion, **options), criterion


def update(model: nn.Module, kfac: KFAC) -> list[torch.Tensor]:
    """Preconditioned gradients."""
    kfac.step()
    kfac.close()
    return [p.grad.clone() for p in model.parameters()]


def plain_update(**options) -> list[torch.Tensor]:
    """Of one pass and nothing else."""
    model, kfac, criterion = watched(**options)
    criterion(model(X), Y).backward()
    return update(model, kfac)


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


# ---- checkpointing -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reentrant", "fisher"),
    [(False, "empirical"), (True, "empirical"), (False, "ggn"), (False, "mc")],
)
def test_checkpointed_activations_are_recorded_once(reentrant, fisher) -> None:
    """Under `torch.utils.checkpoint` a submodule runs again inside the backward pass."""
    model, kfac, criterion = watched(Net(reentrant), fisher=fisher)
    for step in range(2):
        criterion(model(X), Y).backward()
        if step == 0:
            kfac.step()
            model.zero_grad()
    found = update(model, kfac)
    model, kfac, criterion = watched(fisher=fisher)
    for step in range(2):
        criterion(model(X), Y).backward()
        if step == 0:
            kfac.step()
            model.zero_grad()
    assert_same(found, update(model, kfac))


@pytest.mark.parametrize("reentrant", [False, True])
def test_the_whole_model_may_be_checkpointed(reentrant) -> None:
    model, kfac, criterion = watched()
    x = X.clone().requires_grad_(reentrant)
    criterion(checkpoint(model, x, use_reentrant=reentrant), Y).backward()
    assert_same(update(model, kfac), plain_update())


@pytest.mark.parametrize("fisher", ["mc", "ggn"])
def test_other_curvature_needs_checkpoints_that_are_not_reentrant(fisher) -> None:
    """The step says so, whether something in front of the region is trained or not."""
    for frozen in (False, True):
        model = Net(True)
        if frozen:
            model.a.requires_grad_(False)
            model.a.register_forward_hook(lambda module, args, output: output.requires_grad_())
        model, kfac, criterion = watched(model, fisher=fisher)
        criterion(model(X), Y).backward()
        plain = model.b.weight.grad.clone()
        with pytest.raises(RuntimeError, match="legal: use_reentrant=False"):
            kfac.step()
        assert torch.equal(model.b.weight.grad, plain)
        assert not any(layer.has_factors for layer in kfac.layers)
        kfac.close()


# ---- passes that are not training ----------------------------------------------------------------


def test_gradients_of_inputs_alone_leave_no_trace() -> None:
    """Saliency maps, in a pass of their own; a penalty's first half, in the same pass."""
    model, kfac, criterion = watched()
    x = X.clone().requires_grad_()
    torch.autograd.grad(model(x).square().sum(), x)
    loss = criterion(model(x), Y)
    torch.autograd.grad(loss, x, create_graph=True)
    loss.backward()
    assert_same(update(model, kfac), plain_update())


def test_gradients_may_be_asked_for_by_parameter() -> None:
    model, kfac, criterion = watched()
    parameters = list(model.parameters())
    for p, g in zip(
        parameters, torch.autograd.grad(criterion(model(X), Y), parameters), strict=True
    ):
        p.grad = g
    assert_same(update(model, kfac), plain_update())


def test_transforms_of_torch_func_leave_no_trace() -> None:
    """Gradients of every example by vmap."""
    model, kfac, criterion = watched()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, x, y):
        return F.cross_entropy(torch.func.functional_call(model, parameters, (x[None],)), y[None])

    torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, X, Y)
    criterion(model(X), Y).backward()
    assert_same(update(model, kfac), plain_update())


def test_inference_and_tracing_leave_no_trace() -> None:
    model, kfac, criterion = watched()
    with torch.inference_mode():
        criterion(model(X), Y)
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and used all the same
        torch.jit.trace(model, X)
    model.train()
    criterion(model(X), Y).backward()
    assert_same(update(model, kfac), plain_update())


# ---- ways to train -------------------------------------------------------------------------------


@pytest.mark.parametrize("fisher", ["empirical", "ggn"])
def test_compiled_models_take_the_same_step(fisher) -> None:
    model, kfac, criterion = watched(fisher=fisher)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(model, backend="eager")
        criterion(compiled(X), Y).backward()
    assert_same(update(model, kfac), plain_update(fisher=fisher))


@pytest.mark.parametrize("fisher", ["empirical", "mc", "ggn"])
def test_scaled_losses_and_autocast(fisher) -> None:
    """As with a gradient scaler; the loss module's hook sees the scale."""
    model, kfac, criterion = watched(fisher=fisher)
    (1024.0 * criterion(model(X), Y)).backward()
    for p in model.parameters():
        p.grad /= 1024.0
    assert_same(update(model, kfac), plain_update(fisher=fisher))
    model, kfac, criterion = watched(fisher=fisher)
    optimizer, scaler = torch.optim.SGD(model.parameters(), 0.1), torch.amp.GradScaler("cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = criterion(model(X), Y)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    exact = plain_update(fisher=fisher)
    for a, b in zip(update(model, kfac), exact, strict=True):
        assert (a - b).norm() < 0.1 * b.norm()  # bfloat16 has 8 bits


def test_a_step_that_overflowed_may_be_passed_over() -> None:
    """A scaler finds its scale by trying: `FloatingPointError`, and all is as it was."""
    model, kfac, criterion = watched(decay=0.0)
    (1e39 * criterion(model(X), Y)).backward()
    with pytest.raises(FloatingPointError, match="gradients of layer 'a' hold NaN or inf"):
        kfac.step()
    model.zero_grad()
    criterion(model(X), Y).backward()
    assert_same(update(model, kfac), plain_update(decay=0.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_models_in_half_precision(dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(5, 4),
        nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0),
        nn.Flatten(),
        nn.Linear(12, 3),
    ).to(dtype)
    _, kfac, criterion = watched(model)
    criterion(model(torch.arange(18).reshape(6, 3) % 5).float(), Y).backward()
    assert all(torch.isfinite(g).all() for g in update(model, kfac))
    assert kfac.layers[0].input_factor.value.dtype == torch.float32


def test_empty_batches_say_nothing() -> None:
    """As the last one of a data loader that filters; among batches with data."""
    for shape in ((0, 4), (0, 5, 4), (2, 0, 4)):
        model, kfac, criterion = watched(
            Flow(a=nn.Linear(4, 4), n=nn.LayerNorm(4), b=nn.Linear(4, 3))
        )
        (0.0 * model(torch.zeros(shape)).sum()).backward()
        assert all(not layer.has_factors for layer in kfac.layers)
        criterion(model(X), Y).backward()
        kfac.step()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())
        kfac.close()


def test_nested_tensors_are_passed_over() -> None:
    model = Flow(a=nn.Linear(4, 4), b=nn.Linear(4, 3))
    kfac = KFAC(model, lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are a prototype
        ragged = torch.nested.nested_tensor(
            [torch.ones(2, 4), torch.ones(3, 4)], layout=torch.jagged
        )
    model.b(model.a(ragged).values()).square().mean().backward()
    with pytest.warns(
        UserWarning, match=r"no curvature for a.weight, a.bias \(K-FAC saw none of its data\)"
    ):
        kfac.step()


# ---- changes after K-FAC was made ----------------------------------------------------------------


def test_what_is_unfrozen_later_is_named_and_keeps_its_plain_gradient() -> None:
    model = Net()
    model.a.requires_grad_(False)
    model.b.bias.requires_grad_(False)
    model, kfac, criterion = watched(model)
    criterion(model(X), Y).backward()
    kfac.step()
    model.requires_grad_(True)
    criterion(model(X), Y).backward()
    plain = [p.grad.clone() for p in (model.a.weight, model.b.bias)]
    names = r"a\.weight, a\.bias \(frozen when KFAC was made; .*\); b\.bias \(frozen"
    with pytest.warns(UserWarning, match=f"K-FAC has no curvature for {names}"):
        kfac.step()
    assert torch.equal(model.a.weight.grad, plain[0])
    assert torch.equal(model.b.bias.grad, plain[1])


def test_freezing_for_a_while_is_left_alone() -> None:
    model, kfac, criterion = watched()
    for step in range(4):
        model.zero_grad()
        model.b.requires_grad_(step not in (1, 2))
        criterion(model(X), Y).backward()
        weight = kfac.layers[1].input_factor.weight
        kfac.step()
        assert (model.b.weight.grad is None) == (step in (1, 2))
        assert (kfac.layers[1].input_factor.weight == weight) == (step in (1, 2))


def test_parameters_may_be_replaced_and_change_their_type() -> None:
    model, kfac, criterion = watched()
    model.a.weight = nn.Parameter(model.a.weight.detach().clone())
    model.double()
    criterion(model(X.double()), Y).backward()
    assert_same([g.float() for g in update(model, kfac)], plain_update())


def test_lazy_modules_must_know_their_sizes() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"lazy parameters: 0\.weight, .*; run it on data first"):
        KFAC(model, lr=0.1)
    model(X)
    assert len(KFAC(model, lr=0.1).layers) == 2


# ---- copies and company --------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_of_a_watched_model_are_not_watched(copied) -> None:
    model, x = CASES["transformer"].build()
    criterion = nn.MSELoss()
    kfac = KFAC(model, lr=0.1, criterion=criterion)
    criterion(model(x), torch.zeros_like(x)).backward()
    kfac.step()
    twin, judge = copied(model), copied(criterion)
    torch.testing.assert_close(twin(x), model(x))
    judge(twin(x), torch.zeros_like(x)).backward()
    twin.linear1.weight.data.zero_()
    assert model.linear1.weight.abs().max() > 0.0
    assert not any(layer.update_factors(0.5) for layer in kfac.layers)
    again = KFAC(twin, lr=0.1, criterion=criterion)  # may be watched as any other
    criterion(twin(x), torch.zeros_like(x)).backward()
    again.step()
    assert all(layer.has_factors for layer in again.layers)


def test_a_watched_model_is_saved_whole_without_what_watches_it() -> None:
    model, kfac, criterion = watched(nn.Linear(4, 3))
    criterion(model(X), Y).backward()
    kfac.step()
    buffer = io.BytesIO()
    torch.save(model, buffer)
    kfac.close()
    alone = io.BytesIO()
    torch.save(model, alone)
    assert buffer.tell() < alone.tell() + 4096
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(X), model(X))


def test_two_may_watch_one_model_and_close_in_any_order() -> None:
    """As where a cell of a notebook runs again."""
    for order in ((0, 1), (1, 0)):
        model, x = CASES["transformer"].build()
        before = model(x)
        criterion = nn.MSELoss()
        options = ({"fisher": "ggn"}, {})
        both = [KFAC(model, lr=0.1, criterion=criterion, **o) for o in options]
        alone, _ = CASES["transformer"].build()
        reference = KFAC(alone, lr=0.1)
        criterion(model(x), torch.zeros_like(x)).backward()
        F.mse_loss(alone(x), torch.zeros_like(x)).backward()
        reference.step()
        both[1].step()
        for p, q in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)
        both[order[0]].close()
        criterion(model(x), torch.zeros_like(x)).backward()
        rest = both[order[1]]
        assert all(layer.update_factors(0.5) for layer in rest.layers)
        rest.close()
        assert "forward" not in vars(model.self_attn)
        assert torch.equal(model(x), before)


def test_attention_that_something_else_has_changed_is_not_covered() -> None:
    model, _ = CASES["transformer"].build()
    model.self_attn.forward = model.self_attn.forward
    with pytest.warns(
        UserWarning, match=r"self_attn\.in_proj_weight, self_attn\.in_proj_bias \(not as torch"
    ):
        KFAC(model, lr=0.1)
    model, _ = CASES["transformer"].build()
    nn.utils.parametrizations.weight_norm(model.self_attn, "in_proj_weight")
    with pytest.warns(UserWarning, match=r"self_attn\.out_proj\.weight, .* past its forward"):
        KFAC(model, lr=0.1)
