"""What an analog-to-digital converter costs, by bits and rate: a range between two sources.

The low edge is the regression of Andrulis et al. ("Modeling analog-digital-converter energy and
area for compute-in-memory accelerator design", arXiv 2404.06553; the package hwcomponents-adc),
which follows the best fifth of what has been published. The middle is the median of B. Murmann's
survey of what was published (github.com/bmurmann/ADC-survey, 2025-06: 28 nm and below, since 2015,
1 MS/s and more), and the high edge its upper quartile. Bits are taken for effective ones.
"""

from __future__ import annotations

import math

import numpy as np

from thermokron.host.predict.quantity import Quantity
from thermokron.model.checks import check_real

__all__ = ["adc_area", "adc_energy", "regression"]

REGRESSION = "arXiv 2404.06553, regression (optimistic)"
SURVEY = (
    "Murmann's ADC survey 2025-06, 28 nm and below: median and upper quartile, of 10 bits that of 8"
)

#: FOMS in dB: intercept and slope in ln(Hz), and at most so much by bits, from 0.
_FOMS, _FOMS_BY_RATE = 213.7806687348118, -2.8719030399529957
_FOMS_MOST, _FOMS_MOST_BY_BIT = 128.3068287398817, 3.2205121113691
#: What ln(pJ) has beside: intercept, by ln(nm), by ln(bits), and of the best fifth.
_ENERGY = (26.0496215686518, 1.8800369206815004, -2.8291256050594527, -1.4702022133784405)
#: ln(um²): intercept, by ln(nm), by ln(Hz), by ln(pJ).
_AREA = (1.3461916439910742, 0.9932794744745022, 0.18071538424508238, 0.29912426192653485)
#: Effective bits, the middles of three classes, and the survey's median and upper quartile in pJ;
#: the latter of 10 bits is 19.2, but what the upper edge of 8 bits may be, that of 10 may.
_BITS, _MEDIAN, _UPPER = (7.65, 10.0, 11.5), (5.89, 11.0, 48.0), (31.3, 31.3, 110.0)
#: Bits from which on the regression holds.
FEWEST = 4
#: Whose figures the survey's are taken for.
_NODE_NM = 28.0


def regression(bits: float, rate: float, node_nm: float) -> tuple[float, float]:
    """pJ per conversion and um² of an ADC, as hwcomponents-adc has them.

    Parameters
    ----------
    bits : float
        Effective, 4 to 16.
    rate : float
        Samples per second, 1 to 1e10.
    node_nm : float
        Technology node in nm, 3 to 350.

    Raises
    ------
    ValueError
        If an argument is out of range.
    """
    check_real("bits", bits, 4.0, 16.0)
    check_real("rate", rate, 1.0, 1e10)
    check_real("node_nm", node_nm, 3.0, 350.0)
    sndr = 20.0 * math.log10(2.0) * bits + 10.0 * math.log10(1.5)
    most = _FOMS_MOST + _FOMS_MOST_BY_BIT * math.ceil(bits)
    foms = min(_FOMS + _FOMS_BY_RATE * math.log(rate), most)
    whole, by_node, by_bits, best = _ENERGY
    adjusted = whole + by_node * math.log(node_nm) + by_bits * math.log(bits) + best
    energy = 0.5 * 10.0 ** ((sndr - foms) / 10.0) * math.exp(adjusted)
    whole, by_node, by_rate, by_energy = _AREA
    area = whole + by_node * math.log(node_nm) + by_rate * math.log(rate)
    return energy, math.exp(area + by_energy * math.log(energy))


def adc_energy(bits: int, rate: float, node_nm: float) -> Quantity:
    """J per conversion; of fewer than 4 bits that of 4, where the regression ends.

    Of other nodes than 28 nm, and at rates that cost energy, the survey is scaled as it is.
    """
    bits = max(bits, FEWEST)
    least, _ = regression(bits, rate, node_nm)
    slow, _ = regression(bits, 1e6, _NODE_NM)
    scale = least / slow
    median, upper = (_surveyed(bits, figures) * scale for figures in (_MEDIAN, _UPPER))
    median = max(median, least)
    return Quantity(
        "ADC energy per conversion",
        1e-12 * least,
        1e-12 * median,
        1e-12 * max(upper, median),
        "J",
        f"{REGRESSION}; {SURVEY}",
    )


def adc_area(bits: int, rate: float, node_nm: float) -> Quantity:
    """m² of one converter: the regression, and for all that is not of the best up to ten times."""
    _, area = regression(max(bits, FEWEST), rate, node_nm)
    return Quantity(
        "ADC area", 1e-12 * area, 3e-12 * area, 1e-11 * area, "m2", f"{REGRESSION}; x3, x10 assumed"
    )


def _surveyed(bits: float, figures: tuple[float, ...]) -> float:
    """pJ: between the classes, and beyond them a factor of 4 a bit above and 2 a bit below.

    (Noise makes it 4, and parts of least size 2: the survey's own remark, and ours.)
    """
    if bits > _BITS[-1]:
        return figures[-1] * math.exp2(2.0 * (bits - _BITS[-1]))
    if bits < _BITS[0]:
        return figures[0] * math.exp2(bits - _BITS[0])
    return float(np.exp(np.interp(bits, _BITS, np.log(figures))))
