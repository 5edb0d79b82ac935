"""Expressions put together from Yosys' assignments of one operator each.

Verilog's rules of width decide what may go where: an operand takes the width and the signedness of
what surrounds it, unless it is a condition, or an argument of a comparison, of `$signed` or of
`{ }`. What goes where its width is what it was before means the same there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from thermokron.rtl.verilog_text import Assign, Block, Instance, Net, Other, Register, VerilogModule

__all__ = ["fold"]

_LONGEST = 110  # of an expression
_SHORT = 30  # of one that may stand in several places

_OPERAND = r"(\$(?:un)?signed\((?:\{[^{}]*\}|[^()]*)\)|\{[^{}]*\}|[\w$']+(?:\[[\d:]+\])?)"
_BINARY = re.compile(rf"{_OPERAND} ([-+*/%&|^]|&&|\|\||<<|>>>?|[<>]=?|[=!]=) {_OPERAND}")
_UNARY = re.compile(rf"([~!&|^]|~\^) {_OPERAND}")
_CHOICE = re.compile(rf"{_OPERAND} \? +{_OPERAND} : {_OPERAND}")
_STATEMENT = re.compile(r"( *)([\w$]+(?:\[[\d:]+\])?) (<?=) (.*);")
_CONDITION = re.compile(r"( *(?:if|casez?) )\((!?)(.*)\)( begin)?")
_COMPARISONS = ("<", ">", "<=", ">=", "==", "!=")
_SELF_DETERMINED = ("$signed", "$unsigned", "{}")
_LOW_BITS = ("+", "-", "*", "&", "|", "^")  # whose lower bits follow from the operands' lower bits
_NAMELESS = re.compile(r"\$\d+")


@dataclass
class Node:
    """An operand or an operator; `bits` is the width that it has in Yosys' text."""

    op: str  # "" for an operand, whose text is `text`
    bits: int
    args: list[Node] = field(default_factory=list)
    text: str = ""
    signed: bool = False  # an operand declared so

    @property
    def own_bits(self) -> int:
        """The width that Verilog gives it where nothing surrounds it."""
        if self.op in _COMPARISONS or self.op in ("!", "&&", "||", "1&", "1|", "1^"):
            return 1
        if self.op in ("", *_SELF_DETERMINED):
            return self.bits
        if self.op in ("<<", ">>", ">>>"):
            return self.args[0].own_bits
        return max(arg.own_bits for arg in self.args[self.op == "?" :])

    @property
    def is_condition(self) -> bool:
        """One bit, whatever surrounds it."""
        if self.bits != 1 or self.own_bits != 1:
            return False
        if self.op in ("&", "|", "^", "?"):
            return all(arg.bits == 1 and not _signed(arg) for arg in self.args)
        return self.op in _COMPARISONS or self.op in ("!", "&&", "||", "1&", "1|", "1^")

    def __str__(self) -> str:
        plain = ("", "!", *_SELF_DETERMINED)  # binds more than any operator
        inner = [str(arg) if arg.op in plain else f"({arg})" for arg in self.args]
        match self.op:
            case "":
                return self.text
            case "{}":
                return f"{{ {', '.join(_repeated([str(arg) for arg in self.args]))} }}"
            case "$signed" | "$unsigned":
                return f"{self.op}({self.args[0]})"
            case "?":
                return f"{inner[0]} ? {inner[1]} : {inner[2]}"
            case _ if len(inner) == 1:
                return f"{self.op.removeprefix('1')}{inner[0]}"
        return f"{inner[0]} {self.op} {inner[1]}"


@dataclass
class Root:
    """An expression that stands by itself, `bits` wide.

    `alone`: nothing around it says so, and it is as wide as its operands make it.
    """

    node: Node
    bits: int
    alone: bool = False


def _signed(node: Node) -> bool:
    return node.signed or node.op == "$signed" or any(_signed(arg) for arg in node.args)


def _repeated(parts: list[str]) -> list[str]:
    """Parts of `{ }`, what stands there three times or more written once."""
    runs: list[tuple[str, int]] = []
    for part in parts:
        if runs and runs[-1][0] == part:
            runs[-1] = (part, runs[-1][1] + 1)
        else:
            runs.append((part, 1))
    return [
        text
        for part, times in runs
        for text in ([f"{{{times}{{{part}}}}}"] if times > 2 else [part] * times)
    ]


def _parse(code: str, bits: int, nets: dict[str, Net]) -> Node | None:
    """An expression of one operator as Yosys writes it; None of anything else."""
    if (match := _BINARY.fullmatch(code)) is not None:
        op, parts = match[2], [match[1], match[3]]
    elif (match := _CHOICE.fullmatch(code)) is not None:
        op, parts = "?", list(match.groups())
    elif (match := _UNARY.fullmatch(code)) is not None:
        op, parts = match[1], [match[2]]
    else:
        return _operand(code, nets)
    args = [_operand(part, nets) for part in parts]
    known = [arg for arg in args if arg is not None]
    if len(known) < len(args):
        return None
    if len(known) == 1 and op in ("&", "|", "^"):
        op = f"1{op}"  # of all bits of one operand
    if op == "~" and known[0].bits == bits == 1:
        op = "!"
    return Node(op, bits, known)


def _operand(code: str, nets: dict[str, Net]) -> Node | None:
    code = code.strip()
    if (match := re.fullmatch(r"(\$(?:un)?signed)\((.*)\)", code)) is not None:
        inner = _operand(match[2], nets)
        return None if inner is None else Node(match[1], inner.bits, [inner])
    if (match := re.fullmatch(r"\{ ([^{}]*) \}", code)) is not None:
        parts = [_operand(part, nets) for part in match[1].split(", ")]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        return Node("{}", sum(part.bits for part in known), known)
    if (match := re.fullmatch(r"(\d+)'\w+", code)) is not None:
        return Node("", int(match[1]), text=code)
    if (match := re.fullmatch(r"[\w$]+\[(\d+)(?::(\d+))?\]", code)) is not None:
        return Node("", int(match[1]) - int(match[2] or match[1]) + 1, text=code)
    if code not in nets:
        return None
    return Node("", nets[code].bits, text=code, signed=nets[code].signed)


def fold(module: VerilogModule) -> None:
    """Put the value of a net that the source has no name for where the net is used.

    Conditions go anywhere, and where they are short to several places; what has more bits to where
    its width is the same: whole assignments, `$signed`, `{ }`, operands beside others of its width.
    """
    roots: dict[tuple[int, object], Root] = {}
    for number, item in enumerate(module.items):
        for place, code, bits in _expressions(item, module.nets):
            node = _parse(code, bits, module.nets)
            if node is not None:
                alone = bits == 0  # a port or a condition: nothing there says how wide it is
                roots[number, place] = Root(node, node.bits if alone else bits, alone)
    opaque = _opaque_uses(module, roots)
    values = {
        item.left: (number, "right")
        for number, item in enumerate(module.items)
        if isinstance(item, Assign)
        and _NAMELESS.fullmatch(item.left)
        and (number, "right") in roots
    }
    placed: set[str] = set()
    while True:
        done = [name for name in values if name not in placed and name not in opaque
                and _place(name, values[name], roots)]  # fmt: skip
        placed.update(done)
        for name in done:
            del roots[values[name]]
        if not done:
            break
    _write_back(module, roots)
    module.items = [i for i in module.items if not (isinstance(i, Assign) and i.left in placed)]


def _expressions(item: object, nets: dict[str, Net]) -> Iterator[tuple[object, str, int]]:
    """Every expression of an item: where, its text, its width (0: that of the text)."""

    def bits(left: str) -> int:
        node = _operand(left, nets)
        return 0 if node is None else node.bits

    if isinstance(item, Assign):
        yield "right", item.right, bits(item.left)
    elif isinstance(item, Block | Register):
        for line, code in enumerate(item.body):
            if (match := _STATEMENT.fullmatch(code)) is not None:
                yield line, match[4], bits(match[2])
            elif (match := _CONDITION.fullmatch(code)) is not None:
                yield line, f"{'~ ' if match[2] else ''}{match[3]}", 1 if match[4] else 0
    elif isinstance(item, Instance):
        for port, code in item.ports.items():
            yield port, code, 0


def _opaque_uses(module: VerilogModule, roots: dict[tuple[int, object], Root]) -> set[str]:
    """Nets used in code that was not taken apart."""
    found: set[str] = set()
    for number, item in enumerate(module.items):
        code: dict[object, str] = {}
        match item:
            case Assign():
                code["right"] = item.right
            case Instance():
                code.update(item.ports)
            case Block() | Register() | Other():
                code.update(dict(enumerate(item.body)))
                code["head"] = item.head if isinstance(item, Register) else ""
        for place, text in code.items():
            if (number, place) not in roots:
                found.update(_NAMELESS.findall(text))
            elif isinstance(item, Block | Register) and (m := _STATEMENT.fullmatch(text)):
                found.update(_NAMELESS.findall(m[2]))
    return found


def _place(name: str, where: tuple[int, object], roots: dict[tuple[int, object], Root]) -> bool:
    """Put a net's value everywhere it is used, or nowhere; whether it was done."""
    value = roots[where].node
    if roots[where].bits != value.bits:
        return False
    sites: list[tuple[Root, Node | None, int, Node]] = []  # root, parent, index, what goes there
    for key, root in roots.items():
        if key == where:
            continue
        for parent, index, leaf in _leaves(root.node):
            if not re.match(rf"{re.escape(name)}(?![\w$])", leaf.text):
                continue
            new = value if leaf.text == name else _low(value, leaf.text)
            if new is None or not _fits(new, root, parent, index):
                return False
            sites.append((root, parent, index, new))
    text = str(value)
    if not sites or (len(sites) > 1 and not (value.is_condition and len(text) <= _SHORT)):
        return False
    if any(len(str(root.node)) + len(text) > _LONGEST for root, *_ in sites):
        return False
    for root, parent, index, new in sites:
        if parent is None:
            root.node = new
        else:
            parent.args[index] = new
            _simplify(parent)
    return True


def _leaves(node: Node) -> Iterator[tuple[Node | None, int, Node]]:
    """Every operand with what it is an argument of."""
    if node.op == "":
        yield None, 0, node
    for index, arg in enumerate(node.args):
        if arg.op == "":
            yield node, index, arg
        else:
            yield from _leaves(arg)


def _fits(new: Node, root: Root, parent: Node | None, index: int) -> bool:
    """Whether an expression means the same there as the net it is the value of."""
    if new.op == "" or new.is_condition:
        return True
    if parent is None:
        return root.bits == new.bits and (not root.alone or new.own_bits == new.bits)
    if new.own_bits != new.bits or new.op == ">>>":
        return False
    if parent.op in (*_SELF_DETERMINED, "1&", "1|", "1^"):
        return True
    if parent.op in _COMPARISONS:
        return not _signed(new) and all(arg.bits == new.bits for arg in parent.args)
    beside = parent.args[parent.op == "?" :]
    return (
        parent.op in (*_LOW_BITS, "?")
        and not (parent.op == "?" and index == 0)
        and parent.bits == new.bits
        and all(arg.bits == new.bits for arg in beside)
    )


def _low(value: Node, use: str) -> Node | None:
    """The lower bits of an expression, as `use` takes them from its net; None if not to be had."""
    match = re.fullmatch(r"\$\d+\[(\d+):0\]", use)
    if match is None or value.op not in (*_LOW_BITS, "?"):
        return None
    bits = int(match[1]) + 1
    first = int(value.op == "?")
    args = value.args[:first]
    for arg in value.args[first:]:
        part = arg if arg.bits <= bits else _cut(arg, bits)
        if part is None or (value.op == "?" and part.bits != bits):
            return None
        args.append(part)
    return Node(value.op, bits, args)


def _cut(operand: Node, bits: int) -> Node | None:
    if (match := re.fullmatch(r"\d+'h([0-9a-f]+)", operand.text)) is not None:
        kept = int(match[1], 16) & ((1 << bits) - 1)
        return Node("", bits, text=f"{bits}'h{kept:0{(bits + 3) // 4}x}")
    if re.fullmatch(r"[A-Za-z_$][\w$]*", operand.text) is not None:
        return Node("", bits, text=f"{operand.text}[{bits - 1}:0]")
    return None


def _simplify(node: Node) -> None:
    """`!(a == b)` is `a != b`."""
    if node.op == "!" and node.args[0].op in ("==", "!="):
        inner = node.args[0]
        node.op, node.args = ("!=" if inner.op == "==" else "=="), inner.args
    elif node.op == "!" and node.args[0].op == "!" and node.args[0].args[0].bits == 1:
        inner = node.args[0].args[0]
        node.op, node.args, node.text = inner.op, inner.args, inner.text


def _write_back(module: VerilogModule, roots: dict[tuple[int, object], Root]) -> None:
    for (number, place), root in roots.items():
        item = module.items[number]
        if isinstance(item, Assign):
            item.right = str(root.node)
        elif isinstance(item, Instance):
            item.ports[str(place)] = str(root.node)
        elif isinstance(item, Block | Register) and isinstance(place, int):
            code = item.body[place]
            if (match := _STATEMENT.fullmatch(code)) is not None:
                item.body[place] = f"{match[1]}{match[2]} {match[3]} {root.node};"
            elif (match := _CONDITION.fullmatch(code)) is not None:
                item.body[place] = f"{match[1]}({root.node}){match[4] or ''}"
