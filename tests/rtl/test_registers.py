"""The register file under cocotb, on both simulators; the traffic is in its bench."""

from __future__ import annotations

import functools

import pytest

from thermokron.model import UnitSpec
from thermokron.rtl import generate_verilog
from thermokron.rtl.registers import RegisterFile
from thermokron.sim import run_bench

SPECS = {
    "2 cells": UnitSpec(cells=2, rhs_depth=1),
    "15 cells, 5 lanes": UnitSpec(cells=15, lanes=5, rhs_depth=5, clock_hz=123.4e6, tau_s=1e-9),
    "256 cells": UnitSpec(cells=256, lanes=2, rhs_depth=256),
}
TESTS = {"every_field", "random_traffic", "both_directions_at_once", "reset_in_mid_flight",
         "handshakes", "writes_of_no_byte", "codes_without_a_state"}  # fmt: skip


@functools.cache
def _verilog(spec: UnitSpec) -> str:
    return generate_verilog(RegisterFile(spec))


@pytest.mark.parametrize("name", SPECS)
def test_bench(name: str, simulator: str) -> None:
    spec = SPECS[name]
    result = run_bench(
        "thermokron.sim.benches.bench_registers",
        _verilog(spec),
        "register_file",
        simulator,
        parameters={"spec": spec.to_json(), "seed": 1, "operations": 300},
    )
    assert set(result.tests) == TESTS
