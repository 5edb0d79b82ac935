"""Outcomes as text for a terminal, and what is proved as a table for the docs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from thermokron.rtl.formal.proof import Proof
from thermokron.rtl.formal.prove import Outcome, Report

__all__ = ["lines", "statement"]


def lines(report: Report) -> Iterator[str]:
    """A line for the proof, one for each property, and more where something is wrong."""
    proof = report.proof
    expected = f"{report.seconds:.1f} s, some {proof.seconds:g} expected"
    yield f"{proof.name}: {proof.about} ({expected})"
    for outcome in report.outcomes:
        if outcome.good and not outcome.mortal:
            continue
        yield f"  {outcome.name:<44} {outcome.how:<20} {outcome.result:<7} {_found(outcome)}"
        if outcome.detail:
            yield f"      {outcome.detail}"
        for mistake, step in outcome.copies.items():
            if step is None:
                yield f"      does not see that {mistake}"
    for name in report.unreached:
        yield f"  {name:<44} cannot be reached in {proof.cycles} cycles"


def _found(outcome: Outcome) -> str:
    if not outcome.mortal:
        return "an invariant of the proof"
    if not outcome.copies:
        return "DEAD: no broken copy"
    if outcome.dead:
        return "DEAD"
    steps = sorted(step for step in outcome.copies.values() if step is not None)
    return "broken copy found" + (f" in cycle {steps[0]}" if steps[0] else "")


def statement(proofs: Sequence[Proof]) -> str:
    """A table in Markdown: proof, property, how far it is proved, what its broken copies do."""
    rows = ["| proof | property | proved | found in broken copies |", "|---|---|---|---|"]
    for proof in proofs:
        harness = proof.build()
        for name in harness.properties:
            if name in harness.paths:
                how = "for ever, by structure"
            elif proof.mode == "induction":
                how = f"for ever, induction of depth {proof.depth}"
            else:
                how = f"for {proof.depth} cycles"
            mistakes = "; ".join(c.mistake for c in proof.copies if name in c.breaks)
            rows.append(f"| {proof.name} | {name.replace('_', ' ')} | {how} | {mistakes} |")
    return "\n".join(rows)
