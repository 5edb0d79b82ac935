"""Arrays whose cells are not all there is: noise, couplings and converters that take their time."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from thermokron.model.array import NoiseArray
from thermokron.model.chain import BEYOND_ALL_RAILS
from thermokron.model.discharges import JITTER, THERMAL, Discharges, Room, Stretch, alone
from thermokron.model.discretisation import Step, covariance_factor, linear_step
from thermokron.model.physics import FLICKER_RATES

__all__ = ["LinearDischarges", "LinearSystem", "linear_system"]

Floats = NDArray[np.float64]
#: A step of an unstable array ends where it has grown by this, which is beyond every rail.
MOST_GROWTH = 1e60
#: A pole's time constant counts as this many τ at least: by less than that in λ τ it changes no
#: variance, and beside much slower states a step would lose as many digits.
LEAST_LAG = 1e-7
#: What a standard normal number exceeds with a probability of a sixth.
SIXTH = 0.967421566101701


class LinearSystem(NamedTuple):
    """ds = (F s + B b) dt + dv, E dv dvᵀ = D dt: an array with m states, times in units of τ.

    The states are, n of each, the cells' voltages x, and of the following what the array has: the
    outputs y of the amplifiers in the coupling path, the noise sources' currents ξ, what is
    behind the filters at the converters' inputs w, and flicker processes e, one for each rate r of
    `FLICKER_RATES`. With D = diag(τ/τ_i), and of a bandwidth f ε = 1/(2π f τ),

        dx = D (-(A y - b) + ξ + Σe) dt    dy = (x - y)/ε_y dt
        dw = (x - w)/ε_w dt                dξ = -ξ/ε_ξ dt + √(2 T_i)/ε_ξ dW
                                           de = -r e dt + √(2 r a² ln 10) dW.

    Where amplifiers are ideal x stands for y, and for ξ white noise, √(2 T_i) dW; A need not be
    symmetric. All signals that a product with A is made of pass an amplifier, the diagonal's too.
    At low frequencies the noise has the density that it has without a limit.

    Attributes
    ----------
    drift, diffusion : (m, m) float64
        F and D, the latter in full scales squared.
    drive : (m, n) float64
        B.
    start : (m, m) float64
        Covariance of the states when discharge ends, whose mean is 0. Discharge holds x = 0, so
        amplifiers and filters, which see that, are at 0, too; noise sources, which see nothing of
        it, are stationary, at T_i/ε_ξ, and so is flicker. Discharge is taken to be long beside
        every ε.
    cells : slice
        The n states that are voltages of cells.
    seen : slice
        The n states that the converters convert.
    """

    drift: Floats
    diffusion: Floats
    drive: Floats
    start: Floats
    cells: slice
    seen: slice


def linear_system(array: NoiseArray) -> LinearSystem:
    """The states of an array, and how they move."""
    n, physics = array.spec.cells, array.physics

    def lag(bandwidth: float) -> float:
        return max(1.0 / (2.0 * math.pi * bandwidth * array.spec.tau_s), LEAST_LAG)

    cells, m = slice(0, n), n
    amplified = noisy = seen = cells
    if physics.coupling_bandwidth_hz is not None:
        amplified, m = slice(m, m + n), m + n
    if physics.noise_bandwidth_hz is not None:
        noisy, m = slice(m, m + n), m + n
    if physics.adc_bandwidth_hz is not None:
        seen, m = slice(m, m + n), m + n
    flicker = m
    m = n * physics.states_per_cell

    one, times = np.eye(n), array.device.time_factors
    speeds = np.ones(n) if times is None else 1.0 / times
    drift, diffusion, start = np.zeros((m, m)), np.zeros((m, m)), np.zeros((m, m))
    drive = np.zeros((m, n))
    drive[cells] = np.diag(speeds)
    drift[cells, amplified] = -speeds[:, None] * array.matrix
    if physics.noise_bandwidth_hz is None:
        diffusion[cells, cells] = np.diag(2.0 * array.temperatures * speeds**2)
    else:
        slow = lag(physics.noise_bandwidth_hz)
        drift[cells, noisy] = np.diag(speeds)
        drift[noisy, noisy] = -one / slow
        diffusion[noisy, noisy] = np.diag(2.0 * array.temperatures / slow**2)
        start[noisy, noisy] = np.diag(array.temperatures / slow)
    for place, bandwidth in (
        (amplified, physics.coupling_bandwidth_hz),
        (seen, physics.adc_bandwidth_hz),
    ):
        if bandwidth is not None:
            drift[place, cells] = one / lag(bandwidth)
            drift[place, place] = -one / lag(bandwidth)
    if physics.cell_flicker is not None:
        variance = physics.cell_flicker**2 * math.log(10.0)
        for rate in FLICKER_RATES:
            place = slice(flicker, flicker + n)
            drift[cells, place] = np.diag(speeds)
            drift[place, place] = -rate * one
            diffusion[place, place] = 2.0 * rate * variance * one
            start[place, place] = variance * one
            flicker += n
    return LinearSystem(drift, diffusion, drive, start, cells, seen)


def instants(array: NoiseArray) -> Floats | None:
    """When each channel may sample after CONVST, (k, n), in units of τ; k = 3 with jitter, else 1.

    None, if all sample at once. None is before CONVST: converters have an aperture delay.
    """
    skew, jitter = array.device.adc_delays, array.physics.adc_jitter_s
    if skew is None and jitter is None:
        return None
    delays = np.zeros((1, array.spec.cells)) if skew is None else skew[None]
    if jitter is not None:
        delays = delays + math.sqrt(3.0) * jitter * np.arange(3.0)[:, None]
    return delays / array.spec.tau_s


def step_through(system: LinearSystem, duration: float, delays: Floats | None) -> Step:
    """The exact step to what is seen at some instants after a duration, and to the last of them.

    Parameters
    ----------
    system : LinearSystem
    duration : float
        To the first instant at which a channel may sample, in units of τ.
    delays : (k, n) float64, or None
        As of `instants`.

    Returns
    -------
    Step
        From m states to m + k n: those at the last instant, then what is seen at each of them. Of m
        to m, where there are no delays.
    """
    step = linear_step(*system[:3], duration, most=MOST_GROWTH)
    if delays is None:
        return step
    m, flat = len(system.drift), delays.reshape(-1)
    transition, response = (
        np.concatenate([part, np.zeros((flat.size, part.shape[1]))]) for part in step[:2]
    )
    covariance = np.zeros((m + flat.size,) * 2)
    covariance[:m, :m] = step.covariance
    seen = np.tile(np.arange(m)[system.seen], len(delays))
    now = 0.0
    for instant in np.unique(flat):
        if instant > now:
            short = linear_step(*system[:3], instant - now, most=MOST_GROWTH)
            transition[:m] = short.transition @ transition[:m]
            response[:m] = short.transition @ response[:m] + short.response
            covariance[:m] = short.transition @ covariance[:m]
            covariance[:, :m] = covariance[:, :m] @ short.transition.T
            covariance[:m, :m] += short.covariance
            now = instant
        read = np.flatnonzero(flat == instant)
        for whole in (transition, response, covariance, covariance.T):
            whole[m + read] = whole[seen[read]]
    return Step(transition, response, (covariance + covariance.T) / 2)


class LinearLaw:
    """What discharges of one array with the same times have in common: s_j = s_(j-1) Φᵀ + g_j.

    Attributes
    ----------
    remembered : int
        m, of which the next sample depends.
    states : int
        p, of a sample: m, or more where channels do not sample at once (`step_through`).
    seen : slice
        What of them the converters convert: n, or 3 n, of which jitter chooses.
    quiet : bool
        Whether there is no noise.
    grows : bool
        Whether a state may grow without end, as of an indefinite matrix.
    transition : (m, p) float64
        Φᵀ of an interval.
    factors : tuple of two (p, p) float64
        Noise factors of the first sample and of an interval, transposed.
    drives : tuple of two (n, p) float64
        What a drift adds before the first sample and in an interval, transposed.
    """

    def __init__(self, array: NoiseArray, settle_cycles: int, interval_cycles: int) -> None:
        system = linear_system(array)
        settle, interval = array.elapsed(settle_cycles), array.elapsed(interval_cycles)
        delays = instants(array)
        window = 0.0 if delays is None else float(delays.max())
        if window >= interval:
            raise ValueError(
                f"interval_cycles = {interval_cycles} is out of range: a channel would sample after"
                f" the next sample; legal: above {window * array.spec.tau_s / array.spec.clock_s:g}"
            )
        first, each = (
            step_through(system, duration, delays) for duration in (settle, interval - window)
        )
        self.remembered, self.states = len(system.drift), len(first.transition)
        self.seen = system.seen if delays is None else slice(self.remembered, self.states)
        self.quiet = not (system.diffusion.any() or system.start.any())
        self.grows = bool(np.linalg.eigvals(system.drift).real.max() > 0.0)
        self.transition = np.ascontiguousarray(each.transition.T)
        begun = first.covariance + first.transition @ system.start @ first.transition.T
        factors = (covariance_factor(begun), covariance_factor(each.covariance))
        self.factors = tuple(np.ascontiguousarray(factor.T) for factor in factors)
        self.drives = tuple(np.ascontiguousarray(step.response.T) for step in (first, each))

    @classmethod
    def of(cls, array: NoiseArray, settle_cycles: int, interval_cycles: int) -> LinearLaw:
        """That of an array, made only if it is not the one that was last asked for."""
        key = settle_cycles, interval_cycles
        if array.last_law is None or array.last_law[0] != key:
            array.last_law = key, cls(array, *key)
        law: LinearLaw = array.last_law[1]
        return law


class LinearDischarges(Discharges):
    """K discharges of an array that its modes do not describe; see `Discharges`.

    A sample takes p numbers of its stream's sequence, and one product of a vector with a matrix,
    one sample after the other: of which none has a shape that depends on its company.
    """

    def _prepare(
        self, array: NoiseArray, drift: Floats, settle_cycles: int, interval_cycles: int
    ) -> None:
        law = self._linear = LinearLaw.of(array, settle_cycles, interval_cycles)
        self._seen, self._jitters = law.seen, array.physics.adc_jitter_s is not None
        self._means = [alone(drift, drive, self._streams) for drive in law.drives]

    @property
    def _spare(self) -> int:
        return 0

    def begin(self, stretch: Stretch, room: Room) -> tuple[Floats, list[Floats]]:
        """What every sample has that the one before has not; the room is taken until `finish`.

        Returns
        -------
        inputs : (K, rows·p) float64
        runs : list of (K, blocks, rows, p) float64
            The same, run by run, in the order of time.
        """
        law, streams = self._linear, self._streams[stretch.vectors]
        m, vectors = law.states, len(streams)
        if law.quiet:
            inputs = room.buffer(0, vectors, stretch.rows * m)
            inputs[:] = 0.0
        else:
            inputs = self._draw(THERMAL, stretch, room, 0, m)
        runs = []
        for rows, (blocks, length, count) in stretch.runs:
            run = inputs[:, rows.start * m : rows.stop * m]
            run = run.reshape(vectors, blocks, length * count, m)
            later = int(stretch.begin > 0 or rows.start > 0)
            if not law.quiet:
                run[:] = run @ law.factors[later]
            run += self._means[later][stretch.vectors, None, None]
            runs.append(run)
        return inputs, runs

    def finals(self, stretch: Stretch, ends: list[Floats], last: Floats | None) -> list[Floats]:
        """The last states of each block of every run, (K, blocks, p); completes the runs, too."""
        finals, state, transition = [], last, self._linear.transition
        remembered = self._linear.remembered
        for run in ends:
            vectors, blocks, rows, m = run.shape
            of_run = np.empty((vectors, blocks, m))
            for block in range(blocks):
                for row in range(rows):
                    now = run[:, block, row]
                    if state is not None:
                        now += np.matmul(state[:, None, :remembered], transition)[:, 0]
                    if self._linear.grows:
                        np.clip(now, -BEYOND_ALL_RAILS, BEYOND_ALL_RAILS, out=now)
                    state = now
                of_run[:, block] = state
            finals.append(of_run)
        return finals

    def finish(
        self,
        stretch: Stretch,
        room: Room,
        begun: tuple[Floats, list[Floats]],
        finals: list[Floats],
        last: Floats | None,
    ) -> Floats:
        """As of `Discharges.finish`."""
        runs, n = begun[1], self.cells
        vectors = len(runs[0])
        outputs = room.buffer(1, vectors, stretch.rows * n)
        draws = self._draw(JITTER, stretch, room, 2, n) if self._jitters else None
        for (rows, (blocks, length, count)), run in zip(stretch.runs, runs, strict=True):
            seen = run[..., self._seen].reshape(vectors, blocks, count, length, -1)
            seen = seen.swapaxes(2, 3)
            place = slice(rows.start * n, rows.stop * n)
            part = outputs[:, place].reshape(vectors, blocks, length, count, n)
            if draws is not None:
                draw = draws[:, place].reshape(part.shape)
                early, mean, late = (seen[..., k * n : (k + 1) * n] for k in range(3))
                seen = np.where(draw < -SIXTH, early, np.where(draw > SIXTH, late, mean))
            np.divide(seen, self.step, out=part)
        return outputs.reshape(vectors, -1, n)
