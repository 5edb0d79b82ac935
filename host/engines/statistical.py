"""The `statistical` engine: read-outs drawn from their distribution, for arrays of thousands."""

from __future__ import annotations

import math
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from thermokron.host.engines.laws import Conversion, Modes
from thermokron.model import ArrayPhysics, BaseUnit, Job, Readout, UnitSpec
from thermokron.model.converters import AnalogToDigital, applied_bias, applied_couplings
from thermokron.model.normals import Normals
from thermokron.model.physics import Device

if TYPE_CHECKING:
    import torch

__all__ = ["DTYPES", "StatisticalUnit"]

#: What it calculates in.
DTYPES = ("float32", "float64")
#: So many samples of a bias vector, and fewer, are drawn one by one, as they are converted.
ONE_BY_ONE = 16
#: Below this standard deviation in ADC steps rounding errors are not uniform (Widrow and Kollár,
#: Quantization Noise, 2008, 4): then, too, samples are drawn one by one.
LEAST_DITHER = 0.5

# What normal numbers are for, beside the purposes of the other engines.
_THERMAL, _CONVERSION, _SCATTER, _ROUNDING, _CROSSED = 16, 17, 18, 19, 20

Floats = NDArray[np.float64]


class StatisticalUnit(BaseUnit):
    """A unit whose read-outs are drawn from their distribution, not made of samples.

    For arrays beyond what can be sampled: O(n³) once for a matrix, O(n²) for a bias vector, however
    many samples. Not bit-identical to the other engines. What is the same:

    - Up to `ONE_BY_ONE` samples of a bias vector: everything. They are drawn from the array's exact
      law, finite settling and correlation included, and converted one by one.
    - Sums of more: mean and covariance of Σx, exact in the modes z_k of the matrix, which are
      independent. With ρ = exp(-λΔ/τ), ρ₀ = exp(-λt₀/τ), variance s = T/λ and m = (Qᵀb)_k/λ,

          E Σz = m (N - ρ₀ (1-ρᴺ)/(1-ρ)),
          Var Σz = s (N (1+ρ)/(1-ρ) - 2ρ (1-ρᴺ)/(1-ρ)² - ρ₀² ((1-ρᴺ)/(1-ρ))²).

    - Second moments: the mean of every entry of Σzzᵀ, and its variance for a settled array,

          Var Σ z_k z_l = (1+δ_kl) s_k s_l (N (1+r)/(1-r) - 2r (1-rᴺ)/(1-r)²),   r = ρ_k ρ_l,

      about which entries scatter as those of a Wishart matrix (Bartlett's decomposition; Anderson,
      An Introduction to Multivariate Statistical Analysis, 2003, 7.2) whose degrees of freedom are
      the effective number of samples of the slowest mode.
    - Conversion: rounding errors are independent and uniform (Sheppard), noise, gains and offsets
      as for the other engines; codes are clamped as those of a settled normal law are, and clip
      counts binomial.

    What is left out of the last three, beyond `ONE_BY_ONE` samples: third and higher moments of
    sums of clipped codes, the correlation of clip counts, with each other and with sums; the
    shape of Σzzᵀ's distribution where modes differ in their effective numbers, and its dependence
    on Σz; the transient's part in its variance; curvature of INL beyond its mean.

    Parameters
    ----------
    spec : UnitSpec
        The unit; up to 4,096 cells.
    physics : ArrayPhysics, optional
        Deviations of its array from nominal; ideal if not given.
    seed : int
        Seed of the noise, 0 to 2^63 - 1.
    dtype : str
        "float32" or "float64": what matrices are decomposed and multiplied in.
    device : str
        Of torch, such as "cpu" or "cuda".

    Raises
    ------
    ValueError
        If dtype or device is unknown or not there, or `physics` has `noise_mismatch`, with which
        the modes are not independent.
    """

    def __init__(
        self,
        spec: UnitSpec,
        physics: ArrayPhysics | None = None,
        *,
        seed: int = 0,
        dtype: str = "float32",
        device: str = "cpu",
    ) -> None:
        import torch

        super().__init__(spec, seed)
        self.physics = ArrayPhysics.ideal() if physics is None else physics
        if self.physics.noise_mismatch is not None:
            raise ValueError(
                f"noise_mismatch = {self.physics.noise_mismatch}: engine 'statistical' takes modes "
                "for independent, which unequal cells couple; legal: None; 'numeric' takes it"
            )
        if dtype not in DTYPES:
            raise ValueError(f"dtype = {dtype!r} is unknown; legal: {', '.join(DTYPES)}")
        self._dtype = getattr(torch, dtype)
        try:
            self._device = torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"device = {device!r} is not there: {reason}") from None
        self._static = Device.draw(self.physics, spec.cells)
        self._sequences = Normals()
        self._adc = AnalogToDigital(spec, self.physics, self._static)
        # by couplings: their owner, and their decomposition
        self._kept: dict[int, tuple[weakref.ref[Any], Modes]] = {}

    def _execute(self, job: Job, stream: int) -> Readout:
        modes = self._decomposed(job)
        mean = modes.turned(applied_bias(self.spec, self._static, job.biases))
        mean /= modes.tensor(modes.rates)
        if job.samples <= ONE_BY_ONE or self._least_deviation(job, modes) < LEAST_DITHER:
            sums, products, clipped = self._one_by_one(job, modes, mean, stream)
        else:
            sums, products, clipped = self._at_once(job, modes, mean, stream)
        return Readout(
            sums=sums, products=products, clipped=clipped, cycles=self.spec.phase_cycles(job)
        )

    def _decomposed(self, job: Job) -> Modes:
        """The modes of a job's matrix, decomposed anew only where they are not at hand."""
        owner, modes = self._kept.get(id(job.couplings), (None, None))
        if owner is None or modes is None or owner() is not job.couplings:
            # what no job can ask for any more goes; an id may be another's by now
            self._kept = {key: kept for key, kept in self._kept.items() if kept[0]() is not None}
            matrix = applied_couplings(self.spec, self._static, job.couplings)
            modes = Modes(self.spec, matrix, self._dtype, self._device)
            self._kept[id(job.couplings)] = weakref.ref(job.couplings), modes
        return modes

    def _least_deviation(self, job: Job, modes: Modes) -> float:
        """The least standard deviation of a settled cell, in ADC steps."""
        variance = self.spec.temperature_value(job.temperature) * modes.cell_variances.min()
        return math.sqrt(max(float(variance), 0.0)) / self.spec.adc_step

    def __getstate__(self) -> dict[str, Any]:
        # what is kept is for this process, and for these jobs
        return super().__getstate__() | {"_kept": {}}

    # ---- few samples -----------------------------------------------------------------------------

    def _one_by_one(
        self, job: Job, modes: Modes, mean: torch.Tensor, stream: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64] | None, NDArray[np.int64]]:
        vectors, n = job.biases.shape
        low, high = self.spec.adc_min, self.spec.adc_max
        scale = 2.0 ** (self.spec.adc_bits - 1)
        sums, clipped = np.zeros((vectors, n)), np.zeros((vectors, n), np.int64)
        products = np.zeros((n, n)) if job.second_moments else None
        temperature = self.spec.temperature_value(job.temperature)
        state = None
        for sample in range(job.samples):
            cycles = job.interval_cycles if sample else job.settle_cycles
            decay, deviation = modes.step(cycles, temperature)
            draws = self._normals(_THERMAL, stream, vectors, n, sample)
            moved = modes.tensor(draws).mul_(deviation).addcmul_(mean, 1.0 - decay)
            state = moved if state is None else moved.addcmul_(state, decay)
            # in steps, and in the type that it was worked out in: there are few digits in a code
            steps = modes.turned_back(state * scale)
            noisy = self._adc.noisy
            noise = self._normals(_CONVERSION, stream, vectors, n, sample) if noisy else None
            if self._adc.convert(steps, noise):
                clipped += (steps == low) | (steps == high)
            sums += steps
            if products is not None:
                products += np.multiply.outer(row := steps[0].astype(np.float64), row)
        return (
            sums.astype(np.int64),
            None if products is None else products.astype(np.int64),
            clipped,
        )

    # ---- many samples ----------------------------------------------------------------------------

    def _at_once(
        self, job: Job, modes: Modes, mean: torch.Tensor, stream: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64] | None, NDArray[np.int64]]:
        vectors, n, samples = len(job.biases), self.spec.cells, job.samples
        temperature = self.spec.temperature_value(job.temperature)
        weight, variance = modes.sums(job, temperature)
        draws = self._normals(_THERMAL, stream, vectors, n)
        scattered = modes.turned_back(variance.sqrt() * modes.tensor(draws)) / samples
        centre = modes.turned_back(mean * weight) / samples
        settled = temperature * modes.cell_variances
        conversion = Conversion(self.spec, self.physics, self._static, centre, settled)
        rounding = self._normals(_ROUNDING, stream, vectors, n)
        error = np.sqrt(conversion.error / samples) * rounding
        means = conversion.mean + conversion.slope * scattered + error
        scale = 2.0 ** (self.spec.adc_bits - 1)
        limit = float(self.spec.adc_min), float(self.spec.adc_max)
        sums = np.rint(np.clip(means * scale, *limit) * samples).astype(np.int64)
        generator = np.random.Generator(np.random.Philox(key=[self.seed, stream]))
        clipped = generator.binomial(samples, conversion.clipped).astype(np.int64)
        if not job.second_moments:
            return sums, None, clipped
        matrix = modes.second_moments(job, temperature, self._bartlett(modes, job, stream))
        matrix *= np.outer(conversion.slope[0], conversion.slope[0])
        energy = np.diag(matrix) / samples
        # products of signals and conversion errors, and of these with themselves
        crossed = self._normals(_CROSSED, stream, 1, n * n).reshape(n, n)
        crossed = np.triu(crossed) + np.triu(crossed, 1).T
        pairs = np.outer(conversion.error, energy)
        pairs += pairs.T
        pairs += np.diag(2.0 * conversion.error * (conversion.error + energy))
        matrix += np.sqrt(samples * pairs) * crossed + np.diag(samples * conversion.error)
        # about the mean: Σxxᵀ = Σξξᵀ + Σξ μᵀ + μ Σξᵀ + N μμᵀ
        about, moved = conversion.mean[0], means[0] - conversion.mean[0]
        matrix += samples * (
            np.outer(about, about) + np.outer(moved, about) + np.outer(about, moved)
        )
        products = np.rint(matrix * scale**2).astype(np.int64)
        return sums, products, clipped

    def _bartlett(self, modes: Modes, job: Job, stream: int) -> torch.Tensor:
        """(W - νI)/√ν with W from the Wishart law of ν degrees of freedom, (n, n)."""
        import torch

        n = self.spec.cells
        freedom = max(round(modes.effective_samples(job)), 1)
        generator = np.random.Generator(
            np.random.Philox(key=[self.seed, stream], counter=[0, 0, 0, 1])
        )
        if freedom < n:  # too few for Bartlett: the law itself
            factor = modes.tensor(generator.standard_normal((n, freedom)))
        else:
            factor = torch.tril(
                modes.tensor(self._normals(_SCATTER, stream, 1, n * n).reshape(n, n)), -1
            )
            diagonal = np.sqrt(generator.chisquare(freedom - np.arange(n)))
            factor += torch.diag(modes.tensor(diagonal))
        wishart = factor @ factor.mT
        wishart.diagonal().sub_(freedom)
        return wishart / math.sqrt(freedom)

    def _normals(self, purpose: int, stream: int, rows: int, count: int, sample: int = 0) -> Floats:
        """Standard normal numbers (rows, count): a row for each stream, a piece of it a sample."""
        out = np.empty((rows, count))
        first = sample * -(-count // 8) * 8
        self._sequences.draw(self.seed, purpose, range(stream, stream + rows), first, out)
        return out
