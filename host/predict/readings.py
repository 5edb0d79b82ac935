"""Readings of O(n²κ²), the paper's cost of an inverse on the array: what of it is so, and when."""

from __future__ import annotations

import math
from dataclasses import dataclass

from thermokron.host.predict.asymptotics import Expression

__all__ = ["READINGS", "Reading"]


@dataclass(frozen=True)
class Reading:
    """One way to read O(n²κ²): what is to be known how well, and what that takes for one factor.

    Attributes
    ----------
    name : str
    samples, time, numbers, products : Expression
        In n, κ and ε, the error: samples, or readings, in all; time of the array in τ; numbers that
        pass the converters; products for the second moments. Bounds, which spectra with a good part
        of slow modes attain up to a factor.
    found : str
        Where n²κ² is, "" if nowhere.
    """

    name: str
    samples: Expression
    time: Expression
    numbers: Expression
    products: Expression
    found: str

    def exponents(self, quantity: str) -> tuple[float, float]:
        """Those of n and κ in `samples`, `time`, `numbers` or `products`."""
        expression: Expression = getattr(self, quantity)

        def at(n: float, kappa: float) -> float:
            return expression({"n": n, "κ": kappa, "ε": 0.1})

        once = at(1e6, 1e3)
        if not once:
            return 0.0, 0.0
        return math.log2(at(2e6, 1e3) / once), math.log2(at(1e6, 2e3) / once)


def _reading(name: str, *texts: str, found: str = "") -> Reading:
    samples, time, numbers, products = map(Expression, texts)
    return Reading(name, samples, time, numbers, products, found)


#: For Σ̂ of N independent samples with Σ = M⁻¹ E‖Σ̂ - Σ‖² = ((tr Σ)² + tr Σ²)/N, and
#: E‖Σ̂M - 1‖² = (tr Σ tr M + n)/N, in Frobenius norms; tr M = n and tr Σ ≤ nκ. A mean over a time t
#: at temperature T has E‖x̄ - M⁻¹b‖² = 2Tτ tr(M⁻²)/t, tr(M⁻²) ≤ nκ².
READINGS = (
    _reading("inverse, ‖X − M⁻¹‖/‖M⁻¹‖", "n/ε²", "2nκ/ε²", "n²/ε²", "n³/2ε²"),
    _reading(
        "inverse, ‖XM − 1‖/‖1‖",
        "nκ/ε²",
        "2nκ²/ε²",
        "n²κ/ε²",
        "n³κ/2ε²",
        found="cells times time",
    ),
    _reading(
        "inverse, ‖X − M⁻¹‖ as it is",
        "n²κ²/ε²",
        "2n²κ³/ε²",
        "n³κ²/ε²",
        "n⁴κ²/2ε²",
        found="samples",
    ),
    _reading(
        "n columns, each a mean over time at a given temperature, ‖x − M⁻¹b‖ as it is",
        "2n²κ²/ε²",
        "2n²κ²/ε²",
        "2n³κ²/ε²",
        "0",
        found="time",
    ),
    _reading("n columns, each read once, as cold as dithers the ADC", "n", "3nκ", "n²", "0"),
)
