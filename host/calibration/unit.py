"""A unit with its calibration: `Calibrated`, a unit like any other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Self

from thermokron.host.calibration.calibration import Calibration
from thermokron.host.calibration.corrections import (
    NOISE_CORRECTIONS,
    Corrections,
    NoiseCorrection,
)
from thermokron.model import Job, Readout, Unit, UnitSpec
from thermokron.model.unit import check_unit

__all__ = ["Calibrated", "corrections_of"]


class Calibrated:
    """A unit, and the calibration by which linear algebra on it is corrected.

    Jobs and read-outs pass as they are. What programs a matrix asks each time whether the
    calibration is this unit's still, see `Calibration.require`. Everything else is the unit's.

    Parameters
    ----------
    unit : Unit
    calibration : Calibration
    noise : {"auto", "exact", "scaled", "none"}
        How covariances are freed of what unequal noise temperatures do to them. "exact": Lyapunov's
        equation for the matrix as programmed, 13n³ operations. "scaled": each entry over the mean
        of its two cells' noise, O(n²), which is exact where cells are alone, and leaves some where
        modes are far apart. "auto": the first up to 32 cells, the second beyond. "none": not at
        all.

    Raises
    ------
    ForeignCalibration, StaleCalibration
        If the calibration is another unit's, or too old, or failed its last check.
    """

    def __init__(
        self, unit: Unit, calibration: Calibration, *, noise: NoiseCorrection = "auto"
    ) -> None:
        if noise not in NOISE_CORRECTIONS:
            raise ValueError(f"noise = {noise!r} is unknown; legal: {', '.join(NOISE_CORRECTIONS)}")
        if not isinstance(calibration, Calibration):
            raise TypeError(f"calibration = {calibration!r} is none; see thermokron.host.calibrate")
        self.unit: Unit = unit.unit if isinstance(unit, Calibrated) else check_unit(unit)
        self.spec: UnitSpec = self.unit.spec
        self.calibration, self.noise = calibration, noise
        self._kept: dict[int, Corrections] = {}
        calibration.require(self.unit)

    @property
    def seed(self) -> int:
        """Of the unit's noise."""
        return self.unit.seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self.unit.seed = seed

    @property
    def stream(self) -> int:
        """The unit's running count of discharges."""
        return self.unit.stream

    @stream.setter
    def stream(self, stream: int) -> None:
        self.unit.stream = stream

    def run(self, job: Job, *, stream: int | None = None) -> Readout:
        """Execute one job on the unit."""
        return self.unit.run(job, stream=stream)

    def run_many(self, jobs: Iterable[Job]) -> Iterator[Readout]:
        """Execute jobs on the unit, in order."""
        return self.unit.run_many(jobs)

    def close(self) -> None:
        """Close the unit."""
        self.unit.close()

    def corrections(self, size: int) -> Corrections:
        """Those for a matrix of `size` rows, on the first cells.

        Raises
        ------
        ForeignCalibration, StaleCalibration
            As of `Calibrated`.
        """
        self.calibration.require(self.unit)
        if size not in self._kept:
            values = self.calibration.values.first(size)
            self._kept[size] = Corrections(self.spec, values, self.noise)
        return self._kept[size]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Calibrated {self.unit!r} by {self.calibration!r}>"


def corrections_of(unit: Unit, size: int) -> Corrections | None:
    """How a matrix of `size` rows is corrected on a unit; None where nothing is known of it."""
    return unit.corrections(size) if isinstance(unit, Calibrated) else None
