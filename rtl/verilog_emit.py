"""Modules as text: ports in the head, with what is said of each, then nets, logic, instances."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from thermokron.rtl.docstrings import comment, member_of
from thermokron.rtl.verilog_text import (
    Assign,
    Block,
    Instance,
    Net,
    Other,
    Register,
    VerilogModule,
)

__all__ = ["Notes", "emit"]

#: Yosys lets `always @*` depend on a register that a declaration sets to 0, so that it runs once
#: with constant inputs too. In SystemVerilog that is no event (IEEE 1800-2017, 6.8), and outputs
#: would stay undefined. A non-blocking assignment is one, after all processes have started to
#: wait. Verilator evaluates everything at the start anyway.
_TIME_ZERO = """\
  // runs every always @* once, inputs that never change or not
`ifdef VERILATOR
  reg {0} = 0;
`else
  reg {0};
  initial {0} <= 0;
`endif
"""


@dataclass
class Notes:
    """What is said of a module and of its ports; `order` is that of the ports in its head."""

    order: list[str]
    about: str = ""
    members: dict[str, str] = field(default_factory=dict)


def emit(module: VerilogModule, notes: Notes, orders: dict[str, list[str]]) -> str:
    """The text of a module; `orders` has the ports of those that it may hold, in their order."""
    lines = comment(notes.about) if notes.about else []
    lines += [*module.attributes, f"module {module.name}(", *_head(module, notes), ");"]
    lines += _body(module, orders)
    return "\n".join([*(part for line in lines for part in _wrapped(line)), "endmodule", ""])


def _wrapped(line: str, width: int = 100) -> list[str]:
    """A line of code on as many lines as it takes; between words any may end."""
    indent = line[: len(line) - len(line.lstrip())]
    if len(line) <= width or line.lstrip().startswith(("//", "(*")):
        return [line]
    end = line.rfind(" ", len(indent) + 1, width)
    if end < 0:
        return [line]
    return [line[:end], *_wrapped(f"{indent}    {line[end + 1 :]}", width)]


def _head(module: VerilogModule, notes: Notes) -> list[str]:
    assert sorted(notes.order) == sorted(module.ports), (notes.order, module.ports)
    lines: list[str] = []
    said = ""
    for position, port in enumerate(notes.order):
        net = module.nets[port]
        member = member_of(port, notes.members)
        text = "" if member is None else notes.members[member]
        if text and text != said:
            lines += comment(text, "    ")
        said = text
        lines += [f"    {note}" for note in net.attributes]
        end = "," if position + 1 < len(notes.order) else ""
        lines.append(f"    {net.direction:<6} {_declared(net)}{end}")
    return lines


def _declared(net: Net) -> str:
    words = ["reg " if net.register else "wire"]
    words += ["signed"] * net.signed + [f"[{net.bits - 1}:0]"] * (net.bits > 1)
    init = "" if net.init is None else f" = {net.init}"
    return f"{' '.join(words)} {net.name}{init}"


def _body(module: VerilogModule, orders: dict[str, list[str]]) -> list[str]:
    lines: list[str] = []
    blocks = [item for item in module.items if isinstance(item, Block)]
    zero = "time_zero"
    if blocks:
        while zero in module.nets:
            zero += "_"
        lines += _TIME_ZERO.format(zero).splitlines()
    for net in module.nets.values():
        if net.direction is None:
            lines += [f"  {note}" for note in net.attributes]
            lines.append(f"  {_declared(net)};")
    groups: list[list[str]] = [[], [], [], []]
    for item in module.items:
        kind, text = _item(item, zero, orders)
        notes = [] if isinstance(item, Assign) else [f"  {note}" for note in item.attributes]
        groups[kind] += [*notes, *text]
    for group in groups:
        if group:
            lines += ["", *group]
    return lines


def _item(
    item: Assign | Register | Block | Instance | Other, zero: str, orders: dict[str, list[str]]
) -> tuple[int, list[str]]:
    """Lines of an item, and the group it belongs to."""
    match item:
        case Assign():
            # an attribute may stand before `assign`, but neither Yosys nor Icarus reads it
            sources = re.findall(r'src = "(.*?)"', " ".join(item.attributes))
            return 0, [*(f"  // {s}" for s in sources), f"  assign {item.left} = {item.right};"]
        case Block():
            return 1, ["  always @* begin", f"    if ({zero}) begin end", *item.body, "  end"]
        case Register():
            ends = ["  end"] if item.head.endswith(" begin") else []
            return 2, [f"  {item.head}", *item.body, *ends]
        case Instance():
            order = [p for p in orders.get(item.module, []) if p in item.ports]
            order += [port for port in item.ports if port not in order]
            ports = ",\n".join(f"    .{port}({item.ports[port]})" for port in order)
            return 3, [f"  {item.module} {item.name} (", *ports.split("\n"), "  );"]
        case Other():
            return 0, item.body
