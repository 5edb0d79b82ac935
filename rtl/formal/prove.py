"""Prove: translate, ask the solver, and have every property find its broken copy."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from thermokron.rtl.formal.copies import broken
from thermokron.rtl.formal.harness import Harness
from thermokron.rtl.formal.proof import Proof
from thermokron.rtl.formal.solver import Design, Verdict, solve, translate

__all__ = ["Outcome", "Report", "prove"]


@dataclass
class Outcome:
    """What became of one property.

    Parameters
    ----------
    name : str
        The property.
    how : str
        What it was proved by: "induction, depth 2", "48 cycles", "structure".
    result : str
        "proved", "holds" within a bound, or "fails".
    mortal : bool
        A broken copy has to be found by it; an invariant, which others rest on, need not.
    detail : str
        Where it fails, and the waveform that shows it.
    copies : dict of str to int or None
        For each broken copy that it has to find the cycle in which it fails, None if it does not
        or not within the cycles looked at: then the property is dead.
    """

    name: str
    how: str
    result: str
    mortal: bool
    detail: str = ""
    copies: dict[str, int | None] = field(default_factory=dict)

    @property
    def dead(self) -> bool:
        """Whether the property did not see what it should have: proved, but of nothing."""
        return self.mortal and (not self.copies or None in self.copies.values())

    @property
    def good(self) -> bool:
        """Proved, and worth something."""
        return self.result != "fails" and not self.dead


@dataclass
class Report:
    """What became of a proof: an outcome per property, and the covers that are not reached."""

    proof: Proof
    outcomes: list[Outcome]
    unreached: list[str]
    seconds: float

    @property
    def good(self) -> bool:
        """Whether all is proved and reached that should be."""
        return not self.unreached and all(outcome.good for outcome in self.outcomes)


def prove(proof: Proof, root: Path) -> Report:
    """Prove the properties of a block, and that each can fail.

    Parameters
    ----------
    proof : Proof
        What to prove.
    root : Path
        Folder in which a folder of the proof's name gets all files, waveforms of violations too.

    Raises
    ------
    ValueError
        If a broken copy's text is not in the design any more, or it names an unknown property.
    RuntimeError
        If Yosys or the solver fails.
    """
    began = time.monotonic()
    folder = root / proof.name
    harness = proof.build()
    designs = [Design(proof.name, harness.rtlil(), harness.paths)]
    for number, copy in enumerate(proof.copies):
        if unknown := set(copy.breaks) - set(harness.properties):
            raise ValueError(f"broken copy {copy.mistake!r} of {proof.name}: no {sorted(unknown)}")
        with broken(copy):
            twin = proof.build()
            text = twin.rtlil()
        for name in copy.breaks:
            paths = {name: harness.paths[name]} if name in harness.paths else {}
            designs.append(Design(f"copy{number}.{name}", text, paths, alone=name))
    inputs = translate(designs, folder)

    names = [*harness.properties, *harness.invariants]
    outcomes = {name: _outcome(proof, harness, name) for name in names}
    for name in harness.paths:
        if reaching := inputs[proof.name, name]:
            outcomes[name].result = "fails"
            outcomes[name].detail = f"reached by {', '.join(reaching)}"
    for verdict in _verdicts(proof, folder):
        for name in verdict.failed:
            where = f"in cycle {verdict.step}; waveform: {verdict.trace}"
            outcomes[name].result, outcomes[name].detail = "fails", where
    unreached: list[str] = []
    if harness.covers:
        unreached += solve(proof.name, folder, "cover", proof.cycles).failed
    for number, copy in enumerate(proof.copies):
        for name in copy.breaks:
            design = f"copy{number}.{name}"
            if name in harness.paths:
                found = 0 if inputs[design, name] else None
            else:
                verdict = solve(design, folder, "bounded", proof.cycles)
                found = None if verdict.holds else verdict.step
            outcomes[name].copies[copy.mistake] = found
    return Report(proof, list(outcomes.values()), unreached, time.monotonic() - began)


def _outcome(proof: Proof, harness: Harness, name: str) -> Outcome:
    mortal = name in harness.properties
    if name in harness.paths:
        return Outcome(name, "structure", "proved", mortal)
    if proof.mode == "induction":
        return Outcome(name, f"induction, depth {proof.depth}", "proved", mortal)
    return Outcome(name, f"{proof.depth} cycles", "holds", mortal)


def _verdicts(proof: Proof, folder: Path) -> list[Verdict]:
    """Of the properties together; the step of an induction only where its base stands."""
    bounded = solve(proof.name, folder, "bounded", proof.depth + (proof.mode == "induction"))
    if not bounded.holds or proof.mode == "bounded":
        return [bounded]
    return [bounded, solve(proof.name, folder, "induction", proof.depth)]
