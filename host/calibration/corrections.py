"""What a calibration changes about programs and readings: `Corrections`.

In z = S x with S = diag(√F_ii) an array that is programmed with codes c is one of unit diagonal,

    κ_i⁻¹ dz_i = -(Σ_j A_ij z_j - S_i⁻¹ (b + o)_i) dt + √(2 T f_i/κ_i) dW_i,
    A_ij = c_ij F_ij/√(F_ii F_jj),   κ_i = F_ii/τ_i.

So a wanted A_ij takes the code A_ij √(F_ii F_jj)/F_ij, which leaves the diagonal at full scale; a
wanted bias b takes S_i b_i - o_i, and a reading y stands for z_i = S_i (y_i/g_i - p_i).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from thermokron.host.calibration.noise import exact_excess, scaled_excess
from thermokron.host.calibration.values import Floats, Values
from thermokron.model import UnitSpec

__all__ = ["EXACT_CELLS", "NOISE_CORRECTIONS", "Corrections", "NoiseCorrection"]

#: How what unequal noise does to a covariance is taken off, see `Calibrated`.
NoiseCorrection = Literal["auto", "exact", "scaled", "none"]
NOISE_CORRECTIONS: tuple[str, ...] = get_args(NoiseCorrection)
#: Up to this many cells "auto" is "exact": an eigendecomposition costs no more than Lanczos does.
EXACT_CELLS = 32


@dataclass(frozen=True, eq=False)
class Corrections:
    """Corrections for the n cells of a calibrated device that hold a matrix.

    Attributes
    ----------
    spec : UnitSpec
    values : Values
        Of these cells.
    noise : str
        How unequal noise is corrected.
    """

    spec: UnitSpec
    values: Values
    noise: NoiseCorrection = "auto"

    @cached_property
    def _root(self) -> Floats:
        """S, (n,)."""
        root: Floats = np.sqrt(self.values.couplings.diagonal())
        return root

    # ---- couplings ------------------------------------------------------------------------------

    @cached_property
    def weights(self) -> Floats:
        """Full scales of code for a coupling of 1, (n, n), symmetric; 1 on the diagonal."""
        weights = self._root[:, None] * self._root / self.values.couplings
        weights.flat[:: len(weights) + 1] = 1.0
        return weights

    def coupling_values(self, codes: NDArray[np.signedinteger]) -> Floats:
        """A (n, n) that codes make on this device."""
        return self.spec.coupling_values(codes) / self.weights

    # ---- biases and means -----------------------------------------------------------------------

    @cached_property
    def headroom(self) -> float:
        """The part of the bias DAC's range that every bias may use."""
        most = 1.0 - float(np.abs(self.values.cell_offsets).max()) - 1.0 / self.spec.bias_max
        return max(most, 0.1) / float(self._root.max())

    def bias_levels(self, levels: Any) -> Any:
        """Biases (K, n), in steps of a code, as they have to be on this device."""
        return levels * self._root - self.values.cell_offsets * self.spec.bias_max

    @property
    def no_bias(self) -> NDArray[np.int16]:
        """The codes (n,) under which means are nearest to 0."""
        codes: NDArray[np.int16] = np.rint(self.bias_levels(np.zeros(len(self._root))))
        return codes.astype(np.int16)

    def means(self, read: Any, amplitude: Any, *, offset: bool = True) -> Any:
        """What (K, n) readings stand for of which `amplitude`, (K, 1), is the full scale.

        Without `offset` they have none any more.
        """
        values = self.values
        scaled = read * (self._root / values.gains)
        return scaled - amplitude * (self._root * values.adc_offsets) if offset else scaled

    def mean_variance(
        self, solutions: Floats, amplitude: Floats, vectors: Floats, rates: Floats
    ) -> Floats:
        """What errors of the calibration do to (k, n) solutions: their variance, (k, n).

        `amplitude` (k, 1) is what a full scale stands for; `vectors` and `rates` are the modes of
        A. Errors of couplings count as alike, those of an offset move A⁻¹ o.
        """
        values = self.values
        weights = vectors**2 @ (1.0 / rates**2)
        alike = float(np.mean(self._coupling_errors() ** 2))
        variance: Floats = alike * (solutions**2).sum(axis=1)[:, None] * weights
        variance += amplitude**2 * float(np.mean(values.cell_offsets_error**2)) * weights
        variance += (amplitude * values.adc_offsets_error) ** 2
        variance += (solutions * self._scale_errors()) ** 2
        return variance

    def _coupling_errors(self) -> Floats:
        """Of A's entries for |A_ij| = 1 over √n, as those of a matrix may be, (n, n)."""
        errors: Floats = self.values.couplings_error / self.values.couplings
        errors = errors / np.sqrt(len(errors))
        errors.flat[:: len(errors) + 1] = 0.0
        return errors

    def _scale_errors(self) -> Floats:
        """Relative, of what a reading stands for, (n,)."""
        values = self.values
        diagonal = values.couplings_error.diagonal() / values.couplings.diagonal()
        errors: Floats = np.hypot(0.5 * diagonal, values.gains_error / values.gains)
        return errors

    # ---- covariances ----------------------------------------------------------------------------

    def covariance(self, raw: Floats) -> Floats:
        """Covariance (n, n) of readings as one of z, the conversions' own noise still in it."""
        scale = self._root / self.values.gains
        return raw * (scale[:, None] * scale)

    def conversion(self, rounding: float) -> Floats:
        """Variance (n,) of a conversion, `rounding` included, full scales squared, as one of z."""
        values = self.values
        variances: Floats = self._root**2 * (values.adc_noise + rounding / values.gains**2)
        return variances

    def equalised(self, inverse: Floats, codes: NDArray[np.signedinteger]) -> tuple[Floats, int]:
        """A⁻¹ of Z/T (n, n) as measured under codes, and the operations that this took."""
        n, values = len(inverse), self.values
        kind = self.noise
        if kind == "auto":
            kind = "exact" if n <= EXACT_CELLS else "scaled"
        if kind == "none":
            return inverse, 0
        if kind == "scaled":
            return inverse - scaled_excess(inverse, values.noise), 4 * n * n
        excess = exact_excess(self.coupling_values(codes), values.noise, values.rates)
        return inverse - excess, 13 * n**3 + 8 * n * n

    def covariance_variance(self, inverse: Floats) -> Floats:
        """What errors of the calibration do to a sampled A⁻¹: variance (n, n); O(n²)."""
        values = self.values
        own = self._scale_errors() ** 2 + 0.25 * (values.noise_error / values.noise) ** 2
        length = (inverse**2).sum(axis=1)
        alike = float(np.mean(self._coupling_errors() ** 2))
        variance: Floats = inverse**2 * np.add.outer(own, own)
        variance += alike * np.multiply.outer(length, length)
        return variance
