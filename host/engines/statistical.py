"""The `statistical` engine: read-outs drawn from their distribution, for arrays of thousands."""

from __future__ import annotations

import math
import weakref
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from thermokron.model import ArrayPhysics, BaseUnit, Job, Readout, UnitSpec
from thermokron.model.converters import AnalogToDigital, applied_bias
from thermokron.model.device import Device
from thermokron.model.normals import ALIGNMENT, Normals

if TYPE_CHECKING:
    import torch

    from thermokron.host.engines.laws import Law
    from thermokron.host.engines.modes import Modes

__all__ = ["DTYPES", "StatisticalUnit"]

#: What it calculates in.
DTYPES = ("float32", "float64")
#: So many samples of a bias vector, and fewer, are drawn one by one, as they are converted; of a
#: job with second moments as many as there are cells, for then its law would take as long.
ONE_BY_ONE = 16
#: Standard deviations of modes below this, in full scales, are none.
TINY = 1e-18
#: Streams of a sequence of random numbers; more than any run has discharges.
SEQUENCE = 2**40
#: A mode that grows by more than this exponent in a run is one that grows.
GROWN = 1.0

# What random numbers are for, beside the purposes of the other engines.
_THERMAL, _CONVERSION, _SCATTER, _ROUNDING, _CROSSED, _CLIPPING, _FREEDOM = range(16, 23)

Floats = NDArray[np.float64]
Parts = tuple[NDArray[np.int64], NDArray[np.int64] | None, NDArray[np.int64]]


class StatisticalUnit(BaseUnit):
    """A unit whose read-outs are drawn from their distribution, not made of samples.

    For arrays beyond what can be sampled: O(n³) once for a matrix, O(n²) for a bias vector and
    O(n³) for second moments, however many samples. Not bit-identical to the other engines. What is
    the same, up to the precision of `dtype`:

    - Few samples: everything. Up to `ONE_BY_ONE` of a bias vector, or as many as there are cells
      with second moments, are drawn from the array's exact law, finite settling, correlation and
      unequal temperatures included, and converted one by one.
    - Σx of more: mean and covariances, from the array as it leaves discharge (`laws.Law`).
    - Σxxᵀ of more: the mean of every entry, and its variance from the array as it leaves
      discharge, or as it is settled where no mode lacks more than a thousandth. Means and sums of
      squares about them are independent, as of a normal sample. The latter's entries scatter as
      those of a Wishart matrix do (Bartlett's decomposition; Anderson, An Introduction to
      Multivariate Statistical Analysis, 2003, 7.2), of as many degrees of freedom as the samples
      are worth on the whole, each scaled to its own variance: in the modes, where entries are
      uncorrelated.
    - Conversion of more: mean, slope and variance of codes (`conversion.Conversion`), with noise,
      gains, offsets, rails, and steps that are coarse beside the noise.

    What is left out where samples are not drawn one by one: the shape, beyond its variance, of an
    entry of Σxxᵀ whose modes are worth more or fewer samples than the whole; a transient of the
    mean in the variance of Σxxᵀ, and any in the converter, which sees the run's average; what
    errors of conversion remember from one sample to the next; third and higher moments of sums of
    clipped codes; whether clip counts, which are binomial, correlate with each other or with sums;
    the bow of the INL about its tangent. If modes grow, all samples are taken for the last.

    Parameters
    ----------
    spec : UnitSpec
        The unit; up to 4,096 cells.
    physics : ArrayPhysics, optional
        Deviations of its array from nominal; ideal if not given.
    seed : int
        Seed of the noise, 0 to 2^63 - 1.
    dtype : str
        "float32" or "float64": what matrices are decomposed and multiplied in. In float32 rates are
        known to about 10^-6 of the largest, which is the better part of one that is slower.
    device : str
        Of torch, such as "cpu" or "cuda". Random numbers are made on the CPU, the same for all.

    Raises
    ------
    ValueError
        If dtype or device is unknown or not there, or the physics has an effect that no modes
        describe (`ArrayPhysics.beyond_modes`), or `adc_dnl_lsb`; the message names it.
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
        beyond = self.physics.beyond_modes
        beyond += () if self.physics.adc_dnl_lsb is None else ("adc_dnl_lsb",)
        if beyond:
            raise ValueError(
                f"{', '.join(beyond)}: the statistical engine knows the law of independent modes "
                "and of even codes alone; legal: None, or engine 'numeric'"
            )
        self.physics.check(spec, stacklevel=2)
        if dtype not in DTYPES:
            raise ValueError(f"dtype = {dtype!r} is unknown; legal: {', '.join(DTYPES)}")
        self._dtype, self._floats = getattr(torch, dtype), np.dtype(dtype)
        try:
            self._device = torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"device = {device!r} is not there: {reason}") from None
        self._static = Device.draw(self.physics, spec.cells)
        self._sequences = Normals()
        self._adc = AnalogToDigital(spec, self.physics, self._static)
        self._scale = 2.0 ** (spec.adc_bits - 1)
        # by couplings: their owner, and their decomposition
        self._kept: dict[int, tuple[weakref.ref[Any], Modes]] = {}

    def _execute(self, job: Job, stream: int) -> Readout:
        modes = self._decomposed(job)
        settle, interval = self._elapsed(job.settle_cycles), self._elapsed(job.interval_cycles)
        last = settle + interval * (job.samples - 1)
        few = max(self.spec.cells if job.second_moments else 0, ONE_BY_ONE)
        if job.samples > 1 and -modes.rates.min() * last > GROWN:
            sums, products, clipped = self._one_by_one(job, modes, stream, 1, last, interval)
            sums, clipped = sums * job.samples, clipped * job.samples
            products = None if products is None else products * job.samples
        elif job.samples <= few:
            sums, products, clipped = self._one_by_one(
                job, modes, stream, job.samples, settle, interval
            )
        else:
            sums, products, clipped = self._at_once(job, modes, stream, settle, interval)
        return Readout(
            sums=sums, products=products, clipped=clipped, cycles=self.spec.phase_cycles(job)
        )

    def _elapsed(self, cycles: int) -> float:
        """Clock cycles as a multiple of τ."""
        return cycles * self.spec.clock_s / self.spec.tau_s

    def _decomposed(self, job: Job) -> Modes:
        """The modes of a job's matrix, decomposed anew only where they are not at hand."""
        from thermokron.host.engines.modes import Modes

        owner, modes = self._kept.get(id(job.couplings), (None, None))
        if owner is None or modes is None or owner() is not job.couplings:
            # what no job can ask for any more goes; an id may be another's by now
            self._kept = {key: kept for key, kept in self._kept.items() if kept[0]() is not None}
            modes = Modes(self.spec, self._static, job.couplings, self._dtype, self._device)
            self._kept[id(job.couplings)] = weakref.ref(job.couplings), modes
        return modes

    def __getstate__(self) -> dict[str, Any]:
        # what is kept is for this process, and for these jobs
        return super().__getstate__() | {"_kept": {}}

    # ---- few samples -----------------------------------------------------------------------------

    def _one_by_one(
        self,
        job: Job,
        modes: Modes,
        stream: int,
        samples: int,
        settle: float,
        interval: float,
    ) -> Parts:
        """Sums, products and clip counts of samples that are drawn, and converted, each."""
        vectors, n = job.biases.shape
        # in ADC steps, and in the type that it is worked out in: there are few digits in a code
        heat = math.sqrt(self.spec.temperature_value(job.temperature)) * self._scale
        drift = modes.turned(applied_bias(self.spec, self._static, job.biases))
        first, *later = (
            self._normals(_THERMAL, stream, vectors, n, sample) for sample in range(samples)
        )
        state = modes.scaled(modes.tensor(first), modes.noise(settle) * heat)
        states = [state.addcmul_(drift, modes.tensor(modes.response(settle) * self._scale))]
        if later:
            decay = modes.decay(interval)
            moved = drift.mul_(modes.tensor(modes.response(interval) * self._scale))
            noise = modes.tensor(np.concatenate(later))
            noise = modes.scaled(noise, modes.noise(interval) * heat)
            for each in noise.reshape(len(later), vectors, n):
                states.append(each.add_(moved).addcmul_(states[-1], decay))
        return self._converted(job, modes, states, stream)

    def _converted(self, job: Job, modes: Modes, states: list[torch.Tensor], stream: int) -> Parts:
        """What the converter, and the accumulator after it, make of modes (K, n) in ADC steps."""
        import torch

        vectors, n = job.biases.shape
        low, high = self.spec.adc_min, self.spec.adc_max
        clipped, totals, products = np.zeros((vectors, n), np.int64), [], None
        # of one vector, all samples are one product
        for place, some in enumerate([torch.cat(states)] if vectors == 1 else states):
            steps = modes.turned_back(some).cpu().numpy().reshape(-1, vectors, n)
            noise = None
            if self._adc.noisy:
                drawn = [
                    self._normals(_CONVERSION, stream, vectors, n, sample)
                    for sample in range(place, place + len(steps))
                ]
                noise = np.stack(drawn)
            if self._adc.convert(steps, noise):
                clipped += ((steps == low) | (steps == high)).sum(axis=0)
            total = steps[0] if len(steps) == 1 else steps.sum(axis=0, dtype=np.float64)
            totals.append(total.astype(np.int64))
            if job.second_moments:
                codes = steps[:, 0].astype(np.float64)
                products = (codes.T @ codes).astype(np.int64)
        return reduce(np.add, totals), products, clipped

    # ---- many samples ----------------------------------------------------------------------------

    def _at_once(
        self, job: Job, modes: Modes, stream: int, settle: float, interval: float
    ) -> Parts:
        """Sums, products and clip counts from the law of sums."""
        from thermokron.host.engines.conversion import Conversion
        from thermokron.host.engines.laws import Law

        vectors, n = job.biases.shape
        count, temperature = job.samples, self.spec.temperature_value(job.temperature)
        # modes that neither grow nor relax within a run are as good as ones that hardly relax
        rates = modes.double(np.maximum(modes.rates, np.abs(modes.rates).max() * 1e-9))
        law = Law(rates, settle, interval, count)
        settled, pairs = temperature * modes.settled(), modes.diffusion is not None
        ends = modes.turned(applied_bias(self.spec, self._static, job.biases)) / rates
        centre = modes.turned_back(modes.tensor(ends * (law.mean() / count)))
        spread = settled * law.energy(pairs=pairs).cpu().numpy() / count
        conversion = Conversion(
            self.spec,
            self.physics,
            self._static,
            centre.double().cpu().numpy(),
            modes.cell_variances(spread),
        )
        moved = modes.factor(settled * law.covariance(pairs=pairs).cpu().numpy() / count**2)
        draws = modes.tensor(self._normals(_THERMAL, stream, vectors, n))
        scattered = modes.turned_back(modes.scaled(draws, moved)).double().cpu().numpy()
        rounding = self._normals(_ROUNDING, stream, vectors, n)
        means = conversion.mean + conversion.slope * scattered
        means += np.sqrt(conversion.error / count) * rounding
        np.clip(means, self.spec.adc_min, self.spec.adc_max, out=means)
        sums = np.rint(means * count).astype(np.int64)
        products = None
        if job.second_moments:
            about = self._scatter(modes, law, settled, ends[0], stream)
            about *= np.outer(conversion.slope[0], conversion.slope[0])
            signal = conversion.slope[0] ** 2 * modes.cell_variances(spread)
            crossed = self._crossed(signal, conversion.error[0], conversion.energy[0], stream)
            about += crossed * math.sqrt(count)
            about.flat[:: n + 1] += (count - 1) * conversion.error[0]
            exact = sums[0].astype(np.float64)
            about += np.outer(exact, exact / count)
            limit = count * self._scale**2
            products = np.rint(np.clip(about, -limit, limit)).astype(np.int64)
        return sums, products, self._clip_counts(conversion.clipped, count, stream)

    def _scatter(
        self, modes: Modes, law: Law, settled: Floats, ends: torch.Tensor, stream: int
    ) -> Floats:
        """Σ(x-x̄)(x-x̄)ᵀ of the cells, (n, n) in full scales squared.

        Parameters
        ----------
        modes : Modes
        law : Law
        settled : (n,) or (n, n) float64
            Covariance of settled modes.
        ends : (n,) float64 tensor
            What their means tend to.
        """
        import torch

        count, pairs = law.samples, settled.ndim == 2
        variances = settled.diagonal() if pairs else settled
        scatter = law.scatter()
        weights = modes.double(variances) if variances.any() else torch.ones_like(law.rates)
        worth = (count - 1) ** 2 * float(weights.sum() ** 2 / (weights @ scatter @ weights))
        entries = self._wishart(modes, worth, stream)
        roots = modes.double(np.sqrt(variances))
        outer = torch.outer(roots, roots)
        if pairs:  # to cells that are not equal belong modes that are not independent
            turn = modes.factor(settled)
            turn = turn / modes.tensor(roots).clamp_min(TINY)[:, None]
            entries = turn @ entries @ turn.mT
        entries = entries.double() * outer * scatter.sqrt()
        means = law.energy(pairs=pairs) - law.covariance(pairs=pairs) / count
        means = means * modes.double(settled)
        entries += means if pairs else torch.diag(means)
        entries += law.transient(ends)
        half = modes.turned_back(modes.tensor(entries)).mT.contiguous()
        cells: Floats = modes.turned_back(half).double().cpu().numpy()
        return 0.5 * (cells + cells.T)

    def _wishart(self, modes: Modes, freedom: float, stream: int) -> torch.Tensor:
        """(W - νI)/√ν with W from the Wishart law of ν degrees of freedom, (n, n)."""
        n = self.spec.cells
        if freedom < n:  # too few for Bartlett: the law itself, of a whole number
            freedom = max(round(freedom), 1)
            factor = modes.tensor(self._square(_SCATTER, stream, n, freedom))
        else:
            drawn = np.tril(self._square(_SCATTER, stream, n, n))
            squares = self._generator(_FREEDOM, stream).chisquare(freedom - np.arange(n))
            drawn.flat[:: n + 1] = np.sqrt(squares)
            factor = modes.tensor(drawn)
        wishart = factor @ factor.mT
        wishart.diagonal().sub_(freedom)
        return wishart / math.sqrt(freedom)

    def _crossed(self, signal: Floats, error: Floats, energy: Floats, stream: int) -> Floats:
        """What errors of conversion add to a sample's products about its mean, (n, n)."""
        n = len(error)
        drawn = self._square(_CROSSED, stream, n, n).astype(np.float64)
        variance = np.outer(error, signal + 0.5 * error)
        variance += variance.T
        variance.flat[:: n + 1] = 0.5 * energy
        crossed: Floats = (drawn + drawn.T) * np.sqrt(0.5 * variance)
        return crossed

    def _clip_counts(self, chance: Floats, count: int, stream: int) -> NDArray[np.int64]:
        """Codes at a rail, (K, n), each with its own chance."""
        clipped = np.zeros(chance.shape, np.int64)
        for row in np.flatnonzero(chance.any(axis=1)):
            generator = self._generator(_CLIPPING, stream + int(row))
            clipped[row] = generator.binomial(count, chance[row])
        return clipped

    # ---- random numbers --------------------------------------------------------------------------

    def _normals(
        self, purpose: int, stream: int, rows: int, count: int, sample: int = 0
    ) -> NDArray[Any]:
        """Standard normal numbers (rows, count): a row for each stream.

        Streams lie one after the other in a sequence, so that many are as quickly made as one;
        for each purpose `count` is always the same.
        """
        width = -(-count // ALIGNMENT) * ALIGNMENT
        out = np.empty((1, rows * width), self._floats)
        sequence, place = divmod(stream, SEQUENCE)
        self._sequences.draw(
            self.seed, purpose + (sample << 8), range(sequence, sequence + 1), place * width, out
        )
        return out.reshape(rows, width)[:, :count]

    def _square(self, purpose: int, stream: int, rows: int, columns: int) -> NDArray[Any]:
        """Standard normal numbers (rows, columns), all of one stream."""
        out = np.empty((1, rows * columns), self._floats)
        self._sequences.draw(self.seed, purpose, range(stream, stream + 1), 0, out)
        return out.reshape(rows, columns)

    def _generator(self, purpose: int, stream: int) -> np.random.Generator:
        """For what is not normal; it has no words in common with `_normals`."""
        bits = np.random.Philox(key=[self.seed, purpose], counter=[0, 0, stream, 0])
        return np.random.Generator(bits)
