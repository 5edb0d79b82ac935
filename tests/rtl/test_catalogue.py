"""The list of benches, and what it refuses."""

from __future__ import annotations

import pytest

from thermokron.sim.benches.catalogue import BENCHES, run_block_bench


def test_refuses_a_bench_that_is_not_there():
    with pytest.raises(ValueError, match=r"bench = 'no' is unknown; legal: codes, sampler"):
        run_block_bench("no", "icarus")


def test_every_divisor_of_small_arrays_is_an_accumulator():
    specs = {spec for _, spec in BENCHES["moments"].instances.values()}
    for n in (2, 3, 4, 5, 6, 8, 12):
        lanes = {spec.lanes for spec in specs if spec.cells == n}
        assert lanes == {d for d in range(1, n + 1) if n % d == 0}
    # the shortest samples of all: of two and three cycles, and of one without second moments
    assert {2, 3} <= {spec.accumulate_cycles() for spec in specs}
    assert 1 in {spec.accumulate_cycles(False) for spec in specs}
