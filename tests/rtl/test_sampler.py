"""The sampler under cocotb, on both simulators."""

from __future__ import annotations


def test_bench(bench):
    assert bench("sampler") == {"random_programs", "restart", "long_times", "reset_in_mid_flight"}
