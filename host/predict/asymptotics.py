"""What a step asks for as width, batch, condition and samples grow: per layer, in symbols.

A layer has n inputs and n outputs, no bias, and sees b vectors a step; both its Kronecker factors
are (n, n). Every entry is a line of text such as "10bn² + 2n³/r", which is printed as it is and
evaluated as it is, so that no table can say anything else than the numbers; what follows a bar is
of lower order. All of it is derived here, from what `thermokron` does: the body of arXiv 2502.08603
was not to be had. `benchmarks/asymptotics.py` measures it, docs/asymptotics.md has both.

    n, b    width, vectors of which moments are made
    κ       1/λ_min of the damped factors, scaled to unit diagonal: what settling and sampling take,
            in τ, as `Conditions.kappa` has it. Their mean eigenvalue is 1 and the largest between
            1 and n, so that the condition number lies between κ and nκ; where the largest is
            bounded, as it is of many more independent vectors than n, both grow alike
    N       samples of an inverse, readings of a column
    r       steps between renewals of what is made of the factors
    c       cells of an array that is smaller than the factor, in n/c blocks of as many rows
    d, P    bias vectors a start; times that elimination solves for a column of P⁻¹Q, 1 to 7
    S, E    starts that n columns take, ⌈n/d⌉, and those of elimination, Σ_j ⌈jc/d⌉
    t, e, T cycles that the array settles: before a reading, before one that eliminates, before the
            samples of an inverse; all of them multiples of κτ
    g, G    cycles that a column's codes take to the DACs longer than the column before it is at the
            array; the same where elimination takes eight readings, F where it takes one
    δ, Δ    cycles between readings and between samples, 2κτ at least; Δ is not below what the
            accumulator takes for a sample, h, half of the array with a lane for each cell
    w, q    words of 32 bits in which a reading and a product are sent

Operations are those of `thermokron.host.linalg.Result`: a product (m, k) x (k, n) is 2mkn.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from thermokron.host.predict.hardware.demand import INTERVAL, SETTLING_BIAS
from thermokron.model import UnitSpec, covariance_settling, mean_settling
from thermokron.model.checks import check_integer, check_real

__all__ = [
    "METHODS",
    "RESOURCES",
    "TABLE",
    "Expression",
    "Setting",
    "exponent",
    "unit_seconds",
    "value",
]

#: What is counted, and in what.
RESOURCES = {
    "passes": "operations of the host: forward, backward, moments",
    "step": "operations of the host beside them",
    "bytes": "bytes over the link",
    "load": "cycles of the unit",
    "settle": "cycles of the unit, discharge included",
    "sample": "cycles of the unit",
    "products": "products of the unit's accumulator",
    "host memory": "bytes that are kept beside parameters and gradients",
    "unit memory": "bits",
}
METHODS = {
    "sgd": "SGD",
    "adam": "Adam",
    "exact": "K-FAC, exact",
    "solve": "K-FAC, unit solves",
    "inverse": "K-FAC, unit inverts",
    "solve in blocks": "K-FAC, unit solves, in blocks",
    "inverse in blocks": "K-FAC, unit inverts, in blocks",
}
BLOCKS = " in blocks"

_POWERS = {"": 1, "²": 2, "³": 3, "⁴": 4}
_TERM = re.compile(r"([+−]?) ?([^ +−]+)")
_FACTOR = re.compile(r"([0-9.]+)|([^\W\d])([²³⁴]?)")


@dataclass(frozen=True)
class Expression:
    """A sum of products of letters, in text.

    Attributes
    ----------
    text : str
        Such as "2n³/r + 4n³ | 6n²/r": what follows the bar is of lower order.
    """

    text: str

    @property
    def leading(self) -> str:
        """What is not of lower order."""
        return self.text.partition(" | ")[0]

    def __call__(self, letters: Mapping[str, float]) -> float:
        """Its value; `ValueError` if it holds a letter that has none."""
        total = 0.0
        for sign, term in _TERM.findall(self.text.replace(" | −", " − ").replace(" | ", " + ")):
            above, _, below = term.partition("/")
            made = self._product(above, letters) / self._product(below, letters)
            total += -made if sign == "−" else made
        return total

    def _product(self, text: str, letters: Mapping[str, float]) -> float:
        made, rest = 1.0, _FACTOR.sub("", text)
        for number, letter, power in _FACTOR.findall(text):
            if letter and letter not in letters:
                rest += letter
            made *= float(number) if number else letters.get(letter, 1.0) ** _POWERS[power]
        if rest:
            raise ValueError(f"{rest!r} in {self.text!r} has no value")
        return made


def _table(**columns: Mapping[str, str]) -> dict[str, dict[str, Expression]]:
    """By method and resource, from what is given by resource and method; "0" for the rest."""
    return {
        method: {
            resource: Expression(columns[resource.replace(" ", "_")].get(method, "0"))
            for resource in RESOURCES
        }
        for method in METHODS
    }


#: By method and resource. Numbers are those of a default `UnitSpec`: a lane a cell, conversions of
#: 4 cycles, 8 of discharge, couplings of 8 bits, biases and ADC of 12. Of columns that run again,
#: see `Conditions.reruns`, nothing is counted; nor of the step's length, 5n² where it is limited.
TABLE = _table(
    # 2bn² each: forward, both of backward, both moments
    passes=dict.fromkeys(METHODS, "10bn²") | {"sgd": "6bn²", "adam": "6bn²"},
    # guards look closely, 64n² + 4096n and what tridiagonal matrices take, at one in sixteen
    # matrices that are solved with, and at every one that is inverted; twice at every block, where
    # half as many steps are enough
    step={
        "sgd": "4n²",
        "adam": "13n²",
        "exact": "4n³ + 2n³/r | 6n²/r",
        "solve": "14n² + 26n²/r | 512n/r + 57600/r",
        "inverse": "4n³ + 180n²/r | 8192n/r + 921600/r",
        "solve in blocks": "4n³ + 4n³/3r | 4Pcn²/r − 4Pc²n/r + 17Pn²/r − 2cn²/r + 2n³/cr"
        " + 132cn/r + 4096n/r + 165888n/cr + 14n²",
        "inverse in blocks": "4n³ + 8n³/3r | 4Pcn²/r − 4Pc²n/r + 25Pn²/r − 2cn²/r + 2n³/cr"
        " + 160cn/r + 4096n/r + 165888n/cr",
    },
    # couplings once a use of a matrix, 2n(n+1); a column is n words there and nw back
    bytes={
        "solve": "12n² + 8wn² | 4n",
        "inverse": "4n²/r + 4qn²/r | 28n/r + 4qn/r",
        "solve in blocks": "8n² + 8wn² + 12Pn²/r | 4cn + 4n − 12Pcn/r + 4cn/r − 4c²/r",
        "inverse in blocks": "8n²/r + 12Pn²/r | 4qcn/r − 12Pcn/r + 28n/r + 4qn/r − 4c²/r",
    },
    load={
        "solve": "Sn² + 2gn | Sn + 6S − 2gS",
        "inverse": "n²/r | n/r + 6/r",
        "solve in blocks": "Scn + PEc²/r + 2gn²/c | Sn + 6Sn/c − 2gSn/c + PEc/r + 6PE/r − 2PEG/r"
        " + PGn²/cr − PGn/r",
        "inverse in blocks": "Ec²/r + PEc²/r + cn/r | n/r + 6n/cr + Ec/r + PEc/r + 6E/r + 6PE/r"
        " − 2EF/r − 2PEG/r + Fn²/cr + PGn²/cr − Fn/r − PGn/r",
    },
    settle={
        "solve": "2nt | 16n",
        "inverse": "2T/r | 16/r",
        "solve in blocks": "2n²t/c + Pn²e/cr | 16n²/c + 8Pn²/cr − Pne/r − 8Pn/r",
        "inverse in blocks": "n²e/cr + Pn²e/cr | 8n²/cr + 8Pn²/cr − ne/r − Pne/r + 2nT/cr",
    },
    sample={
        "solve": "2nNδ + 2n | −2nδ + 20S",
        "inverse": "2NΔ/r | 2h/r + 20/r − 2Δ/r",
        "solve in blocks": "2n²Nδ/c + 7Pn²δ/cr | 2n²/c − 2n²δ/c + 20Sn/c + Pn²/cr − 7Pnδ/r"
        " − Pn/r + 20PE/r",
        "inverse in blocks": "2nNΔ/cr + 7Pn²δ/cr | n²/cr + Pn²/cr + n/r − 7Pnδ/r − 2nΔ/cr"
        " − n/r − Pn/r + 20n/cr + 20E/r + 20PE/r",
    },
    products={"inverse": "Nn²/r | Nn/r", "inverse in blocks": "Ncn/r | Nn/r"},
    # 8n² of moments, 8n² of inverses; on a unit 4n² a matrix and 2n² its codes; SGD's momentum
    host_memory={
        "sgd": "4n²",
        "adam": "8n²",
        "exact": "20n²",
        "solve": "24n²",
        "inverse": "20n²",
        "solve in blocks": "28n² | 4cn",
        "inverse in blocks": "20n²",
    },
    # two banks of couplings, biases and results of d vectors, products
    unit_memory={
        "solve": "31n² + 66dn | 53n",
        "inverse": "31n² + 66dn | 53n",
        "solve in blocks": "31c² + 66cd | 53c",
        "inverse in blocks": "31c² + 66cd | 53c",
    },
)


#: A default unit, but for as many bias vectors a start as there can be, all through its windows.
SPEC = UnitSpec(rhs_depth=256, stream_bits=None)


@dataclass(frozen=True)
class Setting:
    """Where the table is evaluated.

    Attributes
    ----------
    n, b, kappa : float
        From 1.
    samples : int
        N, from 1.
    refresh : int
        r, from 1.
    cells : int
        c, from 2; it counts where a factor goes in blocks.
    passes : float
        P.
    settle : float
        Part of the slowest mode that solutions leave undone.
    spec : UnitSpec
        Of which clock, τ, bits and bias vectors a start are taken; the array has n cells, or c.
    """

    n: float = 1024.0
    b: float = 1024.0
    kappa: float = 8.0
    samples: int = 1
    refresh: int = 1
    cells: int = 64
    passes: float = 2.0
    settle: float = 0.1
    spec: UnitSpec = SPEC

    def __post_init__(self) -> None:
        for name in ("n", "b", "kappa", "passes"):
            check_real(name, getattr(self, name), 1.0, 1e30)
        for name, low in (("samples", 1), ("refresh", 1), ("cells", 2)):
            check_integer(name, getattr(self, name), low, 2**100)
        check_real("settle", self.settle, 1e-12, 1.0)

    def letters(self, *, blocks: bool) -> dict[str, float]:
        """What every letter is worth; with `blocks` on an array of `cells`, else of n."""
        spec, n, c, d = self.spec, self.n, float(self.cells), float(self.spec.rhs_depth)
        clocked = self.kappa * spec.tau_s * spec.clock_hz
        half = (c if blocks else n) // 2 + 1.0
        spacing = max(math.ceil(INTERVAL * clocked), spec.shortest_interval(False))
        sums, clips, products = spec.result_words(min(self.samples, 2**20))
        settling = float(math.ceil(mean_settling(1.0, self.settle) * clocked))
        eliminating = float(math.ceil(mean_settling(1.0, SETTLING_BIAS) * clocked))
        # what the codes of a vector take, and a vector at the array
        codes = (c if blocks else n) + 4.0
        taken = 9.0 + settling + (self.samples - 1.0) * spacing
        return {
            "n": n,
            "b": self.b,
            "κ": self.kappa,
            "N": float(self.samples),
            "r": float(self.refresh),
            "c": c,
            "d": d,
            "P": self.passes,
            "S": float(math.ceil(n / d)),
            "E": _starts(n, c, d) if blocks else 0.0,
            "t": settling,
            "e": eliminating,
            "g": max(codes - taken, 0.0),
            "G": max(codes - 9.0 - eliminating - 7.0 * spacing, 0.0),
            "F": max(codes - 9.0 - eliminating, 0.0),
            "T": float(math.ceil(covariance_settling(1.0, SETTLING_BIAS) * clocked)),
            "h": half,
            "δ": float(spacing),
            "Δ": max(float(spacing), half),
            "w": float(sums + clips),
            "q": float(products),
        }


def _starts(n: float, c: float, d: float) -> float:
    """Σ ⌈jc/d⌉ over the blocks that have others before them; its leading part where they are
    many."""
    count = math.ceil(n / c)
    if count > 10_000:
        return 0.5 * n * n / (c * d)
    return float(sum(math.ceil(j * c / d) for j in range(1, count)))


def value(method: str, resource: str, setting: Setting) -> float:
    """An entry's value.

    Raises
    ------
    ValueError
        If there is no such method or resource; the message lists them.
    """
    for name, given, legal in (("method", method, METHODS), ("resource", resource, RESOURCES)):
        if given not in legal:
            raise ValueError(f"{name} = {given!r} is unknown; legal: {', '.join(legal)}")
    return TABLE[method][resource](setting.letters(blocks=method.endswith(BLOCKS)))


def unit_seconds(method: str, setting: Setting) -> float:
    """Of a step: load, settle and sample, one after the other; the link is not in it."""
    cycles = sum(value(method, phase, setting) for phase in ("load", "settle", "sample"))
    return cycles / setting.spec.clock_hz


#: Where exponents are taken: far out, and to twice as far.
FAR = 2**60


def exponent(method: str, resource: str, variable: str, setting: Setting | None = None) -> float:
    """d ln(entry) / d ln(variable), as the variable grows and all others stay; 0 of nothing.

    Parameters
    ----------
    variable : "n", "b", "kappa", "samples", "refresh" or "cells"
    setting : Setting, optional
        Of the others; a default one with 1,000 samples if not given.

    Raises
    ------
    ValueError
        If a name is unknown.
    """
    legal = ("n", "b", "kappa", "samples", "refresh", "cells")
    if variable not in legal:
        raise ValueError(f"variable = {variable!r} is unknown; legal: {', '.join(legal)}")
    at, far = setting or Setting(samples=1000), FAR
    if variable == "cells":  # which stay fewer than the rows
        at, far = replace(at, n=float(FAR)), 2**30
    near, beyond = (
        value(method, resource, replace(at, **{variable: far * factor}))  # type: ignore[arg-type]
        for factor in (1, 2)
    )
    return math.log2(beyond / near) if near else 0.0
