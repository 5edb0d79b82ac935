"""The simulation's side of a co-simulated unit: a cocotb test that serves registers.

It runs inside the simulator's process, connects to the host's socket and does what it is asked
(`thermokron.sim.protocol`), one request after the other. While it waits for the next request the
simulator stands still, so host time costs no simulated time.
"""

from __future__ import annotations

import gc
import socket
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
from thermokron.sim.protocol import Channel, Kind
from thermokron.sim.runner import bench_parameters
from thermokron.sim.simulators import clock_period

RESET_CYCLES = 2
#: While a run goes on, the host is looked for every so many clock cycles.
HOST_CHECK_CYCLES = 2000


class Server:
    """Executes requests on a unit.

    Parameters
    ----------
    dut : cocotb handle
    channel : Channel
        To the host.
    spec, physics, seed
        As for `FrontEnd`.
    """

    def __init__(
        self, dut: Any, channel: Channel, spec: UnitSpec, physics: ArrayPhysics, seed: int
    ) -> None:
        self._dut, self._channel = dut, channel
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
            return bytes([await self._checked(self._wait(cycles))])
        elif kind is Kind.EXPECT:
            settle, interval, stream = protocol.unpack_numbers(payload, 3)
            self._frontend.expect(settle, interval, stream=stream)
        elif kind is Kind.FLAWS:
            self._frontend.flaws = FrontEndFlaws(**protocol.unpack_json(payload))
        elif kind is Kind.RESET:
            await self.reset()
        elif kind is Kind.INFO:
            time = get_sim_time()
            info = {"cycles": time // self._period, "seconds": time * 1e-12}
            return protocol.pack_json({**info, "simulator": cocotb.SIM_NAME.strip()})
        else:
            raise protocol.ProtocolError(f"{kind.name} is not a request")
        return b""

    async def _wait(self, cycles: int) -> bool:
        irq = self._dut.irq
        await settled()
        while not int(irq.value) and cycles and self._frontend.error is None:
            span = min(cycles, HOST_CHECK_CYCLES)
            cycles -= span
            limit = Timer(span * self._period, "step")
            await First(irq.rising_edge, self._frontend.failed.wait(), limit)
            if self._channel.ended():
                raise EOFError("the host is gone")
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
    spec = UnitSpec.from_json(parameters["spec"])
    physics = ArrayPhysics.from_json(parameters["physics"])
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(parameters["socket"])
    channel = Channel(connection)
    if parameters["drive_clock"]:
        Clock(dut.clk, clock_period(spec), "step", impl="gpi").start()
    server = Server(dut, channel, spec, physics, parameters["seed"])
    await server.reset()
    gc.freeze()  # what was imported stays; looking through it again and again costs 2%
    channel.send(Kind.DONE)  # ready
    while True:
        try:
            kind, payload = channel.receive()
        except (EOFError, ConnectionError):
            return  # without a host there is nothing to serve
        if kind is Kind.CLOSE:
            channel.send(Kind.DONE)
            return  # the simulator ends, and completes its waveform
        try:
            answer = await server.execute(kind, payload)
        except EOFError:
            return
        except Exception as error:
            if not isinstance(error, BusError):
                cocotb.log.exception("%s failed", kind.name)
            report = {"error": type(error).__name__, "message": str(error)}
            channel.send(Kind.FAILED, protocol.pack_json(report))
        else:
            channel.send(Kind.DONE, answer)
