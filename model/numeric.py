"""The `numeric` engine: bit-true arithmetic on exactly sampled noise."""

from __future__ import annotations

import numpy as np

from thermokron.model.array import NoiseArray, sample_blocks, single_threaded_blas
from thermokron.model.physics import ArrayPhysics
from thermokron.model.spec import UnitSpec
from thermokron.model.unit import BaseUnit, Job, Readout

__all__ = ["NumericUnit"]


class NumericUnit(BaseUnit):
    """A unit in NumPy: the golden model of the gateware, and the engine for studies.

    It returns the integers that the gateware would, and the cycles that it would take. A run of
    1,000 samples of 16 cells takes about half a millisecond.

    Parameters
    ----------
    spec : UnitSpec
        The unit.
    physics : ArrayPhysics, optional
        Deviations of its array from nominal; ideal if not given.
    seed : int
        Seed of the noise, 0 to 2^63 - 1.
    """

    def __init__(
        self, spec: UnitSpec, physics: ArrayPhysics | None = None, *, seed: int = 0
    ) -> None:
        super().__init__(spec, seed)
        self.physics = ArrayPhysics.ideal() if physics is None else physics

    def _execute(self, job: Job, stream: int) -> Readout:
        n, vectors = self.spec.cells, len(job.biases)
        low, high = self.spec.adc_min, self.spec.adc_max
        clipped = np.zeros((vectors, n), np.int64)
        # float64 holds these sums exactly: at most 2^(2·16 - 2)·2^20 = 2^50 < 2^53
        sums = np.zeros((vectors, n))
        products = np.zeros((n, n)) if job.second_moments else None
        with single_threaded_blas():
            array = NoiseArray(self.spec, self.physics, job.couplings, job.temperature)
            for k, row in enumerate(job.biases):
                remaining = job.samples
                blocks = sample_blocks(
                    array,
                    row,
                    settle_cycles=job.settle_cycles,
                    interval_cycles=job.interval_cycles,
                    seed=self.seed,
                    stream=stream + k,
                )
                while remaining > 0:
                    codes = next(blocks)[1][:remaining]
                    remaining -= len(codes)
                    values = codes.astype(np.float64)
                    sums[k] += values.sum(axis=0)
                    if products is not None:
                        products += values.T @ values
                    if codes.min() == low or codes.max() == high:
                        clipped[k] += ((codes == low) | (codes == high)).sum(axis=0)
        return Readout(
            sums=sums.astype(np.int64),
            products=None if products is None else products.astype(np.int64),
            clipped=clipped,
            cycles=self.spec.phase_cycles(job),
        )
