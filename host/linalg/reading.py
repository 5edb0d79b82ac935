"""Solutions as they were read from the array, and their error bars."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from thermokron.host.calibration import Corrections
from thermokron.host.linalg.arrays import Floats
from thermokron.host.linalg.lags import of_mean
from thermokron.host.linalg.settling import Settling
from thermokron.host.linalg.spread import Parts, Spread, excess
from thermokron.model import UnitSpec

__all__ = ["LEAST_LEFT", "Equation", "Reading"]

#: What is left of a last pass's variance at least, where others followed or went before.
LEAST_LEFT = 1e-6
#: What has grown, for lack of a guard, has no error bar; this keeps it finite.
LEAST_RATE = 1e-9


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
        return np.maximum(values, LEAST_RATE), vectors

    def rough(self, rows: Floats) -> Floats:
        """Solutions of the equation as programmed for (k, n) right-hand sides, digitally."""
        rates, vectors = self.modes
        solutions: Floats = ((rows @ vectors) / rates) @ vectors.T
        return solutions

    def exact(self, rows: Floats) -> Floats:
        """Solutions of A x = b for (k, n) rows b, digitally; O(n³), for error bars.

        Not with the modes as programmed, which are no slower than a coupling's step allows.
        """
        values, vectors = np.linalg.eigh(self.matrix.astype(np.float64))
        values = np.maximum(values, np.finfo(np.float64).eps * values[-1])
        solutions: Floats = ((rows @ vectors) / values) @ vectors.T
        return solutions

    @property
    def rounding(self) -> Floats:
        """E, (n, n): what rounding and shrinking added to the matrix."""
        return self.effective - self.matrix

    @property
    def known_rounding(self) -> Floats:
        """As much of it, (n, n), as O(n²) operations tell."""
        return self.rounding

    @property
    def merged(self) -> bool:
        """Whether it stands for several roundings of the matrix."""
        return False


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

    def variance(self, residual: Floats | None = None) -> Floats:
        """That of solutions in the array's units, (k, n).

        Of sampling, quantisation of ADC and bias, rounded couplings, what is unsettled, and what
        the solutions' `residual` b - A x, (k, n), shows beyond.

        With modes λ_m and Q of the matrix as programmed, a reading of cell i varies by
        Σ_m Q_im² T/λ_m (1 - e^(-2λ_m t)), and the mean of N by that times
        (1 + 2 Σ_j (1 - j/N) ρ_m^j)/N. An ADC step q adds q²/12 to every reading, of which dithering
        by σ leaves (q²/12) e^(-4π²σ²/q²) in any mean. What rounding and settling do is known, sign
        and all; but an error bar is that of many like problems, so the signs of E_ij, and those of
        the modes' unsettled parts, are taken for random: Σ_jl (A⁻¹)_ij² E_jl² x_l² of the former.

        The host does not know a unit's flaws, but errors are A⁻¹ times the residual, and so in mode
        m its part over λ_m. `excess` finds of which kinds of flaw, and how large, they could be
        draws; their variance is added. The errors themselves are not: that would be another
        refinement, a digital one. Of `refined` solutions this is the last pass, which is one of
        several: how much of its noise there still is the residual tells, too.
        """
        equation, count = self.equation, self.settling.readings
        spec, step = equation.spec, equation.spec.adc_step
        rates, vectors = equation.modes
        passed = np.maximum(self.settling.filter(rates), 1e-9)
        spread = Spread(vectors, passed / rates)
        reading = self.temperature / rates * self.settling.filter(2.0 * rates)
        drawn = reading * of_mean(rates * self.settling.interval, count) * self.averaging
        drawn += spread.response**2 / (12.0 * spec.bias_max**2)
        single = spread.weights @ reading
        lasting = step**2 / 12.0 * np.exp(-4.0 * math.pi**2 * single / step**2)
        converted = ((step**2 / 12.0 - lasting) / count + lasting) * self.averaging
        full = self.amplitude[:, None] ** 2
        value = np.asarray(self.value / self.unit, np.float64)
        missed = (value @ vectors) * (1.0 / passed - 1.0)
        rounding = spread.of_couplings(equation.rounding**2, value)
        known = spread.of_modes(full * drawn + missed**2) + spread.of_cells(full * converted)
        known += rounding
        if (corrections := equation.corrections) is not None:
            uncertain = corrections.mean_variance(value, self.amplitude[:, None], vectors, rates)
            known += spread.of_cells(uncertain)
        if residual is None:
            return known.cells
        error = equation.exact(residual)
        flaws = (
            known,
            rounding,
            spread.of_cells(value**2),  # gains
            spread.of_cells(np.broadcast_to(full, value.shape)),  # offsets
            spread.of_couplings(equation.matrix.astype(np.float64) ** 2, value),
        )
        seen, least = Parts(error**2, (error @ vectors) ** 2), known.times(LEAST_LEFT)
        variance: Floats = least.cells + excess(seen, least, flaws)
        return variance
