# amaranth: UnusedElaboratable=no
"""A block among its properties: what Amaranth and Yosys need to prove something of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from amaranth import Fragment, Module, ResetSignal, Signal, Value
from amaranth.back import rtlil
from amaranth.hdl import Assert, Assume, Const, Cover, MemoryInstance, ShapeLike, ValueLike
from amaranth.hdl._ir import PortDirection
from amaranth.lib.wiring import In

from thermokron.rtl.rtlil import clock_domains, pins_reset

if TYPE_CHECKING:
    from amaranth.lib.wiring import Component

__all__ = ["Harness"]


class Harness:
    """A block, and beside it, in a module `m` of its own, what is assumed, held and reached.

    The block's inputs are free in every cycle, its reset too, except that the first cycle has it:
    before that no register of the block has a known value, whatever Amaranth writes as its
    initial one, and no memory word ever has. Properties count from the cycle after on. The
    harness may look at the block's registers and memories, and never drives them.

    Members
    -------
    dut : Component
        The block, with its ports.
    m : Module
        For registers and logic of the properties; they have the block's clock and reset.
    properties, invariants, covers : list of str
        Names of what is held, of what is held beside it for induction's sake, and of what is
        reached.
    paths : dict of str to str
        Properties that the structure alone proves, and which inputs they are about.
    settled : Signal
        The first cycle is over.
    calm : Signal
        So it is, and there was no reset in the last cycle: what happens now follows from it.
    """

    def __init__(self, dut: Component) -> None:
        self.dut: Any = dut
        self.m: Any = Module()
        self._fragment = Fragment.get(dut, None)
        self.m.submodules.dut = self._fragment
        self._inputs: dict[str, Any] = {}
        for path, member, value in dut.signature.flatten(dut):
            if member.flow == In:
                self._inputs["_".join(str(part) for part in path)] = Value.cast(value)
        self.properties: list[str] = []
        self.invariants: list[str] = []
        self.covers: list[str] = []
        self.paths: dict[str, str] = {}
        self.settled = Signal(reset_less=True)
        self.calm = Signal(reset_less=True)
        self.m.d.sync += [self.settled.eq(1), self.calm.eq(~ResetSignal())]
        self.m.d.comb += Assume(self.settled | ResetSignal())

    # ---- what the properties are made of -----------------------------------------------------
    def free(self, name: str, shape: ShapeLike) -> Any:
        """A value that may be another one in every cycle."""
        signal = Signal(shape, name=name)
        self._inputs[name] = Value.cast(signal)
        return signal

    def release(self, name: str, signal: Any) -> None:
        """Free a signal that nothing drives, such as one of a block that is left out."""
        self._inputs[name] = Value.cast(signal)

    def constant(self, name: str, shape: ShapeLike) -> Any:
        """Any value, the same in all cycles: what is proved is proved for each."""
        signal = self.free(name, shape)
        before = self.past(signal)
        self.m.d.comb += Assume(~self.settled | (Value.cast(signal) == before))
        return signal

    def past(self, value: ValueLike, cycles: int = 1) -> Any:
        """What `value` was some cycles ago; any value before the first one."""
        value = Value.cast(value)
        for _ in range(cycles):
            before = Signal(value.shape(), reset_less=True, name="past")
            self.m.d.sync += before.eq(value)
            value = before
        return value

    def named(self, name: str, value: ValueLike) -> Any:
        """`value` as a signal that a waveform shows under this name."""
        value = Value.cast(value)
        signal = Signal(value.shape(), name=name)
        self.m.d.comb += signal.eq(value)
        return signal

    # ---- the block's inside ------------------------------------------------------------------
    def inside(self, path: str) -> Any:
        """A signal of the block: `left`, or `converter.elapsed` of a block within.

        Raises
        ------
        LookupError
            If there is none, or more than one.
        """
        *parts, name = path.split(".")
        fragment = self._within(parts)
        found = {id(s): s for s in _driven(fragment) if s.name == name}
        if len(found) != 1:
            raise LookupError(f"{len(found)} signals {path!r} in {type(self.dut).__name__}")
        return next(iter(found.values()))

    def word(self, path: str, address: ValueLike) -> Any:
        """What a memory of the block holds at an address, in this cycle."""
        memory = self._memory(path)
        content = Signal(memory._data.shape, name="content")
        memory.read_port(
            domain="comb", addr=Value.cast(address), data=content, en=Const(1), transparent_for=()
        )
        return content

    def write_port(self, path: str) -> tuple[Any, Any]:
        """Enable and address of a memory's first write port."""
        port = self._memory(path)._write_ports[0]
        return port._en, port._addr

    def read_data(self, path: str) -> Any:
        """What a memory's first read port shows."""
        return self._memory(path)._read_ports[0]._data

    def _memory(self, path: str) -> Any:
        memory = self._within(path.split("."))
        if not isinstance(memory, MemoryInstance):
            raise LookupError(f"{path!r} of {type(self.dut).__name__} is no memory")
        return memory

    def _within(self, parts: list[str]) -> Any:
        fragment = self._fragment
        for part in parts:
            inner = {name: sub for sub, name, _ in fragment.subfragments}
            if part not in inner:
                raise LookupError(f"no {part!r} among {sorted(map(str, inner))}")
            fragment = inner[part]
        return fragment

    # ---- properties --------------------------------------------------------------------------
    def assume(self, condition: ValueLike) -> None:
        """The block's surroundings keep to this, from the second cycle on."""
        self.m.d.comb += Assume(~self.settled | Value.cast(condition).bool(), src_loc_at=1)

    def holds(self, name: str, condition: ValueLike) -> None:
        """A property, to be true in every cycle from the second on."""
        assert name not in self.properties, name
        self.properties.append(name)
        condition = ~self.settled | Value.cast(condition).bool()
        self.m.d.comb += Assert(condition, name, src_loc_at=1)

    def invariant(self, name: str, condition: ValueLike) -> None:
        """What induction needs to know of the block's state: proved like a property."""
        self.invariants.append(name)
        condition = ~self.settled | Value.cast(condition).bool()
        self.m.d.comb += Assert(condition, name, src_loc_at=1)

    def reached(self, name: str, condition: ValueLike) -> None:
        """Something that can happen: the assumptions have not made it impossible."""
        self.covers.append(name)
        condition = self.settled & Value.cast(condition).bool()
        self.m.d.comb += Cover(condition, name, src_loc_at=1)

    def no_path(self, name: str, value: ValueLike, inputs: str = "*") -> None:
        """A property: no input has a combinational path to this value; registers part it.

        Of inputs whose names fit a pattern such as `s_axis_*`, where one is given.
        """
        assert name not in self.properties, name
        self.properties.append(name)
        self.paths[name] = inputs
        value = Value.cast(value)
        signal = Signal(value.shape(), name=name, attrs={"keep": 1})
        self.m.d.comb += signal.eq(value)

    def rtlil(self) -> str:
        """The harness in Yosys' language; top module `top`, checks under their names."""
        clock, pins, asserted = clock_domains()
        fragment = Fragment.get(self.m, None)
        fragment.add_domains(clock, pins, asserted)
        fragment.add_subfragment(pins_reset(pins), "pins_reset")
        ports = {"clk": (clock.clk, PortDirection.Input), "rst": (clock.rst, PortDirection.Input)}
        ports |= {name: (value, PortDirection.Input) for name, value in self._inputs.items()}
        text = rtlil.convert(fragment, "top", ports=ports, emit_src=True)
        return re.sub(
            r'(  cell \$check )\S+(\n    parameter \\FORMAT "(\w+)"\n)', r"\1\\\3\2", text
        )


def _driven(fragment: Any) -> Iterator[Any]:
    """Signals that a fragment's own statements assign."""
    for statements in fragment.statements.values():
        for statement in statements:
            yield from statement._lhs_signals()
