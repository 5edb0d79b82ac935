"""`open_unit`: one way to every engine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thermokron.host.driver import RegisterUnit
from thermokron.model import ArrayPhysics, BaseUnit, NumericUnit, UnitSpec
from thermokron.model.checks import check_integer

if TYPE_CHECKING:
    from thermokron.sim.link import SimulatorLink

__all__ = ["ENGINES", "CosimUnit", "open_unit"]

#: The engines that can be opened.
ENGINES = ("numeric", "cosim")


def open_unit(
    engine: str,
    spec: UnitSpec,
    physics: ArrayPhysics | None = None,
    *,
    seed: int = 0,
    simulator: str = "verilator",
    waves: str | os.PathLike[str] | None = None,
    timeout_s: float | None = None,
) -> BaseUnit:
    """Open a unit; close it, or use it as a context manager.

    Same seed, same jobs: the same integers from every engine.

    Parameters
    ----------
    engine : str
        "numeric": bit-true arithmetic on exactly sampled noise, in this process.
        "cosim": the generated Verilog in a simulator, with the same noise at its pins.
    spec : UnitSpec
        The unit.
    physics : ArrayPhysics, optional
        Deviations of its array from nominal; ideal if not given.
    seed : int
        Seed of the noise, 0 to 2^63 - 1.
    simulator : str
        For "cosim": "verilator" or "icarus".
    waves : path, optional
        For "cosim": write a waveform there, `.vcd` or, where the simulator can, `.fst`. It has
        the cells' voltages beside the digital signals, and is complete once the unit is closed.
    timeout_s : float, optional
        For "cosim": seconds without a sign of life after which a simulator is given up, 30 if not
        given; see `thermokron.sim.SimulatorLink`.

    Raises
    ------
    ValueError
        If a name is not known, or seed or timeout_s is out of range.
    TypeError
        If `spec` or `physics` is of another type.
    thermokron.sim.SimulatorMissing
        If the simulator is not installed; the message says what to install.

    Examples
    --------
    >>> with open_unit("cosim", UnitSpec(cells=8), seed=1) as unit:   # doctest: +SKIP
    ...     readout = unit.run(job)
    """
    if engine not in ENGINES:
        raise ValueError(f"engine = {engine!r} is unknown; legal: {', '.join(ENGINES)}")
    if not isinstance(spec, UnitSpec):
        raise TypeError(f"spec = {spec!r} is not a UnitSpec")
    if not isinstance(physics, ArrayPhysics | None):
        raise TypeError(f"physics = {physics!r} is not an ArrayPhysics")
    if engine == "numeric":
        if waves is not None:
            raise ValueError("waves: the numeric engine has no signals; use engine 'cosim'")
        if timeout_s is not None:
            raise ValueError("timeout_s: the numeric engine waits for nobody; use engine 'cosim'")
        return NumericUnit(spec, physics, seed=seed)
    return CosimUnit(
        spec, physics, seed=seed, simulator=simulator, waves=waves, timeout_s=timeout_s
    )


class CosimUnit(RegisterUnit):
    """The generated Verilog in a simulator, with the analog front end at its pins.

    Starts one simulator process, and stops it when it is closed. If the simulator dies, the
    next use raises `SimulatorDied` with the tail of its log, and `SimulatorSilent` if it does not
    answer. Parameters as for `open_unit`.

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
        link = SimulatorLink(
            spec,
            self.physics,
            seed=seed,
            simulator=simulator,
            waves=path,
            timeout_s=TIMEOUT_S if timeout_s is None else timeout_s,
        )
        try:
            super().__init__(link, spec, seed)
        except BaseException:
            link.close()
            raise

    def info(self) -> dict[str, Any]:
        """What the simulation knows of itself: "simulator", and time in "cycles", "seconds".

        `UnitFault` while another thread runs a job.
        """
        with self._turn(wait=False):
            return self.link.info()
