"""Synthesise units of several sizes, and write the tables of docs/synthesis.md.

    python benchmarks/synthesis.py [--reports FOLDER] [--only ROW ...]

Every row is a run of `thermokron synth --json`, whose report stays in a folder; what was done
before comes from the cache. The tables are made from the reports alone.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

from thermokron.host.tables import markdown
from thermokron.sim.synthesis import Synthesis

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "synthesis.md"
#: Rows of a table by its mark in the page: what is given to the command.
TABLES = {
    "ecp5": [
        ["--target", "ecp5", "--cells", str(cells), "--lanes", "8", "--adc-bits", "12"]
        for cells in (8, 16, 32, 64)
    ],
    "ice40": [
        ["--target", "ice40", "--cells", str(cells), "--lanes", "1", "--adc-bits", "8"]
        for cells in (2, 4)
    ],
    "xilinx": [
        ["--target", "xilinx", "--cells", str(cells), "--lanes", "8", "--adc-bits", "12"]
        for cells in (8, 16, 32, 64)
    ],
    "generic": [
        ["--target", "generic", "--cells", str(cells), "--lanes", "8", "--adc-bits", "12"]
        for cells in (8, 16, 32, 64)
    ],
}
HEADS = {
    "gates": "gates",
    "luts": "LUTs",
    "flip_flops": "flip-flops",
    "multipliers": "multipliers",
    "block_rams": "block RAMs",
    "distributed_rams": "distributed RAMs",
}


def measured(folder: Path, mark: str, options: list[str]) -> Synthesis:
    """The report of one row."""
    path = folder / f"{mark}-{options[3]}.json"
    command = [sys.executable, "-m", "thermokron.host.cli", "synth", *options, "--json", str(path)]
    print("thermokron synth", *options, flush=True)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return Synthesis.from_json(path.read_text(encoding="utf-8"))


def tables(reports: list[Synthesis]) -> str:
    """Area and clock by size, the path that limits each, and what measured it."""
    resources = [name for name in HEADS if name in reports[0].resources]
    routed = reports[0].fmax_mhz is not None
    head = ["cells", "lanes", *(HEADS[name] for name in resources), "memory bits"]
    rows = []
    for r in reports:
        counts = (f"{r.resources[name]:,}" for name in resources)
        row = [f"{r.spec.cells}", f"{r.spec.lanes}", *counts, f"{r.memory_bits:,}"]
        rows.append([*row, f"{r.fmax_mhz:.0f}"] if routed else row)
    text = f"{reports[0].device}\n\n{markdown([*head, 'MHz'] if routed else head, rows)}"
    for r in reports:
        if path := r.critical_path:
            text += (
                f"\nAt {r.spec.cells} cells from `{path.start}` to `{path.end}`, "
                f"{path.logic_ns:.1f} ns in cells and {path.routing_ns:.1f} ns between them.\n"
            )
    tools = ", ".join(f"{tool} {version}" for tool, version in reports[0].versions.items())
    return f"{text}\n{tools}; seed {reports[0].seed}.\n"


def main() -> None:
    """Measure, and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reports", type=Path, default=ROOT / "build" / "synthesis")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES))
    args = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    for mark in args.only:
        text = tables([measured(args.reports, mark, options) for options in TABLES[mark]])
        begin, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
        found = re.search(f"{re.escape(begin)}.*?{re.escape(end)}", page, re.DOTALL)
        assert found is not None, f"docs/synthesis.md has no mark {mark}"
        page = f"{page[: found.start()]}{begin}{text}{end}{page[found.end() :]}"
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
