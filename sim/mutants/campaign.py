"""Draws mutants, judges each on the benches, and says which of them nothing noticed."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from math import ceil
from pathlib import Path

import thermokron.model
import thermokron.rtl
import thermokron.sim
from thermokron.sim.builders import BuildFailure
from thermokron.sim.mutants.argued import ARGUED
from thermokron.sim.mutants.designs import LAST, STAGES, design
from thermokron.sim.mutants.equivalence import equivalent
from thermokron.sim.mutants.mutations import Mutant, mutants_of
from thermokron.sim.runner import BenchFailure, BenchOverdue
from thermokron.sim.scratch import Scratch

__all__ = ["Judge", "Outcome", "Verdict", "draw", "judge_all", "killed_share"]

RTL = Path(str(thermokron.rtl.__file__)).parent
#: A bench that takes longer than so many times what it takes on the RTL as it is has hung.
SLOWER, SPARE_S = 5.0, 5.0


class Outcome(StrEnum):
    """What became of a mutant."""

    KILLED = "killed"
    SURVIVED = "survived"
    EQUIVALENT = "equivalent"
    ARGUED = "argued"  # equivalent, by an argument
    NO_DESIGN = "no design"  # the generator refuses it


@dataclass(frozen=True)
class Verdict:
    """A mutant's outcome, what told it, and how many seconds that took."""

    mutant: Mutant
    outcome: Outcome
    by: str
    seconds: float


def draw(modules: Sequence[str], count: int, seed: int) -> list[Mutant]:
    """Mutants of modules, from each module its share of `count`, rounded up.

    Raises
    ------
    ValueError
        If a module is not one of `STAGES`, or `count` is not positive.
    """
    if count < 1:
        raise ValueError(f"count = {count} is out of range; legal: 1 and more")
    if unknown := [name for name in modules if name not in STAGES]:
        raise ValueError(f"module = {unknown[0]!r} is unknown; legal: {', '.join(STAGES)}")
    found = {name: mutants_of(name, _source(name)) for name in modules}
    total = sum(len(mutants) for mutants in found.values())
    drawn = []
    for name, mutants in found.items():
        share = ceil(min(count, total) * len(mutants) / total)
        # a module's draw does not depend on which others are judged with it
        rng = random.Random(f"{seed} {name}")
        drawn += rng.sample(mutants, share)
    return drawn


def _source(module: str) -> str:
    return (RTL / f"{module}.py").read_text(encoding="utf-8")


def killed_share(verdicts: Iterable[Verdict]) -> float:
    """Killed mutants per mutant that could be; 1 if there are none."""
    outcomes = [verdict.outcome for verdict in verdicts]
    killed, survived = outcomes.count(Outcome.KILLED), outcomes.count(Outcome.SURVIVED)
    return killed / (killed + survived) if killed + survived else 1.0


class Judge:
    """Judges mutants; what the RTL as it is gives is made when the judge is.

    Parameters
    ----------
    modules : sequence of str
        Whose mutants will come.
    timeout_s : float
        Wall time of one simulation at most.
    proof_s : float
        Wall time of one equivalence check at most.
    blocks_only : bool
        The unit's bench is not run: what survives the block's has survived.
    folder : Path
        For files that do not stay.

    Raises
    ------
    BenchFailure
        If a bench fails on the RTL as it is.
    ValueError
        If there are blocks only, and a module without a bench of its own.
    """

    def __init__(
        self,
        modules: Sequence[str],
        *,
        timeout_s: float,
        proof_s: float,
        blocks_only: bool,
        folder: Path,
    ) -> None:
        if blocks_only and (bare := [module for module in modules if not STAGES[module]]):
            raise ValueError(f"module = {bare[0]!r} has no bench but the unit's, which is left out")
        self._proof_s, self._blocks_only, self._folder = proof_s, blocks_only, folder
        self._sources = {module: _source(module) for module in modules}
        names = [name for module in modules for name in STAGES[module]]
        if not blocks_only:
            names.append(LAST)
        self._reference: dict[str, str] = {}
        self._limit: dict[str, float] = {}
        for name in dict.fromkeys(names):
            self._reference[name] = design(name).verilog()
            begin = time.perf_counter()
            design(name).run(self._reference[name], timeout_s)
            taken = time.perf_counter() - begin
            self._limit[name] = min(timeout_s, SLOWER * taken + SPARE_S)

    def judge(self, mutant: Mutant) -> Verdict:
        """What becomes of a mutant."""
        begin, source = time.perf_counter(), self._sources[mutant.module]
        try:
            with Scratch(self._folder, "mutant-") as scratch:
                _lay_out(scratch.folder, mutant, source)
                outcome, by = self._judge(mutant, scratch.folder)
                if outcome is Outcome.SURVIVED and mutant.change(source) in ARGUED:
                    outcome = Outcome.ARGUED
        except GenerationFailure as error:
            outcome, by = Outcome.NO_DESIGN, str(error)
        return Verdict(mutant, outcome, by, time.perf_counter() - begin)

    def _judge(self, mutant: Mutant, folder: Path) -> tuple[Outcome, str]:
        stages, different = STAGES[mutant.module], {}
        for name in stages:
            text = _generate(folder, name, self._limit[name])
            if text != self._reference[name]:
                different[name] = text
                if killer := self._killer(name, text):
                    return Outcome.KILLED, killer
        # a design of a few of the instances says nothing that the one of all does not
        different = {n: t for n, t in different.items() if not n.endswith("_few")}
        if different and self._equivalent(different):
            return Outcome.EQUIVALENT, "proof"
        if self._blocks_only:
            return (Outcome.SURVIVED, "") if different else (Outcome.EQUIVALENT, "text")
        text = _generate(folder, LAST, self._limit[LAST])
        if text == self._reference[LAST]:
            return (Outcome.SURVIVED, "") if different else (Outcome.EQUIVALENT, "text")
        if killer := self._killer(LAST, text):
            return Outcome.KILLED, killer
        if not different and self._equivalent({LAST: text}):
            return Outcome.EQUIVALENT, "proof"
        return Outcome.SURVIVED, ""

    def _killer(self, name: str, verilog: str) -> str | None:
        """The design's name if its bench fails, or takes too long, which is said."""
        try:
            design(name).run(verilog, self._limit[name])
        except BenchOverdue:
            return f"{name}, stopped for its time"
        except (BenchFailure, BuildFailure):
            return name
        return None

    def _equivalent(self, texts: Mapping[str, str]) -> bool:
        return all(
            equivalent(self._reference[name], text, design(name).top, self._proof_s)
            for name, text in texts.items()
        )


class GenerationFailure(RuntimeError):
    """The generator makes nothing of a mutant; the message is its last line."""


def _lay_out(folder: Path, mutant: Mutant, source: str) -> None:
    """A package `thermokron` whose RTL is a copy with the mutant in it."""
    package = folder / "thermokron"
    shutil.copytree(RTL, package / "rtl", ignore=shutil.ignore_patterns("__pycache__"))
    for face in (thermokron.model, thermokron.sim):
        whole = Path(str(face.__file__)).parent
        (package / face.__name__.rpartition(".")[2]).symlink_to(whole)
    (package / "rtl" / f"{mutant.module}.py").write_text(mutant.applied(source), encoding="utf-8")


def _generate(folder: Path, name: str, timeout_s: float) -> str:
    """The Verilog of a design from the package in a folder."""
    path = os.pathsep.join([str(folder), *(entry for entry in sys.path if entry)])
    try:
        done = subprocess.run(
            [sys.executable, "-m", "thermokron.sim.mutants.designs", name],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60.0 + timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise GenerationFailure("stopped for its time") from None
    if done.returncode:
        raise GenerationFailure((done.stderr.strip().splitlines() or ["no message"])[-1])
    said = json.loads(done.stdout)
    assert Path(said["rtl"]) == folder / "thermokron" / "rtl", said["rtl"]
    return str(said["verilog"])


def judge_all(
    judge: Judge, mutants: Sequence[Mutant], jobs: int, progress: Callable[[int, Verdict], None]
) -> list[Verdict]:
    """Judge mutants, some side by side; `progress` is told the number of each that is done."""
    verdicts = []
    with ThreadPoolExecutor(jobs) as pool:
        for number, verdict in enumerate(pool.map(judge.judge, mutants), 1):
            verdicts.append(verdict)
            progress(number, verdict)
    return verdicts
