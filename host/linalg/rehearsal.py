"""What a solution by mean readings will be off by, and what it costs: by doing it, on a stand-in.

A few of the columns are solved for as the solver solves, reruns and refinement included, on an
ideal unit that is worked out digitally (`thermokron.host.linalg.standin`). The rounding is that of
the couplings that the unit will be given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from thermokron.host.linalg.arrays import Floats, Kind
from thermokron.host.linalg.blocks import Eliminated
from thermokron.host.linalg.elimination import Reduction
from thermokron.host.linalg.functions import Functions, diagonalised
from thermokron.host.linalg.offsets import Offsets
from thermokron.host.linalg.programmed import Programmed
from thermokron.host.linalg.refinement import Answer, refined
from thermokron.host.linalg.refusals import refusals
from thermokron.host.linalg.result import Account
from thermokron.host.linalg.rounding import Guard
from thermokron.host.linalg.settling import Settle
from thermokron.host.linalg.standin import Effect, StandIn
from thermokron.model import Unit, UnitSpec

__all__ = ["Asked", "Outcome", "Rehearsal", "Task"]

#: As `solve` eliminates: for what is refined after.
REDUCTION = {"complements": "means", "samples": 256, "tolerance": 0.003}
#: Columns that are solved for, tries counted: of the same column they differ by noise alone, which
#: so is told from what is always the same. A quarter where each costs Krylov spaces.
ROWS, LARGE_ROWS = 128, 32
#: Passes that leave more than this of the error of that many passes before are the last.
STALLED, PATIENCE = 0.9, 3


@dataclass(frozen=True)
class Task:
    """What is planned for, on a unit of a spec: A = D^-½ M D^-½, and right-hand sides.

    Attributes
    ----------
    spec : UnitSpec
    matrix : (n, n) float
        A, of unit diagonal.
    scale : (n,) float
        The diagonal of D^½.
    bound : float or None
        Lower bound on A's smallest eigenvalue.
    guard : str
        Of its rounding.
    right : (p, n) float
        Right-hand sides of M, one per row, in any unit: all, or some that stand for them.
    columns : int
        How many there are.
    inverse : bool
        Whether they are the columns of the identity, so that solutions may be symmetrised.
    offsets : str
        As for `Programmed.solve`.
    """

    spec: UnitSpec
    matrix: Floats
    scale: Floats
    bound: float | None
    guard: Guard
    right: Floats
    columns: int
    inverse: bool
    offsets: Offsets = "kept"

    def on(self, unit: Unit, kind: Kind) -> Programmed | Eliminated:
        """The matrix on a unit of that spec."""
        own = (unit, self.matrix, self.scale, self.bound)
        with refusals(self.bound, self.guard != "none"):
            if len(self.matrix) <= self.spec.cells:
                return Programmed(*own, guard=self.guard, kind=kind)
            reduction = Reduction(**REDUCTION, guard=self.guard)  # type: ignore[arg-type]
            return Eliminated(*own, kind=kind, reduction=reduction)

    @cached_property
    def own(self) -> Functions:
        """Functions of A."""
        return Functions(self.matrix)

    @cached_property
    def exact(self) -> Floats:
        """Solutions for `right`, (p, n)."""
        solutions: Floats = self.own.inverse(self.right / self.weights) / self.weights
        return solutions

    @cached_property
    def weights(self) -> Floats:
        """`scale` over its largest entry: relative errors are the same, and squares are numbers."""
        weights: Floats = self.scale / self.scale.max()
        return weights

    def damped(self, by: float) -> Task:
        """The same with `by` times M's diagonal added to M."""
        whole = (self.matrix + by * np.eye(len(self.matrix))) / (1.0 + by)
        bound = None if self.bound is None else (self.bound + by) / (1.0 + by)
        return replace(self, matrix=whole, scale=self.scale * np.sqrt(1.0 + by), bound=bound)


@dataclass(frozen=True)
class Asked:
    """How means are read: options of `Programmed.solve`."""

    samples: int
    settle: Settle
    interval: float = 1.0


@dataclass(frozen=True)
class Outcome:
    """What so many passes come to.

    Attributes
    ----------
    lasting, noise : float
        Relative error, Frobenius: of what is the same at every try, and of what is not.
    cost : Account
    """

    lasting: float
    noise: float
    cost: Account

    @property
    def error(self) -> float:
        """Of both."""
        return float(np.hypot(self.lasting, self.noise))


class Rehearsal:
    """Rehearsals of one task.

    Attributes
    ----------
    task : Task
    unit : StandIn
    solver : Programmed or Eliminated
    tries : int
        Of every column.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.unit = StandIn(task.spec, min(task.spec.cells, len(task.matrix)))
        self.solver = task.on(self.unit, Kind(lambda value: value, check=False))
        pivots = self.solver.pivots if isinstance(self.solver, Eliminated) else ()
        self._means = [pivot.array.means for pivot in pivots]
        if isinstance(self.solver, Programmed):
            self._means.append(self.solver.means)
        rows = ROWS if diagonalised(self.unit.size) else LARGE_ROWS
        self.tries = max(rows // len(task.right), 2)
        self._gains = [dict(means.gains) for means in self._means]
        self._spent = self.solver.cost.digital_flops

    @property
    def flops(self) -> int:
        """Digital operations so far."""
        return self._spent + self.unit.flops

    def spent(self, flops: int) -> None:
        """Enter more of them."""
        self._spent += flops

    @property
    def temperature(self) -> float:
        """T of the last run, in full scales squared."""
        return self.task.spec.temperature_value(self.unit.calls[-1].job.temperature)

    @property
    def time(self) -> float | None:
        """For how long the array last settled, in τ; None of a matrix in blocks, which differ."""
        if isinstance(self.solver, Eliminated):
            return None
        spec = self.task.spec
        return self.unit.calls[-1].job.settle_cycles * spec.clock_s / spec.tau_s

    def tried(
        self,
        asked: Asked,
        passes: int,
        enough: Callable[[Outcome], bool] = lambda outcome: False,
        *,
        without: frozenset[Effect] = frozenset(),
        temperature: float | None = None,
    ) -> list[Outcome]:
        """After each of up to `passes`; fewer, if one is `enough`, or they no longer help."""
        task, solver = self.task, self.solver
        self.unit.begin(without, temperature)
        for means, gains in zip(self._means, self._gains, strict=True):
            means.gains = dict(gains)
        account = Account()
        options: dict[str, Any] = vars(asked) | {"offsets": task.offsets}
        outcomes: list[Outcome] = []

        def seen(value: Floats) -> None:
            cost = self._cost(asked, account, refined=bool(outcomes))
            outcomes.append(self._outcome(value / task.weights, cost))

        def once(right: Floats, account: Account) -> Answer:
            answer = solver.one_pass(right, account, unit=1.0, asked=options)
            if not outcomes:  # as it is if nothing follows
                seen(answer.value)
            return answer

        passed = 0

        def watch(value: Floats) -> bool:
            nonlocal passed
            if passed:  # the first has been seen
                seen(value)
            passed += 1
            return enough(outcomes[-1]) or _stalled(outcomes)

        right = np.tile(task.right / task.weights, (self.tries, 1))
        with solver.refusals():
            refined(once, solver.matrix, right, passes - 1, account, watch=watch)
        self._spent += account.digital_flops
        return outcomes

    def _outcome(self, values: Floats, cost: Account) -> Outcome:
        """Of tries of all columns, one after the other."""
        errors = values.reshape(self.tries, *self.task.exact.shape) - self.task.exact
        size = float((self.task.exact**2).sum())
        noise = float(errors.var(axis=0, ddof=1).sum()) / size
        square = float((errors**2).sum()) / size / self.tries
        lasting = max(square - noise, 0.0)
        if self.task.inverse:  # of X and Xᵀ the mean is taken
            noise *= 0.5
        return Outcome(lasting**0.5, noise**0.5, cost)

    def _cost(self, asked: Asked, spent: Account, *, refined: bool) -> Account:
        """Of all columns once, if those that were tried are like them."""
        n, tried = len(self.task.matrix), len(self.task.right) * self.tries
        times = self.task.columns / tried
        cost = Account(samples=asked.samples)
        cost.add(self.solver.cost)
        for call in self.unit.calls:
            call.enter(self.task.spec, cost, times)
        last = 2 * n * n * tried * refined  # the residual, once more
        cost.flops((spent.digital_flops + last) * times)
        return cost


def _stalled(outcomes: list[Outcome]) -> bool:
    if len(outcomes) <= PATIENCE:
        return False
    return outcomes[-1].error > STALLED * outcomes[-1 - PATIENCE].error
