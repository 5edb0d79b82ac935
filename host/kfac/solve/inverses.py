"""How K-FAC inverts a damped factor: exactly, by its diagonal alone, or on a thermodynamic unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from thermokron.host.kfac.solve.dense import definite_cholesky
from thermokron.host.linalg import Account, Eliminated, Guard, Programmed, Settle, Stack, program
from thermokron.model import Unit

__all__ = ["Inverse", "Inverter", "Thermodynamic", "diagonal", "exact"]

#: Samples of an inverse, and readings of a solution, where nothing else is asked for.
INVERSE_SAMPLES, SOLVE_SAMPLES = 1000, 1


@dataclass(frozen=True)
class Inverse:
    """An inverse, and what it cost.

    Attributes
    ----------
    value : (n, n) tensor
        Of the matrix's dtype and on its device.
    cost : Account or None
        Time on a unit, operations of the host beside it, repairs.
    """

    value: torch.Tensor
    cost: Account | None = None


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
    """The inverse by Cholesky factorisation, n³ operations, in the matrix's own precision.

    A matrix that rounding made indefinite has its eigenvalues raised to `lambda_min` first, see
    `thermokron.host.kfac.solve.dense.definite_cholesky`.
    """
    factor, repairs = definite_cholesky(matrix, lambda_min)
    cost = Account(repairs=repairs, digital_flops=len(matrix) ** 3)
    return Inverse(torch.cholesky_inverse(factor), cost)


def diagonal(matrix: torch.Tensor, lambda_min: float) -> Inverse:
    """The inverse of the matrix's diagonal: a control that knows nothing of correlations."""
    return Inverse(torch.diag(1.0 / matrix.diagonal()), Account(digital_flops=len(matrix)))


@dataclass(frozen=True)
class Thermodynamic:
    """Factors on a thermodynamic unit: inverted (Method 1), or solved with (Method 2).

    Attributes
    ----------
    unit : Unit
        What runs the jobs, from `thermokron.host.open_unit` or `thermokron.model.NumericUnit`.
    samples : int or None
        Samples per run of the unit. None: 1,000 of an inverse, one reading of a solution.
    settle : float or str
        Of solutions: the part of a factor's slowest mode that may be left undone before they are
        read, which acts like damping; or a time such as "5tau".
    equilibrate : bool
        Whether a matrix is scaled to unit diagonal before it is programmed; False for comparison.
    guard : {"lanczos", "norm", "cholesky", "clipping", "none"}
        How to make sure that rounding to coupling codes leaves a matrix positive definite, see
        `thermokron.host.linalg.program`; with "none" a step may end in `NotPositiveDefinite`.
    """

    unit: Unit
    samples: int | None = None
    settle: Settle = 0.1
    equilibrate: bool = True
    guard: Guard = "lanczos"

    def __call__(self, matrix: torch.Tensor, lambda_min: float) -> Inverse:
        """Invert on the unit; the error is statistical, about sqrt(n / samples).

        Of all multiples of the sampled inverse it is that which is right about the curvature along
        the step that it makes ("quadratic", see `thermokron.host.linalg.Programmed.inv`).
        """
        samples = INVERSE_SAMPLES if self.samples is None else self.samples
        programmed = program(
            self.unit,
            matrix.cpu(),
            lambda_min=lambda_min,
            guard=self.guard,
            equilibrate=self.equilibrate,
            check=False,
            complements="auto",
            samples=samples,
            tolerance=0.03,
        )
        result = programmed.inv(samples=samples, estimator="quadratic")
        cost = result.with_cost_of(programmed.cost).cost
        return Inverse(torch.as_tensor(result.value, device=matrix.device), cost)

    def program(
        self,
        matrix: torch.Tensor,
        lambda_min: float,
        like: Programmed | Eliminated | None = None,
    ) -> Programmed | Eliminated:
        """Put a damped factor on the unit, O(n²) on the host; `like` the one before it.

        Of a factor that goes through blocks, P⁻¹Q is read as often as elimination does at least,
        and solved for again until its residual is small.
        """
        programmed = program(
            self.unit,
            matrix.cpu(),
            lambda_min=lambda_min,
            guard=self.guard,
            equilibrate=self.equilibrate,
            like=like,
            check=False,
            samples=SOLVE_SAMPLES if self.samples is None else self.samples,
            tolerance=0.03,
        )
        assert not isinstance(programmed, Stack), "a factor is one matrix"
        return programmed

    def solve(
        self, programmed: Programmed | Eliminated, right: torch.Tensor
    ) -> tuple[torch.Tensor, Account]:
        """Solutions for the columns of `right`, (n, k): each is a bias vector; and their cost."""
        samples = SOLVE_SAMPLES if self.samples is None else self.samples
        result = programmed.solve(right, samples=samples, settle=self.settle)
        return result.value, result.cost

    def __str__(self) -> str:
        spec = self.unit.spec
        samples = "" if self.samples is None else f", {self.samples} samples"
        return (
            f"thermodynamic({type(self.unit).__name__}, {spec.cells} cells, "
            f"{spec.coupling_bits}-bit couplings{samples})"
        )
