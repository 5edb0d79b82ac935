"""Arrays whose cells clip softly: a drift that is not linear, in short steps."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from thermokron.model.array import NoiseArray
from thermokron.model.discharges import SETTLING, THERMAL, Room, Stretch, alone
from thermokron.model.discretisation import Step, covariance_factor, linear_step
from thermokron.model.linear import LinearDischarges, LinearSystem, linear_system
from thermokron.model.normals import ALIGNMENT, Normals

__all__ = ["SaturatedDischarges", "clamped"]

Floats = NDArray[np.float64]
#: A short step, in units of the time constant of the fastest mode of the couplings, or of τ. The
#: variance of a cell that noise alone takes to x_sat is then within 0.3 %, that of one driven to
#: twice x_sat within 7 %, and means are within two hundredths of a standard deviation.
STEP = 0.05
#: Steps whose noise is drawn at a time.
TOGETHER = 32


def clamped(x: Floats, time: Floats, saturation: float) -> Floats:
    """x(t) of dx = -x (x/x_sat)^8 dt, in closed form: x/(1 + 8 t (x/x_sat)^8)^⅛.

    Parameters
    ----------
    x : (..., n) float64
        In full scales.
    time : (n,) float64
        t, in units of τ.
    saturation : float
        x_sat, in full scales.
    """
    ratio = x / saturation
    power = ratio * ratio
    power *= power
    power *= power
    power *= 8.0 * time
    power += 1.0
    for _ in range(3):
        np.sqrt(power, out=power)
    clamped: Floats = x / power
    return clamped


class SaturatedLaw:
    """What discharges of one array with the same times have in common.

    Attributes
    ----------
    system : LinearSystem
        All but the clamps.
    steps : tuple of two int
        Short steps before the first sample, and in an interval.
    transitions, factors : tuple of two (m, m) float64
        Φᵀ of a short step, and its noise factor transposed.
    drives : tuple of two (n, m) float64
        What a drift adds in a short step, transposed.
    times : tuple of two (n,) float64
        How long the clamp of each cell acts in half a short step, in units of τ of equal cells.
    start : (m, m) float64
        Noise factor of the states at the end of discharge, transposed.
    """

    def __init__(self, array: NoiseArray, settle_cycles: int, interval_cycles: int) -> None:
        self.system: LinearSystem = linear_system(array)
        factors = array.device.time_factors
        speeds = np.ones(array.spec.cells) if factors is None else 1.0 / factors
        rates = np.linalg.norm(speeds[:, None] * array.matrix, 2), speeds.max()
        longest = STEP / float(max(rates))
        durations = array.elapsed(settle_cycles), array.elapsed(interval_cycles)
        self.steps = tuple(max(1, math.ceil(duration / longest)) for duration in durations)
        short = [duration / count for duration, count in zip(durations, self.steps, strict=True)]
        made: list[Step] = [linear_step(*self.system[:3], duration) for duration in short]
        self.transitions = tuple(np.ascontiguousarray(step.transition.T) for step in made)
        self.factors = tuple(
            np.ascontiguousarray(covariance_factor(step.covariance).T) for step in made
        )
        self.drives = tuple(np.ascontiguousarray(step.response.T) for step in made)
        self.times = tuple(duration / 2.0 * speeds for duration in short)
        self.start = np.ascontiguousarray(covariance_factor(self.system.start).T)

    @classmethod
    def of(cls, array: NoiseArray, settle_cycles: int, interval_cycles: int) -> SaturatedLaw:
        """That of an array, made only if it is not the one that was last asked for."""
        key = settle_cycles, interval_cycles
        if array.last_law is None or array.last_law[0] != key:
            array.last_law = key, cls(array, *key)
        law: SaturatedLaw = array.last_law[1]
        return law


class SaturatedDischarges(LinearDischarges):
    """K discharges of an array with `ArrayPhysics.cell_saturation`; see `Discharges`.

    A settling and an interval are so many short steps each, and a step is Strang's splitting: the
    clamps alone for half of it (`clamped`), all that is linear for the whole of it, noise and drift
    included, exactly (`linear_step`), and the clamps again. Both flows are exact, so nothing grows
    where an explicit Runge-Kutta or Euler scheme does in a drift of the ninth power (Hutzenthaler,
    Jentzen and Kloeden, Proc. R. Soc. A 467, 1563, 2011); moments err by the square of the step
    (Buckwar, Samson, Tamborrino and Tubikanec, Appl. Numer. Math. 179, 191, 2022, for such
    splittings).
    """

    def _prepare(
        self, array: NoiseArray, drift: Floats, settle_cycles: int, interval_cycles: int
    ) -> None:
        assert array.physics.cell_saturation is not None
        self._saturation, self._jitters = array.physics.cell_saturation, False
        law = self._saturated = SaturatedLaw.of(array, settle_cycles, interval_cycles)
        self._means = [alone(drift, drive, self._streams) for drive in law.drives]
        self._seen = law.system.seen

    def begin(self, stretch: Stretch, room: Room) -> tuple[Floats, list[Floats]]:
        """Where the states of a stretch shall be; see `LinearDischarges`, for what is returned."""
        vectors, m = len(self._streams[stretch.vectors]), len(self._saturated.system.drift)
        inputs = room.buffer(0, vectors, stretch.rows * m)
        runs = [
            inputs[:, rows.start * m : rows.stop * m].reshape(vectors, blocks, length * count, m)
            for rows, (blocks, length, count) in stretch.runs
        ]
        return inputs, runs

    def finals(self, stretch: Stretch, ends: list[Floats], last: Floats | None) -> list[Floats]:
        """The last states of each block of every run, (K, blocks, m); works the runs out, too."""
        finals, state, sample, normals = [], last, stretch.first, Normals()
        for run in ends:
            vectors, blocks, rows, m = run.shape
            for block in range(blocks):
                for row in range(rows):
                    if state is None:
                        state = self._advanced(np.zeros((vectors, m)), stretch, None, normals)
                    else:
                        state = self._advanced(state, stretch, sample, normals)
                    run[:, block, row] = state
                    sample += 1
            finals.append(run[:, :, -1].copy())
        return finals

    def _advanced(
        self, state: Floats, stretch: Stretch, interval: int | None, normals: Normals
    ) -> Floats:
        """The states, (K, m), after an interval of that number, or after discharge and settling."""
        law, cells = self._saturated, self._saturated.system.cells
        later = int(interval is not None)
        steps, transition, half = law.steps[later], law.transitions[later], law.times[later]
        vectors, m = state.shape
        streams, mean = self._streams[stretch.vectors], self._means[later][stretch.vectors, None]

        def draw(first: int, rows: int) -> Floats:
            drawn = np.empty((vectors, rows, m))
            purpose = THERMAL if later else SETTLING
            normals.draw(self._seed, purpose, streams, first, drawn.reshape(vectors, -1))
            return drawn

        if interval is None:
            state, first = (draw(0, 1) @ law.start)[:, 0], _aligned(m)
        else:
            state, first = state.copy(), interval * _aligned(steps * m)
        state[:, cells] = clamped(state[:, cells], half, self._saturation)
        for done in range(0, steps, TOGETHER):
            rows = min(TOGETHER, steps - done)
            for step, noise in enumerate(
                (draw(first + done * m, rows) @ law.factors[later] + mean).swapaxes(0, 1), done + 1
            ):
                state = np.matmul(state[:, None], transition)[:, 0]
                state += noise
                # the second half of this step, and the first of the next one
                time = half if step == steps else 2.0 * half
                state[:, cells] = clamped(state[:, cells], time, self._saturation)
        return state


def _aligned(numbers: int) -> int:
    return -(-numbers // ALIGNMENT) * ALIGNMENT
