"""Settings of a plan that would be accepted, and change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from thermokron.host.studies.runs import Run
from thermokron.host.train.options import KFAC_ONLY, UNIT_ONLY

__all__ = ["check_effects"]

#: Settings, the runs on which they have an effect, and why not on the others.
_RULES: tuple[tuple[tuple[str, ...], Callable[[Run], bool], str], ...] = (
    (KFAC_ONLY, lambda run: run.config.optimizer == "kfac", "without K-FAC"),
    (UNIT_ONLY, lambda run: run.spec is not None, "without a unit"),
    (("momentum",), lambda run: run.config.optimizer != "adam", "with Adam"),
    (("settle",), lambda run: run.config.method_used == "solve", 'without method = "solve"'),
    (("mc_samples",), lambda run: run.config.fisher == "mc", 'without fisher = "mc"'),
)


def check_effects(names: Iterable[str], runs: list[Run]) -> None:
    """`ValueError` if one of these settings has no effect on any of these runs."""
    for name in names:
        for settings, effective, reason in _RULES:
            if name in settings and not any(map(effective, runs)):
                raise ValueError(f"{name} has no effect {reason}")
