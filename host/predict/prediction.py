"""Time and energy of a training step, by part, and to the target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from thermokron.host.engines.pool import makespan
from thermokron.host.predict.conditions import CONDITIONS, Conditions
from thermokron.host.predict.hardware.costs import UNIT_PARTS, unit_joules, unit_seconds
from thermokron.host.predict.hardware.demand import Demand, eliminate, invert, solve
from thermokron.host.predict.hardware.host_share import (
    inverted_operations,
    programming_operations,
    solving_operations,
)
from thermokron.host.predict.hardware.technology import Technology
from thermokron.host.predict.machines import digital
from thermokron.host.predict.machines.machine import Machine
from thermokron.host.predict.optimizers import Optimizer
from thermokron.host.predict.quantity import Number, Values
from thermokron.host.predict.workloads.workload import (
    Block,
    Operation,
    Workload,
    counted,
    total_bytes,
    total_flops,
)
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
#: What inverts and applies; without it, a step of K-FAC is as long as the rest.
FREE = ("inversion", "program", *UNIT_PARTS, "apply")
#: What devices side by side divide among themselves.
SHARED = ("inversion", "program", "apply")


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
        Side by side, each with a batch of its own: they divide K-FAC's layers among themselves, as
        `KFAC` does under data parallelism. What they tell each other is left out.

    Raises
    ------
    ValueError
        If there is no technology where one is needed.
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

    @cached_property
    def operations(self) -> dict[str, tuple[Operation, ...]]:
        """What digital computers do in a step by part; what comes every so many steps, once."""
        load, how = self.workload, self.optimizer
        made = {"forward and backward": list(load.operations)}
        if how.kfac:
            made["factors"] = list(digital.curvature_operations(load.blocks, load.diagonal))
            for block, count in load.kinds:
                for part, each in self._of_block(block).items():
                    many = (replace(one, count=one.count * count) for one in each)
                    made.setdefault(part, []).extend(many)
        first_order = "adam" if how.kind == "adam" else "sgd"
        made["update"] = list(digital.update_operations(load, first_order))
        return {part: counted(each) for part, each in made.items()}

    def _of_block(self, block: Block) -> dict[str, tuple[Operation, ...]]:
        """What K-FAC does with one block, by those parts that devices divide among themselves."""
        how, built = self.optimizer, self.built
        if built is None:
            inversion = digital.inversion_operations(block)
            return {"inversion": inversion, "apply": digital.apply_operations(block)}
        program = programming_operations(block, built)
        if how.kind == "kfac-solve":
            return {"program": program, "apply": solving_operations(block, built)}
        program = (*program, *inverted_operations(block, built))
        return {"program": program, "apply": digital.apply_operations(block)}

    def evaluate(self, values: Values) -> Costs:
        """The costs, with quantities worth what `values` says."""
        seconds: dict[str, Number] = {}
        joules: dict[str, Number] = {}
        machine, how = self.machine, self.optimizer
        often = dict.fromkeys(("inversion", "program"), how.refresh)
        often["factors"] = how.factor_interval
        waiting = self.devices * values(machine.idle_power)
        for part, made in self.operations.items():
            every = often.get(part, 1)
            shared = part in SHARED
            share = self._devices_share if shared else 1.0
            seconds[part] = share * machine.seconds(made, values) / every
            copies = (1 if shared else self.devices) / every
            flops, moved = total_flops(made) * copies, total_bytes(made) * copies
            worked = machine.joules(0.0, flops, moved, values)
            joules[part] = worked + waiting * seconds[part]
        if self.built is not None:
            demand = self.demand(values)
            every_unit = self.built.with_units(self.built.units * self.devices)
            share = self._units_share
            seconds |= unit_seconds(every_unit, demand, values, share=share)
            for part, spent in unit_joules(every_unit, demand, values, share=share).items():
                joules[part] = spent + waiting * seconds[part]  # for the machines wait
        order = [part for part in PARTS if part in seconds]
        return Costs({p: seconds[p] for p in order}, {p: joules[p] for p in order})

    # ---- the unit -----------------------------------------------------------------------------

    def demand(self, values: Values) -> Demand:
        """What a step asks of the units of all devices together."""
        each = (self._demand(block, values).times(count) for block, count in self.workload.kinds)
        return sum(each, Demand())

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
                renewed = eliminate(built, rows, self.conditions, values)
                made = made + renewed.times(often)
            total = total + made.times(block.blocks)
        return total

    @cached_property
    def _units_share(self) -> float:
        """The time that the units of all devices take, over that of one."""
        assert self.built is not None
        units = self.built.units * self.devices
        return self._share(units, lambda block: self._demand(block, Values()).seconds)

    @cached_property
    def _devices_share(self) -> float:
        """The time that devices take for what they divide among themselves, over that of one."""

        def seconds(block: Block) -> Number:
            made = [each for part in self._of_block(block).values() for each in part]
            return self.machine.seconds(made, Values())

        return self._share(self.devices, seconds)

    def _share(self, hands: int, seconds: Callable[[Block], Number]) -> float:
        """The time that several take for all blocks, over that of one, at nominal values.

        Each takes the next layer when it is free, as `KFAC` on a pool does; draws have the same
        share as nominal values.
        """
        if hands == 1:
            return 1.0
        alike = [
            (replace(each, name="", shared="", blocks=1), each) for each in self.workload.blocks
        ]
        times = {kind: float(seconds(kind)) for kind in {kind for kind, _ in alike}}
        every = [times[kind] for kind, block in alike for _ in range(block.blocks)]
        return makespan(hands, every) / sum(every)
