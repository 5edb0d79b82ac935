"""The whole unit under cocotb, on both simulators, driven by an AXI master nobody here wrote."""

from __future__ import annotations


def test_bench(bench):
    assert bench("unit") == {
        "random_runs",
        "registered_drdy",
        "results_that_wait",
        "refused_starts",
        "faults",
        "interrupts",
        "reset_in_mid_flight",
    }
