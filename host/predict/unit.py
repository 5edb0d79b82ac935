"""Seconds and joules of a unit's part of a step, from what it is asked."""

from __future__ import annotations

from thermokron.host.predict.demand import Demand
from thermokron.host.predict.quantity import Number, Values
from thermokron.host.predict.technology import Technology

__all__ = ["UNIT_PARTS", "unit_joules", "unit_seconds"]

#: What a unit does, in the order in which it happens.
UNIT_PARTS = ("transport", "load", "settle", "sample", "read")


def unit_seconds(technology: Technology, demand: Demand, values: Values) -> dict[str, Number]:
    """Seconds of one unit by part, one after the other, as the control plane has them today."""
    bandwidth = values(technology.link_bandwidth) / technology.word_bits
    waiting = demand.matrices * values(technology.link_latency)
    return {
        "transport": demand.words_to / bandwidth + waiting,
        "load": demand.load,
        "settle": demand.settle,
        "sample": demand.sample,
        "read": demand.words_from / bandwidth,
    }


def unit_joules(technology: Technology, demand: Demand, values: Values) -> dict[str, Number]:
    """Joules by part; static power while the unit is at work, whose share of units is idle."""
    seconds = unit_seconds(technology, demand, values)
    word = technology.word_bits * values(technology.link_energy)
    converted = demand.conversions * technology.conversion_energy(values)
    dynamic = {
        "transport": demand.words_to * word,
        "load": demand.couplings * values(technology.coupling_energy)
        + demand.biases * values(technology.dac_energy),
        "settle": 0.0,
        "sample": converted + demand.products * values(technology.product_energy),
        "read": demand.words_from * word,
    }
    power = technology.static_power(values)
    return {part: dynamic[part] + power * seconds[part] for part in UNIT_PARTS}
