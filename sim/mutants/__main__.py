"""The command: `python -m thermokron.sim.mutants`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from thermokron.model.files import write_whole
from thermokron.sim.mutants.campaign import (
    Judge,
    Outcome,
    Verdict,
    draw,
    judge_all,
    killed_share,
)
from thermokron.sim.mutants.designs import STAGES
from thermokron.sim.runner import BenchFailure
from thermokron.sim.scratch import Scratch
from thermokron.sim.simulators import SimulatorMissing
from thermokron.sim.synthesis.tools import ToolMissing, require

#: The share of mutants that the benches have to kill, of those that are no equivalents.
WANTED = 0.98


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m thermokron.sim.mutants",
        description="Change the RTL in one place at a time, and see whether the benches notice. "
        f"Exit status 1 if less than {WANTED:.0%} of what is no equivalent is killed.",
    )
    add = parser.add_argument
    add("--modules", help="modules of the RTL, with commas (default: all)")
    add("--count", type=int, default=300, help="how many mutants, about (default: 300)")
    add("--seed", type=int, default=1, help="of the draw (default: 1)")
    add("--jobs", type=int, default=2, help="mutants judged side by side (default: 2)")
    add("--timeout", type=float, default=300.0, help="seconds of one simulation (default: 300)")
    add("--proof", type=float, default=90.0, help="seconds of one equivalence check (default: 90)")
    add("--blocks-only", action="store_true", help="leave out the unit's bench")
    add("-o", "--output", type=Path, default=Path("build/mutants.json"), help="the results")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    options = _parser().parse_args(arguments)
    modules = [name for name in STAGES if STAGES[name] or not options.blocks_only]
    if options.modules:
        modules = [name.strip() for name in options.modules.split(",")]
    begin = time.perf_counter()
    with Scratch() as scratch:
        # thousands of designs that nobody will ask for again
        os.environ["THERMOKRON_CACHE"] = str(scratch.folder / "cache")
        try:
            require("generic")  # without Yosys every equivalent would seem to survive
            mutants = draw(modules, options.count, options.seed)
            judge = Judge(
                modules,
                timeout_s=options.timeout,
                proof_s=options.proof,
                blocks_only=options.blocks_only,
                folder=scratch.folder,
            )
        except (ValueError, BenchFailure, SimulatorMissing, ToolMissing) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

        def progress(number: int, verdict: Verdict) -> None:
            by = f" by {verdict.by}" if verdict.by else ""
            print(
                f"[{number}/{len(mutants)}] {verdict.outcome}{by}: {verdict.mutant} "
                f"({verdict.seconds:.1f} s)",
                flush=True,
            )

        verdicts = judge_all(judge, mutants, options.jobs, progress)
    share = killed_share(verdicts)
    _report(verdicts, share)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "modules": modules,
        "seed": options.seed,
        "blocks_only": options.blocks_only,
        "seconds": round(time.perf_counter() - begin, 1),
        "outcomes": Counter(verdict.outcome for verdict in verdicts),
        "killed_share": share,
        "mutants": [_entry(verdict) for verdict in verdicts],
    }
    write_whole(options.output, json.dumps(content, indent=1) + "\n")
    return 0 if share >= WANTED else 1


def _entry(verdict: Verdict) -> dict[str, object]:
    mutant = asdict(verdict.mutant)
    about = {name: mutant[name] for name in ("module", "line", "kind", "before", "after")}
    told = {"outcome": verdict.outcome, "by": verdict.by, "seconds": round(verdict.seconds, 2)}
    return about | told


def _report(verdicts: Sequence[Verdict], share: float) -> None:
    """Counts by module, and what survived."""
    columns = list(Outcome)
    print(f"\n{'module':<14}" + "".join(f"{column:>12}" for column in columns))
    for name in [*dict.fromkeys(verdict.mutant.module for verdict in verdicts), "all"]:
        counts = Counter(v.outcome for v in verdicts if name in (v.mutant.module, "all"))
        print(f"{name:<14}" + "".join(f"{counts[column]:>12}" for column in columns))
    survivors = [verdict.mutant for verdict in verdicts if verdict.outcome is Outcome.SURVIVED]
    if survivors:
        print("\nsurvivors:")
        for mutant in survivors:
            print(f"  {mutant}")
    print(f"\nkilled: {share:.1%} of what is no equivalent; wanted: {WANTED:.0%}")


if __name__ == "__main__":
    sys.exit(main())
