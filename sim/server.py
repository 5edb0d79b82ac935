"""The simulation's side of a co-simulated unit: a cocotb test that serves registers.

It runs inside the simulator's process, connects to the host's socket and does what it is asked
(`thermokron.sim.protocol`), one request after the other. While it waits for the next request the
simulator stands still, so host time costs no simulated time.
"""

from __future__ import annotations

import gc
import os
import shutil
import socket
import time
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.simtime import get_sim_time
from cocotb.triggers import First, Timer

from thermokron.model import ArrayPhysics, UnitSpec
from thermokron.sim import protocol
from thermokron.sim.axi_driver import AxiLiteDriver, BusError
from thermokron.sim.flaws import FrontEndFlaws
from thermokron.sim.frontend import FrontEnd
from thermokron.sim.pins import settled
from thermokron.sim.protocol import HOST_CHECK_CYCLES, Channel, Kind
from thermokron.sim.runner import bench_parameters
from thermokron.sim.simulators import clock_period

RESET_CYCLES = 2


class Server:
    """Executes requests on a unit.

    Parameters
    ----------
    dut : cocotb handle
    channel : Channel
        To the host.
    spec, physics, seed
        As for `FrontEnd`.
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
        alive_s: float,
    ) -> None:
        self._dut, self._channel, self._alive_s = dut, channel, alive_s
        self._period = clock_period(spec)
        self._frontend = FrontEnd(dut, spec, physics, seed=seed, period=self._period)
        self._bus = AxiLiteDriver(dut, self._period)

    async def reset(self) -> None:
        """Hold reset for a few cycles, and begin with a fresh front end."""
        self._dut.rst.value = 1
        self._dut.drdy.value = 0
        for _ in range(RESET_CYCLES):
            await self._dut.clk.rising_edge
        self._dut.rst.value = 0
        await self._dut.clk.rising_edge
        self._frontend.start()

    async def execute(self, kind: Kind, payload: bytes) -> bytes:
        """Do what one request asks, and return the answer's payload."""
        if kind is Kind.WRITE:
            await self._checked(self._bus.write(*protocol.unpack_write(payload)))
        elif kind is Kind.READ:
            words = await self._checked(self._bus.read(protocol.unpack_read(payload)))
            return protocol.pack_words(words)
        elif kind is Kind.WAIT:
            (cycles,) = protocol.unpack_numbers(payload, 1)
            begin = self._cycles()
            line = await self._checked(self._wait(cycles))
            return protocol.pack_numbers(line, self._cycles() - begin)
        elif kind is Kind.EXPECT:
            settle, interval, stream = protocol.unpack_numbers(payload, 3)
            self._frontend.expect(settle, interval, stream=stream)
        elif kind is Kind.FLAWS:
            self._frontend.flaws = FrontEndFlaws(**protocol.unpack_json(payload))
        elif kind is Kind.RESET:
            await self.reset()
        elif kind is Kind.INFO:
            info = {"cycles": self._cycles(), "seconds": get_sim_time() * 1e-12}
            return protocol.pack_json({**info, "simulator": cocotb.SIM_NAME.strip()})
        else:
            raise protocol.ProtocolError(f"{kind.name} is not a request")
        return b""

    def _cycles(self) -> int:
        return int(get_sim_time() // self._period)

    async def _wait(self, cycles: int) -> bool:
        irq, begin, said = self._dut.irq, self._cycles(), time.monotonic()
        await settled()
        while not int(irq.value) and cycles and self._frontend.error is None:
            span = min(cycles, HOST_CHECK_CYCLES)
            cycles -= span
            limit = Timer(span * self._period, "step")
            await First(irq.rising_edge, self._frontend.failed.wait(), limit)
            if self._channel.ended():
                raise EOFError("the host is gone")
            if time.monotonic() - said > self._alive_s:
                said = time.monotonic()
                self._channel.send(Kind.ALIVE, protocol.pack_numbers(self._cycles() - begin))
        return bool(int(irq.value))

    async def _checked(self, action: Any) -> Any:
        """Await an action; an error of the front end comes before its result.

        It leaves the unit waiting for an array that is gone, so the unit is reset.
        """
        try:
            return await action
        finally:
            if (error := self._frontend.error) is not None:
                await self.reset()
                raise error


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
    server = Server(
        dut, channel, spec, physics, seed=parameters["seed"], alive_s=parameters["alive_s"]
    )
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
