"""Whether a device still is what its calibration says: a few readings against their prediction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice

import numpy as np

from thermokron.host.calibration.measuring import (
    PAIR_COUPLING,
    hot_temperature,
    level_of,
    pair_response,
)
from thermokron.host.calibration.programs import Bench, Clipping, alone, couple, dither, tournament
from thermokron.host.calibration.values import Floats, Values

__all__ = ["TOLERANCES", "Check", "compare"]

#: What a device may have drifted by before it is to be calibrated again: a fifth of what parts of
#: 5% for couplings, and offsets of 1% of full scale, come with.
TOLERANCES = {"couplings": 0.01, "offsets": 0.002, "noise": 0.01}
#: Chance that a device which has not drifted at all is found to have.
FALSE_ALARM = 1e-3
#: Rounds of pairs, and readings of a noise power in those of a pair.
ROUNDS, NOISE_SHARE = 2, 16


@dataclass(frozen=True, kw_only=True)
class Check:
    """What a check has found.

    Attributes
    ----------
    date : datetime
        When, in UTC.
    drift : dict of str to float
        Root mean square of what "couplings" (relative, gains among them), "offsets" (full scales)
        and "noise" (power, relative) have moved by since, what readings scatter by taken off.
    uncertainty : dict of str to float
        What they and the calibration scatter by, in the same.
    tolerance : dict of str to float
    stale : bool
        Whether to calibrate again.
    due : datetime or None
        When a drift will be as large as tolerated, if it goes on at this pace; None where there is
        none to be seen.
    reason : str
        What was seen, in a sentence.
    """

    date: datetime
    drift: dict[str, float]
    uncertainty: dict[str, float]
    tolerance: dict[str, float]
    stale: bool
    due: datetime | None
    reason: str

    def __str__(self) -> str:
        return self.reason


def compare(
    bench: Bench, values: Values, *, samples: int, tolerance: float, since: datetime, now: datetime
) -> Check:
    """Run the check of a calibration made at `since`."""
    limits = {name: tolerance * each for name, each in TOLERANCES.items()}
    try:
        found = _deviations(bench, values, samples)
    except Clipping as clipping:
        nan = dict.fromkeys(limits, math.nan)
        reason = f"stale: readings of a known program leave the ADC's range ({clipping})"
        return Check(
            date=now, drift=nan, uncertainty=nan, tolerance=limits, stale=True, due=now,
            reason=reason,
        )  # fmt: skip
    drift, uncertainty, parts, stale = {}, {}, [], False
    age = max((now - since).total_seconds(), 1.0)
    due: datetime | None = None
    for name, (moved, error) in found.items():
        square, noise = float(np.mean(moved**2)), float(np.mean(error**2))
        drift[name] = math.sqrt(max(square - noise, 0.0))
        uncertainty[name] = math.sqrt(noise)
        seen = _chance(moved / error) < FALSE_ALARM
        stale |= seen and drift[name] > limits[name]
        if seen and drift[name] > 0.0:
            left = age * min(limits[name] / drift[name], 1e6)
            due = min(due or datetime.max.replace(tzinfo=since.tzinfo), since + _capped(left))
        parts.append(f"{name} moved by {drift[name]:.2g} (legal: {limits[name]:.2g})")
    verdict = "stale: calibrate again" if stale else "good"
    reason = f"{verdict}; since {since:%Y-%m-%d %H:%M} " + ", ".join(parts)
    if due is not None and not stale:
        reason += f"; at this pace good until {due:%Y-%m-%d %H:%M}"
    return Check(
        date=now,
        drift=drift,
        uncertainty=uncertainty,
        tolerance=limits,
        stale=stale,
        due=due,
        reason=reason,
    )


def _capped(seconds: float) -> timedelta:
    return timedelta(seconds=min(seconds, 1e9))


def _chance(deviations: Floats) -> float:
    """That a χ² of so many normal deviations is as large."""
    from scipy.stats import chi2

    return float(chi2.sf(float((deviations**2).sum()), deviations.size))


def _deviations(bench: Bench, values: Values, samples: int) -> dict[str, tuple[Floats, Floats]]:
    """What has moved, and one standard error of each."""
    spec, n = bench.unit.spec, bench.unit.spec.cells
    temperature = dither(spec)
    code = max(round(PAIR_COUPLING * spec.coupling_max), 1)
    ratio = code / spec.coupling_max
    level = level_of(spec, temperature, 1.0 / (1.0 - ratio**2))
    rounds = list(islice(tournament(n), ROUNDS))
    programs = [couple(spec, pairs, code, level) for pairs in rounds]
    couplings, offsets = [], []
    wanted = values.couplings / values.gains
    relative = values.couplings_error / values.couplings
    for program, pairs, means in zip(
        programs,
        rounds,
        bench.means(programs, samples, temperature=temperature),
        strict=True,
    ):
        inverse, variance, _ = pair_response(
            bench, pairs, means, ratio, level, temperature, samples
        )
        places = pairs[:, :, None], pairs[:, None, :]
        expected = wanted[places] * np.array([[1.0, ratio], [ratio, 1.0]])
        known = np.hypot(relative[places], (values.gains_error / values.gains)[places[1]])
        couplings.append((inverse / expected - 1.0, np.hypot(np.sqrt(variance) / expected, known)))
        # readings of the cell's own bias alone: all four of a program have the same offsets
        effective = spec.coupling_values(program.couplings) * values.couplings
        rest = values.gains * (np.linalg.solve(effective, values.cell_offsets) + values.adc_offsets)
        scatter = np.hypot(
            math.sqrt(spec.temperature_value(temperature) / (1.0 - ratio) / samples / 4.0),
            np.hypot(values.adc_offsets_error, values.cell_offsets_error / (1.0 - ratio)),
        )
        both = means.mean(axis=0) - rest
        # what the response has moved by is no offset: ± cancel
        offsets.append((both[pairs], scatter[pairs]))
    found = {
        "couplings": _joined(couplings),
        "offsets": _joined(offsets),
    }
    if spec.second_moments:
        found["noise"] = _noise(bench, values, samples)
    return found


def _joined(parts: list[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    moved, error = (
        np.concatenate([each.ravel() for each in some]) for some in zip(*parts, strict=True)
    )
    return moved, error


def _noise(bench: Bench, values: Values, samples: int) -> tuple[Floats, Floats]:
    spec = bench.unit.spec
    against = np.rint(-values.cell_offsets * spec.bias_max).astype(np.int16)
    program = alone(spec, spec.coupling_max, against[None])
    code = hot_temperature(spec)
    count = NOISE_SHARE * samples
    seen = bench.variances(program, count, temperature=code)
    expected = spec.temperature_value(code) * values.noise / values.couplings.diagonal()
    expected = values.gains**2 * (expected + values.adc_noise) + spec.adc_step**2 / 12.0
    own = math.sqrt(2.0 / count / math.tanh(2.0))
    return seen / expected - 1.0, np.hypot(own, values.noise_error / values.noise)
