"""A matrix on the array: programmed once, then solved with, inverted and sampled."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Self

import numpy as np

from thermokron.host.calibration import corrections_of
from thermokron.host.linalg.arrays import (
    Floats,
    Kind,
    check_reading,
    check_second_moments,
    vector,
)
from thermokron.host.linalg.covariance import (
    SETTLING_BIAS,
    Estimator,
    check_estimator,
    sample_inverse,
)
from thermokron.host.linalg.inverse import Correct, Inverse, check_correct
from thermokron.host.linalg.means import Means
from thermokron.host.linalg.reading import Equation, Reading
from thermokron.host.linalg.refusals import Persistent, refusals
from thermokron.host.linalg.result import Account, Result
from thermokron.host.linalg.rounding import Guard, Rounded, rounded
from thermokron.host.linalg.sampled import Sampled
from thermokron.host.linalg.settling import Settle, Settling, check_settle
from thermokron.host.linalg.solver import Solver
from thermokron.model import Job, Unit
from thermokron.model.checks import check_integer
from thermokron.model.threads import single_threaded_blas

__all__ = ["Programmed"]


class Programmed(Solver):
    """A symmetric positive definite matrix M on the array, as `program` made it.

    M is scaled to unit diagonal, A = D^-½ M D^-½, rounded to coupling codes and guarded, once. It
    costs the host O(n²), and the unit nothing: couplings are loaded by the runs that use them.

    Attributes
    ----------
    unit : Unit
        That holds it.
    shape : (int, int)
        Of M.
    plan : Rounded
        The codes, and what is known of them.
    cost : Account
        What programming cost.
    """

    def __init__(
        self,
        unit: Unit,
        matrix: Floats,
        scale: Floats,
        bound: float | None,
        *,
        guard: Guard,
        kind: Kind,
        interval: float = 2.0,
        doubtful: bool = False,
        like: Programmed | None = None,
        plan: Rounded | None = None,
        draw: int | None = None,
    ) -> None:
        """From A and the diagonal of D^½; with a `plan`, it was rounded before; with a `draw`, at
        random."""
        self.unit, self.shape, self.kind = unit, matrix.shape, kind
        self.guard, self.interval, self.doubtful = guard, interval, doubtful
        self.draw_number = draw
        self.matrix, self.scale, self.bound = matrix, scale, bound
        self.inverse_scale, self.cost = 1.0 / scale, Account()
        self.corrections = corrections_of(unit, len(matrix))
        if plan is None:
            plan = self._rounded(guard, self.cost, None if like is None else like.plan)
        self._load(plan)
        self.means = Means(unit, self.job, len(matrix), self.corrections)
        if like is not None:
            self.means.recall(like.means)

    def _rounded(self, guard: Guard, account: Account, like: Rounded | None = None) -> Rounded:
        # where the slowest mode is as fast as this, nothing is gained by knowing it better
        spec = self.unit.spec
        enough = min(self.interval * spec.tau_s * spec.clock_hz / spec.shortest_interval(), 1.0)
        return rounded(
            spec,
            self.matrix,
            self.bound,
            guard,
            account,
            enough=enough,
            doubtful=self.doubtful,
            like=like,
            weights=None if self.corrections is None else self.corrections.weights,
            draw=self.draw_number,
        )

    def _load(self, plan: Rounded) -> None:
        """Make the program of the codes, padded with an identity that exchanges nothing."""
        spec, n = self.unit.spec, len(plan.codes)
        self.plan = plan
        codes = plan.codes
        if n < spec.cells:
            codes = np.diag(np.full(spec.cells, spec.coupling_max, dtype=np.int16))
            codes[:n, :n] = plan.codes
        self.job = Job.symmetric(
            codes,
            biases=np.zeros((1, spec.cells), dtype=np.int16),
            temperature=1,
            settle_cycles=1,
            interval_cycles=spec.shortest_interval(),
            samples=1,
            second_moments=True,
        )
        self.equation = Equation(spec, self.matrix, plan.codes, self.corrections)

    def _look(self, account: Account) -> tuple[Job, Rounded]:
        """Program it anew under a guard that looks at it."""
        self._load(self._rounded("lanczos", account))
        self.means.job = self.job
        return self.job, self.plan

    @property
    def _seen(self) -> bool:
        """Whether a guard has looked at this very matrix, or is not to."""
        return self.guard == "none" or (self.plan.checked and self.plan.age == 0)

    # ---- solving ------------------------------------------------------------------------------

    def one_pass(
        self, rows: Floats, account: Account, *, unit: Floats | float, asked: dict[str, Any]
    ) -> Reading:
        """As of `Solver`."""
        return self.read(rows, account, unit=unit, **asked)

    @property
    def shrinkage(self) -> float:
        """As of `Solver`."""
        return self.plan.shrinkage

    def refusals(self) -> AbstractContextManager[None]:
        """As of `Solver`."""
        return refusals(self.plan.bound, self.guard != "none")

    def read(
        self,
        rows: Floats,
        account: Account,
        **asked: Any,
    ) -> Reading:
        """One pass, as of `Means.read`, after which a guard looks if readings clip in any case."""
        asked["account"] = account
        try:
            return self.means.read(self.equation, rows, self.plan.rate, **asked)
        except Persistent:
            if self._seen:
                raise
        self._look(account)
        return self.means.read(self.equation, rows, self.plan.rate, **asked)

    # ---- inverting and sampling -----------------------------------------------------------------

    @single_threaded_blas()
    def inv(
        self,
        *,
        samples: int = 1000,
        interval: float = 2.0,
        estimator: Estimator = "unbiased",
        correct: Correct | None = None,
    ) -> Result:
        """M⁻¹, from the covariance of the array: `thermokron.host.linalg.inv` says how.

        Parameters
        ----------
        samples : int
            From 2. The relative error is about √((n+1)/N).
        interval : float
            Between samples, in units of τ/λ_min, if the accumulator can follow.
        estimator : "unbiased" or "quadratic"
            The covariance itself, or N/(N+n+1) of it, N counted in independent samples: of all
            multiples that with the least E‖XM - 1‖² (Haff, Ann. Statist. 8, 1980). The curvature
            along a step g → Xg is (1 + (n+1)/N) times what the unbiased X takes it for; this one
            is right about it.
        correct : "rounding", optional
            Takes off, to first order, what rounded couplings did: 4n³ operations.

        Returns
        -------
        Result
            `value` and `standard_error` (n, n), of M's kind and dtype.

        Raises
        ------
        ValueError, TypeError
            If an option is out of range.
        NotPositiveDefinite, UnitFault
            If samples clip however low the temperature; if the unit failed.
        """
        check_reading(samples, interval, 2)
        check_second_moments(self.unit.spec, "an inverse")
        check_estimator(estimator)
        check_correct(correct)
        account = Account(samples=samples)
        with self.refusals():
            sampled = self.covariance(samples, interval, account)
        outer = self.inverse_scale[:, None] * self.inverse_scale
        account.flops(2 * outer.size)
        if estimator == "quadratic":
            outer *= sampled.shortening()
        found = Inverse(sampled, self.equation, correct).guarded(account)
        return found.result(outer, self.kind.restore, account)

    def covariance(self, samples: int, interval: float, account: Account) -> Sampled:
        """A⁻¹ as sampled.

        Raises
        ------
        Persistent
            If samples clip however low the temperature.
        """
        return sample_inverse(
            self.unit,
            self.job,
            self.matrix,
            self.plan,
            samples=samples,
            interval=interval,
            account=account,
            corrections=self.corrections,
            look=None if self._seen else partial(self._look, account),
        )

    @single_threaded_blas()
    def sample(self, count: int, b: Any = None, *, settle: Settle = SETTLING_BIAS) -> Result:
        """Independent draws from N(M⁻¹b, M⁻¹): each is one reading after a discharge.

        Parameters
        ----------
        count : int
            How many.
        b : (n,) array or tensor, optional
            Shifts the mean; 0 if not given.
        settle : float or str
            The part of the slowest mode that may be left undone, or a time such as "5tau".

        Returns
        -------
        Result
            `value` (count, n), of M's kind and dtype; `standard_error` that of the ADC's rounding.

        Raises
        ------
        ValueError, TypeError
            If an argument is out of range, or M⁻¹b is so many standard deviations away from 0 that
            the ADC cannot show both.
        UnitFault
            If the unit failed.
        """
        count = check_integer("count", count, 1, 2**30)
        check_settle(settle)
        spec, n = self.unit.spec, len(self.matrix)
        account = Account(samples=1)
        shift = np.zeros(n)
        if b is not None:
            shift = vector(b, n, self.kind.check) * self.inverse_scale
        with self.refusals():
            drawn, root, settling = self.draw(shift, count, account, settle=settle)
        value = drawn * self.inverse_scale
        account.flops(2 * value.size)
        rounding = spec.adc_step / math.sqrt(12.0) / root * self.inverse_scale
        error = partial(np.tile, rounding, (count, 1))
        return Result.of(value, error, self.kind.restore, account, settling=settling)

    def draw(
        self, shift: Floats, count: int, account: Account, *, settle: Settle
    ) -> tuple[Floats, float, Settling]:
        """As of `Means.draw`, of this matrix, not of one that a guard has found to be like it."""
        if not self._seen:
            self._look(account)
        return self.means.draw(shift, self.plan.rate, count, settle=settle, account=account)

    # ---- state ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What `load` makes the same of, on a unit of the same spec: arrays, numbers and text."""
        return {
            "matrix": self.matrix,
            "scale": self.scale,
            "bound": self.bound,
            "guard": self.guard,
            "interval": self.interval,
            "doubtful": self.doubtful,
            "coupling_bits": self.unit.spec.coupling_bits,
            "plan": vars(self.plan),
            "draw": self.draw_number,
            "gains": dict(self.means.gains),
        }

    @classmethod
    def load(cls, unit: Unit, state: dict[str, Any], kind: Kind) -> Self:
        """What `state_dict` was made of.

        Raises
        ------
        ValueError
            If the unit's couplings have other bits, so that the codes would mean something else.
        """
        bits, saved = unit.spec.coupling_bits, state["coupling_bits"]
        if saved != bits:
            raise ValueError(f"state was saved with coupling_bits = {saved}, this unit has {bits}")
        made = cls(
            unit,
            state["matrix"],
            state["scale"],
            state["bound"],
            guard=state["guard"],
            kind=kind,
            interval=state["interval"],
            doubtful=state["doubtful"],
            plan=Rounded(**state["plan"]),
            draw=state.get("draw"),
        )
        made.means.gains = dict(state["gains"])
        return made

    def __repr__(self) -> str:
        n = len(self.matrix)
        spec, plan = self.unit.spec, self.plan
        shrunk = f", couplings shrunk by {plan.shrinkage:.1%}" * bool(plan.shrinkage)
        return (
            f"<Programmed {n}x{n} on {spec.cells} cells, {spec.coupling_bits}-bit couplings, "
            f"slowest rate {plan.rate:.3g}{shrunk}>"
        )
