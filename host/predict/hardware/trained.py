"""What a step of a training run asked of its unit, for a technology to say what that costs."""

from __future__ import annotations

from collections.abc import Mapping

from thermokron.host.predict.hardware.demand import Demand, code_words, result_words
from thermokron.host.predict.hardware.technology import Technology
from thermokron.host.predict.quantity import Values

__all__ = ["demand_of"]


def demand_of(
    technology: Technology, unit: Mapping[str, float], steps: int, values: Values
) -> Demand:
    """The mean over the steps of a run on a unit of the technology's spec.

    Loads take what the technology's `ports` make of them, and settling what its τ does; samples are
    as many clock cycles apart as they were. Results are as wide on the link as the mean number of
    samples needs: exact where all runs have the same.

    Parameters
    ----------
    technology : Technology
    unit : mapping of str to float
        Of all steps together, as `thermokron.host.studies.Outcome` has it.
    steps : int
    values : Values
    """
    spec, clock = technology.spec, values(technology.clock)
    mean = {name: total / steps for name, total in unit.items()}
    vectors, runs = mean["vectors"], mean["runs"]
    if not vectors:
        return Demand()
    samples = mean["conversions"] / (vectors * spec.cells)
    sums, clipped, products = result_words(technology, round(samples, 6))
    load = spec.cycles_of(
        vectors=vectors,
        settle_cycles=0,
        interval_cycles=0,
        samples=1,
        second_moments=False,
        runs=runs,
        dac_lanes=technology.ports,
    )["load"]
    slower = values(technology.tau) / technology.tau.nominal
    return Demand(
        runs=runs,
        vectors=vectors,
        couplings=mean["couplings"],
        biases=mean["biases"],
        conversions=mean["conversions"],
        products=mean["products"],
        words_to=mean["matrices"] * spec.coupling_count * code_words(technology, spec.coupling_bits)
        + mean["biases"] * code_words(technology, spec.bias_bits),
        words_from=(sums + clipped) * vectors * spec.cells + products * mean["products"] / samples,
        matrices=mean["matrices"],
        load=load / clock,
        settle=vectors * spec.discharge_cycles / clock + mean["settle"] * slower,
        sample=mean["sample"] * spec.clock_hz / clock,
    )
