"""The moment accumulator under cocotb; 2^20 samples at the extreme only on Verilator."""

from __future__ import annotations


def test_bench(bench, simulator):
    extreme = {"extreme_sums"} if simulator == "verilator" else set()
    random = {"random_samples", "windows_are_locked", "reset_in_mid_flight"}
    assert bench("moments") == random | extreme
