"""The passes that made a gradient, to be made again with other parameters."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

from thermokron.host.kfac.curvature.compiled import uncompiled
from thermokron.host.kfac.curvature.passes import Pass

__all__ = ["Replay", "Replays", "closure_of"]


class Replay:
    """One call of the model, and that of the loss module on what it returned.

    The loss may be called on the model's output, on an item of it, on a view of either, such as
    `output.squeeze(-1)`, or on it in another type, such as `output.float()`. Outputs are remembered
    by weak references: graphs live as long as their user wants.

    Parameters
    ----------
    model : torch.nn.Module
        What was called.
    args, kwargs : sequence, mapping
        With what.
    """

    def __init__(self, model: torch.nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        self.model, self.args, self.kwargs = model, args, dict(kwargs)
        self._returned: list[tuple[Any, weakref.ref[torch.Tensor]]] = []
        self._loss: Callable[[Any], torch.Tensor] | None = None

    def returned(self, output: Any) -> None:
        """Note what the model returned."""
        self._returned = [(key, weakref.ref(_base(t))) for key, t in _tensors(output)]

    def judged(self, criterion: torch.nn.Module, args: Any, kwargs: Mapping[str, Any]) -> bool:
        """Note a call of the loss module; whether it was on this output."""
        given = [self._place(value) for value in args]
        named = {key: self._place(value) for key, value in kwargs.items()}
        if not any(isinstance(each, _Place) for each in (*given, *named.values())):
            return False

        def loss(output: Any) -> torch.Tensor:
            answer: torch.Tensor = criterion(
                *(_filled(each, output) for each in given),
                **{key: _filled(each, output) for key, each in named.items()},
            )
            return answer

        self._loss = loss
        return True

    def __call__(self) -> torch.Tensor:
        """The loss, from the model on."""
        assert self._loss is not None
        return self._loss(self.model(*self.args, **self.kwargs))

    @property
    def complete(self) -> bool:
        """Whether the loss module was called on the output."""
        return self._loss is not None

    def _place(self, value: Any) -> Any:
        """A value that the loss was given; or, of an output, where it comes from."""
        if isinstance(value, torch.Tensor) and value.requires_grad:
            for key, ref in self._returned:
                output = ref()
                if output is not None and (output is _base(value) or _is_cast(value, output)):
                    return _Place(key, value, output)
        return value


class _Place:
    """A view of part of a model's output."""

    def __init__(self, key: Any, value: torch.Tensor, output: torch.Tensor) -> None:
        self.key, self.dtype = key, value.dtype
        value = output if value.dtype != output.dtype else value
        self.shape, self.strides = value.shape, value.stride()
        self.offset = value.storage_offset()

    def of(self, output: Any) -> torch.Tensor:
        found = _base(next(t for key, t in _tensors(output) if key == self.key))
        same = (found.shape, found.stride(), found.storage_offset())
        if same == (self.shape, self.strides, self.offset):
            return found.to(self.dtype)
        return torch.as_strided(found, self.shape, self.strides, self.offset)


class Replays:
    """Hooks that give every pass what it needs to be made again.

    Parameters
    ----------
    model, criterion : torch.nn.Module
        The network and the loss module.
    current : callable
        The pass that is running.
    """

    def __init__(
        self, model: torch.nn.Module, criterion: torch.nn.Module, current: Callable[[], Pass]
    ) -> None:
        self._current, self._open = current, weakref.WeakSet[Replay]()
        self.handles = [
            model.register_forward_pre_hook(uncompiled(self._begin), with_kwargs=True),
            model.register_forward_hook(uncompiled(self._finish)),
            criterion.register_forward_hook(uncompiled(self._judged), with_kwargs=True),
        ]

    def __deepcopy__(self, memo: Any) -> Replays:
        return _nobody()

    def __reduce__(self) -> Any:
        return _nobody, ()

    def _begin(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        if self.handles and torch.is_grad_enabled() and not forward_mode():
            self._current().replay = Replay(module, args, kwargs)

    def _finish(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        replay = self._current().replay if self.handles and not forward_mode() else None
        if replay is not None:
            replay.returned(output)
            self._open.add(replay)

    def _judged(self, module: torch.nn.Module, args: Any, kwargs: Any, loss: Any) -> None:
        if self.handles and torch.is_grad_enabled() and not forward_mode():
            for replay in list(self._open):
                if replay.judged(module, args, kwargs):
                    self._open.discard(replay)


class Replayed:
    """The loss of several passes, the mean of theirs by their weights.

    Attributes
    ----------
    weight : float
        All of these together.
    """

    def __init__(self, passes: Sequence[tuple[Replay, float]]) -> None:
        self._passes = passes
        self.weight = sum(weight for _, weight in passes)

    def __call__(self) -> torch.Tensor:
        losses = [replay() * (weight / self.weight) for replay, weight in self._passes]
        return torch.stack(losses).sum()


def closure_of(passes: Iterable[Pass]) -> Replayed:
    """The loss of passes that were backpropagated, each with its weight in what they make.

    Raises
    ------
    RuntimeError
        If there is none, or one cannot be made again.
    """
    whole = [here for here in passes if here.whole]
    weighted = [(here.replay, here.scale) for here in whole if here.replay is not None]
    if not weighted or len(weighted) < len(whole) or not all(r.complete for r, _ in weighted):
        raise RuntimeError(
            "lr = 'auto' looks at the batch again, but criterion was not called on what the model "
            "returned; legal: loss = criterion(model(inputs), targets), a part or a view of the "
            "model's output, or step(closure) with a function that returns the batch's loss"
        )
    return Replayed(weighted)


def forward_mode() -> bool:
    """Whether passes are run by forward-mode differentiation, which nobody records."""
    return forward_ad._current_level >= 0


def _base(tensor: torch.Tensor) -> torch.Tensor:
    """What a view is one of."""
    return tensor if tensor._base is None else tensor._base


def _is_cast(value: torch.Tensor, output: torch.Tensor) -> bool:
    """Whether one is the other in another type, as of `output.float()`."""
    node = value.grad_fn
    return (
        type(node).__name__ == "ToCopyBackward0"
        and node is not None
        and node.next_functions[0][0] is output.grad_fn
        and value.shape == output.shape
    )


def _tensors(output: Any) -> list[tuple[Any, torch.Tensor]]:
    """The tensors that a model returned, by their place."""
    if isinstance(output, torch.Tensor):
        return [(None, output)]
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(output, Mapping):
        items = output.items()
    elif isinstance(output, list | tuple):
        items = enumerate(output)
    return [(key, value) for key, value in items if isinstance(value, torch.Tensor)]


def _filled(value: Any, output: Any) -> Any:
    return value.of(output) if isinstance(value, _Place) else value


def _nobody() -> Replays:
    """What a copy of the model has of them."""
    replays = object.__new__(Replays)
    replays.handles = []
    return replays
