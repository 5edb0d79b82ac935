"""Building and running: the cache, failures, waveforms, what is missing."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from thermokron.model import UnitSpec
from thermokron.model.files import digest
from thermokron.sim import SIMULATORS, BenchFailure, BuildFailure, missing, run_bench
from thermokron.sim.builders import module_ports
from thermokron.sim.cache import cache_dir, cached
from thermokron.sim.simulators import build, clock_period

COUNTER = """
module counter(clk, rst, step, count);
  input clk;
  wire clk;
  input rst;
  input [3:0] step;
  output [15:0] count;
  reg [15:0] count = 0;
  reg [7:0] hidden = 0;
  always @(posedge clk) begin
    hidden <= hidden + 1;
    count <= rst ? 0 : count + {12'b0, step};
  end
endmodule
"""

BENCH = """
import os

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge
from thermokron.sim.runner import bench_parameters


async def start(dut):
    Clock(dut.clk, 1000, "ps").start()
    dut.rst.value = 1
    dut.step.value = bench_parameters()["step"]
    await RisingEdge(dut.clk)
    await RisingEdge(dut.clk)
    dut.rst.value = 0


@cocotb.test()
async def counts(dut):
    await start(dut)
    for _ in range(11):
        await RisingEdge(dut.clk)
    assert int(dut.count.value) == 10 * bench_parameters()["step"]


@cocotb.test()
async def sees_inside(dut):
    await start(dut)
    assert hasattr(dut, "hidden"), "no hidden register to be seen"


@cocotb.test(skip="never_ends" not in os.environ.get("COCOTB_TEST_FILTER", ""))
async def never_ends(dut):
    Clock(dut.clk, 1000, "ps").start()
    while True:
        await RisingEdge(dut.clk)
"""


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "counter_bench.py").write_text(BENCH)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "counter_bench"


@pytest.fixture(params=SIMULATORS)
def simulator(request: pytest.FixtureRequest) -> str:
    if reason := missing(request.param):
        pytest.skip(reason)
    name: str = request.param
    return name


def test_a_bench_runs_and_reads_its_parameters(bench: str, simulator: str) -> None:
    result = run_bench(bench, COUNTER, "counter", simulator, parameters={"step": 3})
    assert result.tests == ("counts", "sees_inside")
    assert "counts passed" in result.output
    assert result.log is None
    assert result.waveform is None


def test_a_failing_bench_raises_with_its_log(bench: str, simulator: str) -> None:
    with pytest.raises(BenchFailure, match=r"failed: counts") as caught:
        run_bench(bench, COUNTER, "counter", simulator, parameters={"step": 3.5}, tests="counts")
    assert "float" in str(caught.value)  # the log's tail has the reason
    with pytest.raises(BenchFailure, match="no test ran"):
        run_bench(bench, COUNTER, "counter", simulator, tests="nothing_of_the_kind")


def test_a_bench_that_does_not_end_is_stopped(bench: str, simulator: str) -> None:
    with pytest.raises(BenchFailure, match=r"stopped after 2 s"):
        run_bench(bench, COUNTER, "counter", simulator, tests="never_ends", timeout_s=2)


def test_a_waveform_is_where_it_is_said_to_be(bench: str, tmp_path: Path) -> None:
    if reason := missing("icarus"):
        pytest.skip(reason)
    for waves, magic in (("vcd", b"$date"), ("fst", b"\x00")):
        result = run_bench(
            bench, COUNTER, "counter", "icarus",
            parameters={"step": 1}, waves=waves, folder=tmp_path / waves,
        )  # fmt: skip
        assert result.waveform == tmp_path / waves / f"counter.{waves}"
        assert result.waveform.read_bytes().startswith(magic)
        assert result.log is not None
        assert "counts passed" in result.log.read_text()


def test_verilog_that_is_none_is_a_build_failure_and_leaves_nothing(simulator: str) -> None:
    def entries() -> set[Path]:
        return set((cache_dir() / "builds").glob("broken-*"))

    before = entries()
    with pytest.raises(BuildFailure, match="syntax error"):
        build("module broken(; endmodule", "broken", simulator)
    assert entries() == before


def test_a_build_is_made_once(simulator: str) -> None:
    first = build(COUNTER, "counter", simulator)
    begin = time.perf_counter()
    assert build(COUNTER, "counter", simulator) == first
    assert time.perf_counter() - begin < 1
    assert build(COUNTER + "// another", "counter", simulator).folder != first.folder


FILL_SLOWLY = """
import sys, time
from thermokron.sim.cache import cached

def fill(folder):
    with open(sys.argv[1], "a") as stream:
        stream.write("filled\\n")
    (folder / "half").write_text("1")
    time.sleep(0.5)
    (folder / "whole").write_text("2")

assert (cached("test", "x", fill) / "whole").read_text() == "2"
"""


def test_processes_that_want_the_same_entry_wait_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THERMOKRON_CACHE", str(tmp_path / "cache"))
    marks = tmp_path / "marks"
    command = [sys.executable, "-c", FILL_SLOWLY, str(marks)]
    processes = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert marks.read_text() == "filled\n"


def test_a_failure_leaves_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THERMOKRON_CACHE", str(tmp_path / "cache"))

    def fail(folder: Path) -> None:
        (folder / "half").write_text("1")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        cached("test", "x", fail)
    assert list((tmp_path / "cache" / "test").iterdir()) == []
    assert digest("a", 1) != digest("a", 2)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "iverilog and vvp" in (missing("icarus") or "")
    assert "Verilator needs g++, make" in (missing("verilator") or "")
    with pytest.raises(ValueError, match="legal: icarus, verilator"):
        missing("vcs")
    with pytest.raises(ModuleNotFoundError, match="iverilog and vvp"):
        build(COUNTER, "counter", "icarus")


def test_ports_are_read_from_verilog() -> None:
    assert module_ports(COUNTER, "counter") == [
        ("input", "", "clk"),
        ("input", "", "rst"),
        ("input", "[3:0]", "step"),
        ("output", "[15:0]", "count"),
    ]
    with pytest.raises(BuildFailure, match="no module other"):
        module_ports(COUNTER, "other")


@pytest.mark.parametrize(("clock_hz", "period"), [(25e6, 40_000), (333e6, 3004), (1e10, 100)])
def test_the_period_is_even_and_near(clock_hz: float, period: int) -> None:
    assert clock_period(UnitSpec(clock_hz=clock_hz)) == period
