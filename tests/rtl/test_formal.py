"""What takes seconds to prove is proved, and every property finds its broken copy.

`make formal` does the same, in CI too; here it is for `make test-slow`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from thermokron.model import UnitSpec
from thermokron.rtl import sampler
from thermokron.rtl.formal.__main__ import main
from thermokron.rtl.formal.copies import Broken, broken
from thermokron.rtl.formal.harness import Harness
from thermokron.rtl.formal.proof import Proof
from thermokron.rtl.formal.proofs import PROOFS
from thermokron.rtl.formal.prove import prove
from thermokron.rtl.formal.solver import missing
from thermokron.rtl.formal.table import lines, statement
from thermokron.rtl.sampler import Sampler

solver = pytest.mark.skipif(missing() is not None, reason=str(missing()))
DOCS = Path(__file__).parents[2] / "docs"
LATE = Broken("late", "sampler", "left.eq(self.settle - 1)", "left.eq(self.settle)", ("in_time",))


@solver
@pytest.mark.slow
@pytest.mark.parametrize("proof", [p for p in PROOFS if not p.long], ids=lambda p: p.name)
def test_proved(proof: Proof, tmp_path: Path) -> None:
    report = prove(proof, tmp_path)
    assert report.good, "\n".join(lines(report))


@pytest.mark.parametrize("proof", PROOFS, ids=lambda p: p.name)
def test_every_property_has_a_broken_copy(proof: Proof) -> None:
    """Of proofs too that take too long to be done here; and every copy can still be made."""
    harness = proof.build()
    text = harness.rtlil()
    seen = {name for copy in proof.copies for name in copy.breaks}
    assert seen == set(harness.properties)
    for copy in proof.copies:
        with broken(copy):
            assert proof.build().rtlil() != text


def test_names_of_proofs_differ() -> None:
    assert set(Counter(proof.name for proof in PROOFS).values()) == {1}


def test_docs_have_the_table() -> None:
    assert statement(PROOFS) in (DOCS / "formal.md").read_text()


def _early() -> Harness:
    """A claim about the sampler that is true until its second trigger."""
    h = Harness(Sampler(UnitSpec(cells=2)))
    h.assume((h.dut.settle == 2) & (h.dut.interval == 3) & (h.dut.samples == 2))
    h.holds("in_time", ~h.dut.trigger | (h.dut.sampled == 0))
    h.reached("a_trigger", h.dut.trigger)
    h.reached("nothing", h.dut.trigger & ~h.dut.running)
    return h


@solver
def test_what_is_wrong_is_reported(tmp_path: Path) -> None:
    proof = Proof("early", "a sampler", _early, "bounded", 12, 1, (LATE,), cycles=4)
    report = prove(proof, tmp_path)
    (outcome,) = report.outcomes
    assert (outcome.result, outcome.dead, report.good) == ("fails", True, False)
    assert report.unreached == ["nothing"]
    assert (tmp_path / "early" / "early.bounded.vcd").read_text().startswith("$")
    text = "\n".join(lines(report))
    assert "early.bounded.vcd" in text
    assert "does not see" in text
    assert "cannot be reached" in text


def test_a_copy_is_broken_only_for_a_while() -> None:
    before = sampler.Sampler
    with broken(LATE):
        assert sampler.Sampler is not before
    assert sampler.Sampler is before
    assert Sampler is before


def test_a_copy_of_another_design_is_refused() -> None:
    with (
        pytest.raises(ValueError, match=r"'x'.*stands 0 times in sampler\.py"),
        broken(Broken("x", "sampler", "no such text", "", ())),
    ):
        pass


def test_inside_names_what_is_there() -> None:
    h = Harness(Sampler(UnitSpec(cells=2)))
    assert h.inside("left").shape().width == 32
    with pytest.raises(LookupError, match="0 signals 'right'"):
        h.inside("right")
    with pytest.raises(LookupError, match="no 'converter'"):
        h.inside("converter.elapsed")
    with pytest.raises(LookupError):
        h.word("left", 0)


@solver
def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sampler", "-o", str(tmp_path)]) == 0
    assert "trigger_exactly_on_the_grid" in capsys.readouterr().out
    assert main(["--list"]) == 0
    assert capsys.readouterr().out.strip() == statement(PROOFS)
    with pytest.raises(SystemExit):
        main(["no_such_proof"])
    assert "no proof is called ['no_such_proof']" in capsys.readouterr().err
