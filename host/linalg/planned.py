"""A plan, with what is to be expected of it, and how it is carried out."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np

from thermokron.host.calibration import Calibrated
from thermokron.host.linalg.arrays import Floats, Kind, floats
from thermokron.host.linalg.blocks import Eliminated
from thermokron.host.linalg.choices import Choice, Choices
from thermokron.host.linalg.definite import Definiteness
from thermokron.host.linalg.explanation import explained
from thermokron.host.linalg.forecast import Parts
from thermokron.host.linalg.programmed import Programmed
from thermokron.host.linalg.refusals import NotConverged
from thermokron.host.linalg.rehearsal import Task
from thermokron.host.linalg.result import Result
from thermokron.model import Unit
from thermokron.model.threads import single_threaded_blas

__all__ = ["Plan"]

#: Times the tolerance that an error bar may be.
MISSED = 2.0


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """How an inverse, or solutions, of a wanted accuracy are had of a unit; made by `plan`.

    Attributes
    ----------
    unit : Unit
    tolerance : float
        The relative error, Frobenius, that was wanted.
    choice : Choice
        Method, samples, interval, settling and refinements, expected error and cost.
    blocks : int
        Into which the matrix is cut: 1 if it fits the array.
    alternatives : tuple of Choice
        The quickest way of every other method.
    flops : int
        Digital operations that planning took.
    """

    unit: Unit
    tolerance: float
    choice: Choice
    blocks: int
    alternatives: tuple[Choice, ...]
    flops: int
    _choices: Choices
    _kind: Kind = field(repr=False)
    _given: Any = field(repr=False, default=None)

    @property
    def error(self) -> float:
        """Expected relative error, Frobenius, of an ideal unit: of many tries the rms."""
        return self.choice.error

    @cached_property
    def parts(self) -> Parts:
        """What the error is made of; of means by rehearsing without each, when first asked for."""
        with single_threaded_blas():
            return self._choices.parts(self.choice)

    @property
    def hardware_seconds(self) -> float:
        """Time of the runs, as of `Result.hardware_seconds`."""
        return sum(self.choice.cost.seconds.values())

    @property
    def port_seconds(self) -> float:
        """For how long what they move takes the ports, as of `Result.port_seconds`."""
        return self.choice.cost.port_seconds

    @property
    def bytes(self) -> int:
        """What passes the ports, both ways."""
        return self.choice.cost.bytes_to_unit + self.choice.cost.bytes_from_unit

    @property
    def digital_flops(self) -> int:
        """Of the host, as of `Result.digital_flops`."""
        return self.choice.cost.digital_flops

    @property
    def options(self) -> dict[str, Any]:
        """Those of `Programmed.inv`, or of `Programmed.solve` where means are read.

        For other matrices of the same kind: `program(unit, other).solve(B, **plan.options)`.
        """
        way = self.choice
        common = {"samples": way.samples, "interval": way.interval}
        if way.method == "covariance":
            return common | {"correct": way.correct}
        offsets = self._choices.task.offsets
        return common | {"settle": way.settle, "refine": way.refine, "offsets": offsets}

    @property
    def temperature(self) -> float:
        """T that the unit is likely to be set to, in full scales squared."""
        if self.choice.method == "covariance":
            return self._choices.covariance.temperature
        return self._choices.rehearsal.temperature

    @single_threaded_blas()
    def run(self, B: Any = None) -> Result:
        """Carry it out.

        Parameters
        ----------
        B : (n,), (n, k) or (..., n, k) array or tensor, optional
            Right-hand sides, of a plan for solving; those that it was made with by default.

        Returns
        -------
        Result
            As of `inv` or `solve`, of M's or B's kind.

        Raises
        ------
        ValueError
            If B is given and an inverse was planned, or missing.
        NotPositiveDefinite, UnitFault
            As of `inv` and `solve`.

        Warns
        -----
        NotConverged
            If the error bar says that it came out more than twice as wrong as was wanted, as on a
            unit with flaws, of which a plan knows nothing.
        """
        result = self._ran(B)
        whole, spread = (floats("value", x)[0] for x in (result.value, result.standard_error))
        largest = float(np.abs(whole).max()) or 1.0  # so that squares are numbers
        value, error = (float(np.linalg.norm(each / largest)) for each in (whole, spread))
        if error > MISSED * self.tolerance * value:
            warnings.warn(
                f"tolerance = {self.tolerance:g} is missed: the error is about "
                f"{error / value:.2g}, as what M leaves of it shows. Plans know nothing of a unit's"
                " flaws: calibrate it, or solve with `rtol`",
                NotConverged,
                stacklevel=3,
            )
        return result

    def _ran(self, B: Any) -> Result:
        task, way = self._choices.task, self.choice
        if task.inverse and B is not None:
            raise ValueError("B is given, but what was planned is an inverse; legal: None")
        if B is None:
            B = self._given
        if B is None and not task.inverse:
            raise ValueError("B is missing: the plan was made for columns that were not given")
        on_array = self._on_array()
        if way.method == "covariance":
            assert isinstance(on_array, Programmed)
            result = on_array.inv(**self.options)
            return result.with_cost_of(on_array.cost).looked_at()
        if not task.inverse:
            return on_array.solve(B, **self.options).with_cost_of(on_array.cost)
        solved = on_array.solve(np.eye(len(task.matrix)), **self.options)
        return _symmetrised(solved.with_cost_of(on_array.cost), task, self._kind)

    def _on_array(self) -> Programmed | Eliminated:
        task, solver = self._choices.task, self._choices.rehearsal.solver
        if isinstance(solver, Programmed) and not isinstance(self.unit, Calibrated):
            made = Programmed(
                self.unit,
                task.matrix,
                task.scale,
                task.bound,
                guard=task.guard,
                kind=self._kind,
                plan=solver.plan,
            )
            made.cost.add(solver.cost)
            return made
        return task.on(self.unit, self._kind)

    def explain(self) -> str:
        """What it does, what to expect, and why, in sentences."""
        return explained(
            self._choices, self.choice, self.parts, self.alternatives, self.blocks, self.flops
        )

    def __repr__(self) -> str:
        n, way = len(self._choices.task.matrix), self.choice
        what = f"{n}x{n} inverse" if self._choices.task.inverse else f"{n}x{n} solve"
        return (
            f"<Plan of {what} to {self.tolerance:.2g}: {way.method}, {way.samples} samples, "
            f"{way.refine} refinements, error {self.error:.2g}, {self.hardware_seconds:.2g} s>"
        )


def _symmetrised(solved: Result, task: Task, kind: Kind) -> Result:
    """An inverse of the solutions for the columns of the identity.

    What differs between X_ij and X_ji is noise, which the mean halves in variance; the rest of the
    error both have in common.
    """
    value = np.asarray(solved.value, np.float64)
    mean = 0.5 * (value + value.T)

    def deviation() -> Floats:
        variance = np.asarray(solved.standard_error, np.float64) ** 2
        variance = 0.5 * (variance + variance.T)
        skew = 0.25 * (value - value.T) ** 2
        off = float(variance.sum() - variance.trace())
        halved = min(float(skew.sum()) / off, 0.5) if off > 0.0 else 0.0
        factor = np.full_like(variance, 1.0 - halved)
        factor.flat[:: len(factor) + 1] = 1.0
        found: Floats = np.sqrt(variance * factor)
        return found

    outer = 1.0 / (task.scale[:, None] * task.scale)
    account = solved.cost
    account.flops(2 * value.size)
    return Result.of(
        mean,
        deviation,
        kind.restore,
        account,
        residual=partial(getattr, solved, "residual"),
        definiteness=Definiteness(mean / outer, task.matrix, outer),
        settling=solved.settling,
    ).looked_at()
