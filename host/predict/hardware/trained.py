"""What a step of a training run asked of its unit, for a technology to say what that costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thermokron.host.predict.hardware.demand import Demand, link_words
from thermokron.host.predict.hardware.technology import Technology
from thermokron.host.predict.quantity import Values

__all__ = ["demand_of"]


def demand_of(
    technology: Technology, unit: Mapping[str, float], steps: int, values: Values
) -> Demand:
    """The mean over the steps of a run on a unit of the technology's spec.

    Loads take what the technology's `ports` make of them, of biases what does not go on beside the
    array's work, and settling what its τ does; samples are as many clock cycles apart as they were.
    Results are as wide on the link as the mean number of
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
    samples = round(mean["conversions"] / (vectors * spec.cells), 6)
    second_moments = mean["products"] > 0.0
    slower = values(technology.tau) / technology.tau.nominal
    plain: dict[str, Any] = {
        "vectors": vectors,
        "runs": runs,
        "second_moments": second_moments,
    }
    once = spec.cycles_of(settle_cycles=0, interval_cycles=0, samples=1, **plain)["sample"]
    sampled = mean["sample"] * spec.clock_hz
    plain |= {
        "samples": samples,
        "interval_cycles": max(sampled - once, 0.0) / (vectors * max(samples - 1.0, 1.0)),
    }
    # its jobs differ, so that the clock is believed, and the closed form says what changes
    settled = mean["settle"] * spec.clock_hz / vectors
    was = spec.cycles_of(settle_cycles=settled, **plain)
    now = spec.cycles_of(
        settle_cycles=settled * slower * clock / spec.clock_hz, dac_lanes=technology.ports, **plain
    )
    changed = {
        phase: spec.clock_hz / clock * now[phase] / was[phase] for phase in ("load", "discharge")
    }
    couplings, biases, results = link_words(
        technology, spec.cells, vectors, samples, second_moments
    )
    return Demand(
        runs=runs,
        vectors=vectors,
        couplings=mean["couplings"],
        biases=mean["biases"],
        conversions=mean["conversions"],
        products=mean["products"],
        words_to=mean["matrices"] * couplings + biases,
        words_from=results,
        matrices=mean["matrices"],
        load=mean["load"] * changed["load"],
        settle=mean["discharge"] * changed["discharge"] + mean["settle"] * slower,
        sample=sampled / clock,
        results=mean.get("results", 0.0) * spec.clock_hz / clock,
    )
