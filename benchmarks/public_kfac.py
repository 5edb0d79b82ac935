"""Public K-FAC implementations, each as a function that takes one step of the same work.

Factors of every layer renewed and inverted at every step, from the empirical Fisher or one sample
of the model's Fisher, and the gradient preconditioned; damping 0.03, moving average 0.95. Where an
implementation updates the parameters as well, its learning rate is 0.001.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any

import torch

__all__ = ["ALONE", "PUBLIC", "Network", "Step", "apart", "load"]

Step = Callable[[], object]
#: Makes a network with the same weights each time.
Network = Callable[[], torch.nn.Sequential]

DAMPING, DECAY = 0.03, 0.95


def asdl(network: Network, x: torch.Tensor, y: torch.Tensor) -> dict[str, Step]:
    """ASDL's curvature with forward and backward pass, its inversion by Cholesky, its apply."""
    from asdl import FISHER_EMP, KfacGradientMaker, PreconditioningConfig

    # it marks ranges for a GPU profiler, which builds of torch without CUDA refuse
    torch.cuda.nvtx.range = lambda *_: nullcontext()
    model, loss = network(), torch.nn.CrossEntropyLoss()
    config = PreconditioningConfig(damping=DAMPING, ema_decay=1 - DECAY, data_size=len(x))
    maker = KfacGradientMaker(model, config, fisher_type=FISHER_EMP)

    def curvature() -> None:
        model.zero_grad()
        output = maker.setup_model_call(model, x)
        maker.setup_loss_call(loss, output, y)
        maker.update_curvature()

    return {
        "curvature": curvature,
        "invert": maker.update_preconditioner,
        "precondition": maker.precondition,
    }


def approxngd(network: Network, x: torch.Tensor, y: torch.Tensor) -> dict[str, Step]:
    """approxngd: inverses by Cholesky, an optimiser of its own without momentum."""
    from approxngd import KFAC

    model, loss = network(), torch.nn.CrossEntropyLoss()
    kfac = KFAC(model, 1e-3, DAMPING, cov_ema_decay=DECAY, momentum=0.0)

    def step() -> None:
        model.zero_grad()
        with kfac.track_forward():
            value = loss(model(x), y)
        with kfac.track_backward():
            value.backward()
        kfac.step(value)

    return {"step": step}


def curvlinops(network: Network, x: torch.Tensor, y: torch.Tensor) -> dict[str, Step]:
    """curvlinops 3: `KFACInverseLinearOperator` of the batch, by Cholesky; no moving average."""
    from curvlinops import KFACInverseLinearOperator, KFACLinearOperator

    model, loss = network(), torch.nn.CrossEntropyLoss()
    parameters = list(model.parameters())

    def step() -> object:
        model.zero_grad()
        loss(model(x), y).backward()
        kfac = KFACLinearOperator(
            model,
            loss,
            parameters,
            [(x, y)],
            fisher_type="empirical",
            check_deterministic=False,
            separate_weight_and_bias=False,
        )
        inverse = KFACInverseLinearOperator(kfac, damping=DAMPING, use_heuristic_damping=True)
        return inverse @ [p.grad for p in parameters]

    return {"step": step}


def nngeometry(network: Network, x: torch.Tensor, y: torch.Tensor) -> dict[str, Step]:
    """NNGeometry: `PMatKFAC` from one sample per datum, and its inverse; no moving average."""
    from nngeometry.metrics import FIM_MonteCarlo
    from nngeometry.object import PMatKFAC
    from nngeometry.object.vector import PVector
    from torch.utils.data import DataLoader, TensorDataset

    model, loss = network(), torch.nn.CrossEntropyLoss()
    loader = DataLoader(TensorDataset(x, y), batch_size=len(x))

    def step() -> object:
        model.zero_grad()
        loss(model(x), y).backward()
        gradient = PVector.from_model_grad(model)
        fisher = FIM_MonteCarlo(
            model=model,
            loader=loader,
            representation=PMatKFAC,
            variant="classif_logits",
            trials=1,
            device="cpu",
        )
        return fisher.inverse(DAMPING).mv(gradient)

    return {"step": step}


def singd(network: Network, x: torch.Tensor, y: torch.Tensor) -> dict[str, Step]:
    """SINGD with dense structures, "kfac_like": products in place of inversions."""
    from singd.optim.optimizer import SINGD

    model, loss = network(), torch.nn.CrossEntropyLoss()
    optimizer = SINGD(
        model, lr=1e-3, momentum=0.0, damping=DAMPING, alpha1=0.0, T=1, kfac_like=True
    )

    def step() -> None:
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()

    return {"step": step}


def kfac_pytorch(
    compute: str, network: Network, x: torch.Tensor, y: torch.Tensor
) -> dict[str, Step]:
    """kfac-pytorch in one process, by LU or eigendecompositions; its KL clip stays on."""
    from kfac.preconditioner import KFACPreconditioner

    model, loss = network(), torch.nn.CrossEntropyLoss()
    kfac = KFACPreconditioner(
        model,
        factor_update_steps=1,
        inv_update_steps=1,
        damping=DAMPING,
        factor_decay=DECAY,
        lr=0.05,
        compute_method=compute,
    )

    def step() -> None:
        model.zero_grad()
        loss(model(x), y).backward()
        kfac.step()

    return {"step": step}


def kfac_jax(network: Network, x: torch.Tensor, y: torch.Tensor) -> dict[str, Step]:
    """kfac-jax, compiled by XLA as a whole, forward and backward pass and the update included."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    import kfac_jax as library

    linear = [m for m in network() if isinstance(m, torch.nn.Linear)]
    layers = [
        {"w": jax.numpy.array(m.weight.detach().T), "b": jax.numpy.array(m.bias.detach())}
        for m in linear
    ]
    batch = (jax.numpy.array(x), jax.numpy.array(y))

    def loss(layers: Any, batch: Any) -> Any:
        inputs, targets = batch
        for i, layer in enumerate(layers):
            inputs = inputs @ layer["w"] + layer["b"]
            inputs = jax.numpy.tanh(inputs) if i < len(layers) - 1 else inputs
        library.register_softmax_cross_entropy_loss(inputs, targets)
        picked = jax.nn.log_softmax(inputs)[jax.numpy.arange(len(targets)), targets]
        return -picked.mean()

    optimizer = library.Optimizer(
        value_and_grad_func=jax.value_and_grad(loss),
        l2_reg=0.0,
        use_adaptive_learning_rate=False,
        use_adaptive_momentum=False,
        use_adaptive_damping=False,
        num_burnin_steps=0,
        inverse_update_period=1,
        curvature_update_period=1,
        curvature_ema=DECAY,
        estimation_mode="fisher_empirical",
        multi_device=False,
    )
    key = jax.random.PRNGKey(0)
    held = {"layers": layers, "state": optimizer.init(layers, key, batch)}

    def step() -> None:
        held["layers"], held["state"], _ = optimizer.step(
            held["layers"],
            held["state"],
            key,
            batch=batch,
            learning_rate=1e-3,
            momentum=0.0,
            damping=DAMPING,
        )
        jax.block_until_ready((held["layers"], held["state"]))

    return {"step": step}


PUBLIC: dict[str, Callable[[Network, torch.Tensor, torch.Tensor], dict[str, Step]]] = {
    "ASDL": asdl,
    "approxngd": approxngd,
    "curvlinops": curvlinops,
    "NNGeometry": nngeometry,
    "SINGD": singd,
    "kfac-pytorch, inverse": lambda *args: kfac_pytorch("inverse", *args),
    "kfac-pytorch, eigen": lambda *args: kfac_pytorch("eigen", *args),
    "kfac-jax": kfac_jax,
}


#: Runs apart from the others, as its threads would take time from them.
ALONE = "kfac-jax"


def load(name: str, network: Network, x: torch.Tensor, y: torch.Tensor) -> dict[str, Step] | None:
    """An implementation's step, in parts where it has them; None where it is not installed."""
    try:
        with warnings.catch_warnings():  # of what is not installed beside them
            warnings.simplefilter("ignore")
            return PUBLIC[name](network, x, y)
    except ImportError:
        print(f"{name} is not installed")
        return None


def apart(
    name: str, network: Network, x: torch.Tensor, y: torch.Tensor, seconds: float
) -> float | None:
    """Milliseconds of a step in a process of its own, on one core, the least of all rounds.

    The processor time of all of its threads counts.
    """
    if find_spec(name.replace("-", "_")) is None:
        print(f"{name} is not installed")
        return None
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # its threads, which jax calls, would spin in between
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_timed, (name, network, x, y, seconds))


def _timed(name: str, network: Network, x: torch.Tensor, y: torch.Tensor, seconds: float) -> float:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    (step,) = PUBLIC[name](network, x, y).values()
    step()  # compiles
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < 4 or time.perf_counter() - started < seconds:
        begin = time.process_time()
        step()
        times.append(1e3 * (time.process_time() - begin))
    return min(times)
