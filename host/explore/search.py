"""A search from its plan to its page: propose, train, tell; what is found trains once more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from thermokron.host.explore.candidate import Candidate
from thermokron.host.explore.page import write_page
from thermokron.host.explore.plan import Plan
from thermokron.host.explore.proposals import Proposals
from thermokron.host.explore.results import Evaluated, Found, evaluate
from thermokron.host.studies.runner import Listener, claim
from thermokron.host.studies.runs import Run, Store, execute
from thermokron.host.tables import median
from thermokron.host.train.workers import Results, workers
from thermokron.model.files import claimed

__all__ = ["explore"]


def explore(
    plan: Plan,
    folder: Path,
    *,
    trials: int | None = None,
    jobs: int = 1,
    cluster: str | None = None,
    listen: Listener = lambda stage, done, total, remark: None,
) -> tuple[Found, Path]:
    """Train all candidates that have not been, check the front, and write the page.

    Training runs leave files in `folder/runs`, what was proposed is in `folder/search.log`: an
    interrupted search goes on where it was, and repeats nothing. With more trials than before it
    goes on, too. What is found does not depend on `jobs`, `cluster` or interruptions.

    Parameters
    ----------
    plan : Plan
    folder : Path
        Where results are kept; of one search, by its name and title.
    trials : int, optional
        In place of the plan's.
    jobs : int
        Processes that train side by side, each on one thread.
    cluster : str, optional
        Address of a Dask scheduler, on whose workers to train instead.
    listen : callable
        Hears of progress, see `thermokron.host.studies.runner.Listener`.

    Returns
    -------
    Found, Path
        What was found, and the page.

    Raises
    ------
    ValueError
        If exact K-FAC does not train, a run cannot be made, the folder is another's, or the
        cluster's packages are others than here.
    FolderInUse
        If a search is running there already.
    ChildProcessError
        If a process that trained was killed; results so far are kept.
    ConnectionError
        If no scheduler answers at the address, or it has gone since.
    """
    side_by_side = workers(jobs, cluster)
    if trials is not None:
        plan = replace(plan, trials=trials)
    with claimed(folder):
        claim(folder, plan)
        store = Store(folder / "runs")
        with side_by_side as results:
            found = _Search(plan, store, results, listen).run(folder / "search.log")
        return found, write_page(found, store, folder)


class _Search:
    def __init__(self, plan: Plan, store: Store, results: Results, listen: Listener) -> None:
        self.plan, self.store, self.results, self.listen = plan, store, results, listen

    def run(self, log: Path) -> Found:
        plan = self.plan
        baselines = plan.baselines
        exact = median(self._compared("what is to be beaten", baselines, plan.seeds))
        proposals = Proposals(plan, log)
        trials: list[Evaluated] = []
        for generation in range(plan.generations):
            candidates = proposals.generation(generation)
            names = [f"#{len(trials) + place}" for place in range(len(candidates))]
            runs = [
                plan.run(name, candidate, seed)
                for name, candidate in zip(names, candidates, strict=True)
                for seed in plan.seeds
            ]
            total = plan.generations * len(runs)
            self._train("candidates", runs, generation * len(runs), total)
            found = [
                self._evaluated(name, candidate, plan.seeds, exact)
                for name, candidate in zip(names, candidates, strict=True)
            ]
            proposals.tell(generation, found)
            trials += found
        beaten = [self._evaluated(n, c, plan.seeds, exact) for n, c in baselines.items()]
        return self._checked(Found(plan, exact, tuple(beaten), tuple(trials)))

    def _checked(self, found: Found) -> Found:
        seeds = self.plan.check_seeds
        compared = {one.name: one.candidate for one in [*found.baselines, *found.front]}
        exact = self._compared("check on other seeds", compared, seeds)
        again = {n: self._evaluated(n, c, seeds, exact) for n, c in compared.items()}
        return replace(found, again=again)

    def _compared(
        self, stage: str, candidates: Mapping[str, Candidate], seeds: Sequence[int]
    ) -> list[float]:
        """Train exact K-FAC and candidates; the losses of the former by seed."""
        references = [self.plan.reference(seed) for seed in seeds]
        runs = [self.plan.run(n, c, seed) for n, c in candidates.items() for seed in seeds]
        self._train(stage, [*references, *runs], 0, len(references + runs))
        losses = [self.store[run].final_loss for run in references]
        exact = median(losses)
        before = median(self.store[run].train_loss[0] for run in references)
        if not 0.0 < exact < before:
            raise ValueError(
                f"exact K-FAC begins with a loss of {before:.3g} and ends with {exact:.3g} from "
                f"the seeds {', '.join(map(str, seeds))}; lower lr, or raise damping"
            )
        return losses

    def _evaluated(
        self,
        name: str,
        candidate: Candidate,
        seeds: Sequence[int],
        exact: float | Sequence[float],
    ) -> Evaluated:
        outcomes = [self.store[self.plan.run(name, candidate, seed)] for seed in seeds]
        return evaluate(self.plan, name, candidate, outcomes, exact)

    def _train(self, stage: str, runs: list[Run], before: int, total: int) -> None:
        """Run what has no result yet."""
        missing = list(self.store.missing(runs))
        done = before + len(runs) - len(missing)
        self.listen(stage, done, total, "")
        for run, outcome in self.results(partial(execute, timeout_s=None), missing):
            self.store.put(run, outcome)
            done += 1
            self.listen(stage, done, total, f"{run.label}: loss {outcome.final_loss:.2g}")
