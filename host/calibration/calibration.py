"""`Calibration`: what is known of one unit, since when, and how far it may be trusted."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from thermokron.host.calibration.checking import Check, compare
from thermokron.host.calibration.measuring import measure, readings
from thermokron.host.calibration.programs import Bench, Progress
from thermokron.host.calibration.values import Values
from thermokron.model import Unit, UnitSpec
from thermokron.model.checks import check_integer, check_real
from thermokron.model.files import naming_file, write_whole
from thermokron.model.unit import check_unit

__all__ = ["Calibration", "ForeignCalibration", "StaleCalibration", "calibrate"]

#: What files say first, and which version of their fields they have.
KIND, VERSION = "thermokron calibration", 1
#: A day, and the most that may be asked for, in seconds.
MAX_AGE_S, LONGEST_S = 86_400.0, 1e9


class ForeignCalibration(ValueError):
    """A calibration is that of another unit."""


class StaleCalibration(ValueError):
    """A calibration is too old, or readings do not agree with it any more."""


@dataclass(kw_only=True, eq=False)
class Calibration:
    """The values of one unit as they were measured, beside its identity.

    Attributes
    ----------
    spec : UnitSpec
        Of the unit: with its fingerprint all that units say of themselves. Two boards of one design
        say the same, and only `check` can tell them apart.
    name : str
        Which one it was, for people.
    date : datetime
        When it was measured, in UTC.
    max_age_s : float
        Seconds after which it is refused.
    samples, runs : int
        Readings of a coupling, and runs of the unit.
    seconds : float
        That these took on the unit.
    values : Values
        What was measured, with standard errors.
    checked : Check or None
        The last check.
    """

    spec: UnitSpec
    name: str
    date: datetime
    max_age_s: float
    samples: int
    runs: int
    seconds: float
    values: Values
    checked: Check | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.values.cells != self.spec.cells:
            raise ValueError(
                f"values are of {self.values.cells} cells; legal: those of the spec's, "
                f"{self.spec.cells}"
            )
        if self.date.tzinfo is None:
            raise ValueError(f"date = {self.date} has no time zone; legal: one in UTC")

    # ---- trust ----------------------------------------------------------------------------------

    @property
    def age_s(self) -> float:
        """Seconds since it was measured."""
        return (datetime.now(UTC) - self.date).total_seconds()

    def require(self, unit: Unit) -> None:
        """Refuse to be used on a unit that it does not fit.

        Raises
        ------
        ForeignCalibration
            If the unit has another spec.
        StaleCalibration
            If it is older than `max_age_s`, from the future, or failed its last check.
        """
        if unit.spec is not self.spec and unit.spec != self.spec:
            mine, other = json.loads(self.spec.to_json()), json.loads(unit.spec.to_json())
            differing = [f"{k} = {other[k]}, not {mine[k]}" for k in mine if other[k] != mine[k]]
            raise ForeignCalibration(
                f"the calibration {self.name!r} is that of a unit with fingerprint "
                f"{self.spec.fingerprint:#010x}, and this one has {unit.spec.fingerprint:#010x}: "
                f"{'; '.join(differing)}"
            )
        age = self.age_s
        if not -60.0 <= age <= self.max_age_s:
            raise StaleCalibration(
                f"the calibration {self.name!r} of {self.date:%Y-%m-%d %H:%M} UTC is "
                f"{age:.0f} s old; legal: 0 to max_age_s = {self.max_age_s:g}. Calibrate again, "
                "thermokron.host.calibrate"
            )
        if self.checked is not None and self.checked.stale:
            raise StaleCalibration(f"the calibration {self.name!r} is {self.checked.reason}")

    def check(self, unit: Unit, *, samples: int = 4096, tolerance: float = 1.0) -> Check:
        """Compare a few readings with what they should be, and remember the outcome.

        Two rounds of pairs and one noise power: a hundredth of the calibration's readings at 64
        cells.

        Parameters
        ----------
        unit : Unit
        samples : int
            Of each reading, 16 to 2²⁰.
        tolerance : float
            How much drift is tolerated, times `TOLERANCES`; 0.01 to 100.

        Returns
        -------
        Check
            Its `stale` says whether to calibrate again, `str` of it why, and `due` when.

        Raises
        ------
        ForeignCalibration
            If the unit has another spec.
        ValueError, TypeError
            If an argument is out of range.
        UnitFault
            If the unit failed.
        """
        samples = check_integer("samples", samples, 16, 2**20)
        tolerance = check_real("tolerance", tolerance, 0.01, 100.0)
        if check_unit(unit).spec != self.spec:
            self.require(unit)
        self.checked = compare(
            Bench(unit),
            self.values,
            samples=samples,
            tolerance=tolerance,
            since=self.date,
            now=datetime.now(UTC),
        )
        return self.checked

    # ---- files ----------------------------------------------------------------------------------

    def to_json(self) -> str:
        """The calibration as one JSON object; the outcome of checks is not in it."""
        return json.dumps(
            {
                "kind": KIND,
                "version": VERSION,
                "fingerprint": f"{self.spec.fingerprint:#010x}",
                "spec": json.loads(self.spec.to_json()),
                "name": self.name,
                "date": self.date.isoformat(),
                "max_age_s": self.max_age_s,
                "samples": self.samples,
                "runs": self.runs,
                "seconds": self.seconds,
                "values": self.values.plain(),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """The inverse of `to_json`.

        Raises
        ------
        ValueError
            If it is none, of another version, or its fingerprint is not that of its spec.
        """
        try:
            given: dict[str, Any] = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not a calibration: not JSON: {error}") from None
        if not isinstance(given, dict) or given.get("kind") != KIND:
            raise ValueError(f"not a calibration: an object with kind = {KIND!r} is needed")
        if given.get("version") != VERSION:
            raise ValueError(f"version = {given.get('version')!r} is not known; legal: {VERSION}")
        try:
            spec = UnitSpec.from_json(json.dumps(given["spec"]))
            made = cls(
                spec=spec,
                name=str(given["name"]),
                date=datetime.fromisoformat(given["date"]),
                max_age_s=check_real("max_age_s", given["max_age_s"], 1.0, LONGEST_S),
                samples=check_integer("samples", given["samples"], 1, 2**20),
                runs=check_integer("runs", given["runs"], 1, 2**62),
                seconds=check_real("seconds", given["seconds"], 0.0, np.inf),
                values=Values.of(given["values"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a calibration: {error}") from None
        if given.get("fingerprint") != f"{spec.fingerprint:#010x}":
            raise ValueError(
                f"fingerprint {given.get('fingerprint')} is not that of the spec beside it, "
                f"{spec.fingerprint:#010x}"
            )
        return made

    def save(self, path: Path | str) -> Path:
        """Write it to a file, which is whole whenever it is there."""
        return write_whole(Path(path), self.to_json() + "\n")

    @classmethod
    def load(cls, path: Path | str) -> Calibration:
        """What `save` has written; `ValueError` names the file."""
        with naming_file(Path(path)):
            text = Path(path).read_text(encoding="utf-8")
        try:
            return cls.from_json(text)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def __repr__(self) -> str:
        return (
            f"<Calibration {self.name!r} of {self.spec.cells} cells, {self.spec.fingerprint:#010x}"
            f", {self.date:%Y-%m-%d %H:%M} UTC>"
        )


def calibrate(
    unit: Unit,
    *,
    samples: int = 16384,
    name: str = "unit",
    max_age_s: float = MAX_AGE_S,
    progress: Progress | None = None,
) -> Calibration:
    """Measure a unit's offsets, gains, noise, time constants and couplings with known programs.

        >>> calibration = calibrate(unit)                                       # doctest: +SKIP
        >>> linalg.inv(unit, M, calibration=calibration)                        # doctest: +SKIP

    All n(n+1)/2 couplings are measured in n - 1 runs, n/2 pairs of cells at a time. `Values` says
    what is measured, and what no program can tell apart.

    Parameters
    ----------
    unit : Unit
        Any engine.
    samples : int
        Readings of each coupling and bias, 64 to 2²⁰. Errors fall as 1/√samples.
    name : str
        Which unit this is, for people.
    max_age_s : float
        Seconds after which the calibration is refused, 1 to 1e9.
    progress : callable, optional
        Called with the part that is done, 0 to 1, and what is measured.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of range, or readings make no sense of the unit.
    UnitFault
        If the unit failed.
    """
    samples = check_integer("samples", samples, 64, 2**20)
    max_age_s = check_real("max_age_s", max_age_s, 1.0, LONGEST_S)
    if not isinstance(name, str):
        raise TypeError(f"name = {name!r} is no text")
    spec = check_unit(unit).spec
    bench = Bench(unit, progress, readings(spec, samples))
    values = measure(bench, samples)
    return Calibration(
        spec=spec,
        name=name,
        date=datetime.now(UTC),
        max_age_s=max_age_s,
        samples=samples,
        runs=bench.runs,
        seconds=bench.seconds,
        values=values,
    )
