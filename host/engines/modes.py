"""A programmed array in its modes, on torch: what the `statistical` engine draws from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from thermokron.host.products import product
from thermokron.model import UnitSpec
from thermokron.model.converters import applied_couplings
from thermokron.model.device import Device
from thermokron.model.discretisation import MAX_GROWTH, relaxation

__all__ = ["BEYOND_ALL_RAILS", "Modes"]

Floats = NDArray[np.float64]
#: Rates, which means are divided by, are no nearer to zero than this part of the largest.
LEAST_RATE = 1e-9
#: Growing modes are held here: far beyond every rail, and what sums of thousands leave a float32.
BEYOND_ALL_RAILS = 1e30
#: Noise factors of unequal temperatures that are kept: for the settling, and for an interval.
FACTORS_KEPT = 2


class Modes:
    """A = Q Λ Qᵀ, and what its modes z = Qᵀx do: `NoiseArray` has the equations.

    Where time constants are unequal V takes the place of Q, and no cell is a mode as it is.

    Cells that are coupled to none, as at the end of an array that is larger than the problem, are
    modes as they are, and cost nothing.

    Parameters
    ----------
    spec : UnitSpec
    static : Device
        The device's couplings and temperatures.
    couplings : (n, n) int
        Codes.
    dtype, device
        Of torch: what is decomposed and multiplied in, and where. Laws are worked out in float64.

    Attributes
    ----------
    rates : (n,) float64
        λ, away from zero; a negative one is a mode that grows.
    diffusion : (n, n) float64 or None
        Qᵀ diag(f) Q for temperatures T f of the cells; None where they, and time constants, are
        equal.
    """

    def __init__(
        self,
        spec: UnitSpec,
        static: Device,
        couplings: NDArray[Any],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        matrix = applied_couplings(spec, static, couplings)
        rates = matrix.diagonal().copy()
        coupled = np.flatnonzero(np.count_nonzero(matrix, axis=1) > (rates != 0.0))
        few = self._coupled = int(coupled[-1]) + 1 if len(coupled) else 0
        root = None
        if static.time_factors is not None:
            root, few = 1.0 / np.sqrt(static.time_factors), len(matrix)
            self._coupled, matrix = few, matrix * root * root[:, None]
        block = torch.as_tensor(matrix[:few, :few], dtype=dtype, device=device)
        values, vectors = torch.linalg.eigh(block)
        if root is not None:
            vectors = torch.as_tensor(root, dtype=dtype, device=device)[:, None] * vectors
        # rows times either of these read it in order
        self._vectors, self._turning_back = vectors.mT.contiguous().mT, vectors.contiguous().mT
        rates[:few] = values.cpu().numpy()
        least = LEAST_RATE * max(float(np.abs(rates).max()), LEAST_RATE)
        self.rates: Floats = np.where(np.abs(rates) < least, least, rates)
        self.diffusion: Floats | None = None
        if static.noise_factors is not None or root is not None:
            powers = np.ones(len(matrix)) if static.noise_factors is None else static.noise_factors
            self.diffusion = np.diag(powers)
            q = vectors.double().cpu().numpy()
            self.diffusion[:few, :few] = (q.T * powers[:few]) @ q
        self._factors: dict[float, torch.Tensor] = {}

    def tensor(self, values: Any) -> torch.Tensor:
        """Numbers in the type and on the device of the decomposition."""
        return torch.as_tensor(values, dtype=self._vectors.dtype, device=self._vectors.device)

    def double(self, values: Floats) -> torch.Tensor:
        """Numbers in float64, on that device."""
        return torch.tensor(values, dtype=torch.float64, device=self._vectors.device)

    def turned(self, cells: Any) -> torch.Tensor:
        """Rows (K, n) of cells as rows of modes."""
        return self._rotated(self.tensor(cells), self._vectors)

    def turned_back(self, modes: torch.Tensor) -> torch.Tensor:
        """Rows (K, n) of modes as rows of cells, in memory of their own."""
        return self._rotated(modes, self._turning_back)

    def _rotated(self, rows: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        few = self._coupled
        if few == len(self.rates):
            return product(rows, by)
        cells = rows.clone()
        if few:
            cells[:, :few] = product(rows[:, :few].contiguous(), by)
        return cells

    # ---- what a duration does, in τ --------------------------------------------------------------

    def decay(self, duration: float) -> torch.Tensor:
        """ρ of each mode, (n,)."""
        return self.tensor(np.exp(np.minimum(-self.rates * duration, MAX_GROWTH)))

    def response(self, duration: float) -> Floats:
        """What a drift of 1 that lasts so long comes to in each mode, (n,)."""
        return np.minimum(relaxation(self.rates, duration), BEYOND_ALL_RAILS)

    def noise(self, duration: float) -> torch.Tensor:
        """The factor, as of `scaled`, of what temperature 1 adds meanwhile."""
        if self.diffusion is None:
            variance = 2.0 * relaxation(2.0 * self.rates, duration)
            return self.factor(np.minimum(variance, BEYOND_ALL_RAILS**2))
        if duration not in self._factors:
            covariance = relaxation(self.rates[:, None] + self.rates, duration)
            covariance = np.minimum(covariance, BEYOND_ALL_RAILS**2) * (2.0 * self.diffusion)
            if len(self._factors) == FACTORS_KEPT:
                self._factors.clear()
            self._factors[duration] = self.factor(covariance)
        return self._factors[duration]

    def settled(self) -> Floats:
        """Covariance of settled modes at temperature 1: variances (n,), or (n, n)."""
        if self.diffusion is None:
            return 1.0 / self.rates
        settled: Floats = 2.0 * self.diffusion / (self.rates[:, None] + self.rates)
        return settled

    # ---- covariances -----------------------------------------------------------------------------

    def factor(self, covariance: Floats) -> torch.Tensor:
        """F with F Fᵀ the covariance: (n,) of variances, else (n, n)."""
        if covariance.ndim == 1:
            return self.tensor(np.sqrt(covariance))
        scale = np.sqrt(covariance.diagonal())
        # to unit diagonal first: modes may differ by many orders of magnitude
        inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0.0)
        whole = self.double(covariance * inverse * inverse[:, None])
        values, vectors = torch.linalg.eigh(whole)
        return self.tensor(self.double(scale)[:, None] * vectors * values.clamp_min(0.0).sqrt())

    @staticmethod
    def scaled(draws: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """Independent rows (K, n) as rows of a factor's covariance; may overwrite them."""
        return draws.mul_(factor) if factor.ndim == 1 else product(draws, factor.mT)

    def cell_variances(self, covariance: Floats) -> Floats:
        """Variance of each cell, (n,), for a covariance of the modes, (n,) or (n, n)."""
        few = self._coupled
        if covariance.ndim == 1:
            variances = covariance.copy()
            squares = self._vectors * self._vectors
            cells = squares @ self.tensor(covariance[:few])
        else:
            variances = covariance.diagonal().copy()
            cells = ((self._vectors @ self.tensor(covariance[:few, :few])) * self._vectors).sum(1)
        variances[:few] = cells.double().cpu().numpy()
        return np.maximum(variances, 0.0)
