"""How K-FAC inverts a damped factor: exactly, by its diagonal alone, or on a thermodynamic unit."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from thermokron.host.kfac.solve.dense import definite_cholesky
from thermokron.host.linalg import (
    Account,
    Dithered,
    Eliminated,
    Guard,
    Programmed,
    Settle,
    Stack,
    program,
)
from thermokron.host.linalg.dithered import draws_of
from thermokron.host.linalg.refinement import MOST
from thermokron.model import Unit
from thermokron.model.checks import check_integer

__all__ = ["Inverse", "Inverter", "Thermodynamic", "diagonal", "exact"]

#: Samples of an inverse, and readings of a solution, where nothing else is asked for.
INVERSE_SAMPLES, SOLVE_SAMPLES = 1000, 1
#: Refinements of a solution with a factor whose couplings had to be shrunk, likewise.
SHRUNK_REFINE = 3


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
    refine : int or None
        Of solutions: how often the unit solves again for what is left, 0 to 100, 2n² operations of
        the host a column each. None: 3 times with factors whose couplings had to be shrunk to stay
        positive definite, as most are of 3 and 4 bits, and else not at all. Without refinement
        what was shrunk by s is taken times 1 - s, which costs nothing.
    dither : bool
        Whether codes are rounded at random, E[code] = value, anew whenever a factor is programmed,
        so that rounding errors average out over steps. Draws follow from the unit's seed and the
        factor itself, and so go on from a saved state as they would have without.

    Raises
    ------
    ValueError, TypeError
        If `refine` is out of range, or `dither` does not go with the guard.
    """

    unit: Unit
    samples: int | None = None
    settle: Settle = 0.1
    equilibrate: bool = True
    guard: Guard = "lanczos"
    refine: int | None = None
    dither: bool = False

    def __post_init__(self) -> None:
        if self.refine is not None:
            check_integer("refine", self.refine, 0, MOST)
        if self.dither:
            draws_of(1, 0, self.guard, 1, 1)

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
            **self._rounding(matrix),
        )
        result = programmed.inv(samples=samples, estimator="quadratic")
        cost = result.with_cost_of(programmed.cost).cost
        value = torch.as_tensor(result.value, device=matrix.device)
        return Inverse(_shortened(programmed, value, cost), cost)

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
            **self._rounding(matrix),
        )
        assert not isinstance(programmed, Stack | Dithered), "a factor is one matrix, rounded once"
        return programmed

    def _rounding(self, matrix: torch.Tensor) -> dict[str, Any]:
        """Options of `program`."""
        if not self.dither:
            return {}
        key = self.unit.seed.to_bytes(8, "little")
        numbers = hashlib.blake2b(matrix.cpu().numpy().tobytes(), digest_size=8, key=key)
        return {"dither": 1, "seed": int.from_bytes(numbers.digest(), "little") >> 2}

    def solve(
        self, programmed: Programmed | Eliminated, right: torch.Tensor
    ) -> tuple[torch.Tensor, Account]:
        """Solutions for the columns of `right`, (n, k): each is a bias vector; and their cost."""
        samples = SOLVE_SAMPLES if self.samples is None else self.samples
        refine = self.refine
        if refine is None:
            refine = SHRUNK_REFINE if programmed.shrinkage else 0
        result = programmed.solve(right, samples=samples, settle=self.settle, refine=refine)
        cost = result.cost
        return result.value if refine else _shortened(programmed, result.value, cost), cost

    def __str__(self) -> str:
        spec = self.unit.spec
        samples = "" if self.samples is None else f", {self.samples} samples"
        return (
            f"thermodynamic({type(self.unit).__name__}, {spec.cells} cells, "
            f"{spec.coupling_bits}-bit couplings{samples})"
        )


def _shortened(programmed: Any, value: torch.Tensor, cost: Account) -> torch.Tensor:
    """What solves (1-s) A + s I, times 1 - s, so that it solves A + s/(1-s) I.

    That is more damping, and a stiff direction's step as long as it should be; else 1/(1-s) times
    too long, which these directions are the first not to bear.
    """
    if not programmed.shrinkage or not isinstance(programmed, Programmed):
        return value
    cost.flops(value.numel())
    value *= 1.0 - programmed.shrinkage
    return value
