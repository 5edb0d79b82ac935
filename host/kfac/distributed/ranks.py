"""What processes that train one model together tell each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Literal, NamedTuple

import torch
from torch import distributed
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel

from thermokron.host.kfac.distributed.messages import packed, padded, unpacked

__all__ = ["Exchange", "Ranks", "check_alike", "ranks_of"]

#: Bytes of a message that go with its length, which many are no longer than; and where they begin.
SMALL, HEAD = 4096, 8


class Ranks:
    """This process alone, which has nobody to ask.

    Attributes
    ----------
    rank, size : int
        Which process this is, from 0, and how many there are.
    """

    rank, size = 0, 1

    def exchange(self, what: str) -> Exchange:
        """Have every process say something, or that it failed; `what` it is, for messages."""
        return Exchange(self, what)

    def gather(self, what: str, value: Any) -> list[Any]:
        """What all processes say, by rank."""
        return [value]

    def add_up(self, what: str, tensor: torch.Tensor) -> None:
        """The sum over all processes, in place; the same bits on each."""


class Group(Ranks):
    """The processes of a group.

    Whatever goes wrong in an exchange is a `RuntimeError` that says which it was: a process that
    died closes its connections, and one that says nothing is waited for as long as the group's
    timeout allows.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup
        With this process in it.
    """

    def __init__(self, group: ProcessGroup) -> None:
        self.group = group
        self.rank, self.size = distributed.get_rank(group), distributed.get_world_size(group)

    def gather(self, what: str, value: Any) -> list[Any]:
        message = packed(value)
        begin = torch.zeros(HEAD + SMALL, dtype=torch.uint8)
        begin[:8] = torch.tensor([len(message)]).view(torch.uint8)
        begin[HEAD : HEAD + len(message)] = message[:SMALL]
        begins = self._all(what, begin)
        lengths = [int(each[:8].view(torch.int64)) for each in begins]
        if max(lengths) <= SMALL:
            found = [each[HEAD:] for each in begins]
        else:
            found = self._all(what, padded(message, max(lengths)))
        return [unpacked(each[:n]) for each, n in zip(found, lengths, strict=True)]

    def add_up(self, what: str, tensor: torch.Tensor) -> None:
        self._try(what, lambda: distributed.all_reduce(tensor, group=self.group))

    def _all(self, what: str, mine: torch.Tensor) -> list[torch.Tensor]:
        """Bytes of all processes, as many from each."""
        device = "cuda" if distributed.get_backend(self.group) == "nccl" else "cpu"
        mine = mine.to(device)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        self._try(what, lambda: distributed.all_gather(found, mine, group=self.group))
        return [each.cpu() for each in found]

    def _try(self, what: str, exchange: Callable[[], Any]) -> None:
        try:
            exchange()
        except RuntimeError as error:
            raise RuntimeError(
                f"K-FAC on rank {self.rank} of {self.size} could not exchange {what}: another "
                "process has ended, or has not got here within the process group's timeout "
                f"({error})"
            ) from error


class Exchange:
    """Work that every process does a part of, and what each has to say of it.

        with ranks.exchange("updates") as updates:
            updates.own = ...
        updates.all

    An exception inside is one for all: no process goes on with what another has not done. It is
    raised as it is where it happened. The others get its message, which begins with the rank: as a
    `FloatingPointError` if all that failed failed with one, else as a `RuntimeError`.

    Attributes
    ----------
    own : object
        What this process says: dictionaries, lists and tuples of tensors and plain values.
    all : list of object
        What all said, by rank; known afterwards.
    """

    def __init__(self, ranks: Ranks, what: str) -> None:
        self.ranks, self.what = ranks, what
        self.own: Any = None
        self.all: list[Any] = []

    def __enter__(self) -> Exchange:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.ranks.size == 1:
            self.all = [self.own]
            return
        if error is not None and not isinstance(error, Exception):
            return  # the process is about to end, which the others will see
        failed = None if error is None else Failure.of(error)
        said = self.ranks.gather(self.what, (failed, None if error is not None else self.own))
        failures = {rank: failure for rank, (failure, _) in enumerate(said) if failure is not None}
        if not failures:
            self.all = [own for _, own in said]
            return
        numeric = all(failure.numeric for failure in failures.values())
        if error is not None and (numeric or not isinstance(error, FloatingPointError)):
            if isinstance(error, FloatingPointError) and len(set(failures.values())) > 1:
                raise FloatingPointError(_in_words(failures)) from error
            return
        raise (FloatingPointError if numeric else RuntimeError)(_in_words(failures)) from error


class Failure(NamedTuple):
    """An exception as other processes hear of it."""

    numeric: bool
    text: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        numeric = isinstance(error, FloatingPointError)
        return cls(numeric, str(error) if numeric else f"{type(error).__name__}: {error}")


def _in_words(failures: dict[int, Failure]) -> str:
    """What went wrong first, by the lowest rank; what is not numeric before what is."""
    rank, failure = min(failures.items(), key=lambda each: (each[1].numeric, each[0]))
    return f"on rank {rank}, {failure.text}"


def ranks_of(model: torch.nn.Module, group: ProcessGroup | Literal[False] | None) -> Ranks:
    """Who trains `model` together: a group's processes, as `KFAC(process_group=...)` has it.

    Raises
    ------
    TypeError, ValueError
        If the group is none, or this process is not in it.
    """
    if group is False:
        return Ranks()
    if group is None:
        if isinstance(model, DistributedDataParallel):
            group = model.process_group
        elif distributed.is_available() and distributed.is_initialized():
            group = distributed.group.WORLD
        if group is None:
            return Ranks()
    if group == distributed.GroupMember.NON_GROUP_MEMBER:  # type: ignore[comparison-overlap]
        raise ValueError("process_group is one that this process is not in; legal: one that it is")
    if not isinstance(group, ProcessGroup):
        raise TypeError(
            f"process_group = {group!r} is no process group; legal: one from torch.distributed, "
            "None for that of DistributedDataParallel or the default one, False for none"
        )
    return Group(group) if distributed.get_world_size(group) > 1 else Ranks()


def check_alike(by_rank: Sequence[dict[str, Any]]) -> None:
    """`ValueError` if processes differ in what has to be the same on all."""
    for rank, other in enumerate(by_rank):
        for name, value in by_rank[0].items():
            if other[name] != value:
                raise ValueError(
                    f"{name} = {other[name]!r} on rank {rank} and {value!r} on rank 0; legal: the "
                    "same on all processes of a group, or process_group = False"
                )
