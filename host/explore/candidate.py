"""What is tried: a unit, and how the host works with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from thermokron.host.linalg import Settle
from thermokron.host.predict.hardware.technologies import built_at_28nm
from thermokron.host.predict.hardware.technology import Technology
from thermokron.model import UnitSpec

__all__ = ["BITS", "Candidate"]

#: Heads those of all converters: three columns would take the room of what else is searched.
BITS = "coupling / bias / ADC bits"


@dataclass(frozen=True)
class Candidate:
    """A unit at 28 nm, and how it is used.

    Attributes
    ----------
    spec : UnitSpec
        What is built, and trained on.
    method : "solve" or "inverse"
        As of `thermokron.host.train.TrainConfig`.
    samples : int
        Per solution, or of an inverse.
    settle : float or str
        Of solutions.
    ports : int
        Codes a clock cycle into the DACs. The control plane brings up to 16 of them: more are a
        projection, of the load cycles alone.
    units : int
        Side by side.
    word_bits : int
        Of a word on the link.
    """

    spec: UnitSpec
    method: str = "solve"
    samples: int = 1
    settle: Settle = 0.1
    ports: int = 1
    units: int = 1
    word_bits: int = 32

    @property
    def settings(self) -> dict[str, Any]:
        """Of `TrainConfig`; what has no effect is left out, so that equal runs are one."""
        own: dict[str, Any] = {"method": self.method, "samples": self.samples}
        return own | ({"settle": self.settle} if self.method == "solve" else {})

    @property
    def technology(self) -> Technology:
        """What it is built in."""
        return built_at_28nm(
            self.spec,
            word_bits=self.word_bits,
            ports=self.ports,
            units=self.units,
            fitted=False,
        )

    @property
    def table(self) -> dict[str, Any]:
        """What is searched, by name, as tables show it."""
        spec = self.spec
        return {
            "cells": spec.cells,
            "lanes": spec.lanes,
            BITS: f"{spec.coupling_bits}/{spec.bias_bits}/{spec.adc_bits}",
            "τ in ns": float(f"{1e9 * spec.tau_s:.4g}"),
            "vectors a start": spec.rhs_depth,
            "method": self.method,
            "samples": self.samples,
            "settle": self.settle if self.method == "solve" else "",
            "ports": self.ports,
            "units": self.units,
        }

    @classmethod
    def of(cls, values: Mapping[str, Any], unit: Mapping[str, Any], word_bits: int) -> Candidate:
        """Of a value for each of `thermokron.host.explore.axes.AXES`.

        Parameters
        ----------
        values : mapping
            By name.
        unit : mapping
            The other fields of `UnitSpec`.
        word_bits : int

        Raises
        ------
        ValueError
            If `UnitSpec` refuses it, or folds do not divide cells.
        """
        cells, folds = values["cells"], values["folds"]
        if cells % folds:
            raise ValueError(f"folds = {folds} does not divide cells = {cells}")
        spec = UnitSpec(
            cells=cells,
            lanes=cells // folds,
            coupling_bits=values["coupling_bits"],
            bias_bits=values["bias_bits"],
            adc_bits=values["adc_bits"],
            rhs_depth=values["rhs_depth"],
            tau_s=float(f"{1e-9 * values['tau_ns']:.6g}"),
            **unit,
        )
        solves = values["method"] == "solve"
        return cls(
            spec=spec,
            method=values["method"],
            samples=values["samples"] if solves else values["inverse_samples"],
            settle=values["settle"] if solves else 0.1,
            ports=values["ports"],
            units=values["units"],
            word_bits=word_bits,
        )
