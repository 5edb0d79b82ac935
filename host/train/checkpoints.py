"""Checkpoints: a training run that is resumed ends as if it had not been interrupted."""

from __future__ import annotations

import errno
import hashlib
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import torch

from thermokron.host.kfac import StepMetrics
from thermokron.host.linalg import Activity
from thermokron.host.train.identity import differences
from thermokron.model import PHASES
from thermokron.model.files import write_whole

__all__ = ["Account", "Checkpoints", "Stateful", "check_checkpoint"]

FORMAT = "thermokron training 3"


@dataclass
class Account:
    """What a run came to so far.

    Attributes
    ----------
    losses : list of float
        Loss over all training examples: before training, then after each epoch.
    epoch_seconds : list of float
        Seconds that the steps of each epoch took.
    seconds, start_seconds : float
        Seconds of training, and those it took to open the unit before; of all sittings.

    The others are sums over steps, see `RunResult`.
    """

    losses: list[float] = field(default_factory=list)
    epoch_seconds: list[float] = field(default_factory=list)
    seconds: float = 0.0
    start_seconds: float = 0.0
    inversions: int = 0
    hardware_seconds: float = 0.0
    phase_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    port_seconds: float = 0.0
    span_seconds: float = 0.0
    unit_runs: int = 0
    activity: dict[str, int] = field(default_factory=lambda: asdict(Activity()))
    bytes_to_unit: int = 0
    bytes_from_unit: int = 0
    digital_flops: int = 0
    clipped_steps: int = 0

    @property
    def epochs(self) -> int:
        """Epochs completed."""
        return len(self.epoch_seconds)

    def enter(self, metrics: StepMetrics) -> None:
        """Add what a step cost."""
        self.inversions += metrics.inversions
        self.hardware_seconds += metrics.hardware_seconds
        for phase in self.phase_seconds:
            self.phase_seconds[phase] += getattr(metrics, f"{phase}_seconds")
        self.port_seconds += metrics.port_seconds
        self.span_seconds += metrics.span_seconds
        self.unit_runs += metrics.runs
        for count in fields(Activity):
            self.activity[count.name] += getattr(metrics.activity, count.name)
        self.bytes_to_unit += metrics.bytes_to_unit
        self.bytes_from_unit += metrics.bytes_from_unit
        self.digital_flops += metrics.digital_flops
        self.clipped_steps += metrics.clipped


class Stateful(Protocol):
    """What torch and K-FAC save and load."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


class Checkpoints:
    """Saves a run after every epoch, and takes it up again.

    Parameters
    ----------
    known : dict
        What the losses depend on, see `thermokron.host.train.identity`: a checkpoint of another
        run is refused.
    parts : mapping of str to Stateful
        Network, optimiser and so on.
    generator : torch.Generator
        Draws the order of the examples.
    global_generator : bool
        Whether the run draws from torch's own generator too, as dropout does.
    """

    def __init__(
        self,
        known: Mapping[str, Any],
        parts: Mapping[str, Stateful],
        generator: torch.Generator,
        *,
        global_generator: bool,
    ) -> None:
        self.identity = dict(known)
        self._last: tuple[int, int] | None = None
        self.parts = dict(parts)
        self.generator = generator
        self.global_generator = global_generator

    def save(self, path: Path, account: Account) -> None:
        """Write a file that `torch.load` reads with `weights_only=True`.

        It replaces an older one as a whole: whatever happens, one of both is there.

        Raises
        ------
        FileExistsError
            If another run has written the file meanwhile.
        OSError
            If it cannot be written.
        """
        if path.is_file() and _stamp(path) != self._last:
            reason = "was written by another run meanwhile; give each a checkpoint of its own"
            raise FileExistsError(errno.EEXIST, reason, str(path))
        state = {
            "format": FORMAT,
            "identity": self.identity,
            "account": asdict(account),
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "generator": self.generator.get_state(),
            "global_generator": torch.get_rng_state() if self.global_generator else None,
        }
        written = io.BytesIO()
        torch.save(state, written)
        write_whole(path, _sealed(written))
        self._last = _stamp(path)

    def load(self, path: Path) -> Account:
        """Put every part into its saved state; what the run had come to.

        Raises
        ------
        ValueError
            If the file is no checkpoint, or one of another run: the message says what differs.
        """
        state, stamp = _read(path), _stamp(path)
        _check_run(path, state["identity"], self.identity)
        lacking = [name for name in self.parts if name not in state["parts"]]
        if lacking:
            raise ValueError(f"{path} is no whole checkpoint: it lacks parts: {', '.join(lacking)}")
        try:
            account = Account(**state["account"])
        except TypeError as error:
            reason = str(error).replace("Account.__init__() ", "")
            raise ValueError(f"{path} is no whole checkpoint: account: {reason}") from error
        try:
            for name, part in self.parts.items():
                part.load_state_dict(state["parts"][name])
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())  # torch's has several lines
            raise ValueError(f"{path} does not fit the network: {name}: {reason}") from error
        try:
            self.generator.set_state(state["generator"])
            if self.global_generator:
                torch.set_rng_state(state["global_generator"])
        except (TypeError, RuntimeError) as error:
            raise ValueError(f"{path} is no whole checkpoint: generators: {error}") from error
        self._last = stamp
        return account


def _stamp(path: Path) -> tuple[int, int]:
    """Tells whether a file is still the one that was read or written."""
    about = path.stat()
    return about.st_ino, about.st_mtime_ns


#: Ends a checkpoint, as the comment of the ZIP archive that it is: SHA-256 of all before.
_SEAL = b"thermokron sha256 "
_SEAL_BYTES = len(_SEAL) + hashlib.sha256().digest_size


def _sealed(archive: io.BytesIO) -> bytes:
    """A ZIP archive with its checksum as its comment, whose length stands in the last two bytes."""
    data = archive.getbuffer()
    data[-2:] = _SEAL_BYTES.to_bytes(2, "little")
    return b"".join((data, _SEAL, hashlib.sha256(data).digest()))


def _unsealed(path: Path) -> bytes:
    """What `_sealed` has made; `ValueError` if it is not as it was."""
    data = path.read_bytes()
    body, seal = memoryview(data)[:-_SEAL_BYTES], data[-_SEAL_BYTES:]
    if not seal.startswith(_SEAL):
        raise ValueError(
            f"{path} is no checkpoint of a training run: it does not end with a checksum, as of a "
            "file that was cut short, or that another version of thermokron wrote"
        )
    if seal[len(_SEAL) :] != hashlib.sha256(body).digest():
        raise ValueError(f"{path} is damaged: its checksum is wrong; resume from another copy")
    return data


def check_checkpoint(path: Path, known: Mapping[str, Any]) -> None:
    """`ValueError` if a file is no checkpoint, or of a run of another `identity`."""
    theirs = _read(path)["identity"]
    _check_run(path, {name: value for name, value in theirs.items() if name in known}, known)


def _check_run(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    if differing := differences(theirs, ours):
        raise ValueError(f"{path} is a checkpoint of another run: {'; '.join(differing)}")


def _read(path: Path) -> dict[str, Any]:
    problem = f"{path} is no checkpoint of a training run"
    data = io.BytesIO(_unsealed(path))
    try:
        state = torch.load(data, weights_only=True)
    except Exception as error:  # bytes that are no pickle fail in any way
        raise ValueError(f"{problem}: it cannot be read, or not to the end") from error
    if not isinstance(state, dict) or "format" not in state:
        raise ValueError(problem)
    if state["format"] != FORMAT:
        raise ValueError(f"{path} has the format {state['format']!r}; legal: {FORMAT!r}")
    for name in ("identity", "account", "parts"):
        if not isinstance(state.get(name), dict):
            raise ValueError(f"{problem}: it has no {name}")
    for name in ("generator", "global_generator"):
        if name not in state:
            raise ValueError(f"{problem}: it has no {name}")
    return state
