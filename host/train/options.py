"""Which options of a run go where, known without torch so that `--help` is quick."""

from __future__ import annotations

from dataclasses import fields

from thermokron.model import UnitSpec

__all__ = ["KFAC_ONLY", "KFAC_OPTIONS", "UNIT_ONLY"]

#: Options that go to `KFAC` as they are.
KFAC_OPTIONS = (
    "fisher",
    "mc_samples",
    "sharing",
    "damping_mode",
    "method",
    "decay",
    "factor_interval",
    "inverse_interval",
    "refresh_threshold",
    "kl_clip",
    "norm_constraint",
)
#: Options that mean nothing without K-FAC, and without a unit.
KFAC_ONLY = ("damping", "adapt_damping", *KFAC_OPTIONS)
_SPEC = tuple(field.name for field in fields(UnitSpec))
UNIT_ONLY = ("samples", "settle", "guard", "equilibrate", "physics", "calibration", *_SPEC)
