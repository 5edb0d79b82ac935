"""What the docstring of a component says of it and of its members, as comments for Verilog."""

from __future__ import annotations

import inspect
import re
import textwrap
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amaranth.lib.wiring import Component

__all__ = ["comment", "describe", "member_of", "member_texts"]

_SECTION = re.compile(r"^(\w[\w ]*)\n-+$", re.MULTILINE)
#: Not every tool that reads Verilog takes a comment beyond ASCII.
_ASCII = {
    "Σ": "sum of ", "ᵀ": "^T", "·": "*", "×": "x", "⌊": "floor(", "⌋": ")", "⌈": "ceil(",
    "⌉": ")", "≤": "<=", "≥": ">=", "±": "+-", "…": "...", "→": "->", "−": "-", "√": "sqrt ",
    "²": "^2", "⁰": "^0", "–": "-", "τ": "tau", "₂": "2", "≈": "~",
}  # fmt: skip


def describe(component: Component) -> str:
    """The docstring of a component's class as far as its first section; empty if it has none."""
    return _SECTION.split(inspect.cleandoc(type(component).__doc__ or ""))[0].strip()


def member_texts(component: Component) -> dict[str, str]:
    """What the section "Members" of a component's docstring says of each, by name."""
    parts = _SECTION.split(inspect.cleandoc(type(component).__doc__ or ""))
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    texts: dict[str, str] = {}
    names: list[str] = []
    for line in sections.get("Members", "").splitlines():
        if line and not line.startswith(" "):
            # such as `dac_valid, dac_row : Out, dac_ready : In(1)`
            names = re.findall(r"(?:^|, )([A-Za-z_]\w*)(?= :|,|$)", line)
        elif line.strip():
            for name in names:
                texts[name] = f"{texts.get(name, '')} {line.strip()}".strip()
    return texts


def member_of(port: str, names: dict[str, str]) -> str | None:
    """The member that a flat port belongs to: `s_axi` has `s_axi_awaddr`."""
    fitting = [name for name in names if port == name or port.startswith(f"{name}_")]
    return max(fitting, key=len, default=None)


def comment(text: str, indent: str = "", width: int = 96) -> list[str]:
    """A text as comment lines, paragraphs apart, in ASCII."""
    plain = "".join(_ASCII.get(letter, letter) for letter in text)
    plain = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
    lines: list[str] = []
    for paragraph in re.split(r"\n\s*\n", plain):
        if lines:
            lines.append(f"{indent}//")
        start = f"{indent}// "
        lines += textwrap.wrap(
            " ".join(paragraph.split()),
            width,
            initial_indent=start,
            subsequent_indent=start,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return lines
