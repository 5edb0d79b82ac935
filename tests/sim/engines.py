"""Units whose RTL runs, for tests that are the same whatever runs it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from thermokron.host import CompiledUnit, CosimUnit, open_unit
from thermokron.model import UnitSpec
from thermokron.sim import missing

Unit = CompiledUnit | CosimUnit


def running(spec: UnitSpec, how: str, *, seed: int) -> Iterator[Unit]:
    """A unit whose RTL is "compiled", or in the simulator of that name; a fixture's."""
    if how == "compiled":
        made = open_unit("compiled", spec, seed=seed)
    elif reason := missing(how):
        pytest.skip(reason)
    else:
        made = open_unit("cosim", spec, seed=seed, simulator=how)
    assert isinstance(made, Unit)
    with made:
        yield made
