"""Solving with a matrix on the array, whether it fits or is in blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from thermokron.host.linalg.arrays import Floats, Kind, check_reading, right_hand_sides
from thermokron.host.linalg.offsets import Offsets, check_offsets
from thermokron.host.linalg.refinement import Answer, check_refinement, refined
from thermokron.host.linalg.result import Account, Result
from thermokron.host.linalg.settling import Settle, check_settle
from thermokron.model import Unit
from thermokron.model.spec import MAX_SAMPLES
from thermokron.model.threads import single_threaded_blas

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

__all__ = ["Solver"]


class Solver(ABC):
    """M = D^½ A D^½ on the array: `matrix` is A, `scale` D^½'s diagonal."""

    unit: Unit
    shape: tuple[int, ...]
    matrix: Floats
    scale: Floats
    inverse_scale: Floats
    kind: Kind

    @abstractmethod
    def one_pass(
        self, rows: Floats, account: Account, *, unit: Floats | float, asked: dict[str, Any]
    ) -> Answer:
        """A⁻¹ of (k, n) rows, which may be overwritten, entries times their `unit`."""

    @property
    @abstractmethod
    def shrinkage(self) -> float:
        """Largest part by which off-diagonal couplings were shrunk, see `Result.shrinkage`."""

    @abstractmethod
    def refusals(self) -> AbstractContextManager[None]:
        """What goes wrong inside, in terms of M."""

    @single_threaded_blas()  # small matrices, and jobs that do not depend on the number of threads
    def solve(
        self,
        B: Any,
        *,
        samples: int = 1,
        settle: Settle = 0.1,
        refine: int | None = None,
        rtol: float | None = None,
        interval: float = 2.0,
        offsets: Offsets = "kept",
    ) -> Result:
        """Solve M X = B, from the mean of the array: every column is a bias vector.

        Unless it is refined, k columns cost the host O(nk) operations: scale, round, read, unscale.
        How strongly to drive a column follows from a bound, from the last call, and from the
        read-out: columns that left the ADC's range, or used little of it, run again. A matrix in
        blocks costs the host 2n² operations a column more, of substitution.

        Parameters
        ----------
        B : (n,), (n, k) or (..., n, k) array or tensor
            Right-hand sides, real.
        samples : int
            Readings per right-hand side. One has the noise of a cell, √(T (A⁻¹)_ii), which is half
            an ADC step or more, on a swing of about half of full scale.
        settle : float or str
            The part of the slowest mode that may be left undone, or a time such as "5tau".
            `Result.settling` has the filter that it is: more damping, for most purposes.
        refine : int, optional
            Solves again for the residual, so many times, 0 by default. The rounding of the
            couplings, sampling and a short settling leave an error that each multiplies by about
            itself, or less; each costs another pass over the unit and 2n² operations a column.
        rtol : float, optional
            Refine until ‖b - M x‖ ≤ rtol ‖b‖ in every column, `refine` times at most, 100 if that
            is left open. A `NotConverged` warning says if that, or what helps at all, was too
            little.
        interval : float
            Between samples, in units of τ/λ_min, if the unit can follow.
        offsets : {"kept", "blank", "chopped"}
            What no calibration knows. "blank": 16 readings without bias are taken off, a 16th more
            variance. "chopped": columns are read with b and -b, twice the time, half the variance.

        Returns
        -------
        Result
            `value` of B's shape, kind and dtype; `residual`, `standard_error` and `settling`.

        Raises
        ------
        ValueError, TypeError
            If B's shape does not fit, or an option is out of range; the message says which.
        NotPositiveDefinite, UnitFault
            If readings clip however weak the bias; if the unit failed.
        """
        check_reading(samples, interval, 1, MAX_SAMPLES)
        check_settle(settle)
        refine, enough = check_refinement(refine, rtol, 0)
        check_offsets(offsets, self.unit.spec)
        account = Account(samples=samples)
        given = right_hand_sides(B, len(self.matrix), self.kind.check, self.scale)
        rows = given.rows(self.inverse_scale)
        account.flops(2 * rows.size)

        # a residual is worked out in the array's units; without, what is read is the user's at once
        unit = 1.0 if refine else self.inverse_scale
        asked = {"samples": samples, "settle": settle, "interval": interval, "offsets": offsets}

        def once(right: Floats, account: Account) -> Answer:
            return self.one_pass(right, account, unit=unit, asked=asked)

        with self.refusals():
            solved = refined(
                once, self.matrix, rows, refine, account, enough=enough, scale=self.scale
            )
        solved = solved.times(self.inverse_scale, done=not refine)
        return solved.result(given, self.matrix, self.scale, account, enough)

    def linear_operator(self, **options: Any) -> LinearOperator:
        """M⁻¹ as SciPy's iterative solvers take a preconditioner, `options` being those of `solve`.

        Every product is another one, for the array is noisy: a method that allows for it, such as
        `scipy.sparse.linalg.gcrotmk`, gains most, and `solve(B, rtol=...)` is one. `cg` gains where
        the array settles, `settle=1e-3` or less.
        """
        from scipy.sparse.linalg import LinearOperator

        def product(columns: Floats) -> Any:
            return self.solve(columns, **options).value

        return LinearOperator(
            self.shape,
            matvec=product,
            rmatvec=product,
            matmat=product,
            rmatmat=product,
            dtype=self.matrix.dtype,
        )
