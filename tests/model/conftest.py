"""Couplings of known spectrum, and bounds that a chance event passes with a stated rate."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from thermokron.model import UnitSpec


class Chance:
    """Bounds for statistics; `rate` is the chance that a correct model fails one check.

    All seeds are fixed, so a test that passes goes on passing: the rate is that of a change of
    seed, or of a change in the order of the draws.
    """

    rate = 1e-5

    @property
    def sigmas(self) -> float:
        """Two-sided bound of a normal score at `rate`."""
        return 4.42

    def upper(self, weights: NDArray[np.float64]) -> float:
        """A bound on Σ w_i g_i², g standard normal, exceeded with at most `rate`.

        Laurent and Massart, Annals of Statistics 28, 1302 (2000), lemma 1.
        """
        w, t = np.ravel(weights), -np.log(self.rate)
        return float(w.sum() + 2 * np.sqrt((w @ w) * t) + 2 * w.max() * t)


@pytest.fixture
def chance() -> Chance:
    return Chance()


@pytest.fixture
def spd_codes():
    """Coupling codes of a random matrix with eigenvalues spread geometrically up to `top`."""

    def make(spec: UnitSpec, condition: float, *, top: float = 0.6, seed: int = 1):
        rng = np.random.default_rng(seed)
        q, _ = np.linalg.qr(rng.standard_normal((spec.cells, spec.cells)))
        matrix = (q * np.geomspace(top / condition, top, spec.cells)) @ q.T
        return spec.coupling_codes((matrix + matrix.T) / 2)

    return make
