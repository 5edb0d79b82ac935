"""A thermodynamic unit in some technology: what its work takes in seconds, joules and area."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Protocol

from thermokron.host.predict.quantity import Number, Quantity, Values
from thermokron.model import UnitSpec
from thermokron.model.checks import check_integer

__all__ = ["Converters", "Technology"]


class Converters(Protocol):
    """What the converters of a technology cost, by bits and rate."""

    def energy(self, bits: int, rate: float) -> Quantity:
        """J per conversion, at so many samples per second."""
        ...

    def area(self, bits: int, rate: float) -> Quantity:
        """m² of one converter."""
        ...


@dataclass(frozen=True)
class Technology:
    """A unit, and what silicon costs.

    Attributes
    ----------
    name, source : str
        By which it is asked for, and what it stands for.
    spec : UnitSpec
        Bits, lanes, clock and nominal τ. Its `cells` are those of the unit that is built, or, with
        `fitted`, the most: the array is as large as the largest factor, if that is smaller. Larger
        ones go through blocks.
    tau, clock : Quantity
        s and Hz; nominal what `spec` says.
    adc : Converters
    dac_energy, coupling_energy : Quantity
        J per bias code and per coupling code that is put on the array, the way there included.
    dac_area, coupling_area, cell_area, lane_area, word_area : Quantity
        m² of a cell's DAC, of one of n(n+1)/2 couplings, of a cell, of an accumulator's multiplier,
        and of a bit of memory.
    coupling_power, cell_power, control_power : Quantity
        W, static: of one coupling, of one cell, and of the control plane.
    product_energy : Quantity
        J of a multiplication and its addition to the accumulator's memory.
    link_bandwidth, link_energy, link_latency : Quantity
        bit/s, J/bit, and s per matrix that is solved with.
    word_bits : int or None
        Of a code, or of a part of a result, on the link. None with the unit's own ports: the link
        then carries what passes these, see `UnitSpec.port_bytes`.
    ports : int or None
        Codes a clock cycle into the DACs; None as many as the spec's `dac_lanes`. The control plane
        has 1 to 16, and more are a projection.
    units : int
        Side by side, each with converters and link of its own.
    fitted : bool
        Whether the array is as large as the factor on it, in time: smaller factors load only the
        couplings and biases that they have. Without, as in the control plane today, all are.
    """

    name: str
    source: str
    spec: UnitSpec
    tau: Quantity
    clock: Quantity
    adc: Converters
    dac_energy: Quantity
    coupling_energy: Quantity
    dac_area: Quantity
    coupling_area: Quantity
    cell_area: Quantity
    lane_area: Quantity
    word_area: Quantity
    coupling_power: Quantity
    cell_power: Quantity
    control_power: Quantity
    product_energy: Quantity
    link_bandwidth: Quantity
    link_energy: Quantity
    link_latency: Quantity
    word_bits: int | None = None
    ports: int | None = None
    units: int = 1
    fitted: bool = True

    def __post_init__(self) -> None:
        if self.word_bits is not None:
            check_integer("word_bits", self.word_bits, 1, 64)
        if self.ports is not None:
            check_integer("ports", self.ports, 1, 4096)
        check_integer("units", self.units, 1, 1024)
        for quantity, name in ((self.tau, "tau_s"), (self.clock, "clock_hz")):
            told = getattr(self.spec, name)
            if abs(quantity.nominal / told - 1.0) > 1e-9:
                raise ValueError(
                    f"{quantity.name} = {quantity.nominal:g} {quantity.unit} is nominal, and "
                    f"{name} = {told:g} in the spec; legal: the same"
                )

    # ---- sizes --------------------------------------------------------------------------------

    def holding(self, rows: int) -> Technology:
        """The same with an array for factors of up to so many rows, if it is `fitted`."""
        if not self.fitted:
            return self
        return replace(self, spec=sized(self.spec, min(max(rows, 2), self.spec.cells)))

    def with_units(self, units: int) -> Technology:
        """The same, so many side by side."""
        return replace(self, units=units)

    @property
    def link_word(self) -> int:
        """Bits of a word on the link."""
        return 32 if self.word_bits is None else self.word_bits

    @property
    def sample_rate(self) -> float:
        """Conversions a second, at most."""
        return self.spec.clock_hz / self.spec.shortest_interval(second_moments=False)

    # ---- costs --------------------------------------------------------------------------------

    def area(self, values: Values) -> Number:
        """m² of all units: arrays, converters, accumulators, and stores of codes and results."""
        spec, n = self.spec, self.spec.cells
        clip_bits = spec.sum_bits - spec.adc_bits + 1
        memory = (
            spec.product_bits * n * spec.diagonals
            + spec.rhs_depth * n * (spec.bias_bits + spec.sum_bits + clip_bits)
            + 2 * spec.coupling_count * spec.coupling_bits  # the next matrix waits in the other
        )
        one = (
            n * (values(self.adc.area(spec.adc_bits, self.sample_rate)) + values(self.dac_area))
            + n * values(self.cell_area)
            + spec.coupling_count * values(self.coupling_area)
            + spec.lanes * values(self.lane_area)
            + memory * values(self.word_area)
        )
        return self.units * one

    def static_power(self, values: Values) -> Number:
        """W of one unit at work; what is at rest is taken to be switched off."""
        spec = self.spec
        return (
            spec.coupling_count * values(self.coupling_power)
            + spec.cells * values(self.cell_power)
            + values(self.control_power)
        )

    def conversion_energy(self, values: Values) -> Number:
        """J of one conversion of one cell."""
        return values(self.adc.energy(self.spec.adc_bits, self.sample_rate))

    def quantities(self) -> list[Quantity]:
        """All that it is made of, those of its converters included."""
        own = [getattr(self, field.name) for field in fields(self)]
        spec = self.spec
        made = (make(spec.adc_bits, self.sample_rate) for make in (self.adc.energy, self.adc.area))
        return [each for each in (*own, *made) if isinstance(each, Quantity)]


def sized(spec: UnitSpec, cells: int) -> UnitSpec:
    """A spec with other cells, and with about as many of them on a lane."""
    most = max(cells // spec.folds, 1)
    lanes = next(lanes for lanes in range(most, 0, -1) if cells % lanes == 0)
    return replace(spec, cells=cells, lanes=lanes)
