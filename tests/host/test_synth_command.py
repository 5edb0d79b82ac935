"""`thermokron synth` as its user meets it."""

from __future__ import annotations

from pathlib import Path

import pytest

from thermokron.host.cli import main
from thermokron.host.cli.commands.synth import LABELS, TARGET_NAMES
from thermokron.sim.synthesis import TARGETS, Synthesis, UnitTooBig, missing
from thermokron.sim.synthesis.targets import RESOURCES

# the design of tests/sim/test_synthesis.py, so that one result serves both
SIZE = [
    *("--cells", "2", "--lanes", "1", "--coupling-bits", "4", "--bias-bits", "4"),
    *("--adc-bits", "4", "--rhs-depth", "1"),
]


def test_the_command_knows_every_target_and_resource() -> None:
    assert list(TARGETS) == list(TARGET_NAMES)
    assert set(LABELS) == set(RESOURCES)


@pytest.mark.slow
def test_a_unit_on_a_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if reason := missing("ice40"):
        pytest.skip(reason)
    report, folder = tmp_path / "report.json", tmp_path / "out"
    files = ["--json", str(report), "-o", str(folder)]
    assert main(["synth", "--target", "ice40", *SIZE, *files]) == 0
    out = capsys.readouterr().out
    found = Synthesis.from_json(report.read_text())
    assert (found.target, found.name) == ("ice40", "thermokron_unit")
    assert found.fingerprint in out
    assert f"{found.resources['luts']:,}" in out
    assert f"{found.fmax_mhz:.1f}" in out
    assert found.critical_path is not None
    assert found.critical_path.end in out
    verdict = "reaches" if found.fmax_mhz * 1e6 >= found.spec.clock_hz else "MISSES"
    assert f"It {verdict} the 25 MHz" in out
    assert (folder / "synthesis.json").read_text() == report.read_text()
    assert (folder / "unit.v").read_text().count("\nmodule thermokron_unit(") == 1
    assert str(report) in out
    assert str(folder) in out


def test_a_unit_too_big_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if reason := missing("ice40"):
        pytest.skip(reason)
    monkeypatch.setenv("THERMOKRON_CACHE", str(tmp_path))
    stat = '{"design": {"num_cells_by_type": {}, "num_memory_bits": 0}}'

    def run_tool(package: str, arguments: object, folder: Path, *_: object) -> None:
        if "nextpnr" in package:
            raise UnitTooBig("9000 of 7680 ICESTORM_LC")
        for name in ("cells.json", "memories.json"):
            (folder / name).write_text(stat)
        (folder / "netlist.json").write_text('{"modules": {}}')

    monkeypatch.setattr("thermokron.sim.synthesis.flow.run_tool", run_tool)
    assert main(["synth", "--target", "ice40", *SIZE]) == 2
    error = capsys.readouterr().err
    assert (
        "thermokron: error: cells = 2 with lanes = 1 is too big for Lattice iCE40HX8K, CT256: "
        "9000 of 7680 ICESTORM_LC; take fewer cells" in error
    )
    assert not list((tmp_path / "synthesis").iterdir()), "a failure is no result"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json", "/dev/null/report.json"], "/dev/null"),
        (["-o", "/dev/null/folder"], "/dev/null"),
        (["--name", "module"], "name = 'module' is a keyword"),
        (["--cells", "300"], "cells = 300 is out of range for the control plane"),
        (["--seed", "-1"], "seed = -1 is out of range"),
    ],
)
def test_mistakes_are_told_before_the_work(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if reason := missing("generic"):
        pytest.skip(reason)
    assert main(["synth", "--target", "generic", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("thermokron: error: ") == 1


def test_an_unknown_target_is_answered_with_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["synth", "--target", "asic"])
    assert stop.value.code == 2
    assert "ecp5" in capsys.readouterr().err
