"""The `cosim` engine: the generated Verilog in a simulator."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thermokron.host.driver import RegisterUnit
from thermokron.model import ArrayPhysics, UnitSpec
from thermokron.model.checks import check_integer

if TYPE_CHECKING:
    from thermokron.sim.link import SimulatorLink

__all__ = ["CosimUnit"]


class CosimUnit(RegisterUnit):
    """The generated Verilog in a simulator, with the analog front end at its pins.

    Starts one simulator process, and stops it when it is closed. If the simulator dies, the
    next use raises `SimulatorDied` with the tail of its log, and `SimulatorSilent` if it does not
    answer. Parameters as for `open_unit`, `streams` as for `RegisterUnit`.

    Attributes
    ----------
    link : thermokron.sim.SimulatorLink
        The way to the simulation: its process, log, waveform, simulated time.
    """

    link: SimulatorLink

    def __init__(
        self,
        spec: UnitSpec,
        physics: ArrayPhysics | None = None,
        *,
        seed: int = 0,
        simulator: str = "verilator",
        waves: str | os.PathLike[str] | None = None,
        streams: bool = True,
        timeout_s: float | None = None,
    ) -> None:
        from thermokron.sim.link import TIMEOUT_S, SimulatorLink
        from thermokron.sim.simulators import WAVES, require

        require(simulator)
        seed = check_integer("seed", seed, 0, 2**63 - 1)
        path = None if waves is None else Path(waves)
        if path is not None and path.suffix.lstrip(".") not in WAVES:
            legal = ", ".join(f".{name}" for name in WAVES)
            raise ValueError(f"waves = {str(path)!r} has no known format; legal endings: {legal}")
        self.physics = ArrayPhysics.ideal() if physics is None else physics
        self.physics.check(spec, stacklevel=2)
        link = SimulatorLink(
            spec,
            self.physics,
            seed=seed,
            simulator=simulator,
            waves=path,
            timeout_s=TIMEOUT_S if timeout_s is None else timeout_s,
        )
        try:
            super().__init__(link, spec, seed, streams=streams)
        except BaseException:
            link.close()
            raise

    def info(self) -> dict[str, Any]:
        """What the simulation knows of itself: "simulator", and time in "cycles", "seconds".

        `UnitFault` while another thread runs a job.
        """
        with self._turn(wait=False):
            return self.link.info()
