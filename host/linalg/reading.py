"""Solutions as they were read from the array, and their error bars."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from thermokron.host.calibration import Corrections
from thermokron.host.linalg.arrays import Floats
from thermokron.host.linalg.settling import Settling
from thermokron.model import UnitSpec

__all__ = ["Equation", "Reading"]


@dataclass(frozen=True)
class Equation:
    """A matrix of unit diagonal, and the codes that stand for it on a unit of a spec.

    Attributes
    ----------
    spec : UnitSpec
    matrix : (n, n) float
        A.
    codes : (n, n) int
        Coupling codes.
    corrections : Corrections or None
        What is known of the device that they are for.
    """

    spec: UnitSpec
    matrix: Floats
    codes: NDArray[np.signedinteger]
    corrections: Corrections | None = None

    @property
    def effective(self) -> Floats:
        """The matrix that the codes make, as far as is known."""
        known = self.spec if self.corrections is None else self.corrections
        return known.coupling_values(self.codes)

    @cached_property
    def modes(self) -> tuple[Floats, Floats]:
        """Eigenvalues and eigenvectors of the matrix as programmed; O(n³), for error bars."""
        values, vectors = np.linalg.eigh(self.effective)
        return values, vectors

    def rounding(self, rows: Floats) -> Floats:
        """E x of (k, n) rows x, E being what rounding and shrinking added to the matrix."""
        return rows @ (self.effective - self.matrix)


@dataclass(frozen=True)
class Reading:
    """Solutions that were read, and all that their error bars depend on.

    Attributes
    ----------
    value : (k, n) float
        x, a solution per row, each entry times its `unit`.
    unit : (n,) float, or 1
    amplitude : (k,) float
        What the ADC's full scale stands for in each.
    equation : Equation
        What was solved.
    temperature : float
        T, in full scales squared.
    settling : Settling
        Before the first, and between them.
    averaging : float
        Variance of what was read over that of a mean of so many readings: there may have been more.
    """

    value: Floats
    unit: Floats | float
    amplitude: Floats
    equation: Equation
    temperature: float
    settling: Settling
    averaging: float = 1.0

    def variance(self) -> Floats:
        """(k, n): sampling, quantisation of ADC and bias, what is unsettled, what rounding did.

        With modes λ_m and Q of the matrix as programmed, a reading of cell i varies by
        Σ_m Q_im² T/λ_m (1 - e^(-2λ_m t)), and the mean of N by that times
        (1 + 2 Σ_j (1 - j/N) ρ_m^j)/N. An ADC step q adds q²/12 to every reading, of which dithering
        by σ leaves (q²/12) e^(-4π²σ²/q²) in any mean.
        """
        spec, count = self.equation.spec, self.settling.readings
        rates, vectors = self.equation.modes
        rates = np.maximum(rates, 1e-9)  # what has grown, for lack of a guard, has no error bar
        passed = self.settling.filter(2.0 * rates)
        reading = self.temperature / rates * passed
        together = reading * _correlated(np.exp(-rates * self.settling.interval), count)
        weights = vectors**2
        step = spec.adc_step
        single = weights @ reading
        lasting = step**2 / 12.0 * np.exp(-4.0 * math.pi**2 * single / step**2)
        noise = weights @ together + (step**2 / 12.0 - lasting) / count + lasting
        noise *= self.averaging
        bias_step = 1.0 / spec.bias_max
        noise += bias_step**2 / 12.0 * (weights @ (self.settling.filter(rates) / rates) ** 2)
        variance = noise * self.amplitude[:, None] ** 2
        value = self.value / self.unit
        in_modes = value @ vectors
        passed = np.maximum(self.settling.filter(rates), 1e-9)
        missed = in_modes * (1.0 - passed) / passed
        variance += (missed @ vectors.T) ** 2
        moved = self.equation.rounding(value) @ vectors
        variance += ((moved * (passed / rates)) @ vectors.T) ** 2
        if (known := self.equation.corrections) is not None:
            variance += known.mean_variance(value, self.amplitude[:, None], vectors, rates)
        return variance * self.unit**2


def _correlated(decay: Floats, count: int) -> Floats:
    """Variance of a mean of AR(1) samples over that of one: (1 + 2 Σ_j (1 - j/N) ρ^j)/N."""
    near = 1.0 - decay
    # ρ → 1 cancels; all samples are then one
    safe = np.maximum(near, 1e-9)
    tail = decay * (1.0 - decay**count) / (count * safe)
    factor: Floats = np.where(near < 1e-8, 1.0, (1.0 + 2.0 * (decay - tail) / safe) / count)
    return factor
