"""Errors of `asymptotics.py`: how many samples, and how long, they take; where n²κ² comes out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from asymptotics_exponents import FINE, hadamard, half, one, slopes

from thermokron.host import open_unit
from thermokron.host.linalg import program
from thermokron.host.predict.readings import READINGS
from thermokron.host.tables import markdown, number
from thermokron.model import Job

__all__ = ["READ_KAPPAS", "readings"]

READ_WIDTHS, READ_KAPPAS, REPEATS, ERROR = (64, 128, 256, 512), (8, 16, 32, 64), 4, 0.1
QUANTITIES = ("samples", "time", "numbers", "products")


#: By name of a reading and quantity: what an error of `ERROR` takes.
Taken = dict[tuple[str, str], float]


def read(n: int, kappa: float, spectrum: Callable[[int, float], np.ndarray]) -> Taken:
    """From errors of inverses of 16n samples, and of means over 2¹⁶ readings."""
    spec, count = replace(FINE, cells=n, lanes=None), 16 * n
    matrix = hadamard(n, spectrum(n, kappa), n)
    errors = []
    with open_unit("statistical", spec, seed=round(kappa) + n) as unit:
        placed = program(unit, matrix, lambda_min=1.0 / kappa)
        inverse = np.linalg.inv(spec.coupling_values(placed.plan.codes))
        for _ in range(REPEATS):
            found = placed.inv(samples=count)
            off = found.value - inverse
            whole = np.sum(off**2)
            errors.append([whole / np.sum(inverse**2), np.sum((off @ matrix) ** 2) / n, whole])
        averaging = averaged(unit, placed.job, kappa)
    spacing = found.seconds["sample"] / (count - 1) / spec.tau_s
    taken: Taken = {}
    for reading, error in zip(READINGS, np.mean(errors, axis=0), strict=False):
        samples = float(count * error / ERROR**2)
        taken[reading.name, "samples"] = samples
        taken[reading.name, "time"] = samples * spacing
    taken[READINGS[3].name, "time"] = n * averaging
    return taken


def averaged(unit: Any, job: Job, kappa: float) -> float:
    """τ for which a column is to be averaged at T = 1, its mean's error to be `ERROR` as it is.

    Measured at a temperature that the converter shows, to which the error's square is proportional.
    """
    spec, count = unit.spec, 2**16
    interval = math.ceil(0.5 * spec.tau_s * spec.clock_hz)
    temperature = spec.temperature_code(0.04 / kappa)
    ask = job.with_biases(
        np.zeros((64, spec.cells), np.int16),
        temperature=temperature,
        settle_cycles=math.ceil(10 * kappa * spec.tau_s * spec.clock_hz),
        interval_cycles=interval,
        samples=count,
        second_moments=False,
    )
    means = unit.run(ask).sums * (spec.adc_step / count)
    error = np.mean(np.sum(means**2, axis=1)) / spec.temperature_value(temperature)
    return float(error * count * interval * spec.clock_s / spec.tau_s / ERROR**2)


def readings() -> tuple[list[str], dict[str, list[float]]]:
    """Two tables, and by reading the time by κ, for the picture."""
    by_n = [read(n, 16, half) for n in READ_WIDTHS]
    by_kappa = [read(256, k, half) for k in READ_KAPPAS]
    single = [read(256, k, one) for k in READ_KAPPAS]
    lines = []
    for reading in READINGS[:4]:
        for quantity in ("samples", "time"):
            key = reading.name, quantity
            if key not in by_n[0]:
                continue
            expression = getattr(reading, quantity)
            n, kappa = reading.exponents(quantity)
            bound = expression({"n": 256.0, "κ": 16.0, "ε": ERROR})
            lines.append(
                [
                    f"{reading.name}: {quantity}",
                    expression.text,
                    number(by_kappa[READ_KAPPAS.index(16)][key] / bound, 2),
                    f"{n:.0f}",
                    slopes(READ_WIDTHS, [taken[key] for taken in by_n]),
                    f"{kappa:.0f}",
                    slopes(READ_KAPPAS, [taken[key] for taken in by_kappa]),
                    slopes(READ_KAPPAS, [taken[key] for taken in single]),
                ]
            )
    head = [
        "exponents of readings",
        "bound",
        "of it",
        "in n",
        "measured",
        "in κ",
        "half of the modes slow",
        "one mode slow",
    ]
    rows = [
        [each.name, *(getattr(each, what).text for what in QUANTITIES), each.found or "nowhere"]
        for each in READINGS
    ]
    names = ["readings of O(n²κ²)", "samples", "time, τ", "numbers read", "products", "n²κ² is"]
    times = {each.name: [taken[each.name, "time"] for taken in by_kappa] for each in READINGS[:4]}
    return [markdown(names, rows), markdown(head, lines)], times
