"""Names under which a generated design meets others: modules, registers, C types and macros."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

__all__ = [
    "LICENSE",
    "LICENSE_LINE",
    "UNIT_NAME",
    "check_name",
    "is_verilog_keyword",
    "name_of_file",
]

#: Name of a unit that was given none: of its top-level module, and of its register map.
UNIT_NAME = "thermokron_unit"

#: Of what is generated, as https://spdx.dev names licences, and the line that says so.
LICENSE = "Apache-2.0"
LICENSE_LINE = f"SPDX-License-Identifier: {LICENSE}"

#: Two underscores separate a unit's name from a member's, in C; and C keeps others to itself.
_LEGAL = re.compile(r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*")

# What no module, address map or C type can be called. The C types of a unit end in _t, so that
# those of C's library are taken too.
_WORDS = {
    "a keyword of Verilog or SystemVerilog": """
        accept_on alias always always_comb always_ff always_latch and assert assign assume
        automatic before begin bind bins binsof bit break buf bufif0 bufif1 byte case casex casez
        cell chandle checker class clocking cmos config const constraint context continue cover
        covergroup coverpoint cross deassign default defparam design disable dist do edge else end
        endcase endchecker endclass endclocking endconfig endfunction endgenerate endgroup
        endinterface endmodule endpackage endprimitive endprogram endproperty endspecify
        endsequence endtable endtask enum event eventually expect export extends extern final
        first_match for force foreach forever fork forkjoin function generate genvar global highz0
        highz1 if iff ifnone ignore_bins illegal_bins implements implies import incdir include
        initial inout input inside instance int integer interconnect interface intersect join
        join_any join_none large let liblist library local localparam logic longint macromodule
        matches medium modport module nand negedge nettype new nexttime nmos nor noshowcancelled
        not notif0 notif1 null or output package packed parameter pmos posedge primitive priority
        program property protected pull0 pull1 pulldown pullup pulsestyle_ondetect
        pulsestyle_onevent pure rand randc randcase randsequence rcmos real realtime ref reg
        reject_on release repeat restrict return rnmos rpmos rtran rtranif0 rtranif1 s_always
        s_eventually s_nexttime s_until s_until_with scalared sequence shortint shortreal
        showcancelled signed small soft solve specify specparam static string strong strong0
        strong1 struct super supply0 supply1 sync_accept_on sync_reject_on table tagged task this
        throughout time timeprecision timeunit tran tranif0 tranif1 tri tri0 tri1 triand trior
        trireg type typedef union unique unique0 unsigned until until_with untyped use uwire var
        vectored virtual void wait wait_order wand weak weak0 weak1 while wildcard wire with within
        wor xnor xor""",
    "a keyword of C or C++": """
        alignas alignof asm auto bool catch char concept constexpr decltype delete double
        dynamic_cast explicit false float friend goto inline long mutable namespace noexcept
        nullptr operator private public register reinterpret_cast requires short sizeof
        static_assert static_cast switch template thread_local throw true try typeid typename
        typeof using volatile""",
    "a keyword of SystemRDL": """
        abstract accesstype addressingtype addrmap all boolean bothedge compact component
        componentwidth encode external field fullalign hw internal level mem na nonsticky number
        onreadtype onwritetype precedence r rclr regalign regfile rset ruser rw rw1 signal sw w w1
        wclr woclr woset wot wr wset wuser wzc wzs wzt""",
    "a type of C's library with _t": """
        int8 int16 int32 int64 uint8 uint16 uint32 uint64 int_least8 int_least16 int_least32
        int_least64 uint_least8 uint_least16 uint_least32 uint_least64 int_fast8 int_fast16
        int_fast32 int_fast64 uint_fast8 uint_fast16 uint_fast32 uint_fast64 intptr uintptr intmax
        uintmax ptrdiff size ssize wchar clock max_align nullptr char8 char16 char32 off pid""",
}
_TAKEN = {word: kind for kind, words in _WORDS.items() for word in words.split()}


def check_name(name: str) -> str:
    """`name`, if modules, address maps, C types and macros can be called so.

    Raises
    ------
    TypeError
        If it is no string.
    ValueError
        If it is no identifier of all these languages, has underscores where C has them for
        itself or for members, or is taken.
    """
    legal = (
        "legal: letters, digits and single underscores between them, a letter first, "
        "and no keyword of Verilog, C or SystemRDL"
    )
    if not isinstance(name, str):
        raise TypeError(f"name = {name!r} is not a string; {legal}")
    if not _LEGAL.fullmatch(name):
        raise ValueError(f"name = {name!r} is no identifier; {legal}")
    if name in _TAKEN:
        raise ValueError(f"name = {name!r} is {_TAKEN[name]}; {legal}")
    return name


def is_verilog_keyword(name: str) -> bool:
    """Whether Verilog or SystemVerilog has a word for itself."""
    return _TAKEN.get(name) == "a keyword of Verilog or SystemVerilog"


def name_of_file(path: Path) -> str:
    """A legal name for the unit in a file, another one for every stem.

    `thermokron_<stem>`, so that `small.v` holds no keyword. What has capitals, which C's macros
    do not tell from others, or what is no identifier is told apart by a checksum.
    """
    plain = re.sub(r"[^a-z0-9]+", "_", path.stem.lower()).strip("_")
    if plain != path.stem:
        plain = f"{plain}_{zlib.crc32(path.stem.encode('utf-8', 'surrogateescape')):08x}".strip("_")
    return check_name(f"thermokron_{plain}")
