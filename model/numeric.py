"""The `numeric` engine: bit-true arithmetic on exactly sampled noise."""

from __future__ import annotations

import itertools

import numpy as np

from thermokron.model.array import BLOCKS, sample_blocks, single_threaded_blas
from thermokron.model.kept import KeptArrays
from thermokron.model.physics import ArrayPhysics
from thermokron.model.spec import UnitSpec
from thermokron.model.unit import BaseUnit, Job, Readout

__all__ = ["NumericUnit"]

#: Numbers in a block of samples at most: beyond, bias vectors are worked on a few at a time.
AT_ONCE = 2**20


class NumericUnit(BaseUnit):
    """A unit in NumPy: the golden model of the gateware, and the engine for studies.

    It returns the integers that the gateware would, and the cycles that it would take. A run of
    1,000 samples of 16 cells takes about half a millisecond, one of 64 bias vectors with one sample
    each on 64 cells about one.

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
        self._arrays = KeptArrays(spec, self.physics)

    def _execute(self, job: Job, stream: int) -> Readout:
        n, vectors = self.spec.cells, len(job.biases)
        low, high = self.spec.adc_min, self.spec.adc_max
        clipped = np.zeros((vectors, n), np.int64)
        # float64 holds these sums exactly: at most 2^(2·16 - 2)·2^20 = 2^50 < 2^53
        sums = np.zeros((vectors, n))
        products = np.zeros((n, n)) if job.second_moments else None
        share = max(AT_ONCE // (n * _longest_block(job.samples)), 1)
        with single_threaded_blas():
            array = self._arrays.programmed(job.couplings, job.temperature)
            for first in range(0, vectors, share):
                part = slice(first, first + share)
                remaining = job.samples
                for _, drawn in sample_blocks(
                    array,
                    job.biases[part],
                    settle_cycles=job.settle_cycles,
                    interval_cycles=job.interval_cycles,
                    seed=self.seed,
                    stream=stream + first,
                ):
                    codes = drawn[:, :remaining]
                    values = codes.astype(np.float64)
                    sums[part] += values.sum(axis=1)
                    if products is not None:
                        products += values[0].T @ values[0]
                    if codes.min() == low or codes.max() == high:
                        clipped[part] += ((codes == low) | (codes == high)).sum(axis=1)
                    remaining -= codes.shape[1]
                    if not remaining:
                        break
        return Readout(
            sums=sums.astype(np.int64),
            products=None if products is None else products.astype(np.int64),
            clipped=clipped,
            cycles=self.spec.phase_cycles(job),
        )


def _longest_block(samples: int) -> int:
    """The most samples in one of the blocks that so many samples take."""
    ends = list(itertools.accumulate(BLOCKS))
    if samples > ends[-1]:
        return ends[-1]
    return next(length for length, end in zip(BLOCKS, ends, strict=True) if samples <= end)
