"""The register map as Python sees it: addresses, fields, windows and enumerations.

Everything here is read from `unit.rdl` for a given `UnitSpec`; no address is written twice.
Where the windows stand, and with them the width of an address, follows from the spec. The
gateware's decoder (`thermokron.rtl.registers`) and the host's driver both work from it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import IntEnum
from functools import cache, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from thermokron.model import UnitSpec
from thermokron.model.checks import check_integer
from thermokron.rtl.layout import bias_stride, padded, result_depth
from thermokron.rtl.limits import check_buildable
from thermokron.rtl.names import UNIT_NAME

__all__ = [
    "FaultReason",
    "MapEnum",
    "MapField",
    "Phase",
    "Register",
    "RegisterMap",
    "Window",
    "bound_rdl",
    "elaborate_rdl",
    "read_spec",
    "register_map",
]

#: Why a run failed, and where it is: enumerations of the map, made when first asked for.
FaultReason: Any
Phase: Any

RDL_PATH = Path(__file__).with_name("unit.rdl")

#: What a field is to the gateware: fixed by the spec, written by software, a one-cycle pulse
#: when software writes 1, or written by hardware.
Access = Literal["constant", "config", "pulse", "status"]


class MapEnum(IntEnum):
    """A member of an enumeration of the map, `FaultReason` or `Phase`.

    Members have the names and values of `unit.rdl`; `doc` is their description, for people.
    """

    doc: str

    def __new__(cls, value: int, doc: str) -> MapEnum:
        member = int.__new__(cls, value)
        member._value_ = value
        member.doc = doc
        return member


@dataclass(frozen=True)
class MapField:
    """Some bits of a register.

    Attributes
    ----------
    name, register : str
        Its name, and that of its register.
    lsb, width : int
        Where it is, counted over both words of a 64-bit register.
    access : "constant", "config", "pulse" or "status"
        Who writes it: the spec, software, software for one cycle, or hardware.
    reset : int
        Value of a constant; value after reset of a "config" field.
    enum : str or None
        Enumeration of its values.
    doc : str
        Its description.
    """

    name: str
    register: str
    lsb: int
    width: int
    access: Access
    reset: int
    enum: str | None
    doc: str

    @property
    def port(self) -> str:
        """Name of the gateware's port, and of the field among all fields of the map."""
        return self.register if self.name == "value" else f"{self.register}_{self.name}"

    def extract(self, word: int) -> int:
        """Value of the field in a register's content."""
        return (word >> self.lsb) & ((1 << self.width) - 1)

    def insert(self, value: int) -> int:
        """A register's content with this field set; `ValueError` if it does not fit."""
        return check_integer(self.port, value, 0, (1 << self.width) - 1) << self.lsb


@dataclass(frozen=True)
class Register:
    """A register of one or two 32-bit words, the low one first.

    Attributes
    ----------
    name : str
        Its name.
    address : int
        Byte address of its first word.
    words : int
        1 or 2.
    fields : mapping of str to MapField
        Its fields by name.
    title, doc : str
        Short and long description.
    """

    name: str
    address: int
    words: int
    fields: Mapping[str, MapField]
    title: str
    doc: str

    @property
    def writable(self) -> bool:
        """Whether software may write it."""
        return any(f.access in ("config", "pulse") for f in self.fields.values())

    def pack(self, **values: int) -> int:
        """Content with the named fields set and the others 0."""
        return sum(self.fields[name].insert(value) for name, value in values.items())

    def unpack(self, content: int) -> dict[str, int]:
        """Values of all fields by name."""
        return {name: field.extract(content) for name, field in self.fields.items()}


@dataclass(frozen=True)
class Window:
    """A memory that is seen through the map.

    Attributes
    ----------
    name : str
        Its name.
    address : int
        Byte address of its first word.
    entries : int
        How many entries it has.
    entry_words : int
        32-bit words per entry, 1 or 2, the low one first; entries are signed.
    writable : bool
        Whether software may write it; what it may not write are results.
    title, doc : str
        Short and long description.
    """

    name: str
    address: int
    entries: int
    entry_words: int
    writable: bool
    title: str
    doc: str

    @property
    def words(self) -> int:
        """32-bit words in the window."""
        return self.entries * self.entry_words

    @property
    def address_width(self) -> int:
        """Bits of a word address within the window; it stands at a multiple of 4 << this."""
        return (self.words - 1).bit_length()


@dataclass(frozen=True)
class RegisterMap:
    """The map of one unit: registers and windows by name, in the order of their addresses."""

    registers: Mapping[str, Register]
    windows: Mapping[str, Window]

    @property
    def fields(self) -> dict[str, MapField]:
        """All fields by the name of their port, such as `status_busy` or `samples`."""
        return {f.port: f for r in self.registers.values() for f in r.fields.values()}

    @property
    def address_bits(self) -> int:
        """Width of a byte address on the bus: enough for the last word of the last window."""
        return max(w.address + 4 * w.words - 1 for w in self.windows.values()).bit_length()


def _spec_parameters(spec: UnitSpec) -> dict[str, Any]:
    """Parameters of the map: spec fields, fingerprint, entries and sizes of the windows."""
    check_buildable(spec)
    values = {f.name: getattr(spec, f.name) for f in fields(spec)}
    parameters = {
        name.upper(): _double_bits(value) if isinstance(value, float) else int(value or 0)
        for name, value in values.items()
    }
    sum_depth, product_depth = result_depth(spec)
    sums = spec.lanes * padded(sum_depth)
    products = spec.lanes * padded(product_depth) if spec.second_moments else 1
    couplings = spec.coupling_words * spec.dac_lanes
    biases = spec.rhs_depth * bias_stride(spec)
    return {
        **parameters,
        "FINGERPRINT": spec.fingerprint,
        "COUPLING_ENTRIES": couplings,
        "BIAS_ENTRIES": biases,
        "SUM_ENTRIES": sums,
        "PRODUCT_ENTRIES": products,
        # a window stands at a multiple of its size, and a decoder compares powers of two
        "COUPLING_BYTES": 4 * padded(couplings),
        "BIAS_BYTES": 4 * padded(biases),
        "CLIPPED_BYTES": 4 * padded(sums),
        "PRODUCT_BYTES": 8 * padded(products),
        "SUM_BYTES": 8 * padded(sums),
    }


def _double_bits(value: float) -> int:
    return int.from_bytes(struct.pack(">d", value), "big")


def _spec_value(metadata: Mapping[str, Any], value: int) -> Any:
    """What a field of the spec is, of which a register has `value`: see `_spec_parameters`."""
    if "choices" in metadata:
        found = [choice for choice in metadata["choices"] if int(choice or 0) == value]
        return found[0] if found else value
    if isinstance(metadata["range"][0], float):
        return struct.unpack("<d", value.to_bytes(8, "little"))[0]
    return value


def elaborate_rdl(spec: UnitSpec, name: str = UNIT_NAME) -> Any:
    """The map of a unit as the `systemrdl.node.RootNode` that PeakRDL's exporters take.

    `name` is the address map's, from which C's types and macros have theirs.

    Raises
    ------
    ValueError
        If the control plane cannot be built for the spec.
    """
    from systemrdl.compiler import RDLCompiler

    compiler = RDLCompiler()
    compiler.compile_file(str(RDL_PATH))
    return compiler.elaborate(UNIT_NAME, inst_name=name, parameters=_spec_parameters(spec))


def bound_rdl(spec: UnitSpec, name: str = UNIT_NAME) -> str:
    """The text of `unit.rdl` with this unit's name, and its values as parameters' defaults."""
    text = RDL_PATH.read_text(encoding="utf-8")
    text = text.replace(f"addrmap {UNIT_NAME} #(", f"addrmap {name} #(", 1)
    for name, value in _spec_parameters(spec).items():
        text, count = re.subn(rf"(longint unsigned {name}) = \w+", rf"\1 = {value:#x}", text)
        assert count == 1, f"unit.rdl has no parameter {name}"
    return text


@lru_cache(maxsize=32)
def register_map(spec: UnitSpec) -> RegisterMap:
    """The register map of a unit; `ValueError` if the control plane cannot be built for it."""
    from systemrdl.node import MemNode, RegNode

    registers, windows = {}, {}
    for node in elaborate_rdl(spec).top.children(unroll=True):
        name = node.inst_name
        about = {"title": node.get_property("name"), "doc": node.get_property("desc")}
        if isinstance(node, MemNode):
            windows[name] = Window(
                name=name,
                address=node.absolute_address,
                entries=node.get_property("mementries"),
                entry_words=node.get_property("memwidth") // 32,
                writable=node.is_sw_writable,
                **about,
            )
        elif isinstance(node, RegNode):
            registers[name] = Register(
                name=name,
                address=node.absolute_address,
                words=node.get_property("regwidth") // 32,
                fields=MappingProxyType({f.inst_name: _field(f) for f in node.fields()}),
                **about,
            )
    return RegisterMap(MappingProxyType(registers), MappingProxyType(windows))


def _field(node: Any) -> MapField:
    access: Access
    if node.get_property("singlepulse"):
        access = "pulse"
    elif node.is_sw_writable:
        access = "config"
    else:
        access = "status" if node.is_hw_writable else "constant"
    enum = node.get_property("encode")
    return MapField(
        name=node.inst_name,
        register=node.parent.inst_name,
        lsb=node.low,
        width=node.width,
        access=access,
        reset=node.get_property("reset", default=0),
        enum=None if enum is None else enum.type_name,
        doc=node.get_property("desc"),
    )


def __getattr__(name: str) -> Any:
    # so that importing this module compiles nothing
    if name not in ("FaultReason", "Phase"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _enumerations()[name]


@cache
def _enumerations() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for register in elaborate_rdl(UnitSpec()).top.registers():
        for field in register.fields():
            if (enum := field.get_property("encode")) is not None:
                name = enum.type_name.title().replace("_", "")
                members = {m.name: (m.value, m.rdl_desc or "") for m in enum}
                found[name] = MapEnum(name, members)  # type: ignore[arg-type]
    return found


def read_spec(read: Callable[[int], int]) -> UnitSpec:
    """The specification that a unit states in its read-only registers.

    Parameters
    ----------
    read : callable
        Takes a byte address, returns the 32-bit word there.

    Raises
    ------
    ValueError
        If what answers is not a unit, has an incompatible register map, or contradicts its
        own fingerprint.
    """
    # the addresses of this part do not depend on the spec; which one is asked does not matter
    known = register_map(UnitSpec())

    def content(register: Register) -> int:
        return sum(read(register.address + 4 * i) << (32 * i) for i in range(register.words))

    identity = known.registers["id"]
    got, expected = content(identity), identity.fields["value"].reset
    if got != expected:
        raise ValueError(f"not a Thermokron unit: ID reads {got:#010x}, not {expected:#010x}")
    version = known.registers["version"]
    got, expected = version.unpack(content(version))["major"], version.fields["major"].reset
    if got != expected:
        raise ValueError(
            f"the unit's register map has version {got}; this software knows {expected}"
        )

    names = {f.name: f for f in fields(UnitSpec)}
    values: dict[str, Any] = {}
    for register in known.registers.values():
        if not any(f.access == "constant" for f in register.fields.values()):
            continue
        for key, value in register.unpack(content(register)).items():
            name = register.name if key == "value" else key
            if name in names:
                values[name] = _spec_value(names[name].metadata, value)
    spec = UnitSpec(**values)
    fingerprint = content(known.registers["fingerprint"])
    if fingerprint != spec.fingerprint:
        raise ValueError(
            f"the unit's fingerprint {fingerprint:#010x} is not that of the specification it "
            f"states, {spec.fingerprint:#010x}; it was built from another version"
        )
    return spec
