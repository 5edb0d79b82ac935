"""`measure`: from the readings of known programs to the values of a device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thermokron.host.calibration.programs import (
    FILL,
    HEADROOM,
    Bench,
    Clipping,
    Program,
    alone,
    couple,
    dither,
    tournament,
)
from thermokron.host.calibration.values import Floats, Values
from thermokron.model import UnitSpec
from thermokron.model.spec import MAX_SAMPLES

__all__ = [
    "PAIR_COUPLING",
    "hot_temperature",
    "level_of",
    "measure",
    "pair_response",
    "readings",
]

#: Readings of an offset and of a noise power, in those of a coupling; single ones of a time
#: constant, a part of them.
OFFSET_SHARE, NOISE_SHARE, LOW_SHARE, TAU_SHARE = 4, 64, 16, 1 / 16
#: The lower of two diagonal couplings that tell an offset of a cell from one of its channel, and
#: what couples a pair: parts of the full scale.
LOW_DIAGONAL, PAIR_COUPLING = 0.25, 0.5
#: Times that pairs which clip are driven by a quarter less before they are given up.
MOST_RETRIES = 6
#: The part of a step response that has to be left, in standard errors, to tell a time constant.
VISIBLE = 5.0


def readings(spec: UnitSpec, samples: int) -> float:
    """Readings of a cell that a measurement takes, about: for its progress."""
    pairs = 4 * samples * (spec.cells - 1 + spec.cells % 2)
    noise = min(NOISE_SHARE * samples, MAX_SAMPLES) + LOW_SHARE * samples
    return pairs + 2 * OFFSET_SHARE * samples + noise * spec.second_moments + TAU_SHARE * samples


def measure(bench: Bench, samples: int) -> Values:
    """Measure all that `Values` holds, in O(n) runs.

    1. Cells alone, without bias, at two diagonal couplings c: y = g (o/(c F_ii) + p).
    2. Pairs, under ± a bias on either cell: Y = G A⁻¹, so Y⁻¹_ij = c_ij F_ij/g_j. Of all pairs,
       Y⁻¹_ij/Y⁻¹_ji = g_i/g_j gives the gains, but for a common factor.
    3. Cells alone, at two temperatures: var y = g² (T f/F_ii + adc noise) + q²/12.
    4. Cells alone, one reading a short time t after discharge: u = c F_ii t/τ.

    Raises
    ------
    Clipping
        If readings leave the ADC's range.
    """
    spec, n = bench.unit.spec, bench.unit.spec.cells
    temperature = dither(spec)
    noisy = spec.temperature_value(temperature)
    bench.begin("offsets")
    offsets = _offsets(bench, samples * OFFSET_SHARE, temperature)
    bench.begin("couplings and gains")
    response = _response(bench, samples, temperature)
    ratios = np.log(response.inverse / response.inverse.T)
    # (1/n) Σ_j ln(g_i/g_j) is ln g_i less the mean of all
    gains = np.exp(ratios.mean(axis=1))
    relative = (response.error / response.inverse) ** 2
    common = response.common / (response.inverse * response.inverse.T)
    apart, together = (relative + relative.T + sign * 2.0 * common for sign in (-1.0, 1.0))
    np.fill_diagonal(apart, 0.0)
    gains_error = gains * np.sqrt(apart.sum(axis=1)) / n
    there = response.inverse * gains  # c F_ij, as row i has it
    couplings = 0.5 * (there + there.T)
    of_gains = (gains_error / gains) ** 2
    variance = 0.25 * (together + np.add.outer(of_gains, of_gains))
    variance.flat[:: n + 1] = relative.diagonal() + of_gains
    couplings_error = couplings * np.sqrt(variance)
    pairs_apart = (there - there.T)[np.triu_indices(n, 1)]
    diagonal = couplings.diagonal()

    low, top = offsets.low, 1.0
    swing = 1.0 / low - 1.0 / top
    cell = (offsets.at_low - offsets.at_top) / gains * diagonal / swing
    channel = (offsets.at_top / low - offsets.at_low / top) / gains / swing
    quant = spec.adc_step**2 / 12.0
    bench.begin("noise")
    noise = _noise(bench, samples, temperature, diagonal, gains, cell)
    count, cycle = samples * OFFSET_SHARE, spec.clock_s / spec.tau_s
    at_low, at_top = (
        np.sqrt(
            (
                noisy
                * noise.power
                / (diagonal * c)
                / math.tanh(0.5 * c * bench.interval(c) * cycle)
                + noise.adc
                + quant
            )
            / count
        )
        for c in (low, top)
    )
    bench.begin("time constants")
    rates, rates_error = _rates(bench, samples, temperature, diagonal / gains, noise)
    return Values(
        couplings=couplings,
        couplings_error=couplings_error,
        gains=gains,
        gains_error=gains_error,
        adc_offsets=channel,
        adc_offsets_error=np.hypot(at_top / low, at_low / top) / swing,
        cell_offsets=cell,
        cell_offsets_error=np.hypot(at_low, at_top) * diagonal / swing,
        noise=noise.power,
        noise_error=noise.power_error,
        adc_noise=noise.adc,
        taus=diagonal / rates,
        taus_error=diagonal / rates * rates_error / rates,
        asymmetry=float(np.sqrt(np.mean(pairs_apart**2))),
        asymmetry_error=float(np.sqrt(np.mean((apart * couplings**2)[np.triu_indices(n, 1)]))),
    )


# ---- offsets --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Offsets:
    """Readings without bias (n,), at the full diagonal coupling and at a low one."""

    at_top: Floats
    at_low: Floats
    low: float


def _offsets(bench: Bench, samples: int, temperature: int) -> _Offsets:
    spec = bench.unit.spec
    code = max(round(LOW_DIAGONAL * spec.coupling_max), 1)
    none = np.zeros((1, spec.cells), np.int16)
    programs = [alone(spec, each, none) for each in (spec.coupling_max, code)]
    top, low = bench.means(programs, samples, temperature=temperature)
    return _Offsets(top[0], low[0], code / spec.coupling_max)


# ---- couplings ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Response:
    """H_ij = F_ij/g_j (n, n), one standard error, and the covariance of H_ij and H_ji."""

    inverse: Floats
    error: Floats
    common: Floats


def level_of(spec: UnitSpec, temperature: int, gain: float) -> int:
    """The bias code under which a cell that answers with `gain` fills what it may of the ADC."""
    spread = math.sqrt(spec.temperature_value(temperature) * max(gain, 1.0))
    room = max(min(FILL, 0.9 - HEADROOM * spread), 0.2)
    return max(math.floor(min(room / gain, 1.0) * spec.bias_max), 1)


def _response(bench: Bench, samples: int, temperature: int) -> _Response:
    spec = bench.unit.spec
    code = max(round(PAIR_COUPLING * spec.coupling_max), 1)
    ratio = code / spec.coupling_max
    level = level_of(spec, temperature, 1.0 / (1.0 - ratio**2))
    for _ in range(MOST_RETRIES):
        try:
            return _tournament(bench, samples, temperature, code, level)
        except Clipping:
            level = max(level * 3 // 4, 1)
    return _tournament(bench, samples, temperature, code, level)


def _tournament(bench: Bench, samples: int, temperature: int, code: int, level: int) -> _Response:
    spec, n = bench.unit.spec, bench.unit.spec.cells
    ratio = code / spec.coupling_max
    rounds = list(tournament(n))
    programs = (couple(spec, pairs, code, level) for pairs in rounds)
    found, error, common = np.zeros((n, n)), np.zeros((n, n)), np.zeros((n, n))
    times = np.zeros(n)
    read = bench.means(programs, samples, temperature=temperature)
    for pairs, means in zip(rounds, read, strict=True):
        inverse, variance, across = pair_response(
            bench, pairs, means, ratio, level, temperature, samples
        )
        first, second = pairs.T
        found[first, second], found[second, first] = inverse[:, 0, 1], inverse[:, 1, 0]
        error[first, second], error[second, first] = variance[:, 0, 1], variance[:, 1, 0]
        common[first, second] = common[second, first] = across / ratio**2
        for place, cell in enumerate((first, second)):
            found[cell, cell] += inverse[:, place, place]
            error[cell, cell] += variance[:, place, place]
            times[cell] += 1
    found /= ratio
    error /= ratio**2
    places = np.arange(n)
    found[places, places] *= ratio / times
    error[places, places] *= ratio**2 / times**2
    if not (found > 0.0).all():
        i, j = np.argwhere(found <= 0.0)[0]
        raise ValueError(f"cells {i} and {j} do not answer to their coupling; nothing to calibrate")
    return _Response(found, np.sqrt(error), common)


def pair_response(
    bench: Bench,
    pairs: NDArray[np.intp],
    means: Floats,
    ratio: float,
    level: int,
    temperature: int,
    samples: int,
) -> tuple[Floats, Floats, Floats]:
    """Y⁻¹ = A G⁻¹ of each pair, (m, 2, 2), its entries' variance, and covariance of the two mixed.

    `means` (4, n) are the readings of `couple` with a coupling of `ratio` and biases of ± `level`.

    Raises
    ------
    ValueError
        If readings do not follow their biases.
    """
    drive = level / bench.unit.spec.bias_max
    covariance = _of_means(bench, ratio, temperature, samples) / (2.0 * drive**2)
    response = (means[0::2] - means[1::2]) / (2.0 * drive)  # a row for each of the two biases
    ones = response[:, pairs].transpose(1, 2, 0)  # (m, cell, bias)
    if not (np.linalg.det(ones) > 0.0).all():
        raise ValueError("readings of pairs of cells do not follow their biases: this is no array")
    inverse: Floats = np.linalg.inv(ones).astype(np.float64, copy=False)
    # δ(Y⁻¹) = -Y⁻¹ δY Y⁻¹, and the two biases are read independently
    along = inverse @ covariance @ inverse.transpose(0, 2, 1)
    biases = inverse.transpose(0, 2, 1) @ inverse
    variance: Floats = np.einsum("maa,mbb->mab", along, biases)
    return inverse, variance, along[:, 0, 1] * biases[:, 0, 1]


def _of_means(bench: Bench, ratio: float, temperature: int, samples: int) -> Floats:
    """Covariance (2, 2) of mean readings of a pair, nominal."""
    spec = bench.unit.spec
    interval = bench.interval(1.0 - ratio) * spec.clock_s / spec.tau_s
    same, opposite = (
        0.5 * spec.temperature_value(temperature) / rate / math.tanh(0.5 * rate * interval)
        for rate in (1.0 + ratio, 1.0 - ratio)
    )
    # the two cells are pulled apart by a coupling of this sign
    both = np.array([[same + opposite, same - opposite], [same - opposite, same + opposite]])
    return (both + np.eye(2) * spec.adc_step**2 / 12.0) / samples


# ---- noise ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Noise:
    """f, its error, and the variance of a conversion beside rounding, (n,) each."""

    power: Floats
    power_error: Floats
    adc: Floats


def hot_temperature(spec: UnitSpec) -> int:
    """The code at which noise of a cell alone, and half as much again, stays within the ADC."""
    wanted = min((0.8 / HEADROOM) ** 2, spec.temperature_full_scale)
    return max(spec.temperature_code(wanted), 1)


def _noise(
    bench: Bench,
    samples: int,
    low: int,
    diagonal: Floats,
    gains: Floats,
    offsets: Floats,
) -> _Noise:
    spec, n = bench.unit.spec, bench.unit.spec.cells
    if not spec.second_moments:
        return _Noise(np.ones(n), np.zeros(n), np.zeros(n))
    against = np.rint(np.clip(-offsets, -1.0, 1.0) * spec.bias_max).astype(np.int16)
    program = alone(spec, spec.coupling_max, against[None])
    high = max(hot_temperature(spec), low)
    found = []
    for code, count in ((high, NOISE_SHARE * samples), (low, LOW_SHARE * samples)):
        count = min(count, MAX_SAMPLES)
        interval = bench.interval(1.0, second_moments=True) * spec.clock_s / spec.tau_s
        seen = bench.variances(program, count, temperature=code)
        error = seen * math.sqrt(2.0 / (count - 1) / math.tanh(interval))
        found.append((spec.temperature_value(code), seen, error))
    (hot, at_high, high_error), (cold, at_low, low_error) = found
    squared, quant = gains**2, spec.adc_step**2 / 12.0
    slope, slope_error = at_high - quant, high_error
    adc = np.zeros(n)
    if hot > cold:
        first = (at_high - at_low) / (hot - cold)
        adc = np.maximum(at_low - quant - first * cold, 0.0)
        # of noise that cannot be told from none nothing is taken off
        doubt = np.hypot(low_error, high_error * cold / hot) * hot / (hot - cold)
        adc = np.where(adc > 2.0 * doubt, adc, 0.0)
        slope_error = np.hypot(high_error, np.where(adc > 0.0, doubt, 0.0))
        slope = slope - adc
    power = slope / hot * diagonal / squared
    return _Noise(power, power * slope_error / slope, adc / squared)


# ---- time constants -------------------------------------------------------------------------


def _rates(
    bench: Bench, samples: int, temperature: int, slopes: Floats, noise: _Noise
) -> tuple[Floats, Floats]:
    """F_ii/τ_i over the nominal 1/τ, (n,), and one standard error.

    `slopes` are F_ii/g_i: a step of the bias ends at that much less.
    """
    spec, n = bench.unit.spec, bench.unit.spec.cells
    cycle = spec.clock_s / spec.tau_s
    cycles = max(round(2.0 / cycle), 1)
    code = min(max(round(spec.coupling_max / (cycles * cycle)), 1), spec.coupling_max)
    part = code / spec.coupling_max
    time = cycles * cycle * part
    gain = -math.expm1(-time) / part
    level = level_of(spec, temperature, gain)
    count = max(math.ceil(samples * TAU_SHARE / spec.rhs_depth), 1)
    depth = max(spec.rhs_depth // 2, 1)
    biases = np.full((2 * depth, n), level, np.int16)
    biases[1::2] = -level
    programs: Iterator[Program] = (alone(spec, code, biases) for _ in range(count))
    means = bench.means(programs, 1, temperature=temperature, settle_cycles=cycles)
    total = sum((read[0::2] - read[1::2]).mean(axis=0) for read in means) / (2.0 * count)
    drive = level / spec.bias_max / part
    reached = total * slopes / drive
    heat = spec.temperature_value(temperature) * noise.power / part
    spread = np.sqrt((heat + noise.adc + spec.adc_step**2 / 12.0) / (2 * depth * count))
    left_error = spread / drive
    if not (1.0 - reached > VISIBLE * left_error).all() or not (reached > 0.0).all():
        return np.asarray(slopes * 0.0 + 1.0), np.full(n, np.inf)
    left: Floats = 1.0 - reached
    rates: Floats = -np.log(left) / time
    return rates, left_error / left / time
