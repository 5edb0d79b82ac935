"""Which options of `KFAC` go together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from thermokron.host.kfac.curvature.losses import KINDS, LossCurvature, curvature_of
from thermokron.host.kfac.solve.inverses import Inverter, Thermodynamic, exact
from thermokron.host.kfac.solve.methods import METHODS
from thermokron.host.linalg.arrays import check_second_moments
from thermokron.model import Unit
from thermokron.model.unit import check_unit

__all__ = [
    "check_choices",
    "choose_inverter",
    "judge",
    "loss_curvature",
    "loss_reduction_of",
]

LEGAL = {
    "fisher": ("empirical", "mc", "ggn"),
    "sharing": ("expand", "reduce"),
    "others": ("diagonal", "plain"),
    "damping_mode": ("factored", "exact"),
    "method": METHODS,
    "loss_reduction": ("mean", "sum"),
}


def check_choices(choices: Mapping[str, str | None]) -> None:
    """`ValueError` if an option is none of the legal ones; None leaves the method open."""
    for name, choice in choices.items():
        if choice not in LEGAL[name] and not (name == "method" and choice is None):
            raise ValueError(f"{name} = {choice!r} is unknown; legal: {LEGAL[name]}")


def choose_inverter(
    unit: Unit | None, inverse: Inverter | None, choices: dict[str, Any], samples: Any = None
) -> Inverter:
    """What inverts; a method that was left open becomes what suits it: a unit solves.

    Raises
    ------
    ValueError, TypeError
        If a choice is none of the legal ones, or they do not go together.
    """
    check_choices(choices)
    method, damping_mode = choices["method"], choices["damping_mode"]
    if unit is not None and inverse is not None:
        raise ValueError("inverse and unit exclude each other: give one of them")
    if inverse is not None and not callable(inverse):
        raise TypeError(f"inverse = {inverse!r} is not callable; legal: see Inverter")
    digital = inverse in (None, exact)
    if damping_mode == "exact" and (unit is not None or not digital):
        raise ValueError(
            "damping_mode = 'exact' needs eigendecompositions, which only the host makes; "
            "legal: without unit and inverse"
        )
    if damping_mode == "exact" and method == "solve":
        raise ValueError("method = 'solve' needs damping_mode = 'factored'")
    if method == "solve" and not (digital or isinstance(inverse, Thermodynamic)):
        raise ValueError(f"method = 'solve' cannot use inverse = {inverse!r}, which only inverts")
    if inverse is None:
        inverse = exact if unit is None else Thermodynamic(check_unit(unit))
    if method is None:
        choices["method"] = "solve" if isinstance(inverse, Thermodynamic) else "inverse"
    if choices["method"] == "inverse" and isinstance(inverse, Thermodynamic):
        check_second_moments(inverse.unit.spec, "method = 'inverse'")
    if samples == 1 and choices["method"] == "inverse":
        raise ValueError("samples = 1 is out of range; legal with method = 'inverse': 2 or more")
    return inverse


def loss_reduction_of(criterion: torch.nn.Module | None, given: str | None) -> str:
    """How the loss combines its terms: what the criterion says, or what was given."""
    if criterion is not None and not isinstance(criterion, torch.nn.Module):
        raise TypeError(f"criterion = {criterion!r} is not a torch.nn.Module, such as MSELoss()")
    known = getattr(criterion, "reduction", None)
    if known is not None and given is not None and known != given:
        raise ValueError(f"loss_reduction = {given!r}, but criterion's reduction is {known!r}")
    return str(known or given or "mean")


def judge(criterion: torch.nn.Module | None) -> torch.nn.Module:
    """The loss module; `ValueError` if there is none."""
    if criterion is None:
        raise ValueError("lr = 'auto' needs criterion, the loss module that is called in training")
    return criterion


def loss_curvature(criterion: torch.nn.Module | None, fisher: str) -> LossCurvature | None:
    """What is known of the loss; `ValueError` if `fisher` needs to know more."""
    curvature = None if criterion is None else curvature_of(criterion)
    if fisher != "empirical" and curvature is None:
        known = ", ".join(kind.__name__ for kind in KINDS)
        raise ValueError(
            f"fisher = {fisher!r} needs criterion, the loss module that is called in training, "
            f"to be one of {known}; it is {criterion!r}"
        )
    return curvature
