"""What processes that train one model together have to be given alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thermokron.host.kfac.curvature.layers import Layer
from thermokron.host.kfac.distributed import Ranks, check_alike
from thermokron.host.kfac.hyperparameters import Hyperparameters
from thermokron.model import Unit

__all__ = ["Agreement", "agree"]


@dataclass(frozen=True)
class Agreement:
    """What came out.

    Attributes
    ----------
    method : str
        How blocks are applied: where a unit is given on some of the processes, as there.
    owners : list of int
        The processes that may invert: those with a unit if there are any.
    seeds : list of int or None
        The seeds of their units, by rank.
    """

    method: str
    owners: list[int]
    seeds: list[int | None]


def agree(
    ranks: Ranks,
    *,
    layers: Sequence[Layer],
    unit: Unit | None,
    choices: Mapping[str, Any],
    method_given: bool,
    hyperparameters: Hyperparameters,
    others: Mapping[str, Any],
) -> Agreement:
    """Compare what each process was given.

    Raises
    ------
    ValueError
        On all of them, if something differs that must not, or two units would draw the same noise.
    RuntimeError
        If they cannot be asked.
    """
    with ranks.exchange("what KFAC was given") as given:
        given.own = (
            None if unit is None else (unit.seed, repr(unit.spec)),
            method_given or unit is not None,
            dict(choices),
            {f"{name}, at step 0": hyperparameters.at(name, 0) for name in hyperparameters}
            | dict(others)
            | {"model": {layer.name: layer.describe() for layer in layers}},
        )
    with_unit = [rank for rank, (its_unit, *_) in enumerate(given.all) if its_unit is not None]
    owners = with_unit or list(range(ranks.size))
    settled = given.all[owners[0]][2]
    check_alike(
        [
            its_choices | ({} if is_set else {"method": settled["method"]}) | rest
            for _, is_set, its_choices, rest in given.all
        ]
    )
    seeds = [None if its_unit is None else its_unit[0] for its_unit, *_ in given.all]
    check_alike([{"spec of the unit": given.all[rank][0][1]} for rank in with_unit])
    for rank in with_unit:
        if seeds.index(seeds[rank]) != rank:
            raise ValueError(
                f"the units of rank {seeds.index(seeds[rank])} and rank {rank} have the same seed "
                f"{seeds[rank]}, and would draw the same noise; open each with its own, such as "
                "seed = rank"
            )
    return Agreement(settled["method"], owners, seeds)
