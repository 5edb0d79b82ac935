"""The converter port under cocotb, on both simulators, with an ADC that keeps no time."""

from __future__ import annotations


def test_bench(bench):
    assert bench("converter") == {
        "random_conversions",
        "exact_cycles",
        "next_trigger_due",
        "every_sample_once",
        "registered_drdy",
        "reset_in_mid_flight",
    }
