"""What a calibration knows of a device: `Values`, each with its standard error."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Floats", "Values"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Values:
    """Deviations of one device from its nominal values, as they were measured.

    With coupling codes of value c and bias codes of value b a cell obeys

        τ_i dx_i = -(Σ_j c_ij F_ij x_j - b_i - o_i) dt + √(2 T f_i τ_i) dW_i,

    and its channel converts g_i (x_i + p_i). Scaling one cell's x and its gain, with its couplings,
    noise and τ to match, changes no reading. So the bias DAC is the reference of every row, F is
    taken to be symmetric, and the geometric mean of the gains is 1: F, f and τ are in these units.

    Attributes
    ----------
    couplings, couplings_error : (n, n) float64
        F, each coupling over its programmed value, and one standard error.
    gains, gains_error : (n,) float64
        g, of the ADC's channels.
    adc_offsets, adc_offsets_error : (n,) float64, in ADC full scales
        p, referred to the input.
    cell_offsets, cell_offsets_error : (n,) float64, in ADC full scales
        o, added to the bias.
    noise, noise_error : (n,) float64
        f, each cell's noise temperature over the programmed one; 1 and 0 where the unit has no
        second moments to tell.
    adc_noise : (n,) float64, in ADC full scales squared
        Variance of a conversion beside its rounding, referred to the input.
    taus, taus_error : (n,) float64
        τ over its nominal value; 1 and infinity where the clock is too slow to see it.
    asymmetry, asymmetry_error : float
        Root mean square of F_ij - F_ji, which should be 0, and what noise makes of it.
    """

    couplings: Floats
    couplings_error: Floats
    gains: Floats
    gains_error: Floats
    adc_offsets: Floats
    adc_offsets_error: Floats
    cell_offsets: Floats
    cell_offsets_error: Floats
    noise: Floats
    noise_error: Floats
    adc_noise: Floats
    taus: Floats
    taus_error: Floats
    asymmetry: float
    asymmetry_error: float

    def __post_init__(self) -> None:
        shape = np.shape(self.couplings)
        for field in fields(self):
            if field.name.startswith("asymmetry"):
                continue
            array = np.array(getattr(self, field.name), dtype=np.float64)
            wanted = shape if field.name.startswith("couplings") else shape[:1]
            if len(shape) != 2 or shape[0] != shape[1] or array.shape != wanted:
                raise ValueError(f"{field.name} have shape {array.shape}, not {wanted}")
            if not (np.isfinite(array).all() or field.name == "taus_error"):
                raise ValueError(f"{field.name} hold NaN or inf; every entry must be finite")
            array.setflags(write=False)
            object.__setattr__(self, field.name, array)
        for name in ("couplings", "gains", "noise", "taus"):
            if not (getattr(self, name) > 0.0).all():
                raise ValueError(f"{name} hold {getattr(self, name).min():g}; legal: above 0")

    @property
    def cells(self) -> int:
        """n."""
        return len(self.gains)

    @property
    def rates(self) -> Floats:
        """F_ii/τ_i (n,): how fast a cell alone relaxes at full diagonal, over the nominal 1/τ."""
        rates: Floats = self.couplings.diagonal() / self.taus
        return rates

    def first(self, cells: int) -> Values:
        """Those of the first cells, in the same units."""

        def of(value: Any) -> Any:
            return value[(slice(cells),) * value.ndim] if isinstance(value, np.ndarray) else value

        return Values(**{field.name: of(getattr(self, field.name)) for field in fields(self)})

    def plain(self) -> dict[str, Any]:
        """Numbers and nested lists, for JSON; infinity, which JSON has not, is None."""

        def listed(value: Any) -> Any:
            if isinstance(value, np.ndarray):
                return [listed(each) for each in value]
            return float(value) if np.isfinite(value) else None

        return {field.name: listed(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def of(cls, plain: Any) -> Values:
        """The inverse of `plain`; what is missing or unknown is a `ValueError`."""
        known = {field.name for field in fields(cls)}
        if not isinstance(plain, dict) or plain.keys() != known:
            raise ValueError(f"the values of a calibration are {', '.join(sorted(known))}")

        def number(value: Any) -> Any:
            if isinstance(value, list):
                return [number(each) for each in value]
            return np.inf if value is None else value

        return cls(**{name: number(value) for name, value in plain.items()})
