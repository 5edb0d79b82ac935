"""What synthesis found: resources, clock, and the path that limits it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from thermokron.model import UnitSpec

__all__ = ["CriticalPath", "Synthesis", "critical_path", "fmax_mhz"]

#: Where a name ends that a net has in the Verilog; what follows are cells that Yosys made of it.
_MADE = re.compile(r"_(TRELLIS_|LUT4|PFUMX|L6MUX|CCU2C|DP16KD|MULT18|SB_|\$?abc).*|\$SB_.*")


@dataclass(frozen=True)
class CriticalPath:
    """The slowest path from one clock edge to the next.

    Attributes
    ----------
    start, end : str
        Cell and port at which it begins and ends.
    through : tuple of str
        Nets on the way, each under the name in the Verilog that Yosys derived its own from.
    logic_ns, routing_ns : float
        Delays in cells, setup included, and between them.
    """

    start: str
    end: str
    through: tuple[str, ...]
    logic_ns: float
    routing_ns: float


@dataclass(frozen=True)
class Synthesis:
    """A unit on a device.

    Attributes
    ----------
    target, device, name : str
        What it was synthesised for, and the unit's name.
    spec, fingerprint : UnitSpec, str
        What was synthesised; the fingerprint as banner and registers have it.
    resources : mapping of str to int
        Counts by `RESOURCES`, those that the target has.
    available : mapping of str to int
        How many of them the device has, as far as nextpnr says so.
    cells : mapping of str to int
        The netlist's cells by type.
    memory_bits : int
        In the unit's memories, wherever they were put.
    fmax_mhz : float or None
        Highest clock frequency after routing; None if nothing was routed.
    critical_path : CriticalPath or None
        What limits it.
    seed, aim_mhz : int, float
        What nextpnr began from, and the clock that it aimed at.
    seconds : mapping of str to float
        Time of each tool when it ran.
    versions : mapping of str to str
        Packages that made it.
    """

    target: str
    device: str
    name: str
    spec: UnitSpec
    fingerprint: str
    resources: Mapping[str, int]
    available: Mapping[str, int]
    cells: Mapping[str, int]
    memory_bits: int
    fmax_mhz: float | None
    critical_path: CriticalPath | None
    seed: int
    aim_mhz: float
    seconds: Mapping[str, float]
    versions: Mapping[str, str]

    def to_json(self) -> str:
        """As JSON; `from_json` reads it."""
        return json.dumps(asdict(self) | {"spec": json.loads(self.spec.to_json())}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Synthesis:
        """The report that `to_json` wrote."""
        found = json.loads(text)
        found["spec"] = UnitSpec.from_json(json.dumps(found["spec"]))
        if path := found["critical_path"]:
            found["critical_path"] = CriticalPath(**path | {"through": tuple(path["through"])})
        return cls(**found)


def fmax_mhz(report: Mapping[str, Any]) -> float:
    """The clock's, from nextpnr's report; a unit has one."""
    return float(min(clock["achieved"] for clock in report["fmax"].values()))


def critical_path(report: Mapping[str, Any]) -> CriticalPath:
    """From one edge of the clock to the next, from nextpnr's report."""
    inside = [p for p in report["critical_paths"] if p["from"] == p["to"] != "<async>"]
    hops = max(inside, key=lambda p: sum(hop["delay"] for hop in p["path"]))["path"]
    through: list[str] = []
    for hop in hops:
        if "net" in hop and (net := _MADE.sub("", hop["net"])) not in through[-1:]:
            through.append(net)
    routing = sum(hop["delay"] for hop in hops if hop["type"] == "routing")
    return CriticalPath(
        start=_place(hops[0]["from"]),
        end=_place(hops[-1]["to"]),
        through=tuple(through),
        logic_ns=round(sum(hop["delay"] for hop in hops) - routing, 3),
        routing_ns=round(routing, 3),
    )


def _place(end: Mapping[str, Any]) -> str:
    return f"{end['cell']}.{end['port']}"
