"""What makes the Verilog that Yosys writes one that a designer reads.

Yosys has passes that clean and name nets (`opt_clean`, `autoname`), but not in modules with
processes, and without processes there are no `if` and `case`. So this is done on its Verilog. No
pass changes what a module does, nor a register; `tests/rtl/test_readable.py` has Yosys prove it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from thermokron.rtl.expressions import fold
from thermokron.rtl.names import is_verilog_keyword
from thermokron.rtl.verilog_text import NAME, Assign, Block, Instance, Register, VerilogModule

__all__ = ["make_readable"]

_HOLD = "/* keep what was assigned above */;"


def make_readable(modules: list[VerilogModule], signed: dict[str, set[str]]) -> None:
    """Rewrite modules in place.

    Parameters
    ----------
    modules : list of VerilogModule
        All modules of a design.
    signed : dict from str to set of str
        The nets of each module, under the names that they have there, that hold two's complement.
    """
    ports = {}
    for module in modules:
        _declare_signed(module, signed.get(module.name, set()))
        _merge_registers(module)
        _drop_unused(module)
        for item in module.items:
            if isinstance(item, Block | Register):
                item.body = _tidy(item.body)
        fold(module)
        _drop_unused(module)
        _name_nets(module)
        ports[module.name] = _plain_names(module)
    for module in modules:
        for item in module.items:
            if isinstance(item, Instance) and item.module in ports:
                names = ports[item.module]
                item.ports = {names[port]: value for port, value in item.ports.items()}


def _declare_signed(module: VerilogModule, signed: set[str]) -> None:
    """Declare nets signed, and leave every expression unsigned that was."""
    for net in module.nets.values():
        net.signed = net.name in signed and net.bits > 1
    names = {net.name for net in module.nets.values() if net.signed}
    for item in module.items:
        # Yosys writes `$signed(x)` where it means it; bits, parts and `{ }` are unsigned anyway
        if isinstance(item, Assign) and re.search(r" (<=?|>=?|>>>?|<<|[=!]=|[-+*/%]) ", item.right):
            item.right = NAME.sub(
                lambda match: (
                    f"$unsigned({match[0]})"
                    if match[0] in names and not re.match(r"[\[)]", match.string[match.end() :])
                    else match[0]
                ),
                item.right,
            )
            item.right = re.sub(
                r"\$signed\(([\w$]+)\)", lambda m: m[1] if m[1] in names else m[0], item.right
            )


def _merge_registers(module: VerilogModule) -> None:
    """Assign to a register where its next value is found, rather than through a net."""
    uses = Counter(module.uses())
    blocks: dict[str, Block] = {}
    for item in module.items:
        if isinstance(item, Block):
            targets = {match[1] for line in item.body if (match := _target(line))}
            if len(targets) == 1:
                blocks[targets.pop()] = item
    for item in list(module.items):
        if not isinstance(item, Register):
            continue
        # alone, or after the line of an asynchronous reset
        step = re.fullmatch(r" *(?:else )?([\w$]+(?:\[[\d:]+\])?) <= (\$\d+);", item.body[-1])
        block = blocks.get(step[2]) if step is not None else None
        if step is None or block is None:
            continue
        register, net = step[1], step[2]
        mine = [line for line in block.body if (match := _target(line)) and match[1] == net]
        if uses[net] != len(mine) + 1 or ("[" in register and any(f"{net}[" in m for m in mine)):
            continue
        start = re.compile(rf"^( *){re.escape(net)}((?:\[[\d:]+\])?) = ")
        body = [start.sub(rf"\1{register}\2 <= ", line) for line in block.body]
        if body[0].strip() == f"{register} <= {register};":
            del body[0]
        if len(item.body) == 1:
            item.body = body
        else:
            inner = [f"  {line}" for line in body]
            item.body = [item.body[0], "    else begin", *inner, "    end"]
        item.head += " begin"
        module.items.remove(block)


def _target(line: str) -> re.Match[str] | None:
    """What a statement in a block assigns to."""
    return re.match(r" *([\w$]+)(?:\[[\d:]+\])? <?= ", line)


def _drop_unused(module: VerilogModule) -> None:
    """Drop nets that are only other names of a net, or of a part of one, and that none uses."""
    while True:
        uses = set(module.uses())
        kept = [
            item
            for item in module.items
            if not isinstance(item, Assign)
            or item.left in uses
            or item.left not in module.nets
            or module.nets[item.left].direction is not None
        ]
        if len(kept) == len(module.items):
            break
        module.items = kept
    for item in module.items:
        if isinstance(item, Assign):
            uses.update(NAME.findall(item.left))
    module.nets = {k: n for k, n in module.nets.items() if n.direction is not None or k in uses}


def _tidy(body: list[str]) -> list[str]:
    """Statements without empty branches, and `case` without wildcards where it has none."""
    lines = [line for line in body if line.strip() != "(* full_case = 32'd1 *)"]
    tidy: list[str] = []
    for line in lines:
        if line.strip() == "end else begin" and re.fullmatch(r" *if \(.*\) begin", tidy[-1]):
            indent, condition = re.fullmatch(r"( *)if \((.*)\) begin", tidy[-1]).groups()  # type: ignore[union-attr]
            tidy[-1] = f"{indent}if (!{condition}) begin"
        elif line.strip() == "end" and re.fullmatch(r" *if \(.*\) begin", tidy[-1]):
            tidy.pop()
        else:
            tidy.append(line)
    return _cases(tidy)


def _cases(body: list[str]) -> list[str]:
    """Give every `case` a default; values are assigned before it, so an empty one."""
    lines: list[str] = []
    begins: list[int] = []
    for line in body:
        word = line.split()[0]
        if word in ("case", "casez"):
            begins.append(len(lines))
        lines.append(line)
        if word == "endcase":
            begin = begins.pop()
            lines[begin:] = _case(lines[begin], lines[begin + 1 : -1], line)
    return lines


def _case(head: str, inner: list[str], end: str) -> list[str]:
    indent = head[: head.index("case")]
    label = re.compile(rf"{indent}  (\S.*):")
    arms: list[tuple[str, list[str]]] = []
    for line in inner:
        if (match := label.fullmatch(line)) is not None:
            arms.append((match[1], []))
        else:
            arms[-1][1].append(line)
    has_default = any(name == "default" for name, _ in arms)
    if not any("?" in name for name, _ in arms):
        head = head.replace("casez", "case")
        merged: dict[tuple[str, ...], list[str]] = {}
        for name, code in arms:
            empty = all(line.strip() == "/* empty */;" for line in code)
            if name == "default" or has_default or not empty:
                merged.setdefault(tuple(code) if name != "default" else (name, *code), []).append(
                    name
                )
        arms = [(", ".join(names), _without(code, "default")) for code, names in merged.items()]
    if not has_default:
        arms.append(("default", [f"{indent}    {_HOLD}"]))
    lines = [head]
    for name, code in arms:
        lines += [*_wrapped(f"{indent}  ", f"{name}:"), *code]
    return [*lines, end]


def _without(code: tuple[str, ...], mark: str) -> list[str]:
    return list(code[1:] if code and code[0] == mark else code)


def _wrapped(indent: str, text: str, width: int = 96) -> list[str]:
    """A list with commas, on as many lines as it takes."""
    lines = [indent]
    for word in text.split(" "):
        if len(lines[-1]) + len(word) > width and lines[-1].strip():
            lines[-1] = lines[-1].rstrip()
            lines.append(indent)
        lines[-1] += f"{word} "
    return [line.rstrip() for line in lines]


def _merge_equal(module: VerilogModule) -> None:
    """Keep one of several nets without a name that have the same value."""
    first: dict[tuple[str, int], str] = {}
    again: dict[str, str] = {}
    for item in list(module.items):
        if isinstance(item, Assign) and re.fullmatch(r"\$\d+", item.left):
            value = item.right, module.nets[item.left].bits
            if first.setdefault(value, item.left) != item.left:
                again[item.left] = first[value]
                module.items.remove(item)
                del module.nets[item.left]
    module.rewrite(lambda code: NAME.sub(lambda match: again.get(match[0], match[0]), code))


_WORDS = {
    "+": "plus", "-": "minus", "*": "times", "<<": "shifted_by", ">>": "shifted_by",
    ">>>": "shifted_by", "&": "and", "|": "or", "^": "xor", "==": "is", "!=": "is_not",
    "<": "below", ">": "above", "<=": "at_most", ">=": "at_least",
}  # fmt: skip


def _name_nets(module: VerilogModule) -> None:
    """Name what the source has no name for after what it is computed from."""
    names: dict[str, str] = {}
    _merge_equal(module)
    for item in module.items:
        if isinstance(item, Register) and len(item.body) == 2:
            step = re.fullmatch(r" *else ([\w$]+) <= (\$\d+);", item.body[1])
            if step is not None:
                names[step[2]] = f"{step[1]}_next"
    for item in module.items:
        if isinstance(item, Assign) and re.fullmatch(r"\$\d+", item.left):
            names[item.left] = _described(item.right, names)
    for target, code in _statements(module):
        for net in re.findall(r"\$\d+", code):
            if names.get(net, "") in ("", target):
                names[net] = f"{target}_part"
    for net in module.nets:
        if re.fullmatch(r"\$\d+", net) and not names.get(net):
            names[net] = "value"
    _rename(module, names)


def _statements(module: VerilogModule) -> Iterator[tuple[str, str]]:
    """Every net that has a name with the code that its value depends on."""
    for item in module.items:
        if isinstance(item, Assign):
            left, code = item.left, [item.right]
        elif isinstance(item, Block | Register):
            left = next((match[1] for line in item.body if (match := _target(line))), "")
            code = item.body
        else:
            continue
        if left and not left.startswith("$"):
            yield left.split("[")[0].split("$")[0], "\n".join(code)


def _described(code: str, names: dict[str, str]) -> str:
    """A name for an expression with one operator, short of a sentence."""
    code = re.sub(r"\$(un)?signed\(([^()]*)\)", r"\2", code)
    code = NAME.sub(lambda match: names.get(match[0], match[0]), code)
    code = re.sub(r"\d+'s?h([0-9a-f]+)", lambda m: str(int(m[1], 16)), code)
    if "(" in code:
        return ""
    choice = re.fullmatch(r"(\S+) \? (\S+) : (\S+)", code)
    if choice is not None and choice[3] == "0":
        code = f"{choice[2]} if {choice[1]}"
    elif choice is not None:
        code = f"{choice[2]} or {choice[3]}"
    words = "_".join(_WORDS.get(word, word) for word in code.split())
    name = re.sub(r"[\W_]+", "_", words).strip("_")
    return name if len(name) <= 40 and name[:1].isalpha() else ""


def _plain_names(module: VerilogModule) -> dict[str, str]:
    """Give nets names without escapes; what each port is called now."""
    names = {}
    for net in module.nets:
        if "$" in net or is_verilog_keyword(net):
            base = re.sub(r"\$\d+$", "", net)
            names[net] = re.sub(r"\$+", "_", base).strip("_")
    before = list(module.ports)
    _rename(module, names)
    return dict(zip(before, module.ports, strict=True))


def _rename(module: VerilogModule, wanted: dict[str, str]) -> None:
    """Rename nets; where a name is taken or a keyword, a number is put after it."""
    taken = {net for net in module.nets if net not in wanted}
    taken |= {item.name for item in module.items if isinstance(item, Instance)}
    new: dict[str, str] = {}
    for net, name in wanted.items():
        number, free = 1, name
        while free in taken or is_verilog_keyword(free):
            number += 1
            free = f"{name}_{number}"
        taken.add(free)
        new[net] = free
    module.rewrite(lambda code: NAME.sub(lambda match: new.get(match[0], match[0]), code))
    module.ports = [new.get(port, port) for port in module.ports]
    nets = list(module.nets.values())
    for declared in nets:
        declared.name = new.get(declared.name, declared.name)
    module.nets = {declared.name: declared for declared in nets}
