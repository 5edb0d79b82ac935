"""The `compiled` engine: the RTL in this process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thermokron.host.driver import RegisterUnit
from thermokron.model import ArrayPhysics, UnitSpec
from thermokron.model.checks import check_integer

if TYPE_CHECKING:
    from thermokron.sim import CompiledLink

__all__ = ["CompiledUnit"]


class CompiledUnit(RegisterUnit):
    """The RTL, compiled to a library of this process, with the analog array at its pins.

    What a simulator runs is Verilog made of the same RTL; here it is C++, twenty times as fast.
    Parameters as for `open_unit`, `streams` as for `RegisterUnit`.

    Attributes
    ----------
    link : thermokron.sim.CompiledLink
        The way to the registers.
    """

    link: CompiledLink

    def __init__(
        self,
        spec: UnitSpec,
        physics: ArrayPhysics | None = None,
        *,
        seed: int = 0,
        waves: str | os.PathLike[str] | None = None,
        streams: bool = True,
    ) -> None:
        from thermokron.sim import CompiledLink

        seed = check_integer("seed", seed, 0, 2**63 - 1)
        path = None if waves is None else Path(waves)
        if path is not None and path.suffix != ".vcd":
            raise ValueError(
                f"waves = {str(path)!r} does not end in .vcd, which engine 'compiled' writes; "
                "engine 'cosim' writes .fst, too"
            )
        self.physics = ArrayPhysics.ideal() if physics is None else physics
        self.physics.check(spec, stacklevel=2)
        link = CompiledLink(spec, self.physics, seed=seed, waves=path)
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
