"""Tables and curves of a comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from thermokron.host.studies.claims import Claim
from thermokron.host.studies.runs import Outcome, Run
from thermokron.host.tables import markdown, median, number, write

__all__ = ["write_report"]

#: What came out on one network: by contender, runs and their outcomes, seed by seed.
Results = Mapping[str, Sequence[tuple[Run, Outcome]]]


def write_report(
    folder: Path,
    *,
    title: str,
    targets: Sequence[float],
    results: Mapping[str, Results],
    claims: Sequence[Claim],
    made_from: str,
    versions: str,
) -> list[Path]:
    """Write `tables.md` and `loss.png`; their paths.

    Parameters
    ----------
    folder : Path
        Where they go.
    title : str
        Of the study.
    targets : list of float
        Training losses, falling.
    results : dict of str to `Results`
        What came out, by network.
    claims : list of Claim
        What should have.
    made_from, versions : str
        Sentences on which runs these are, and on what made them.
    """
    from thermokron.host.studies.plots import plot_curves

    parts = [f"## {title}"]
    for network, found in results.items():
        parts += [f"### {network}", _table(found, targets)]
    if claims:
        parts += ["### What should hold", _verdicts(claims, results, targets[-1])]
    curves = {
        network: {name: [outcome.step_loss for _, outcome in side] for name, side in found.items()}
        for network, found in results.items()
    }
    return [
        write(folder / "tables.md", *parts, made_from, versions),
        plot_curves(
            curves, folder / "loss.png", title=title, targets=list(targets), about=made_from
        ),
    ]


def _table(found: Results, targets: Sequence[float]) -> str:
    head = ["", "settings", *(f"epochs to {target:g}" for target in targets)]
    classes = any(math.isfinite(o.test_accuracy) for side in found.values() for _, o in side)
    head += ["final loss", "epochs run", "seeds"]
    head += ["test accuracy" if classes else "test loss", "ms per epoch"]
    head += [f"s to {targets[-1]:g}", "ms on the unit per epoch"]
    rows = []
    for contender, side in found.items():
        run, outcomes = side[0][0], [outcome for _, outcome in side]
        epochs = run.config.epochs
        per_epoch = median(o.wall_seconds for o in outcomes) / epochs
        reached = [median(o.epochs_to(t) for o in outcomes) for t in targets]
        hardware = median(o.hardware_seconds for o in outcomes) / epochs
        simulated = run.spec is not None
        rows.append(
            [
                contender,
                _settings(run),
                *(number(value) for value in reached),
                number(median(o.final_loss for o in outcomes), 2),
                str(epochs),
                str(len(outcomes)),
                _percent(_accuracy(outcomes))
                if classes
                else number(median(o.test_loss for o in outcomes), 2),
                "simulated" if simulated else _milliseconds(per_epoch),
                "simulated" if simulated else number(reached[-1] * per_epoch),
                _milliseconds(hardware) if simulated else "",
            ]
        )
    return markdown(head, rows)


def _verdicts(claims: Sequence[Claim], results: Mapping[str, Results], target: float) -> str:
    rows = []
    for claim in claims:
        for network in claim.networks:
            who = (claim.contender, claim.against)
            pair = [[outcome for _, outcome in results[network][name]] for name in who]
            shared = min(map(len, pair))  # the same seeds on both sides
            pair = [side[:shared] for side in pair]
            if claim.measure == "epochs":
                what = f"epochs to {target:g}, quotient"
                first, second = (median(o.epochs_to(target) for o in side) for side in pair)
                found = first / second if 0.0 < second < math.inf else math.nan
            else:
                what = "test accuracy, points lower"
                first, second = map(_accuracy, pair)
                found = 100.0 * (second - first)
            rows.append(
                [
                    f"{claim.contender} against {claim.against}, {network}",
                    what,
                    number(found),
                    number(claim.at_most),
                    "yes" if found <= claim.at_most else "**no**",
                ]
            )
    head = ["medians over the same seeds", "", "measured", "at most", "holds"]
    return markdown(head, rows)


def _accuracy(outcomes: list[Outcome]) -> float:
    """Median test accuracy; a run without one, as it did not end well, counts as the worst."""
    return -median(-outcome.test_accuracy for outcome in outcomes)


def _milliseconds(seconds: float) -> str:
    """A time; nothing where there is none, as of runs that did not end well."""
    return number(1e3 * seconds) if math.isfinite(seconds) else ""


def _percent(part: float) -> str:
    """A share; nothing where there is none, as of runs that diverged."""
    return f"{100.0 * part:.1f}%" if math.isfinite(part) else ""


def _settings(run: Run) -> str:
    damping = f", damping {run.config.damping:.3g}" if run.config.optimizer == "kfac" else ""
    return f"lr {run.config.lr:.3g}{damping}"
