"""The sequencer under cocotb, on both simulators."""

from __future__ import annotations


def test_bench(bench):
    assert bench("sequencer") == {
        "legality",
        "random_runs",
        "fault_in_every_cycle",
        "reset_in_mid_flight",
    }
