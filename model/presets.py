"""Boards that were described: a spec, and the physics that goes with it."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any

from thermokron.model.checks import check_choice
from thermokron.model.physics import ArrayPhysics
from thermokron.model.spec import UnitSpec

__all__ = ["PRESETS", "preset"]

#: What a preset stands for, and what of it is stated where.
PRESETS = MappingProxyType(
    {
        "discrete_board": (
            "A board of 1 % resistors and AD7606C-16 converters: tolerances, noise and range as of "
            "`ArrayPhysics.discrete_board`. 16 bits, 1 MSPS on all of 8 channels, input filter of "
            "220 kHz, the wider of two (data sheet of the AD7606C-16, first page). The data sheet "
            "knows nothing of cells: tau_s = 100 us is chosen, for the filter to pass 99 % of the "
            "variance of a mode of lambda = 1. The cells' capacitance is left to the builder."
        ),
        "tngd": (
            "The cell that Donatella et al. assume for thermodynamic natural gradient descent "
            "(arXiv 2405.13817): 1 kohm and 1 nF, so tau_s = 1 us. Mismatch, noise, full scale and "
            "converters are not stated there, and are ideal here; sizes, clock and widths are the "
            "defaults of `UnitSpec`."
        ),
        "spu": (
            "The stochastic processing unit of Melanson et al. (arXiv 2312.04836; Nature "
            "Communications 2025, s41467-025-59011-x) as far as this model goes: 8 cells, all "
            "coupled to all. Theirs are RLC circuits that capacitances couple and that currents "
            "drive; here they are RC cells. No component value, tolerance or converter is taken "
            "over: they are ideal, and clock, tau_s and widths the defaults of `UnitSpec`."
        ),
    }
)


def preset(name: str, *, device_seed: int = 0, **changes: Any) -> tuple[UnitSpec, ArrayPhysics]:
    """A spec and a physics that fit each other; `PRESETS` says where their numbers come from.

    What no source states is not invented: it is None in the physics, so ideal, and `UnitSpec`'s
    default in the spec.

    Parameters
    ----------
    name : str
        "discrete_board", "tngd" or "spu".
    device_seed : int
        Which device, see `ArrayPhysics`.
    **changes
        Fields of the spec that shall be otherwise, such as ``cells``.

    Returns
    -------
    spec : UnitSpec
    physics : ArrayPhysics

    Raises
    ------
    ValueError
        If the name is not one of `PRESETS`, or a field is out of range.
    TypeError
        If a change is no field of the spec.

    Examples
    --------
    >>> spec, physics = preset("tngd", cells=32)
    >>> spec.cells, spec.tau_s, physics.cell_capacitance_f
    (32, 1e-06, 1e-09)
    """
    check_choice("name", name, tuple(PRESETS))
    made: dict[str, Any]
    if name == "discrete_board":
        # 29 cycles of 40 ns from CONVST to the next: 0.86 MSPS
        made = {"cells": 8, "adc_bits": 16, "adc_cycles": 25, "clock_hz": 25e6, "tau_s": 100e-6}
        physics = replace(
            ArrayPhysics.discrete_board(device_seed=device_seed), adc_bandwidth_hz=220e3
        )
    elif name == "tngd":
        made = {"tau_s": 1e3 * 1e-9}
        physics = ArrayPhysics(cell_capacitance_f=1e-9, device_seed=device_seed)
    else:
        made = {"cells": 8}
        physics = ArrayPhysics(device_seed=device_seed)
    return UnitSpec(**made | changes), physics
