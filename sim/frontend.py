"""The analog front end: the noise cell array behind the converter pins of a unit's RTL.

The pins themselves are played in C++ (`thermokron.sim.player`). What is done here, once a block of
samples, is what `thermokron.model.sample_blocks` does for every engine: to draw the samples of the
array that the DACs hold. A run is announced with its job, so its samples can be drawn before;
the player takes them where the DACs then hold the job's codes, and asks where they do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thermokron.model import ArrayPhysics, Job, NoiseArray, UnitSpec, sample_blocks
from thermokron.model.kept import KeptArrays
from thermokron.sim.player import Event, Into, Player

__all__ = ["BusError", "FrontEnd", "FrontEndError", "stream_into"]

#: Numbers that are drawn before a run at most; what is beyond is drawn when it is due.
AT_ONCE = 2**20


class FrontEndError(AssertionError):
    """The unit drove its converter pins as it must not; the message says which, when and how."""


class BusError(RuntimeError):
    """An access was refused, or never answered; or a stream did not bring what was due."""


def stream_into(spec: UnitSpec, name: str, packet: bytes | None = None) -> Into:
    """The stream into a unit of that name, "couplings" or "biases", which is to have a packet.

    Raises
    ------
    ValueError
        If there is none, or the packet has not whole beats.
    """
    if spec.stream_bits is None:
        raise ValueError("the unit has no streams: stream_bits is None")
    names = [stream.name.lower() for stream in Into]
    if name not in names:
        raise ValueError(f"stream = {name!r} is unknown; legal: {', '.join(names)}")
    beat = spec.stream_bits // 8
    if packet is not None and (not packet or len(packet) % beat):
        raise ValueError(
            f"packet has {len(packet)} bytes; legal: whole beats of {beat} bytes, at least one"
        )
    return Into[name.upper()]


class FrontEnd:
    """An array behind a player.

    Parameters
    ----------
    player : Player
    spec : UnitSpec
    physics : ArrayPhysics
    seed : int
        Seed of the noise, as a unit's.
    traced : bool
        Whether the player is to have the cells' voltages, for a waveform.
    """

    def __init__(
        self, player: Player, spec: UnitSpec, physics: ArrayPhysics, *, seed: int, traced: bool
    ) -> None:
        self.player = player
        self._spec, self._physics, self._seed, self._traced = spec, physics, seed, traced
        self._settle, self._interval = 0, 0
        self._arrays = KeptArrays(spec, physics)
        self._rest: Iterator[tuple[Any, Any]] = iter(())  # of a discharge under way

    def expect(self, job: Job, stream: int) -> None:
        """Announce a run of this job, which the unit's registers hold; its first discharge."""
        self._settle, self._interval = job.settle_cycles, job.interval_cycles
        self._rest = iter(())
        self.player.expect(job.settle_cycles, job.interval_cycles, stream)
        vectors, n = job.biases.shape
        if vectors * job.samples * n > AT_ONCE:
            return
        array = self._arrays.programmed(job.couplings, job.temperature)
        codes = np.empty((vectors, job.samples, n), np.int32)
        voltages = np.empty(codes.shape) if self._traced else None
        filled = 0
        for some_voltages, some_codes in self._blocks(array, job.biases, stream):
            part = slice(filled, filled + some_codes.shape[1])
            count = codes[:, part].shape[1]
            codes[:, part] = some_codes[:, :count]
            if voltages is not None:
                voltages[:, part] = some_voltages[:, :count]
            filled += count
            if filled == job.samples:
                break
        self.player.presume(
            _plain(job.couplings), _plain(job.biases), job.temperature, codes, voltages
        )

    def answer(self, event: Event) -> None:
        """Give the player the samples that it asks for.

        Raises
        ------
        FrontEndError
            If the unit did what it must not.
        """
        if event is Event.FAILED:
            raise FrontEndError(self.player.error)
        player = self.player
        if event is Event.RELEASED:
            array = self._arrays.programmed(player.couplings, player.temperature)
            self._rest = self._blocks(array, player.biases[None], player.stream - 1)
        block = next(self._rest, None)
        if block is None:
            raise FrontEndError("a sample was asked for beyond those of the run that was announced")
        voltages, codes = block
        player.supply(
            np.ascontiguousarray(codes[0], np.int32),
            np.ascontiguousarray(voltages[0]) if self._traced else None,
        )

    def check_answered(self, what: str) -> None:
        """Raise `BusError` if an access of the last command was refused, or not answered.

        Or if `what` is a stream whose beat was offered for too long.
        """
        silent = self.player.event is Event.SILENT
        if (address := self.player.refused) is not None:
            how = "was never answered" if silent else "refused (SLVERR)"
            raise BusError(f"{what} {address:#x} {how}")
        if silent:
            raise BusError(f"{what} was not taken: a beat was offered for a thousand clock cycles")

    def take(self, count: int) -> bytes:
        """The one packet, of so many bytes, that has come from the stream of results.

        Raises
        ------
        BusError
            If anything else has come; it is gone then.
        """
        received, ends = self.player.take()
        if ends != [count] or len(received) != count:
            raise BusError(
                f"the stream of results brought {len(received)} bytes, with TLAST after {ends} of "
                f"them; expected one packet of {count}"
            )
        return received

    def _blocks(
        self, array: NoiseArray, biases: NDArray[Any], stream: int
    ) -> Iterator[tuple[Any, Any]]:
        return sample_blocks(
            array,
            biases,
            settle_cycles=self._settle,
            interval_cycles=self._interval,
            seed=self._seed,
            stream=stream,
        )


def _plain(codes: NDArray[Any]) -> NDArray[np.int32]:
    return np.ascontiguousarray(codes, np.int32)
