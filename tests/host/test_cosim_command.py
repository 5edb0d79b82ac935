"""`thermokron cosim` as its user meets it."""

from __future__ import annotations

from pathlib import Path

import pytest

from thermokron.host.cli import main
from thermokron.sim import SIMULATORS, BenchFailure, missing


def test_list_names_every_bench(capsys: pytest.CaptureFixture[str]) -> None:
    # the simulator's option is spelt as everywhere else too
    assert main(["cosim", "--simulator", "icarus", "--list"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"array", "registers", "unit", "sampler", "moments", "converter"} <= set(names)


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_a_bench_says_how_it_ended_and_where_its_files_are(
    simulator: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if reason := missing(simulator):
        pytest.skip(reason)
    monkeypatch.chdir(tmp_path)
    # the design of tests/sim/test_simulation.py, so that one build serves both
    size = ["--cells", "3", "--lanes", "1", "--adc-timeout-cycles", "30"]
    assert main(["cosim", "--sim", simulator, "--bench", "array", "--waves", *size]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("array: 2 jobs give the numeric engine's integers")
    assert lines[-1] == f"1 of 1 benches passed on {simulator}"
    written = [Path(line.strip()) for line in lines[1:-1]]
    assert written == [
        Path(f"build/cosim/array-{simulator}/unit.{e}") for e in ("log", "vcd", "gtkw")
    ]
    assert all(path.stat().st_size for path in written)


def test_a_failure_is_shown_with_its_log_and_in_the_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if reason := missing("icarus"):
        pytest.skip(reason)

    def fail(*_: object, **__: object) -> None:
        raise BenchFailure("sampler on icarus: failed: grid; log: somewhere")

    monkeypatch.setattr("thermokron.sim.benches.catalogue.run_block_bench", fail)
    assert main(["cosim", "--sim", "icarus", "--bench", "sampler", "-o", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "sampler: FAILED\nsampler on icarus: failed: grid; log: somewhere" in out
    assert "1 of 1 benches failed: sampler" in out


def test_an_unknown_bench_is_answered_with_the_known_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["cosim", "--bench", "samples"]) == 2
    assert "'samples' is unknown; legal: array, registers" in capsys.readouterr().err


def test_a_missing_simulator_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["cosim", "--sim", "icarus", "--bench", "array"]) == 2
    assert "Icarus Verilog is not installed" in capsys.readouterr().err
