"""What a unit's work takes, part by part: seconds, and joules."""

from __future__ import annotations

from thermokron.host.predict.hardware.demand import Demand
from thermokron.host.predict.hardware.technology import Technology
from thermokron.host.predict.quantity import Number, Values

__all__ = ["UNIT_PARTS", "side_by_side", "unit_joules", "unit_seconds"]

#: Of what a unit does, in this order: over its link, at the array, over its link. Results that
#: leave on a stream while the array waits are in "read".
UNIT_PARTS = ("transport", "load", "settle", "sample", "read")


def unit_seconds(
    technology: Technology, demand: Demand, values: Values, *, share: Number = 1.0
) -> dict[str, Number]:
    """Seconds by part of `UNIT_PARTS`, one after the other.

    Parameters
    ----------
    share : number
        In what part of the time of one unit those of a technology are done, see `side_by_side`.
    """
    bandwidth = values(technology.link_bandwidth)
    waiting = demand.matrices * values(technology.link_latency)
    alone = {
        "transport": demand.words_to * technology.link_word / bandwidth + waiting,
        "load": demand.load,
        "settle": demand.settle,
        "sample": demand.sample,
        "read": demand.results + demand.words_from * technology.link_word / bandwidth,
    }
    return {part: share * seconds for part, seconds in alone.items()}


def unit_joules(
    technology: Technology, demand: Demand, values: Values, *, share: Number | None = None
) -> dict[str, Number]:
    """Joules by part of `UNIT_PARTS`; every unit has its static power for as long as any works.

    Parameters
    ----------
    share : number, optional
        As of `unit_seconds`; if not given, all units work all the time.
    """
    share = 1.0 / technology.units if share is None else share
    bit = values(technology.link_energy)
    moved: dict[str, Number] = {
        "transport": demand.words_to * technology.link_word * bit,
        "load": demand.couplings * values(technology.coupling_energy)
        + demand.biases * values(technology.dac_energy),
        "settle": 0.0,
        "sample": demand.conversions * technology.conversion_energy(values)
        + demand.products * values(technology.product_energy),
        "read": demand.words_from * technology.link_word * bit,
    }
    watts = technology.units * technology.static_power(values)
    seconds = unit_seconds(technology, demand, values, share=share)
    return {part: moved[part] + watts * seconds[part] for part in UNIT_PARTS}


def side_by_side(units: int, work: Number, span: Number) -> Number:
    """In what part of the time of one unit several are done, at most.

    Whoever is free takes the next layer; then `work` seconds in all, of which the longest layer is
    `span`, take no longer than work/m + (1 - 1/m) span on m units (Graham 1966).
    """
    return 1.0 / units + (1.0 - 1.0 / units) * span / work
