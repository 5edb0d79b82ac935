"""What sums over samples are distributed like: of an array's modes, and through a converter."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from thermokron.host.products import product
from thermokron.model import ArrayPhysics, Job, UnitSpec
from thermokron.model.discretisation import MAX_GROWTH
from thermokron.model.physics import Device

if TYPE_CHECKING:
    import torch

__all__ = ["Conversion", "Modes"]

Floats = NDArray[np.float64]
#: Rates, which means are divided by, are no nearer to zero than this part of the largest.
LEAST_RATE = 1e-9


class Modes:
    """The modes of an array at one temperature, whose equations `StatisticalUnit` has.

    Parameters
    ----------
    spec : UnitSpec
    matrix : (n, n) float64
        What is programmed. Cells at its end that are coupled to none, as where a problem is smaller
        than the array, are modes as they are.
    dtype, device
        Of torch.

    Attributes
    ----------
    rates : (n,) float64
        λ, away from zero.
    """

    def __init__(
        self, spec: UnitSpec, matrix: Floats, dtype: torch.dtype, device: torch.device
    ) -> None:
        import torch

        self._spec = spec
        rates = matrix.diagonal().copy()
        coupled = np.flatnonzero(np.count_nonzero(matrix, axis=1) > (rates != 0.0))
        self._coupled = int(coupled[-1]) + 1 if len(coupled) else 0
        block = torch.as_tensor(
            matrix[: self._coupled, : self._coupled], dtype=dtype, device=device
        )
        values, vectors = torch.linalg.eigh(block)
        # rows times either of these read it in order
        self._vectors, self._turning_back = vectors.mT.contiguous().mT, vectors.contiguous().mT
        rates[: self._coupled] = values.cpu().numpy()
        least = LEAST_RATE * max(np.abs(rates).max(), LEAST_RATE)
        self.rates: Floats = np.where(np.abs(rates) < least, least, rates)

    def tensor(self, values: Any) -> torch.Tensor:
        """Numbers in the type and on the device of the decomposition."""
        import torch

        return torch.as_tensor(values, dtype=self._vectors.dtype, device=self._vectors.device)

    def turned(self, cells: Floats) -> torch.Tensor:
        """Rows (K, n) of cells as rows of modes."""
        return self._rotated(self.tensor(cells), self._vectors)

    def turned_back(self, modes: torch.Tensor) -> NDArray[Any]:
        """Rows (K, n) of modes as rows of cells; may overwrite them."""
        cells: NDArray[Any] = self._rotated(modes, self._turning_back).cpu().numpy()
        return cells

    def _rotated(self, rows: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        few = self._coupled
        if few == len(self.rates):
            return product(rows, by)
        rows[:, :few] = product(rows[:, :few].contiguous(), by)
        return rows

    def _decay(self, cycles: float) -> Floats:
        """ρ of each mode after so many clock cycles."""
        elapsed = cycles * self._spec.clock_s / self._spec.tau_s
        decay: Floats = np.exp(np.minimum(-self.rates * elapsed, MAX_GROWTH))
        return decay

    def step(self, cycles: int, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        """ρ of each mode, (n,), and the standard deviation of the noise that comes meanwhile."""
        decay = self._decay(cycles)
        deviation = np.sqrt(temperature * (1.0 - decay * decay) / self.rates)
        return self.tensor(decay), self.tensor(deviation)

    @cached_property
    def cell_variances(self) -> Floats:
        """Variance of each settled cell, (n,), at temperature 1; zeros if one mode grows."""
        if self.rates.min() <= 0.0:
            return np.zeros_like(self.rates)
        variances: Floats = 1.0 / self.rates
        squares = self._vectors * self._vectors
        coupled = squares @ self.tensor(variances[: self._coupled])
        variances[: self._coupled] = coupled.double().cpu().numpy()
        return variances

    def sums(self, job: Job, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        """E Σz over m, and Var Σz, of each mode, (n,)."""
        samples, decay = job.samples, self._decay(job.interval_cycles)
        first = self._decay(job.settle_cycles)
        last = self._decay(float(job.interval_cycles) * samples)
        left = 1.0 - decay
        power = (1.0 - last) / left
        weight = samples - first * power
        spread = samples * (1.0 + decay) / left - 2.0 * decay * power / left - (first * power) ** 2
        variance = temperature / self.rates * spread
        return self.tensor(weight), self.tensor(np.maximum(variance, 0.0))

    def second_moments(self, job: Job, temperature: float, scatter: torch.Tensor) -> Floats:
        """Σxxᵀ of the cells, (n, n), about their mean.

        `scatter` (n, n) is symmetric with variance 1, and 2 on the diagonal.
        """
        samples, decay = job.samples, self._decay(job.interval_cycles)
        variances = temperature / self.rates
        first, last = (
            self._decay(job.settle_cycles),
            self._decay(float(job.interval_cycles) * samples),
        )
        squares = decay * decay
        means = variances * (samples - first**2 * (1.0 - last**2) / (1.0 - squares))
        both = self.tensor(np.sqrt(variances))
        count = self._correlated(self.tensor(decay), samples)
        modes = scatter * (both[:, None] * both) * count.sqrt()
        modes.diagonal().add_(self.tensor(means))
        half = self.tensor(self.turned_back(modes)).mT.contiguous()
        return self.turned_back(half).astype(np.float64)

    @staticmethod
    def _correlated(decay: torch.Tensor, samples: int) -> torch.Tensor:
        """Var Σ z_k z_l over s_k s_l (1+δ), (n, n)."""
        both = decay[:, None] * decay
        left = (1.0 - both).clamp_min(1e-12)
        return samples * (1.0 + both) / left - 2.0 * both * (1.0 - both**samples) / left**2

    def effective_samples(self, job: Job) -> float:
        """As how many independent samples the slowest mode's second moment is."""
        slowest = self._decay(job.interval_cycles).max()
        count = float(self._correlated(self.tensor([slowest]).double(), job.samples)[0, 0])
        return job.samples**2 / count


class Conversion:
    """What the mean of many codes is like, and what it does with its input.

    Parameters
    ----------
    spec, physics, device
        As of `AnalogToDigital`, whose equation this is the average of.
    centre : (K, n) float64
        Mean input of each cell, in full scales.
    spread : (n,) float64
        Variance of the input.

    Attributes
    ----------
    mean : (K, n) float64
        Mean of the codes, in full scales.
    slope : (K, n) float64
        By how much it moves with the input's.
    clipped : (K, n) float64
        Probability of a code at a rail.
    error : (n,) float64
        Variance of a conversion's own errors: noise and rounding.
    """

    def __init__(
        self, spec: UnitSpec, physics: ArrayPhysics, device: Device, centre: Floats, spread: Floats
    ) -> None:
        from scipy.special import ndtr

        step = spec.adc_step
        gain = np.ones(spec.cells) if device.adc_gains is None else device.adc_gains
        noise = 0.0 if physics.adc_noise is None else physics.adc_noise**2
        moved = centre if device.adc_offsets is None else centre + device.adc_offsets
        middle, variance = gain * moved, gain**2 * (spread + noise)
        slope = gain * np.ones_like(middle)
        if physics.adc_inl_lsb is not None:
            bow = physics.adc_inl_lsb * step
            slope = slope * (1.0 - 2.0 * bow * middle)
            middle = middle + bow * (1.0 - middle**2 - variance)
        deviation = np.sqrt(variance)
        low, high = spec.adc_min * step, spec.adc_max * step
        below, above = (low - middle) / deviation, (high - middle) / deviation
        inside = ndtr(above) - ndtr(below)
        density = (np.exp(-(below**2) / 2) - np.exp(-(above**2) / 2)) / math.sqrt(2.0 * math.pi)
        self.mean = low * ndtr(below) + high * ndtr(-above) + middle * inside + deviation * density
        self.slope = slope * inside
        half = step / 2 / deviation
        self.clipped = np.clip(ndtr(below + half) + ndtr(half - above), 0.0, 1.0)
        self.error = gain**2 * noise + step**2 / 12.0
