"""Jobs to measure with."""

from __future__ import annotations

import numpy as np

from thermokron.model import Job, UnitSpec

__all__ = ["moments", "solves"]


def moments(spec: UnitSpec, seed: int, samples: int = 1000) -> Job:
    """A well-conditioned matrix, sampled with second moments at the shortest interval."""
    return Job(
        couplings=_couplings(spec, seed),
        biases=np.zeros((1, spec.cells), np.int64),
        temperature=spec.temperature_max // 4,
        settle_cycles=50,
        interval_cycles=spec.shortest_interval(),
        samples=samples,
    )


def solves(spec: UnitSpec, seed: int) -> Job:
    """64 bias vectors with one reading each, as K-FAC asks for them."""
    generator = np.random.default_rng(seed)
    return Job(
        couplings=_couplings(spec, seed),
        biases=spec.bias_codes(generator.uniform(-0.1, 0.1, (64, spec.cells))),
        temperature=1,
        settle_cycles=20,
        interval_cycles=spec.shortest_interval(False),
        samples=1,
        second_moments=False,
    )


def _couplings(spec: UnitSpec, seed: int) -> np.ndarray:
    factors = np.random.default_rng(seed).standard_normal((spec.cells, 2 * spec.cells))
    matrix = factors @ factors.T / (2 * spec.cells)
    scale = 1.01 * np.sqrt(np.diag(matrix))
    return spec.coupling_codes(matrix / scale[:, None] / scale)
