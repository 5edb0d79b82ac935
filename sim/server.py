"""The simulation's side of a co-simulated unit: a cocotb test that serves registers.

It runs inside the simulator's process, connects to the host's socket and does what it is asked
(`thermokron.sim.protocol`), one request after the other. While it waits for the next request the
simulator stands still, so host time costs no simulated time.
"""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import socket
import time
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.simtime import get_sim_time
from cocotb.triggers import ReadWrite
from numpy.typing import NDArray

from thermokron.model import ArrayPhysics, Job, UnitSpec
from thermokron.sim import protocol
from thermokron.sim.flaws import FrontEndFlaws
from thermokron.sim.frontend import BusError, FrontEnd, FrontEndError
from thermokron.sim.player import ENDS, Into, Player
from thermokron.sim.protocol import HOST_CHECK_CYCLES, Channel, Kind
from thermokron.sim.runner import bench_parameters
from thermokron.sim.simulators import clock_period

#: Coupling matrices that are known again when a run is announced with them.
MATRICES = 64


class Server:
    """Executes requests on a unit.

    Parameters
    ----------
    dut : cocotb handle
    channel : Channel
        To the host.
    spec, physics, seed, traced
        As for `FrontEnd`.
    player : str or None
        The library that has the player's functions, or None for this program.
    alive_s : float
        Seconds after which a run that goes on says so.
    """

    def __init__(
        self,
        dut: Any,
        channel: Channel,
        spec: UnitSpec,
        physics: ArrayPhysics,
        *,
        seed: int,
        traced: bool,
        player: str | None,
        alive_s: float,
    ) -> None:
        self._wake, self._channel, self._alive_s = dut.wake, channel, alive_s
        self._period = clock_period(spec)
        library = ctypes.CDLL(player)
        library.player_unit.restype = ctypes.c_void_p
        self._unit, self._run = library.player_unit(), library.player_run
        self._run.argtypes, self._run.restype = [ctypes.c_void_p], None
        self._player = Player(library, self._unit, spec.cells)
        self._frontend = FrontEnd(self._player, spec, physics, seed=seed, traced=traced)
        # by what they hold, so that an array which has been programmed is known again
        self._couplings: OrderedDict[bytes, NDArray[Any]] = OrderedDict()

    async def reset(self) -> None:
        """Hold reset for a few cycles, and forget an error of the front end."""
        self._player.reset()
        await self._finish()

    async def execute(self, kind: Kind, payload: bytes) -> bytes:
        """Do what one request asks, and return the answer's payload."""
        player = self._player
        if kind is Kind.WRITE:
            player.write(*protocol.unpack_write(payload))
            await self._checked("write to")
        elif kind is Kind.READ:
            words = player.read(protocol.unpack_read(payload))
            await self._checked("read of")
            return protocol.pack_words(words)
        elif kind is Kind.WAIT:
            (cycles,) = protocol.unpack_numbers(payload, 1)
            begin = player.cycle
            await self._wait(cycles)
            return protocol.pack_numbers(player.interrupt, player.cycle - begin)
        elif kind is Kind.SEND:
            stream, packet = protocol.unpack_send(payload)
            player.send(Into(stream), packet)
        elif kind is Kind.DELIVER:
            (stream,) = protocol.unpack_numbers(payload, 1)
            player.deliver(Into(stream))
            await self._checked(f"stream {Into(stream).name.lower()}")
        elif kind is Kind.TAKE:
            (count,) = protocol.unpack_numbers(payload, 1)
            return self._frontend.take(count)
        elif kind is Kind.FLUSH:
            player.flush()
            await self._checked("the rest of a packet")
        elif kind is Kind.EXPECT:
            stream, job = protocol.unpack_job(payload)
            self._frontend.expect(self._known(job), stream)
        elif kind is Kind.FLAWS:
            player.misbehave(FrontEndFlaws(**protocol.unpack_json(payload)))
        elif kind is Kind.RESET:
            await self.reset()
        elif kind is Kind.INFO:
            now = get_sim_time()
            info = {"cycles": int(now // self._period), "seconds": now * 1e-12}
            return protocol.pack_json({**info, "simulator": cocotb.SIM_NAME.strip()})
        else:
            raise protocol.ProtocolError(f"{kind.name} is not a request")
        return b""

    def _known(self, job: Job) -> Job:
        """The job, with the couplings of an earlier one if they are the same."""
        content = job.couplings.tobytes()
        couplings = self._couplings.setdefault(content, job.couplings)
        self._couplings.move_to_end(content)
        if len(self._couplings) > MATRICES:
            self._couplings.popitem(last=False)
        return replace(job, couplings=couplings)

    async def _wait(self, cycles: int) -> None:
        begin, said = self._player.cycle, time.monotonic()
        while cycles and not self._player.interrupt:
            span = min(cycles, HOST_CHECK_CYCLES)
            cycles -= span
            self._player.wait(span)
            await self._checked()
            if self._channel.ended():
                raise EOFError("the host is gone")
            if time.monotonic() - said > self._alive_s:
                said = time.monotonic()
                passed = self._player.cycle - begin
                self._channel.send(Kind.ALIVE, protocol.pack_numbers(passed))

    async def _checked(self, what: str = "") -> None:
        """Let the clock run to the end of a command.

        An error of the front end leaves the unit waiting for an array that is gone, so the unit is
        reset.
        """
        try:
            await self._finish()
        except FrontEndError:
            await self.reset()
            raise
        self._frontend.check_answered(what)

    async def _finish(self) -> None:
        while (event := self._player.event) not in ENDS:
            if event:
                self._frontend.answer(event)
            self._run(self._unit)
            await self._wake.value_change


@cocotb.test()
async def serve(dut: Any) -> None:
    """Serve the host until it says CLOSE, or is gone."""
    parameters = bench_parameters()
    channel = Channel(socket.socket(fileno=parameters["socket"]))
    try:
        await _serve(dut, channel, parameters)
    except (EOFError, ConnectionError):
        if channel.ended():  # then nobody else removes what was made for this simulation
            os.chdir("/")
            shutil.rmtree(parameters["scratch"], ignore_errors=True)


async def _serve(dut: Any, channel: Channel, parameters: dict[str, Any]) -> None:
    spec = UnitSpec.from_json(parameters["spec"])
    physics = ArrayPhysics.from_json(parameters["physics"])
    if parameters["drive_clock"]:
        Clock(dut.clk, clock_period(spec), "step", impl="gpi").start()
    passed_on = {name: parameters[name] for name in ("seed", "traced", "player", "alive_s")}
    server = Server(dut, channel, spec, physics, **passed_on)
    await ReadWrite()  # what is put on pins before the first one is lost in Icarus
    await server.reset()
    gc.freeze()  # what was imported stays; looking through it again and again costs 2%
    channel.send(Kind.DONE)  # ready
    while True:
        kind, payload = channel.receive()
        if kind is Kind.CLOSE:
            channel.send(Kind.DONE)
            return  # the simulator ends, and completes its waveform
        try:
            answer = await server.execute(kind, payload)
        except EOFError:
            raise
        except Exception as error:
            if not isinstance(error, BusError):
                cocotb.log.exception("%s failed", kind.name)
            report = {"error": type(error).__name__, "message": str(error)}
            channel.send(Kind.FAILED, protocol.pack_json(report))
        else:
            channel.send(Kind.DONE, answer)
