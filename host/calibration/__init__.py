"""What a unit really is, measured with known programs: `calibrate`, and what corrects by it.

>>> calibration = calibrate(unit)
>>> calibration.save("board.json")
>>> linalg.program(unit, M, calibration=calibration)
>>> calibration.check(unit).stale
"""

from thermokron.host.calibration.calibration import (
    Calibration,
    ForeignCalibration,
    StaleCalibration,
    calibrate,
)
from thermokron.host.calibration.checking import TOLERANCES, Check
from thermokron.host.calibration.corrections import (
    NOISE_CORRECTIONS,
    Corrections,
    NoiseCorrection,
)
from thermokron.host.calibration.unit import Calibrated, corrections_of
from thermokron.host.calibration.values import Values

__all__ = [
    "NOISE_CORRECTIONS",
    "TOLERANCES",
    "Calibrated",
    "Calibration",
    "Check",
    "Corrections",
    "ForeignCalibration",
    "NoiseCorrection",
    "StaleCalibration",
    "Values",
    "calibrate",
    "corrections_of",
]
