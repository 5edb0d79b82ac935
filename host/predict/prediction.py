"""Time and energy of a training step, by part, and to the target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from thermokron.host.predict import digital
from thermokron.host.predict.conditions import CONDITIONS, Conditions
from thermokron.host.predict.demand import Demand, eliminate, invert, solve
from thermokron.host.predict.digital import Work
from thermokron.host.predict.machine import Machine
from thermokron.host.predict.optimizers import Optimizer
from thermokron.host.predict.quantity import Number, Values
from thermokron.host.predict.technology import Technology
from thermokron.host.predict.unit import UNIT_PARTS, unit_joules, unit_seconds
from thermokron.host.predict.workload import Block, Workload
from thermokron.model.checks import check_integer

__all__ = ["PARTS", "Costs", "Question"]

#: Parts of a step, in the order in which they happen.
PARTS = (
    "forward and backward",
    "factors",
    "inversion",
    "program",
    *UNIT_PARTS,
    "apply",
    "update",
)
#: What a unit takes off the host, or what of a step it is: the rest is as it is without.
FREE = ("inversion", "program", *UNIT_PARTS, "apply")


@dataclass(frozen=True)
class Costs:
    """Seconds and joules of a step by part; numbers, or one for every draw.

    Attributes
    ----------
    seconds, joules : dict of str to number
        Of the parts that it has, in order; of all devices together.
    """

    seconds: Mapping[str, Number]
    joules: Mapping[str, Number]

    @cached_property
    def total_seconds(self) -> Number:
        """Of the step: its parts follow each other."""
        return sum(self.seconds.values(), 0.0)

    @cached_property
    def total_joules(self) -> Number:
        """Of the step."""
        return sum(self.joules.values(), 0.0)

    @property
    def limit(self) -> str:
        """The part that takes most of the time, at its median."""
        return max(self.seconds, key=lambda part: float(np.median(self.seconds[part])))


@dataclass(frozen=True)
class Question:
    """What a step of a workload takes.

    Attributes
    ----------
    workload : Workload
        On one device.
    machine : Machine
        What each device is.
    optimizer : Optimizer
    technology : Technology or None
        Of the unit beside every device, where the optimizer needs one.
    conditions : Conditions
        What depends on the data.
    devices : int
        Side by side, each with a batch of its own: they divide K-FAC's blocks among themselves, as
        `KFAC` does under data parallelism. What they tell each other is left out.

    Raises
    ------
    ValueError
        If there is no technology where one is needed, or a factor does not fit it.
    """

    workload: Workload
    machine: Machine
    optimizer: Optimizer
    technology: Technology | None = None
    conditions: Conditions = CONDITIONS
    devices: int = 1
    built: Technology | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        check_integer("devices", self.devices, 1, 10**6)
        if not self.optimizer.on_unit:
            return
        if self.technology is None:
            raise ValueError(f"technology is missing: {self.optimizer.name} needs a unit")
        built = self.technology.holding(self.workload.largest)
        object.__setattr__(self, "built", built)

    def evaluate(self, values: Values) -> Costs:
        """The costs, with quantities worth what `values` says."""
        work = {"forward and backward": digital.passes(self.workload, self.machine, values)}
        if self.optimizer.kfac:
            work["factors"] = self._factors(values)
            work |= self._on_host(values)
        work["update"] = digital.update(self.workload, self.optimizer.kind, self.machine, values)
        seconds = {part: each.seconds for part, each in work.items()}
        joules = {part: self._joules(part, each, values) for part, each in work.items()}
        if self.built is not None:
            demand = self.demand(values)
            balance = self._balance() / self.devices
            parts = unit_seconds(self.built, demand, values)
            seconds |= {part: balance * each for part, each in parts.items()}
            joules |= unit_joules(self.built, demand, values)
            idle = self.devices * values(self.machine.idle_power)
            for part in parts:  # the machine waits
                joules[part] = joules[part] + idle * seconds[part]
        order = [part for part in PARTS if part in seconds]
        return Costs({p: seconds[p] for p in order}, {p: joules[p] for p in order})

    def _joules(self, part: str, work: Work, values: Values) -> Number:
        """Of work that is done on every device, or divided among them."""
        machine, copies = self.machine, 1 if part in FREE else self.devices
        idle = self.devices * values(machine.idle_power) * work.seconds
        return idle + copies * machine.joules(0.0, work.flops, work.bytes, values)

    def _factors(self, values: Values) -> Work:
        each = [digital.factors(block, self.machine, values) for block in self.workload.blocks]
        return sum(each, Work()).times(1.0 / self.optimizer.factor_interval)

    def _on_host(self, values: Values) -> dict[str, Work]:
        """What the host does with the blocks, divided among the devices."""
        often, machine = 1.0 / self.optimizer.refresh, self.machine
        blocks = self.workload.blocks
        made: dict[str, Work] = {}
        if self.optimizer.kind == "kfac-exact":
            each = [digital.inversion(block, machine, values) for block in blocks]
            made["inversion"] = sum(each, Work()).times(often)
        if self.optimizer.kind != "kfac-solve":
            made["apply"] = sum((digital.apply(b, machine, values) for b in blocks), Work())
        if self.built is not None:
            program = Work()
            for block in blocks:
                for rows, columns in block.dense:
                    once = digital.program(rows, machine, values)
                    _, flops = eliminate(self.built, rows, self.conditions, values)
                    if flops:
                        once = once + digital.products(flops, rows, machine, values)
                    program = program + once.times(often * block.blocks)
                    if self.optimizer.kind == "kfac-solve":
                        substituted = 2 * rows**2 * columns if flops else 0
                        moved = digital.columns(rows, columns, machine, values)
                        if substituted:
                            moved = moved + digital.products(substituted, rows, machine, values)
                        program = program + moved.times(block.blocks)
            made["program"] = program
        divided = 1.0 / self.devices
        return {
            part: replace(work, seconds=divided * work.seconds) for part, work in made.items()
        }

    # ---- the unit -----------------------------------------------------------------------------

    def demand(self, values: Values) -> Demand:
        """What a step asks of the units of all devices together."""
        return sum((self._demand(block, values) for block in self.workload.blocks), Demand())

    def _demand(self, block: Block, values: Values) -> Demand:
        built, how, often = self.built, self.optimizer, 1.0 / self.optimizer.refresh
        assert built is not None
        total = Demand()
        for rows, columns in block.dense:
            if how.kind == "kfac-inverse":
                made = invert(built, rows, self.conditions, values, how.samples).times(often)
            else:
                made = solve(
                    built,
                    rows,
                    columns,
                    self.conditions,
                    values,
                    samples=how.samples or 1,
                    settle=how.settle,
                )
                renewed, _ = eliminate(built, rows, self.conditions, values)
                made = made + renewed.times(often)
            total = total + made.times(block.blocks)
        return total

    def _balance(self) -> float:
        """The time that units side by side take, over the time of one."""
        built = self.built
        assert built is not None
        if built.units == 1:
            return 1.0
        times: list[float] = []
        for block in self.workload.blocks:
            demand = self._demand(replace(block, blocks=1), Values())
            times += [float(demand.seconds)] * block.blocks
        return makespan(times, built.units) / sum(times)


def makespan(times: list[float], units: int) -> float:
    """How long tasks take on units, each begun on the one that is free first, in order."""
    ends = [0.0] * units
    for time in times:
        first = ends.index(min(ends))
        ends[first] += time
    return max(ends)
