"""How far solutions are off, by kind of cause, and how much of each a residual shows.

An error of a solution of A x = b is A⁻¹ times its residual: who knows that and an inverse knows the
error, and could take it off. An error bar says less, of many like problems: a variance for each
entry. What is known of a unit gives some of it (sampling, converters, rounding). Its flaws nobody
knows, but each kind leaves errors of a shape: a wrong gain, in proportion to what was read; an
offset, to full scale; a wrong coupling, A⁻¹ times what its row multiplies. How much there is of
each, the errors that were seen tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from thermokron.host.linalg.arrays import Floats

__all__ = ["Parts", "Spread", "excess"]

#: Steps of the fit, after which it moves error bars by less than a percent.
STEPS = 60


@dataclass(frozen=True)
class Parts:
    """Variances of solutions.

    Attributes
    ----------
    cells : (k, n) float
        Of their entries.
    modes : (k, n) float
        Of their parts in the modes of the matrix, or the same as `cells` where those are not known.
    """

    cells: Floats
    modes: Floats

    def __add__(self, other: Parts) -> Parts:
        return Parts(self.cells + other.cells, self.modes + other.modes)

    def times(self, factor: float) -> Parts:
        """Both, `factor` as large."""
        return Parts(factor * self.cells, factor * self.modes)

    def of(self, live: NDArray[np.intp], sizes: Floats) -> Floats:
        """Both, of the rows that are `live`, over their sizes, one after the other."""
        return np.concatenate((self.modes[live] / sizes, self.cells[live] / sizes)).ravel()


@dataclass(frozen=True)
class Spread:
    """What becomes of variances in a matrix with modes.

    Attributes
    ----------
    vectors : (n, n) float
        Q, a mode per column.
    response : (n,) float
        What a mode makes of a bias: 1/λ, or less where it has not settled.
    """

    vectors: Floats
    response: Floats

    @cached_property
    def weights(self) -> Floats:
        """Q_im²."""
        return self.vectors**2

    @cached_property
    def inverse(self) -> Floats:
        """What solves, (n, n), symmetric."""
        inverse: Floats = (self.vectors * self.response) @ self.vectors.T
        return inverse

    def of_modes(self, variance: Floats) -> Parts:
        """Of parts in modes, (k, n), independent of each other."""
        return Parts(variance @ self.weights.T, variance)

    def of_cells(self, variance: Floats) -> Parts:
        """Of entries, (k, n), independent of each other."""
        return Parts(variance, variance @ self.weights)

    def of_couplings(self, variance: Floats, value: Floats) -> Parts:
        """Of a symmetric matrix of independent entries E_ij, (n, n), where x is `value`, (k, n).

        A⁻¹E x varies by Σ_jl (A⁻¹)_ij² E_jl² x_l² and, as E_jl and E_lj are the same number, by
        Σ_jl E_jl² (A⁻¹)_ij x_j (A⁻¹)_il x_l beside; there the mean of E_jl² is taken for each.
        """
        n, square, squared = len(variance), value**2, self.inverse**2
        mean = (variance.sum() - variance.trace()) / max(n * (n - 1), 1)
        twice = (value @ self.inverse) ** 2 - square @ squared
        twice_in_modes = (value @ self.vectors) ** 2 - square @ self.weights
        inputs = square @ variance
        return Parts(
            inputs @ squared + mean * np.maximum(twice, 0.0),
            (inputs @ self.weights + mean * np.maximum(twice_in_modes, 0.0)) * self.response**2,
        )


def excess(seen: Parts, known: Parts, flaws: Sequence[Parts]) -> Floats:
    """What to add to the variances of entries, (k, n), that are `known`.

    Squares of errors that were `seen`, in modes and in cells, are taken for draws of
    v = known + Σ_c θ_c flaws_c; θ ≥ 0 maximises their likelihood, -½ Σ (log v + seen/v), by the
    multiplicative steps of Févotte & Idier (Neural Comput. 23, 2011, equation 4.1, Itakura-Saito).
    An error in a few modes, ν of them, tells its own variance only as well as ν draws can; what is
    seen of flaws grows by (ν + 2)/(ν + 1) for that.
    """
    added = np.zeros_like(known.cells)
    live = np.flatnonzero((np.isfinite(seen.cells) & (known.cells > 0.0)).all(axis=1))
    if not live.size:
        return added
    sizes = known.cells[live].mean(axis=1, keepdims=True)
    draws, base = seen.of(live, sizes), known.of(live, sizes)
    flaws = [flaw for flaw in flaws if flaw.cells[live].any()]
    shapes = np.stack([flaw.of(live, sizes) for flaw in flaws])
    means = shapes.mean(axis=1)
    shapes /= means[:, None]
    theta = np.full(len(shapes), max(float(draws.mean()), 1e-3) / len(shapes))
    for _ in range(STEPS):
        whole = base + theta @ shapes
        theta *= np.sqrt((shapes @ (draws / whole**2)) / (shapes @ (1.0 / whole)))
    theta /= means
    cells, modes = (np.zeros_like(each[live]) for each in (known.cells, known.modes))
    for share, flaw in zip(theta, flaws, strict=True):
        cells += share * flaw.cells[live]
        modes += share * flaw.modes[live]
    square = (modes**2).sum(axis=1)
    several = np.divide(modes.sum(axis=1) ** 2, square, out=np.ones_like(square), where=square > 0)
    widened = ((several + 2.0) / (several + 1.0))[:, None]
    added[live] = cells * widened
    return added
