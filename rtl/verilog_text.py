"""The Verilog that Yosys writes, taken apart: modules, nets, assignments, registers, blocks.

Not a parser of Verilog. Yosys writes one operator an assignment, one statement a line and
everything in a fixed order; what looks otherwise is an error here, not a guess.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

__all__ = [
    "NAME",
    "Assign",
    "Block",
    "Instance",
    "Net",
    "Other",
    "Register",
    "VerilogModule",
    "parse",
    "token",
]

#: A name, as `parse` leaves it: `$7` is a net without one, `x$9` one of several called x,
#: `wait$` a keyword.
NAME = re.compile(r"(?<![\w'.$`])[A-Za-z_$][\w$]*")

_DECLARATION = re.compile(r"  (wire|reg|input|output) (?:(\[\d+:\d+\]) )?([\w$]+)(?: = (\S+))?;")
_RANGE = re.compile(r"\[(\d+):(\d+)\]")


@dataclass
class Net:
    """A declared wire or register; `init` is what a register holds at the start."""

    name: str
    bits: int
    register: bool = False
    init: str | None = None
    signed: bool = False
    direction: str | None = None
    attributes: list[str] = field(default_factory=list)


@dataclass
class Assign:
    """`assign left = right;`"""

    left: str
    right: str
    attributes: list[str] = field(default_factory=list)


@dataclass
class Register:
    """`head` such as `always @(posedge clk)`, and what is done there, a line each."""

    head: str
    body: list[str]
    attributes: list[str] = field(default_factory=list)


@dataclass
class Block:
    """`always @*`: the lines between its begin and end."""

    body: list[str]
    attributes: list[str] = field(default_factory=list)


@dataclass
class Instance:
    """A module in another, with what its ports are connected to."""

    module: str
    name: str
    ports: dict[str, str]
    attributes: list[str] = field(default_factory=list)


@dataclass
class Other:
    """Lines that nothing here has to understand, such as a memory with several ports."""

    body: list[str]
    attributes: list[str] = field(default_factory=list)


Item = Assign | Register | Block | Instance | Other


@dataclass
class VerilogModule:
    """A module; `ports` in the order of its head."""

    name: str
    ports: list[str]
    nets: dict[str, Net] = field(default_factory=dict)
    items: list[Item] = field(default_factory=list)
    attributes: list[str] = field(default_factory=list)

    def rewrite(self, change: Callable[[str], str]) -> None:
        """Pass all code, but not names of modules, ports and instances, through a function."""
        for item in self.items:
            match item:
                case Assign():
                    item.left, item.right = change(item.left), change(item.right)
                case Register() | Block() | Other():
                    item.body = [change(line) for line in item.body]
                    if isinstance(item, Register):
                        item.head = change(item.head)
                case Instance():
                    item.ports = {port: change(value) for port, value in item.ports.items()}

    def uses(self) -> Iterator[str]:
        """Every name in the code, as often as it stands there, left sides of `assign` apart."""
        for item in self.items:
            match item:
                case Assign():
                    code = [item.right]
                case Register():
                    code = [item.head, *item.body]
                case Block() | Other():
                    code = item.body
                case Instance():
                    code = list(item.ports.values())
            for line in code:
                yield from NAME.findall(line)


def parse(text: str) -> list[VerilogModule]:
    """The modules of a file that Yosys wrote with `write_verilog -norename`."""
    modules, lines = [], iter(text.splitlines())
    attributes: list[str] = []
    for line in lines:
        if line.startswith("(*"):
            attributes.append(line.strip())
        elif line.startswith("module "):
            while not line.endswith(");"):  # twenty ports a line
                line += next(lines)
            modules.append(_module(line, lines, attributes))
            attributes = []
    return modules


def _module(head: str, lines: Iterator[str], attributes: list[str]) -> VerilogModule:
    match = re.fullmatch(r"module (\S+) ?\((.*)\);", _clean(head))
    assert match is not None, head
    ports = [port.strip() for port in match[2].split(",") if port.strip()]
    module = VerilogModule(match[1], ports, attributes=attributes)
    notes: list[str] = []
    for line in lines:
        if line == "endmodule":
            return module
        if line.startswith("  (*"):
            notes.append(line.strip())
            continue
        if line.startswith("  reg \\$auto$verilog_backend"):
            continue  # what `always @*` blocks depend on, so that they run once
        declared = _DECLARATION.fullmatch(_clean(line))
        if declared is not None:
            _declare(module, declared, notes)
        else:
            module.items.append(_item(line, lines, notes))
        notes = []
    raise AssertionError(f"module {module.name} has no end")


def _declare(module: VerilogModule, declared: re.Match[str], attributes: list[str]) -> None:
    kind, span, name, init = declared.groups()
    bits = 1
    if span is not None:
        high, low = map(int, _RANGE.fullmatch(span).groups())  # type: ignore[union-attr]
        assert low == 0, declared[0]
        bits = high + 1
    net = module.nets.setdefault(name, Net(name, bits))
    if kind in ("input", "output"):
        net.direction = kind
    net.register |= kind == "reg"
    net.init = init or net.init
    # what a register begins with stands beside it already
    net.attributes += [note for note in attributes if not note.startswith("(* init =")]


def _item(line: str, lines: Iterator[str], attributes: list[str]) -> Item:
    if line.startswith("  assign "):
        code = _clean(line).removeprefix("  assign ").removesuffix(";")
        notes = re.findall(r"\(\* .*? \*\)", code)  # Yosys writes them behind the operator
        left, right = re.sub(r" *\(\* .*? \*\)", "", code).split(" = ", 1)
        return Assign(left, right, attributes + notes)
    if line == "  always @* begin":
        body: list[str] = []
        for inner in lines:
            if inner == "  end":
                return Block(body, attributes)
            if "$auto$verilog_backend" not in inner:
                body.append(_clean(inner))
    if line.startswith("  always @") and not line.endswith("begin"):
        body = [_clean(next(lines))]
        if body[0].lstrip().startswith("if "):  # an asynchronous reset
            body.append(_clean(next(lines)))
            assert body[1].lstrip().startswith("else "), body
        return Register(_clean(line.strip()), body, attributes)
    instance = re.fullmatch(r"  ([\w$]+) ([\w$]+) \(", _clean(line))
    if instance is not None:
        ports: dict[str, str] = {}
        for inner in lines:
            if inner == "  );":
                return Instance(instance[1], instance[2], ports, attributes)
            port = re.fullmatch(r"    \.([\w$]+)\((.*)\),?", _clean(inner))
            assert port is not None, inner
            ports[port[1]] = port[2]
    body = [line]
    if line.endswith("begin"):
        for inner in lines:
            body.append(inner)
            if inner == "  end":
                break
    return Other([_clean(inner) for inner in body], attributes)


def _clean(code: str) -> str:
    """Take the escapes off names, and the spaces that end them."""
    return re.sub(r"\\(\S+) ", lambda match: token(match[1]), code).rstrip()


def token(name: str) -> str:
    """An escaped name as one that `NAME` finds; what no plain name may have becomes a dollar."""
    found = re.sub(r"[^\w$]", "$$", name)
    return f"{found}$" if re.fullmatch(r"\w+", found) else found  # a keyword
