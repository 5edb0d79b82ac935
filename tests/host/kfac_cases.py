"""One table of networks for all tests of K-FAC, and curvature by brute force to compare with."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from thermokron.host.kfac import KFAC, Thermodynamic
from thermokron.host.kfac.curvature.factors import shares
from thermokron.host.kfac.solve.cost import Cost
from thermokron.host.kfac.solve.methods import prepare
from thermokron.model import NumericUnit, UnitSpec

__all__ = [
    "CASES",
    "Case",
    "Flow",
    "backward",
    "backward_squares",
    "batch",
    "block_of",
    "brute_force",
    "cases",
    "damped_factors",
    "dense_block",
    "linear",
    "losses_of",
    "quiet",
    "stepped",
]

DTYPE = torch.float64
torch.set_num_threads(1)  # threads for matrices this small cost more than they give


class Flow(nn.Module):
    """A sequence of modules and plain functions."""

    def __init__(self, **steps: nn.Module | Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.steps = steps
        for name, step in steps.items():
            if isinstance(step, nn.Module):
                self.add_module(name, step)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for step in self.steps.values():
            x = step(x)
        return x


class SelfAttention(nn.Module):
    """Attention that takes its three inputs from one, or from three, tensors."""

    def __init__(self, keys: int | None = None, **options: object) -> None:
        super().__init__()
        if keys is not None:
            options |= {"kdim": keys, "vdim": keys}
        self.attention = nn.MultiheadAttention(4, 2, **options)
        self.keys = keys

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x if self.keys is None else x[..., : self.keys]
        return self.attention(x, y, y)[0]


def mean_positions(x: torch.Tensor) -> torch.Tensor:
    """(N, S, C) to (N, C)."""
    return x.mean(dim=1)


def mean_pixels(x: torch.Tensor) -> torch.Tensor:
    """(N, C, ...) to (N, C)."""
    return x.flatten(2).mean(dim=2)


def nothing(x: torch.Tensor) -> torch.Tensor:
    """The same."""
    return x


@dataclass(frozen=True)
class Case:
    """A network and how to feed it.

    Attributes
    ----------
    make : callable
        Makes the network.
    shape : tuple of int
        Of its input, without the examples; of an index where `vocabulary` is given.
    exact : str
        For which weight sharing the Kronecker blocks of the squared error's curvature are exact
        for any number of examples: "expand", "reduce", "both" or "none". For one example and
        "single", they are exact with any nonlinearity.
    vocabulary : int
        Indices as input.
    curvlinops : bool
        Whether curvlinops supports all of it in the same way.
    channels_last : bool
        Whether the input is laid out so.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    exact: str = "none"
    vocabulary: int = 0
    curvlinops: bool = False
    channels_last: bool = False

    def build(self, examples: int = 3, seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
        """The network in float64, and inputs."""
        torch.manual_seed(seed)
        model = self.make().to(DTYPE)
        for p in model.parameters():  # norms begin at 1 and 0, biases of attention at 0
            p.data += 0.1 * torch.randn_like(p)
        if self.vocabulary:
            return model, torch.randint(self.vocabulary, (examples, *self.shape))
        x = torch.randn(examples, *self.shape, dtype=DTYPE)
        return model, x.to(memory_format=torch.channels_last) if self.channels_last else x


def _conv(kind: type[nn.Module], *args: object, **options: object) -> Callable[[], nn.Module]:
    """A convolution, its mean over positions, and a linear layer: linear all through."""
    return lambda: Flow(conv=kind(*args, **options), pool=mean_pixels, head=nn.Linear(args[1], 2))


def _norm(norm: Callable[[], nn.Module], pool: Callable[..., torch.Tensor]) -> Callable[[], Flow]:
    return lambda: Flow(norm=norm(), act=torch.tanh, pool=pool, head=nn.Linear(4, 2))


C1, C2, C3 = nn.Conv1d, nn.Conv2d, nn.Conv3d

CASES: dict[str, Case] = {
    "linear": Case(lambda: Flow(a=nn.Linear(5, 3)), (5,), "both", curvlinops=True),
    "linear without bias": Case(lambda: Flow(a=nn.Linear(5, 3, bias=False)), (5,), "both"),
    "deep linear": Case(
        lambda: Flow(a=nn.Linear(5, 4), b=nn.Linear(4, 3, bias=False), c=nn.Linear(3, 2)),
        (5,),
        "both",
        curvlinops=True,
    ),
    "mlp": Case(
        lambda: Flow(a=nn.Linear(5, 4), act=torch.tanh, b=nn.Linear(4, 3)),
        (5,),
        "single",
        curvlinops=True,
    ),
    "positions, a loss term each": Case(
        lambda: Flow(a=nn.Linear(4, 3), b=nn.Linear(3, 2)), (2, 3, 4), "expand", curvlinops=True
    ),
    "positions, taken together": Case(
        lambda: Flow(a=nn.Linear(4, 3), pool=mean_positions, b=nn.Linear(3, 2)),
        (5, 4),
        "reduce",
        curvlinops=True,
    ),
    "conv1d": Case(_conv(C1, 2, 3, 3), (2, 7), "reduce"),
    "conv1d causal padding": Case(
        lambda: Flow(pad=nn.ConstantPad1d((2, 0), 0.0), conv=C1(2, 3, 3), pool=mean_pixels),
        (2, 6),
        "reduce",
    ),
    "conv2d": Case(_conv(C2, 2, 3, (3, 2)), (2, 5, 4), "reduce", curvlinops=True),
    "conv2d strided": Case(
        _conv(C2, 2, 3, 3, stride=(2, 1), padding=(1, 2)), (2, 5, 4), "reduce", curvlinops=True
    ),
    "conv2d dilated": Case(
        _conv(C2, 2, 3, 2, dilation=(2, 3), padding=1), (2, 5, 6), "reduce", curvlinops=True
    ),
    "conv2d groups": Case(_conv(C2, 4, 6, 3, groups=2, padding=1), (4, 4, 4), "reduce"),
    "conv2d depthwise": Case(_conv(C2, 4, 4, 3, groups=4, bias=False), (4, 4, 4), "reduce"),
    "conv2d same": Case(_conv(C2, 2, 3, 3, padding="same"), (2, 4, 5), "reduce", curvlinops=True),
    "conv2d same, unequal": Case(
        _conv(C2, 2, 3, (2, 4), padding="same", dilation=(1, 1)), (2, 4, 5), "reduce"
    ),
    "conv2d valid": Case(_conv(C2, 2, 3, 3, padding="valid"), (2, 4, 5), "reduce"),
    "conv2d reflect": Case(
        _conv(C2, 2, 3, 3, padding=(1, 2), padding_mode="reflect"), (2, 4, 5), "reduce"
    ),
    "conv2d replicate": Case(
        _conv(C2, 2, 3, 3, padding="same", padding_mode="replicate"), (2, 4, 5), "reduce"
    ),
    "conv2d circular": Case(
        _conv(C2, 2, 3, (3, 2), padding=(2, 1), padding_mode="circular"), (2, 4, 5), "reduce"
    ),
    "conv2d channels_last": Case(
        lambda: _conv(C2, 3, 2, 3, padding=1)().to(memory_format=torch.channels_last),
        (3, 4, 5),
        "reduce",
        channels_last=True,
    ),
    "conv2d 1x1 output": Case(
        lambda: Flow(conv=C2(2, 3, 3), act=torch.tanh, flat=nn.Flatten(), head=nn.Linear(3, 2)),
        (2, 3, 3),
        "single",
        curvlinops=True,
    ),
    "conv3d": Case(
        _conv(C3, 2, 3, (2, 1, 2), stride=(1, 1, 2), padding=(1, 0, 0)), (2, 2, 3, 4), "reduce"
    ),
    "conv without a head": Case(
        lambda: Flow(conv=C2(1, 2, 2), flat=nn.Flatten()), (1, 3, 3), "none"
    ),
    "embedding": Case(
        lambda: Flow(embed=nn.Embedding(6, 4), head=nn.Linear(4, 2)), (), "both", vocabulary=6
    ),
    "embedding of sequences": Case(
        lambda: Flow(
            embed=nn.Embedding(6, 4, padding_idx=0),
            act=torch.tanh,
            pool=mean_positions,
            head=nn.Linear(4, 2),
        ),
        (5,),
        vocabulary=6,
    ),
    "layer norm": Case(_norm(lambda: nn.LayerNorm(4, eps=0.3), nothing), (4,), "norm"),
    "layer norm over positions": Case(
        _norm(lambda: nn.LayerNorm(4), mean_positions), (3, 4), "norm"
    ),
    "layer norm of two dimensions": Case(
        lambda: Flow(
            norm=nn.LayerNorm((2, 3)), act=torch.tanh, flat=nn.Flatten(), head=nn.Linear(6, 2)
        ),
        (2, 3),
        "norm",
    ),
    "layer norm without bias": Case(
        _norm(lambda: nn.LayerNorm(4, bias=False), nothing), (4,), "norm"
    ),
    "rms norm": Case(_norm(lambda: nn.RMSNorm(4, eps=0.3), mean_positions), (3, 4), "norm"),
    "group norm": Case(_norm(lambda: nn.GroupNorm(2, 4, eps=0.3), mean_pixels), (4, 3, 2), "norm"),
    "batch norm 1d": Case(_norm(lambda: nn.BatchNorm1d(4, eps=0.3), nothing), (4,), "norm"),
    "batch norm 2d": Case(_norm(lambda: nn.BatchNorm2d(4), mean_pixels), (4, 3, 2), "norm"),
    "attention": Case(lambda: SelfAttention(batch_first=True), (3, 4)),
    "attention, sequence first": Case(lambda: SelfAttention(), (3, 4)),
    "attention, other keys": Case(lambda: SelfAttention(3, batch_first=True, bias=False), (3, 4)),
    "attention, extra keys": Case(
        lambda: SelfAttention(batch_first=True, add_bias_kv=True, add_zero_attn=True), (3, 4)
    ),
    "transformer": Case(
        lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), (3, 4)
    ),
    "transformer, sequence first": Case(
        lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, norm_first=True), (3, 4)
    ),
}


def cases(*exact: str, curvlinops: bool = False) -> list[str]:
    """Names of the cases that are exact in one of these ways, or that curvlinops supports."""
    return [
        name
        for name, case in CASES.items()
        if (not exact or case.exact in exact) and (case.curvlinops or not curvlinops)
    ]


# ---- brute force -------------------------------------------------------------------------------


def brute_force(
    model: nn.Module, criterion: nn.Module, x: torch.Tensor, y: torch.Tensor, layers
) -> list[torch.Tensor]:
    """Jᵀ (∂²L/∂f²) J for every layer, rows and columns in the order of its stacked parameters."""
    outputs = model(x)
    hessian = torch.autograd.functional.hessian(lambda f: criterion(f, y), outputs.detach())
    hessian = hessian.reshape(outputs.numel(), outputs.numel())
    jacobians = [[] for _ in layers]
    for value in outputs.reshape(-1):
        for layer, rows in zip(layers, jacobians, strict=True):
            gradients = torch.autograd.grad(
                value, layer.parameters, retain_graph=True, materialize_grads=True
            )
            rows.append(layer.stacked(gradients).reshape(-1))
    return [(j := torch.stack(rows)).T @ hessian @ j for rows in jacobians]


def dense_block(layer) -> torch.Tensor:
    """The layer's curvature as a matrix, rows and columns as of `brute_force`: G V A on vec(V)."""
    if not hasattr(layer, "input_factor"):
        return torch.diag(layer.curvature.value.reshape(-1))
    a, g = layer.input_factor.value, layer.output_factor.value
    a = torch.diag(a) if layer.input_factor.diagonal else a
    pairs = zip(g, a, strict=True) if layer.blocks else [(g, a)]
    return torch.block_diag(*(torch.kron(left, right) for left, right in pairs))


def block_of(layer, matrix: torch.Tensor) -> torch.Tensor:
    """`matrix` with zeros where the layer's curvature has them by construction.

    Groups of a convolution are blocks of their own, norms are diagonal.
    """
    blocks = getattr(layer, "blocks", None) or 1
    if not hasattr(layer, "input_factor"):
        return torch.diag(matrix.diagonal())
    size = len(matrix) // blocks
    mask = torch.kron(torch.eye(blocks), torch.ones(size, size)).to(matrix)
    return matrix * mask


def damped_factors(layer, damping: float):
    """(A + π√λ I, π√λ) and (G + √λ/π I, √λ/π), as a unit gets them."""
    unit = NumericUnit(UnitSpec(cells=256))
    block = prepare(
        [layer], damping, method="solve", inverse=Thermodynamic(unit, guard="norm"), cost=Cost()
    )[layer]
    factors = layer.input_factor, layer.output_factor
    lows = shares(*(factor.mean_diagonal() for factor in factors), damping)
    found = []
    for made, low in zip((block.a, block.g), lows, strict=True):
        if not isinstance(made, torch.Tensor):
            parts = [torch.tensor(m.matrix * m.scale[:, None] * m.scale) for m in made]
            made = torch.stack(parts) if layer.blocks else parts[0]
        found.append((made, low))
    return tuple(found)


def stepped(name: str = "mlp", *, seed: int = 0, **options):
    """Model, KFAC and plain gradients by layer after one step on a case."""
    model, x = CASES[name].build(8, seed)
    unit = options.pop("unit", None)
    kfac = KFAC(model, unit, **({"lr": 0.1, "damping": 0.05, "kl_clip": None} | options))
    y = torch.ones_like(model(x)).detach()
    nn.functional.mse_loss(model(x), y).backward()
    plain = {layer: layer.gradient().clone() for layer in kfac.layers}
    kfac.step()
    kfac.close()
    return model, kfac, plain


def losses_of(model, kfac, steps: int, *, lr: float = 0.1, criterion=None):
    """Losses of full-batch steps on a fixed regression."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(32, 5, generator=generator, dtype=DTYPE)
    y = torch.sin(x @ torch.randn(5, 3, generator=generator, dtype=DTYPE))
    criterion = criterion or nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        if kfac is not None:
            kfac.step()
        optimizer.step()
        losses.append(loss.item())
    return losses


def linear(inputs: int, outputs: int, *, bias: bool = True, seed: int = 0) -> nn.Linear:
    """A layer in float64."""
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs, bias=bias, dtype=torch.float64)


def backward(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """Gradients of the mean squared error."""
    model.zero_grad()
    nn.functional.mse_loss(model(x), y).backward()


def backward_squares(model: nn.Module, x: torch.Tensor) -> None:
    """Gradients of the mean square of the outputs."""
    model.zero_grad()
    model(x).square().mean().backward()


def quiet(model: nn.Module, **options: object) -> KFAC:
    """K-FAC without the warning that names what it leaves out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return KFAC(model, **({"lr": 0.1, "damping": 0.01} | options))


def batch(rows: int = 20, inputs: int = 5, outputs: int = 3, seed: int = 1):
    """Random inputs and targets."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return draw(rows, inputs), draw(rows, outputs)
