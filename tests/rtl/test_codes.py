"""The coupling and bias stores and their loaders under cocotb, on both simulators."""

from __future__ import annotations


def test_bench(bench):
    assert bench("codes") == {"random_loads", "packets", "patience", "reset_in_mid_flight"}
