"""Runs a bench of `thermokron.sim.benches` by name, on each simulator that is installed."""

from __future__ import annotations

import pytest

from thermokron.sim.benches.catalogue import run_block_bench
from thermokron.sim.simulators import SIMULATORS, missing


@pytest.fixture(params=SIMULATORS)
def simulator(request) -> str:
    if reason := missing(request.param):
        pytest.skip(reason)
    return request.param


@pytest.fixture
def bench(simulator):
    """A function that runs a bench and returns the names of its tests; all of them passed."""

    def run(name: str) -> set[str]:
        result = run_block_bench(name, simulator)
        print(result.output)  # pytest shows it, seeds included, if something fails
        return set(result.tests)

    return run
