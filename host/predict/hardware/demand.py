"""What a step asks of a unit: runs, codes, conversions, words on its link, and its time.

A mirror of what `thermokron.host.linalg` does, without matrices: of n rows and k columns, so many
jobs of so many bias vectors, each of which takes what `UnitSpec.phase_cycles` says. What depends on
data is a quantity: the rate of the slowest mode, and how many columns run again because they left
the converter's range, or used too little of it.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, fields
from typing import Self

import numpy as np

from thermokron.host.predict.conditions import Conditions
from thermokron.host.predict.hardware.technology import Technology
from thermokron.host.predict.quantity import Number, Values
from thermokron.model import covariance_settling, mean_settling
from thermokron.model.timing import coupling_words, port_beats

__all__ = [
    "Demand",
    "blocks",
    "code_words",
    "eliminate",
    "invert",
    "of_runs",
    "result_words",
    "solve",
]

#: Relative bias that is left before covariances are read, as of `linalg`, and means that eliminate.
SETTLING_BIAS = 1e-4
#: Readings of a column of P⁻¹Q.
SHARE = 8
#: Between samples of a covariance, in τ/λ_min.
INTERVAL = 2.0


@dataclass(frozen=True)
class Demand:
    """Counts, and seconds of the unit by phase; numbers, or draws.

    Attributes
    ----------
    runs, vectors : number
        Starts, and bias vectors, each of which is a discharge.
    couplings, biases : number
        Codes that went to the DACs.
    conversions, products : number
        Of the ADCs, and of the accumulator.
    words_to, words_from : number
        Over the link.
    matrices : number
        Times that another matrix is solved with: what waits for the link's latency.
    load, settle, sample : number
        Seconds; discharge is in `settle`.
    results : number
        Seconds in which results leave on a stream while the array waits.
    """

    runs: Number = 0.0
    vectors: Number = 0.0
    couplings: Number = 0.0
    biases: Number = 0.0
    conversions: Number = 0.0
    products: Number = 0.0
    words_to: Number = 0.0
    words_from: Number = 0.0
    matrices: Number = 0.0
    load: Number = 0.0
    settle: Number = 0.0
    sample: Number = 0.0
    results: Number = 0.0

    def __add__(self, other: Demand) -> Demand:
        return Demand(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def times(self, factor: Number) -> Self:
        """So many of it."""
        return type(self)(*(factor * getattr(self, f.name) for f in fields(self)))

    @property
    def seconds(self) -> Number:
        """Of the unit, load to done."""
        return self.load + self.settle + self.sample + self.results


def solve(
    technology: Technology,
    rows: int,
    columns: int,
    conditions: Conditions,
    values: Values,
    *,
    samples: int = 1,
    settle: float | str = 0.1,
) -> Demand:
    """Of M X = B, M (rows, rows) and B (rows, columns), as `Programmed.solve` does it.

    Parameters
    ----------
    samples : int
        Readings per column.
    settle : float or str
        As of `Programmed.solve`.
    """
    edges = blocks(technology, rows)
    total = Demand()
    for size in edges:
        total = total + _means(technology, size, columns, conditions, values, samples, settle)
    return total


def eliminate(technology: Technology, rows: int, conditions: Conditions, values: Values) -> Demand:
    """Of a factor larger than the array, when it is renewed: P⁻¹Q of every block.

    Nothing of one that fits.
    """
    total, left = Demand(), rows
    for size in blocks(technology, rows)[:-1]:
        left -= size
        once = _means(technology, size, left, conditions, values, SHARE, SETTLING_BIAS)
        total = total + once.times(values(conditions.passes))
    return total


def invert(
    technology: Technology, rows: int, conditions: Conditions, values: Values, samples: int | None
) -> Demand:
    """Of M⁻¹ by covariances, as `inv` does it; without `samples` so many per row.

    Of a factor larger than the array, every pivot's, and P⁻¹Q by means.
    """
    total = eliminate(technology, rows, conditions, values)
    for size in blocks(technology, rows):
        total = total + _covariance(technology, size, conditions, values, samples)
    return total


def blocks(technology: Technology, rows: int) -> list[int]:
    """Sizes of the blocks through which a factor goes, as `linalg` divides it; one if it fits."""
    count = -(-rows // technology.spec.cells)
    edges = [i * rows // count for i in range(count + 1)]
    return [stop - start for start, stop in itertools.pairwise(edges)]


def _covariance(
    technology: Technology, rows: int, conditions: Conditions, values: Values, samples: int | None
) -> Demand:
    slowest = values(conditions.kappa)
    wanted = rows * values(conditions.samples_per_row) if samples is None else float(samples)
    spec = technology.spec
    n = rows if technology.fitted else spec.cells
    occupied = spec.folds * (n // 2 + 1)
    shortest = max(spec.shortest_interval(False), occupied)
    clocked = values(technology.tau) * values(technology.clock)
    spacing = np.maximum(np.ceil(INTERVAL * slowest * clocked), shortest)
    settling = np.maximum(np.ceil(covariance_settling(1.0, SETTLING_BIAS) * slowest * clocked), 1.0)
    return of_runs(
        technology,
        n,
        values,
        runs=1.0,
        vectors=1.0,
        settling=settling,
        samples=wanted,
        spacing=spacing,
        second_moments=True,
    )


def _means(
    technology: Technology,
    rows: int,
    columns: int,
    conditions: Conditions,
    values: Values,
    samples: int,
    settle: float | str,
) -> Demand:
    spec = technology.spec
    n = rows if technology.fitted else spec.cells
    slowest, again = values(conditions.kappa), values(conditions.reruns)
    clocked = values(technology.tau) * values(technology.clock)
    if isinstance(settle, str):
        time: Number = float(settle.removesuffix("tau"))
    else:
        time = mean_settling(1.0, settle) * slowest
    settling = np.maximum(np.ceil(time * clocked * (1 - 1e-12)), 1.0)
    spacing = np.maximum(np.ceil(INTERVAL * slowest * clocked), spec.shortest_interval(False))
    first = -(-columns // spec.rhs_depth)
    return of_runs(
        technology,
        n,
        values,
        runs=first + values(conditions.restarts),
        vectors=columns * (1.0 + again),
        settling=settling,
        samples=float(samples),
        spacing=spacing,
        second_moments=False,
    )


def of_runs(
    technology: Technology,
    n: int,
    values: Values,
    *,
    runs: Number,
    vectors: Number,
    settling: Number,
    samples: Number,
    spacing: Number,
    second_moments: bool,
) -> Demand:
    """Of so many runs with one matrix on n cells, and so many bias vectors in all.

    Parameters
    ----------
    settling, spacing : number
        Clock cycles before the first sample, and between samples.
    """
    spec, clock = technology.spec, values(technology.clock)
    couplings = n * (n + 1) // 2
    cycles = spec.cycles_of(
        vectors=vectors,
        settle_cycles=settling,
        interval_cycles=spacing,
        samples=samples,
        second_moments=second_moments,
        runs=runs,
        cells=n,
        dac_lanes=technology.ports,
    )
    words = link_words(technology, n, vectors, samples, second_moments)
    return Demand(
        runs=runs,
        vectors=vectors,
        couplings=runs * couplings,
        biases=vectors * n,
        conversions=vectors * samples * n,
        products=samples * vectors * couplings if second_moments else 0.0,
        words_to=words[0] + words[1],
        words_from=words[2],
        matrices=1.0,
        load=cycles["load"] / clock,
        settle=(cycles["discharge"] + cycles["settle"]) / clock,
        sample=cycles["sample"] / clock,
        results=cycles["results"] / clock,
    )


def link_words(
    technology: Technology, n: int, vectors: Number, samples: Number, second_moments: bool
) -> tuple[Number, Number, Number]:
    """Words on the link for a matrix on n cells, so many bias vectors, and their results."""
    spec = technology.spec
    if technology.word_bits is None and spec.stream_bits is not None:
        beats = port_beats(spec, vectors=vectors, samples=samples, second_moments=second_moments)
        couplings, biases, results = (count * spec.stream_bits / 32 for count in beats)
        return couplings, biases, results
    count = sent = n * (n + 1) // 2
    if technology.word_bits is None:  # the windows have rows of whole words of codes
        sent = coupling_words(n, spec.dac_lanes) * spec.dac_lanes
    sums, clipped, products = result_words(technology, samples)
    return (
        sent * code_words(technology, spec.coupling_bits),
        vectors * n * code_words(technology, spec.bias_bits),
        (sums + clipped) * vectors * n + (products * count if second_moments else 0),
    )


def code_words(technology: Technology, bits: int) -> int:
    """Words on the link for a code of so many bits."""
    return -(-bits // technology.link_word)


def result_words(technology: Technology, samples: Number) -> tuple[int, int, int]:
    """Words on the link for a sum, a clip count and a product, as of `UnitSpec.result_words`."""
    spec, width = technology.spec, technology.link_word
    most = math.ceil(float(np.max(samples)))
    if width == 32:
        return spec.result_words(most)
    grown = (most - 1).bit_length()
    codes = -(-(spec.adc_bits + grown) // width), -(-(2 * spec.adc_bits + grown) // width)
    return codes[0], (0 if most == 1 else -(-(grown + 1) // width)), codes[1]
