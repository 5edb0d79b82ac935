"""What one training step of any torch module asks of a computer, found without weights.

The module and its example inputs are copied to torch's meta device, where tensors have shapes and
no data, and run forward and backward there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map

from thermokron.host.predict.quantity import ASSUMED
from thermokron.host.predict.workloads.blocks import cover
from thermokron.host.predict.workloads.recording import Recorder
from thermokron.host.predict.workloads.workload import Workload

__all__ = ["trace"]

META = torch.device("meta")
SHARINGS = ("expand", "reduce")


def trace(
    model: torch.nn.Module,
    *inputs: Any,
    loss: Callable[[Any], torch.Tensor] | None = None,
    name: str = "",
    batch: int | None = None,
    source: str = ASSUMED,
    sharing: str = "expand",
    dense_limit: int | None = 8192,
) -> Workload:
    """The workload of a step of a network in training mode.

    Parameters
    ----------
    model : torch.nn.Module
        On any device; it is left as it is.
    *inputs : any
        Of its forward; tensors are replaced by such without data.
    loss : callable, optional
        What is differentiated, of the model's output, such as `lambda y: cross_entropy(y, t)` with
        t made inside; the sum of all outputs if not given.
    name : str
        What to call it; the class's name if not given.
    batch : int, optional
        Examples a step; the length of the first input tensor if not given.
    source : str
        Where shapes and batch come from.
    sharing : "expand" or "reduce"
        How K-FAC combines positions, see `KroneckerLayer`.
    dense_limit : int or None
        Rows up to which a factor is dense, as of `KFAC`.

    Raises
    ------
    TypeError
        If the model is no module.
    ValueError
        If the model holds lazy parameters or nothing that K-FAC covers by Kronecker factors, the
        batch is empty, or something in the model depends on data.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model = {model!r} is not a torch.nn.Module")
    if sharing not in SHARINGS:
        raise ValueError(f"sharing = {sharing!r} is unknown; legal: {', '.join(SHARINGS)}")
    lazy = [key for key, p in model.named_parameters() if is_lazy(p)]
    if lazy:
        raise ValueError(f"model holds lazy parameters: {', '.join(lazy)}; run it on data first")
    examples = tree_map(_without_data, inputs)
    batch = _batch(examples) if batch is None else batch
    if batch < 1:
        raise ValueError(f"batch = {batch}; legal: 1 or more")
    copied = without_data(model).train()
    covered = cover(
        copied,
        lambda: _run(copied, examples, None, loss),
        sharing=sharing,
        dense_limit=dense_limit,
    )
    recorder = Recorder()
    _run(copied, examples, recorder, loss)
    trained = [p for p in copied.parameters() if p.requires_grad]
    return Workload(
        name=name or type(model).__name__,
        batch=batch,
        parameters=sum(p.numel() for p in trained),
        operations=tuple(recorder.operations),
        blocks=covered.blocks,
        source=source,
        element_bytes=trained[0].element_size(),
        uncovered=covered.uncovered,
        diagonal=covered.diagonal,
    ).merged()


def without_data(model: torch.nn.Module) -> torch.nn.Module:
    """A copy on the meta device, for which nothing is allocated."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        held = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
        for value in held:
            if isinstance(value, torch.Tensor) and id(value) not in memo:
                memo[id(value)] = _without_data(value)
    return copy.deepcopy(model, memo)


def _without_data(value: Any) -> Any:
    """A tensor or parameter as it is, but for its data; anything else itself."""
    if not isinstance(value, torch.Tensor):
        return value
    empty = torch.empty_like(value.detach(), device=META)
    if isinstance(value, torch.nn.Parameter):
        return torch.nn.Parameter(empty, requires_grad=value.requires_grad)
    return empty.requires_grad_(value.requires_grad)


def _batch(examples: Any) -> int:
    for each in tree_leaves(examples):
        if isinstance(each, torch.Tensor) and each.ndim:
            return len(each)
    raise ValueError("batch = None, and no input is a tensor with a length; legal: 1 or more")


def _run(
    model: torch.nn.Module,
    examples: Any,
    recorder: Recorder | None,
    loss: Callable[[Any], torch.Tensor] | None,
) -> None:
    """A forward pass; with somebody to record it, a loss and a backward pass, too."""
    with META, torch.enable_grad(), _naming(model) as naming:
        if recorder is None:
            model(*examples)
            return
        with recorder:
            output = model(*examples)
            naming.doing = "the loss"
            end = _total(output) if loss is None else loss(output)
            naming.doing, recorder.phase = "the backward pass", "backward"
            end.backward()  # type: ignore[no-untyped-call]


def _total(output: Any) -> torch.Tensor:
    parts = [
        each.sum()
        for each in tree_leaves(output)
        if isinstance(each, torch.Tensor) and each.requires_grad
    ]
    if not parts:
        raise ValueError("the output does not depend on any parameter that is trained")
    return torch.stack(parts).sum() if len(parts) > 1 else parts[0]


class _Naming:
    """Where a pass is."""

    def __init__(self) -> None:
        self.inside: list[str] = []
        self.doing = ""

    def enter(self, what: str) -> None:
        self.inside.append(what)

    def leave(self, *_: Any) -> None:
        self.inside.pop()


@contextmanager
def _naming(model: torch.nn.Module) -> Iterator[_Naming]:
    """What is raised meanwhile becomes a `ValueError` that says in which module it was."""
    naming, handles = _Naming(), []
    for name, module in model.named_modules():
        what = f"module {name or '(model)'!r} ({type(module).__name__})"
        handles.append(
            module.register_forward_pre_hook(lambda *_, what=what: naming.enter(what), prepend=True)
        )
        handles.append(module.register_forward_hook(naming.leave))
    try:
        yield naming
    except Exception as error:
        where = naming.doing or (naming.inside[-1] if naming.inside else "the model")
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise ValueError(
            f"{where} does not run on tensors without data: {type(error).__name__}: {reason}; "
            "legal: inputs that fit the network, and operations that depend on shapes alone"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
