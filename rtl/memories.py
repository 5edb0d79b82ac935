"""Memories as modules of their own, which a chip's memory macros can take the place of.

Amaranth writes a memory into the module that uses it, and cannot but initialise every word of it.
Its platforms may have another way to make memories (`get_memory`); this is ours.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amaranth.lib.memory import Memory

__all__ = ["MemoryShape", "MemoryTaker", "count_memories"]

_VERILOG = """\
// Memory of {depth} words of {width} bits: one port writes, one reads, on the same clock.
// A macro may take its place. A word read while it is written is the old one; read_data holds
// while read_enable is low. Neither the words nor read_data have a value at the start, and no reset
// changes them: the host writes every code before a run loads it, and reads results after a run.
module {name}(
    input  wire clk,
    // read_data follows by a clock edge
    input  wire read_enable,
    input  wire {address} read_address,
    output reg  {word} read_data,
{mask_note}    input  wire {mask}write_enable,
    input  wire {address} write_address,
    input  wire {word} write_data
);
  reg {word} mem [0:{last}];
  always @(posedge clk) begin
{writes}    if (read_enable)
      read_data <= mem[read_address];
  end
endmodule
"""


@dataclass(frozen=True)
class MemoryShape:
    """A memory module: `depth` words of `width` bits, with a port to read and one to write.

    A word is written in `parts` of equal width, each with an enable of its own.
    """

    name: str
    depth: int
    width: int
    parts: int = 1

    @property
    def ports(self) -> tuple[str, ...]:
        """Names of the module's ports, in its order."""
        return tuple(re.findall(r"^    (?:input|output).* (\w+),?$", _VERILOG, re.MULTILINE))

    def verilog(self) -> str:
        """The module."""
        address = max((self.depth - 1).bit_length(), 1)
        part = self.width // self.parts
        writes, note, mask = "", "", ""
        for index in range(self.parts):
            bit, bits = "", ""
            if self.parts > 1:
                bit, bits = f"[{index}]", f"[{part * (index + 1) - 1}:{part * index}]"
            writes += f"    if (write_enable{bit})\n"
            writes += f"      mem[write_address]{bits} <= write_data{bits};\n"
        if self.parts > 1:
            note = f"    // a bit for every {part} bits of the word\n"
            mask = f"[{self.parts - 1}:0] "
        return _VERILOG.format(
            name=self.name,
            depth=self.depth,
            width=self.width,
            last=self.depth - 1,
            address=f"[{address - 1}:0]",
            word=f"[{self.width - 1}:0]",
            writes=writes,
            mask_note=note,
            mask=mask,
        )


class MemoryTaker:
    """A platform for Amaranth that makes memories instances of modules.

    Those with one write and one read port on one clock, as RAM macros and FPGAs have them, and
    without content; any other stays what Amaranth makes of it.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._shapes: dict[MemoryShape, None] = {}

    @property
    def shapes(self) -> list[MemoryShape]:
        """Of all memories taken so far, each once, the smallest first."""
        return sorted(self._shapes, key=lambda shape: (shape.depth, shape.width))

    def get_memory(self, memory: Memory) -> Any:
        """Amaranth's hook: what a memory is elaborated to."""
        from amaranth.hdl import ClockSignal, Instance, Shape, Value

        reads, writes = memory.read_ports, memory.write_ports
        width, depth = Shape.cast(memory.shape).width, memory.depth
        simple = (
            len(reads) == len(writes) == 1
            and reads[0].domain == writes[0].domain
            and not reads[0].transparent_for
            and width % len(writes[0].en) == 0
            and depth > 1
            and width > 0
            and not any(memory.data._init._raw)
        )
        if not simple:
            return memory.elaborate(None)
        (read,), (write,) = reads, writes
        parts = len(write.en)
        name = f"{self._prefix}_memory_{depth}x{width}" + (f"x{parts}" if parts > 1 else "")
        shape = MemoryShape(name, depth, width, parts)
        self._shapes[shape] = None
        ports = {
            "read_enable": read.en,
            "read_address": read.addr,
            "read_data": read.data,
            "write_enable": write.en,
            "write_address": write.addr,
            "write_data": write.data,
        }
        for port, value in ports.items():
            Value.cast(value).name = port  # where Amaranth has `$signature__addr`
        return Instance(
            shape.name,
            ("i", "clk", ClockSignal(read.domain)),
            *(("o" if port == "read_data" else "i", port, v) for port, v in ports.items()),
        )


def count_memories(verilog: str) -> dict[MemoryShape, int]:
    """How many instances a design has of each memory module; its top module is the text's first."""
    holds: dict[str, list[str]] = {}
    shapes: dict[str, MemoryShape] = {}
    for name, body in re.findall(r"^module (\w+)\((.*?)^endmodule", verilog, re.M | re.S):
        holds[name] = re.findall(r"^  (\w+) \w+ \($", body, re.M)
        size = re.search(r"_memory_(\d+)x(\d+)(?:x(\d+))?$", name)
        if size is not None and not holds[name]:
            shapes[name] = MemoryShape(name, int(size[1]), int(size[2]), int(size[3] or 1))

    def inside(module: str) -> Counter[str]:
        found = Counter(module for module in holds[module] if module in shapes)
        for inner in holds[module]:
            if inner not in shapes:
                found += inside(inner)
        return found

    found = inside(next(iter(holds)))
    return {shape: found[name] for name, shape in shapes.items()}
