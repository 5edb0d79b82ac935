"""Which candidates are tried: Optuna's part, kept in a file.

A generation is asked for before any of it is told, and each of its members from a seed of its own,
so that what is proposed is a function of the plan and of what earlier generations cost: not of
interruptions, nor of who trained what when.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from thermokron.host.explore.candidate import Candidate
from thermokron.host.explore.plan import Plan
from thermokron.host.explore.results import Evaluated

__all__ = ["Proposals"]

#: Trials before the sampler learns from them.
STARTUP = 24
#: What stands for the time and energy of a run that did not end well.
LOST = 1e6
PLACE, VIOLATION = "place", "violation"


class Proposals:
    """Candidates by generation, and what is known of them.

    Parameters
    ----------
    plan : Plan
        A plan with another space begins anew in the same file.
    path : Path
        The file; its folder is the caller's alone.

    Raises
    ------
    ValueError
        If the file is no search.
    """

    def __init__(self, plan: Plan, path: Path) -> None:
        self.plan = plan
        axes = {name: each for name, each in plan.axes.items() if not each.fixed}
        self._distributions = {name: each.distribution() for name, each in axes.items()}
        _cut(path)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with _quiet():
            try:
                storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
                self._study = optuna.create_study(
                    storage=storage,
                    study_name=plan.digest,
                    directions=["minimize"] * 3,
                    load_if_exists=True,
                )
            except (ValueError, KeyError, TypeError, AssertionError) as error:
                raise ValueError(f"{path} is no search ({error!r}); delete it") from None
        self._placed: dict[tuple[int, int], FrozenTrial] = {}
        self._open: dict[int, optuna.trial.Trial] = {}
        for trial in self._study.get_trials(deepcopy=False):
            if PLACE in trial.user_attrs:
                generation, place = trial.user_attrs[PLACE]
                self._placed[generation, place] = trial
            elif not trial.state.is_finished():  # interrupted while it was proposed
                self._study.tell(trial.number, state=TrialState.FAIL)

    def generation(self, number: int) -> list[Candidate]:
        """The candidates of a generation; all before it must have been told."""
        return [self._candidate(number, place) for place in range(self.plan.generation)]

    def _candidate(self, generation: int, place: int) -> Candidate:
        key = generation, place
        if key not in self._placed:
            seed = np.random.SeedSequence([self.plan.search_seed, *key]).generate_state(1)[0]
            with _quiet():
                self._study.sampler = optuna.samplers.TPESampler(
                    seed=int(seed), n_startup_trials=STARTUP
                )
                trial = self._study.ask(self._distributions)
                trial.set_user_attr(PLACE, list(key))
            self._open[trial.number] = trial
            self._placed[key] = self._study.get_trials(deepcopy=False)[trial.number]
        drawn = self._placed[key].params
        return self.plan.candidate({n: self.plan.axes[n].value(v) for n, v in drawn.items()})

    def tell(self, number: int, found: list[Evaluated]) -> None:
        """What came of a generation."""
        for place, each in enumerate(found):
            trial = self._placed[number, place]
            if trial.state.is_finished():
                continue
            values = [value if math.isfinite(value) else LOST for value in each.objectives]
            with _quiet():
                asked = self._asked(trial)
                if VIOLATION not in trial.constraints:  # else interrupted while it was told
                    asked.set_constraint(VIOLATION, each.violation)
                asked.set_user_attr("loss", each.loss if math.isfinite(each.loss) else None)
                self._study.tell(trial.number, values)

    def _asked(self, trial: FrozenTrial) -> optuna.trial.Trial:
        """A trial that can be told something, of an earlier sitting too."""
        if trial.number not in self._open:
            self._study.sampler = optuna.samplers.RandomSampler()  # it samples, for nobody
            self._open[trial.number] = optuna.trial.Trial(self._study, trial._trial_id)
        return self._open[trial.number]


def _cut(path: Path) -> None:
    """Drop what an interruption has left: a lock, and half a line, to which the next is added."""
    path.with_name(path.name + ".lock").unlink(missing_ok=True)  # the folder is ours
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
