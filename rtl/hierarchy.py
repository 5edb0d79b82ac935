"""A design as one module for each component, as its author divided it.

Amaranth's back end makes a module of every instance, with the ports that happen to cross its
border once constants and aliases are gone, under names such as `port$901$0`; it merges no equal
modules (0.5.10 has no option for any of this). What it has are `Instance` and the platform's
`get_memory`. So each component is converted by itself, with its members as ports, and stands in
its parent as an `Instance`; conversion runs bottom up, so that equal instances have equal texts.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from thermokron.rtl.memories import MemoryShape, MemoryTaker
from thermokron.rtl.rtlil import Port, clock_domains, members, pins_reset, snake_case
from thermokron.rtl.verilog_text import token

if TYPE_CHECKING:
    from amaranth.lib.wiring import Component

__all__ = ["Block", "Hierarchy", "hierarchy"]

#: What a module is called until all are known, and a text's own name in it.
_TOKEN, _SELF = "block@{}@", "block@self@"


@dataclass
class Block:
    """A component's module: all instances whose text in Yosys' intermediate language is equal.

    `name` is the module's, `ports` are clock and reset if it has any and then the component's
    members; `paths` lead from the top to each of its instances.
    """

    component: Component
    ports: list[Port]
    rtlil: str
    name: str = ""
    paths: list[tuple[str, ...]] = field(default_factory=list)


@dataclass
class Hierarchy:
    """Every module of a design, the top one last; memories, which are not converted, are apart."""

    blocks: list[Block]
    memories: list[MemoryShape]

    @property
    def top(self) -> Block:
        """The module that holds all others."""
        return self.blocks[-1]

    def signed_nets(self) -> dict[str, set[str]]:
        """Nets that hold two's complement, by module; Yosys' Verilog does not tell."""
        found: dict[str, set[str]] = {}
        module = ""
        for line in self.rtlil.splitlines():
            if line.startswith("module "):
                module = line.split()[1].removeprefix("\\")
            elif line.startswith("  wire ") and " signed " in line:
                net = line.split()[-1].removeprefix("\\")
                # Yosys escapes the second where it has to, which `parse` takes off again
                found.setdefault(module, set()).update((net, token(net)))
        return found

    @property
    def rtlil(self) -> str:
        """All blocks as one text."""
        return "".join(block.rtlil for block in self.blocks)


def hierarchy(component: Component, name: str, *, source: bool) -> Hierarchy:
    """The modules of a design whose top module has this name; it begins those of all others.

    Parameters
    ----------
    component : Component
        It is elaborated, and its signals get the names of its ports.
    name : str
    source : bool
        Whether wires and cells say where they come from, in `src` attributes.

    Raises
    ------
    ValueError
        If two members of a component get the same flat name, or a component shares a signal with
        others that is none of its members, so that no port could carry it.
    """
    from amaranth.hdl import Fragment

    memories = MemoryTaker(name)
    with _named_signals():
        fragment = Fragment.get(component, memories)
    conversion = _Conversion(source)
    conversion.block(fragment, component, ())
    blocks = conversion.blocks
    _trace(blocks)
    _assign_names(blocks, name)
    tokens = {_TOKEN.format(index): block.name for index, block in enumerate(blocks)}
    for block in blocks:
        # what is no component, such as a synchroniser, is a module in this text, named `self.it`
        own = re.compile(rf"{_SELF}([\w$.]*)")
        text = "".join(
            block.name + part.replace(".", "_") if index % 2 else part
            for index, part in enumerate(own.split(block.rtlil))
        )
        text = re.sub(r"block@\d+@", lambda match: tokens[match[0]], text)
        block.rtlil = _portable(text) if source else text
    return Hierarchy(blocks, memories.shapes)


class _Conversion:
    """Converts components bottom up, each text once."""

    def __init__(self, source: bool) -> None:
        self._source = source
        self._domains = clock_domains()
        sync, pins, _ = self._domains
        self._ambient = {"clk": sync.clk, "rst": sync.rst, "pins_rst": pins.rst}
        self._known: dict[tuple[type, str], int] = {}
        self._owner: dict[int, tuple[Any, Component]] = {}
        self.blocks: list[Block] = []

    def block(self, fragment: Any, component: Component, path: tuple[str, ...]) -> int:
        """Convert a component, what it holds first; the number of its module."""
        from amaranth.back import rtlil
        from amaranth.hdl._ir import PortDirection

        self._replace_components(fragment, path)
        own = list(members(component))
        for port, signal in own:
            signal.name = port.name
        ambient = self._used_ambient(fragment)
        if not path:  # the top has a clock in any case, for a bench to drive, whatever the block
            if "pins_rst" in ambient:
                fragment.add_subfragment(pins_reset(self._domains[1]), "pins_reset")
            ambient = ["clk", "rst"]
        ports = [Port(name, "input", 1, False) for name in ambient] + [port for port, _ in own]
        signals = [self._ambient[name] for name in ambient] + [signal for _, signal in own]
        names = [port.name for port in ports]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(
                f"several members of {type(component).__name__} become the port {twice}"
            )
        fragment.add_domains(*self._domains)
        design = fragment.prepare(
            {
                port.name: (signal, PortDirection(port.direction))
                for port, signal in zip(ports, signals, strict=True)
            },
            hierarchy=(_SELF,),
        )
        self._check_signals(design, component, signals)
        text, _ = rtlil.convert_fragment(design, emit_src=self._source)
        index = self._known.setdefault((type(component), text), len(self.blocks))
        if index == len(self.blocks):
            self.blocks.append(Block(component, ports, text))
        return index

    def _replace_components(self, fragment: Any, path: tuple[str, ...]) -> None:
        """Put an instance where a component is; what has no signature stays as it is."""
        from amaranth.hdl import Instance
        from amaranth.lib.memory import Memory
        from amaranth.lib.wiring import Component

        for position, (inner, given, src_loc) in enumerate(fragment.subfragments):
            name = f"part{position}" if given is None else given
            owner = inner.origins[0] if inner.origins else None
            if not isinstance(owner, Component) or isinstance(owner, Memory):
                self._replace_components(inner, (*path, name))
                continue
            index = self.block(inner, owner, (*path, name))
            connections: list[tuple[str, str, Any]] = []
            for port in self.blocks[index].ports:
                if port.name in self._ambient:
                    connections.append(("i", port.name, self._ambient[port.name]))
            for port, signal in members(owner):
                signal.name = f"{name}_{port.name}"  # in the parent, where others have the same
                connections.append((port.direction[0], port.name, signal))
            instance = Instance(_TOKEN.format(index), *connections, src_loc=src_loc)
            fragment.subfragments[position] = (instance, given, src_loc)

    def _used_ambient(self, fragment: Any) -> list[str]:
        """Names of clock and resets that anything in the fragment or an instance in it needs."""
        from amaranth.hdl import Instance
        from amaranth.hdl._xfrm import DomainCollector

        def instances(fragment: Any) -> Iterator[Any]:
            if isinstance(fragment, Instance):
                yield fragment
            for inner, _, _ in fragment.subfragments:
                yield from instances(inner)

        collector = DomainCollector()
        collector(fragment)
        needed = [value for i in instances(fragment) for value, _ in i.ports.values()]
        for domain in self._domains:
            if domain.name in collector.used_domains:
                needed += [domain.clk, domain.rst]
        return [n for n, signal in self._ambient.items() if any(v is signal for v in needed)]

    def _check_signals(self, design: Any, component: Component, ports: list[Any]) -> None:
        """No signal but a port may be used here and elsewhere: it would be cut in two."""
        carried = {id(port) for port in (*ports, *self._ambient.values())}
        for info in design.fragments.values():
            for signal in info.used_signals:
                if id(signal) in carried:
                    continue
                _, owner = self._owner.setdefault(id(signal), (signal, component))
                if owner is not component:
                    raise ValueError(
                        f"{type(owner).__name__} and {type(component).__name__} share the signal "
                        f"{signal.name!r}, which is a member of neither"
                    )


@contextmanager
def _named_signals() -> Iterator[None]:
    """Name what an `elaborate` assigns several at a time, as in `x, y = Signal(), Signal()`.

    Amaranth reads a signal's name off the bytecode that stores it, and calls such signals
    `$signal`. The variables of the function tell, once it returns.
    """
    from amaranth.hdl import Signal, Value
    from amaranth.hdl._ast import ValueCastable

    before = sys.getprofile()

    def watch(frame: Any, event: Any, argument: Any) -> None:
        if event == "return" and frame.f_code.co_name == "elaborate":
            for name, value in frame.f_locals.items():
                if isinstance(value, Value | ValueCastable):
                    signal = Value.cast(value)
                    if isinstance(signal, Signal) and signal.name == "$signal":
                        signal.name = name
        if before is not None:
            before(frame, event, argument)

    sys.setprofile(watch)
    try:
        yield
    finally:
        sys.setprofile(before)


def _portable(rtlil: str) -> str:
    """Source attributes with modules' names, which are the same on every machine, for paths."""
    names = {getattr(module, "__file__", None): name for name, module in list(sys.modules.items())}

    def place(match: re.Match[str]) -> str:
        path = match[2]
        module = names.get(path, path.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".py"))
        return f"{match[1]}{module.replace('.', '/')}.py:{match[3]}"

    return re.sub(r'^( *attribute \\src "|\|)([^"|]*?):(\d+)', place, rtlil, flags=re.M)


def _trace(blocks: list[Block]) -> None:
    """Find the way from the top to every instance."""
    children = [
        [
            (int(number), name)
            for number, name in re.findall(r"^  cell \\block@(\d+)@ \\(\S+)$", b.rtlil, re.M)
        ]
        for b in blocks
    ]

    def follow(index: int, path: tuple[str, ...]) -> None:
        blocks[index].paths.append(path)
        for number, name in children[index]:
            follow(number, (*path, name))

    follow(len(blocks) - 1, ())


def _assign_names(blocks: list[Block], top: str) -> None:
    """Name each module after its class; where that has several, also after where they stand."""
    blocks[-1].name = top
    taken = {top}
    kinds: dict[type, list[Block]] = {}
    for block in blocks[:-1]:
        kinds.setdefault(type(block.component), []).append(block)
    for kind, alike in kinds.items():
        stem = f"{top}_{snake_case(kind.__name__)}"
        for block, place in zip(alike, _places(alike), strict=True):
            name = stem + place
            while name in taken:
                name += "_"
            taken.add(name)
            block.name = name


def _places(blocks: list[Block]) -> list[str]:
    """What tells modules of one class apart: a part of the way to their instances, or a number."""
    if len(blocks) == 1:
        return [""]
    ways = [[re.sub(r"\W|\d+$", "", part) for part in block.paths[0]] for block in blocks]
    for end in range(1, max(map(len, ways)) + 1):
        for begin in (end, 1):
            found = ["_".join(way[-end : len(way) - begin + 1]) for way in ways]
            if len(set(found)) == len(found) and all(found):
                return [f"_{place}" for place in found]
    return [f"_{number}" for number in range(1, len(blocks) + 1)]
