"""How K-FAC inverts a damped factor: exactly, by its diagonal alone, or on a thermodynamic unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from thermokron.host.kfac.dense import definite_cholesky
from thermokron.host.linalg import Guard, Result, inv, solve
from thermokron.model import Unit

__all__ = ["Inverse", "Inverter", "Thermodynamic", "diagonal", "exact"]


@dataclass(frozen=True)
class Inverse:
    """An inverse, or the solution of a linear system, and what it cost.

    Attributes
    ----------
    value : tensor
        The inverse (n, n), or the solution (n, k), of the matrix's dtype and on its device.
    hardware_seconds : float
        Time on the unit in seconds, 0 where none was used.
    runs : int
        Runs of the unit, 0 where none was used.
    digital_flops : int
        Floating-point operations that the host spent beside the unit, 0 where none was used.
    repairs : int
        Matrices that rounding, or Schur complements that noise, had made indefinite and that were
        repaired.
    clipped : int
        Samples that left the ADC's range in the runs that made the value.
    """

    value: torch.Tensor
    hardware_seconds: float = 0.0
    runs: int = 0
    digital_flops: int = 0
    repairs: int = 0
    clipped: int = 0


class Inverter(Protocol):
    """What `KFAC(inverse=...)` takes: any callable of this form."""

    def __call__(self, matrix: torch.Tensor, lambda_min: float) -> Inverse:
        """Invert a symmetric positive definite matrix.

        Parameters
        ----------
        matrix : (n, n) float64 tensor
            The damped factor.
        lambda_min : float
            A lower bound on its eigenvalues, known from the damping.
        """
        ...


def exact(matrix: torch.Tensor, lambda_min: float) -> Inverse:
    """The inverse by Cholesky factorisation, O(n³) on the host, in the matrix's own precision.

    A matrix that rounding made indefinite has its eigenvalues raised to `lambda_min` first, see
    `thermokron.host.kfac.dense.definite_cholesky`.
    """
    factor, repairs = definite_cholesky(matrix, lambda_min)
    return Inverse(torch.cholesky_inverse(factor), repairs=repairs)


def diagonal(matrix: torch.Tensor, lambda_min: float) -> Inverse:
    """The inverse of the matrix's diagonal: a control that knows nothing of correlations."""
    return Inverse(torch.diag(1.0 / matrix.diagonal()))


@dataclass(frozen=True)
class Thermodynamic:
    """Inverses as covariances sampled by a unit (`thermokron.host.linalg.inv`).

    Attributes
    ----------
    unit : Unit
        What runs the jobs, from `thermokron.host.open_unit` or `thermokron.model.NumericUnit`.
    samples : int
        Samples per run of the unit.
    equilibrate : bool
        Whether a matrix is scaled to unit diagonal before it is inverted; False for comparison.
    guard : {"lanczos", "norm", "cholesky", "clipping", "none"}
        How to make sure that rounding to coupling codes leaves a matrix positive definite, see
        `thermokron.host.linalg.inv`; with "none" a step may end in `NotPositiveDefinite`.
    """

    unit: Unit
    samples: int = 1000
    equilibrate: bool = True
    guard: Guard = "lanczos"

    def __call__(self, matrix: torch.Tensor, lambda_min: float) -> Inverse:
        """Invert on the unit; the error is statistical, about sqrt(n / samples)."""
        return self._answer(
            matrix,
            inv(
                self.unit,
                matrix.cpu(),
                samples=self.samples,
                lambda_min=lambda_min,
                guard=self.guard,
                equilibrate=self.equilibrate,
            ),
        )

    def solve(self, matrix: torch.Tensor, right: torch.Tensor, lambda_min: float) -> Inverse:
        """Solve matrix · X = right, (n, k), on the unit: every column is a bias vector.

        Means take the array far less time than covariances do for the same error, and the
        columns share one load of the couplings (`thermokron.host.linalg.solve`).
        """
        return self._answer(
            matrix,
            solve(
                self.unit,
                matrix.cpu(),
                right.cpu(),
                samples=self.samples,
                lambda_min=lambda_min,
                guard=self.guard,
            ),
        )

    @staticmethod
    def _answer(matrix: torch.Tensor, result: Result) -> Inverse:
        return Inverse(
            torch.as_tensor(result.value, device=matrix.device, dtype=matrix.dtype),
            result.hardware_seconds,
            result.runs,
            result.digital_flops,
            result.repairs,
            result.clipped,
        )

    def __str__(self) -> str:
        spec = self.unit.spec
        return (
            f"thermodynamic({type(self.unit).__name__}, {spec.cells} cells, "
            f"{spec.coupling_bits}-bit couplings, {self.samples} samples)"
        )
