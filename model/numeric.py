"""The `numeric` engine: bit-true arithmetic on exactly sampled noise."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from thermokron.model.job import Job
from thermokron.model.kept import KeptArrays
from thermokron.model.physics import ArrayPhysics
from thermokron.model.sampling import sample_blocks
from thermokron.model.spec import UnitSpec
from thermokron.model.threads import single_threaded_blas
from thermokron.model.unit import BaseUnit, Readout

__all__ = ["NumericUnit"]


class NumericUnit(BaseUnit):
    """A unit in NumPy: the golden model of the gateware, and the engine for studies.

    It returns the integers that the gateware would, and the cycles that it would take. A run of
    1,000 samples of 16 cells takes about a third of a millisecond, as does one of 64 bias vectors
    with one sample each on 64 cells. Long ones are worked on by as many threads as BLAS may have,
    a sample of 64 cells taking about a microsecond of processor time; memory does not grow with
    samples.

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
        self.physics.check(spec, stacklevel=2)
        self._arrays = KeptArrays(spec, self.physics)

    def _execute(self, job: Job, stream: int) -> Readout:
        moments = _Moments(self.spec, job)
        with single_threaded_blas():
            sample_blocks(
                self._arrays.programmed(job.couplings, job.temperature),
                job.biases,
                settle_cycles=job.settle_cycles,
                interval_cycles=job.interval_cycles,
                seed=self.seed,
                stream=stream,
            ).show(job.samples, moments.add)
        return moments.readout(self.spec.phase_cycles(job))


class _Moments:
    """Sums over the samples of a job, which threads add to.

    In float64, which holds them exactly, in any order: at most 2^(2·16 - 2)·2^20 = 2^50 < 2^53.
    """

    def __init__(self, spec: UnitSpec, job: Job) -> None:
        shape = job.biases.shape
        self._rails = float(spec.adc_min), float(spec.adc_max)
        self._sums, self._clipped = np.zeros(shape), np.zeros(shape, np.int64)
        self._products = np.zeros((shape[1], shape[1])) if job.second_moments else None
        self._lock = threading.Lock()

    def add(self, vectors: slice, codes: NDArray[np.float64], clipped: bool) -> None:
        """Add codes (K, block, n) of some bias vectors; whether any may be at a rail is known."""
        sums = (np.ones(codes.shape[1]) @ codes) if codes.shape[1] > 1 else codes[:, 0]
        # of a matrix with itself, which takes half the operations
        products = codes[0].T @ codes[0] if self._products is not None else None
        low, high = self._rails
        rails = ((codes == low) | (codes == high)).sum(axis=1) if clipped else None
        with self._lock:
            self._sums[vectors] += sums
            if products is not None:
                self._products += products
            if rails is not None:
                self._clipped[vectors] += rails

    def readout(self, cycles: Mapping[str, int]) -> Readout:
        """What has been added."""
        return Readout(
            sums=self._sums.astype(np.int64),
            products=None if self._products is None else self._products.astype(np.int64),
            clipped=self._clipped,
            cycles=cycles,
        )
