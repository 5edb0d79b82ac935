"""Mutants: one small change each to the source of an RTL module.

Changed is what describes hardware, that is, the bodies of functions and methods but for `__init__`,
which holds the ports alone. A mutant's text is the module's, with one node of its syntax tree
written anew, so that comments and line numbers stay.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeGuard

__all__ = ["KINDS", "Mutant", "mutants_of"]

#: What is changed, and to what.
KINDS = {
    "comparison": "== and !=, < and <=, > and >= for each other",
    "arithmetic": "+ and - for each other",
    "logic": "& and | for each other",
    "not": "~ dropped",
    "constant": "an integer one more, or one less",
    "reduction": ".any() and .all() for each other",
    "mux": "the arms of Mux exchanged",
    "statement": "an assignment dropped",
    "init": "a signal's initial value inverted in its lowest bit",
    "condition": "the condition of an If negated",
}

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
}
_OPERATORS: dict[type[ast.operator], tuple[str, type[ast.operator]]] = {
    ast.Add: ("arithmetic", ast.Sub),
    ast.Sub: ("arithmetic", ast.Add),
    ast.BitAnd: ("logic", ast.BitOr),
    ast.BitOr: ("logic", ast.BitAnd),
}
_REDUCTIONS = {"any": "all", "all": "any"}
_SIGNALS = ("Signal", "Signal.like")
#: Where no hardware is described: annotations, texts, and what checks the generator itself.
_NO_HARDWARE = (ast.Assert, ast.Raise, ast.JoinedStr, ast.arguments)


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes
    ----------
    module : str
        Name of the module, such as `sampler`.
    kind : str
        One of `KINDS`.
    line : int
        Where, counted from 1.
    before, after : str
        What stands there, and what the mutant has instead; "nothing" for an assignment dropped.
    start, end : int
        The bytes of the module's UTF-8 text that are replaced.
    text : str
        By what.
    """

    module: str
    kind: str
    line: int
    before: str
    after: str
    start: int
    end: int
    text: str

    def applied(self, source: str) -> str:
        """The text of the mutated module."""
        old = source.encode()
        return (old[: self.start] + self.text.encode() + old[self.end :]).decode()

    def change(self, source: str) -> tuple[str, str, str]:
        """The module, the line that it stands in, and the change."""
        line = source.splitlines()[self.line - 1].strip()
        return self.module, line, f"{self.before} -> {self.after}"

    def __str__(self) -> str:
        return f"rtl/{self.module}.py:{self.line}: {self.before} -> {self.after}"


def mutants_of(module: str, source: str) -> list[Mutant]:
    """All mutants of a module, in the order of its text."""
    found = []
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for function in _functions(ast.parse(source)):
        # a signal of one bit more than it needs does no harm, nor does a memory
        calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
        widths = {id(c.args[0]) for c in calls if _is_signal(c) and c.args}
        widths |= {id(k.value) for c in calls for k in c.keywords if k.arg == "width"}
        for node in _described(function):
            assert node.end_lineno is not None
            assert node.end_col_offset is not None
            start = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            for kind, changed in _changes(node):
                if id(node) in widths and _larger(changed, node):
                    continue
                after = ast.unparse(changed)
                found.append(
                    Mutant(module, kind, node.lineno, ast.unparse(node), after, start, end,
                           text=f"({after})")
                )  # fmt: skip
            if isinstance(node, ast.AugAssign) and _assigns(node):
                for dropped, left in _fewer(node):
                    found.append(
                        Mutant(module, "statement", dropped.lineno, ast.unparse(dropped), "nothing",
                               start, end, text=ast.unparse(left))
                    )  # fmt: skip
    return sorted(found, key=lambda mutant: (mutant.start, -mutant.end, mutant.kind, mutant.text))


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """The outermost functions and methods that describe hardware."""
    for item in tree.body:
        for function in item.body if isinstance(item, ast.ClassDef) else [item]:
            if isinstance(function, ast.FunctionDef) and function.name != "__init__":
                yield function


def _described(function: ast.FunctionDef) -> Iterator[ast.expr | ast.stmt]:
    """Expressions and statements of a function that may be changed."""
    waiting: list[ast.AST] = [*function.body]
    while waiting:
        node = waiting.pop()
        if isinstance(node, _NO_HARDWARE):
            continue
        if isinstance(node, ast.AnnAssign):  # the annotation is for people
            waiting += [node.value] if node.value else []
            continue
        if isinstance(node, ast.FunctionDef):
            waiting += node.body
            continue
        if isinstance(node, ast.expr | ast.stmt):
            yield node
        waiting += ast.iter_child_nodes(node)


def _changes(node: ast.expr | ast.stmt) -> Iterator[tuple[str, ast.expr]]:
    """What may stand there instead, and of which kind that is."""
    changed = copy.deepcopy(node)
    match changed:
        case ast.Compare(ops=[operator]) if type(operator) in _COMPARISONS:
            changed.ops = [_COMPARISONS[type(operator)]()]
            yield "comparison", changed
        case ast.BinOp() if type(changed.op) in _OPERATORS:
            kind, other = _OPERATORS[type(changed.op)]
            changed.op = other()
            yield kind, changed
        case ast.UnaryOp(op=ast.Invert()):
            yield "not", changed.operand
        case ast.Constant() if type(changed.value) is int:
            yield "constant", ast.Constant(changed.value + 1)
            if changed.value:  # of one bit, -1 would be 1 again
                yield "constant", ast.Constant(changed.value - 1)
        case ast.Call(func=ast.Attribute(attr=name) as called) if name in _REDUCTIONS:
            called.attr = _REDUCTIONS[name]
            yield "reduction", changed
        case ast.Call(func=ast.Name("Mux"), args=[condition, first, second]):
            changed.args = [condition, second, first]
            yield "mux", changed
        case ast.Call() if _is_signal(changed):
            yield from _other_init(changed)
        case ast.Call(func=ast.Attribute(ast.Name("m"), "If" | "Elif"), args=[condition]):
            # zero is what is false, whatever the width
            changed.args = [ast.Compare(condition, [ast.Eq()], [ast.Constant(0)])]
            yield "condition", changed


def _is_signal(node: ast.AST) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and ast.unparse(node.func) in _SIGNALS


def _larger(changed: ast.expr, node: ast.AST) -> bool:
    match changed, node:
        case ast.Constant(int(new)), ast.Constant(int(old)):
            return new > old
    return False


def _assigns(node: ast.AugAssign) -> bool:
    """Whether that is `m.d.<domain> += ...`, or the same with a domain in a variable."""
    return ast.unparse(node.target).startswith("m.d.") or ast.unparse(node.target) == "domain"


def _fewer(node: ast.AugAssign) -> Iterator[tuple[ast.expr, ast.stmt]]:
    """Each assignment, and the statement without it."""
    if not isinstance(node.value, ast.List) or len(node.value.elts) == 1:
        yield node.value, ast.Pass()
        return
    for index, dropped in enumerate(node.value.elts):
        changed = copy.deepcopy(node)
        assert isinstance(changed.value, ast.List)
        del changed.value.elts[index]
        yield dropped, changed


def _other_init(call: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    given = {keyword.arg: keyword for keyword in call.keywords}
    # nobody may rely on what a register without a reset holds at first
    if None in given or "reset_less" in given:
        return
    if "init" not in given:
        call.keywords.append(ast.keyword("init", ast.Constant(1)))
        yield "init", call
    elif isinstance(value := given["init"].value, ast.Constant) and type(value.value) is int:
        given["init"].value = ast.Constant(value.value ^ 1)
        yield "init", call
