"""Tables and curves of a comparison."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from thermokron.host.studies.runs import Outcome, Run, Store
from thermokron.host.tables import markdown, median, number, write

if TYPE_CHECKING:
    from thermokron.host.studies.comparison import Comparison, Network

__all__ = ["write_report"]


def write_report(study: Comparison, store: Store, folder: Path) -> list[Path]:
    """`tables.md` and `loss.png`; all outcomes must be in the store."""
    from thermokron.host.studies.plots import plot_curves

    parts = [f"## {study.title}"]
    for network in study.networks:
        parts += [f"### {network.name}", _table(study, network, store)]
    if study.claims:
        parts += ["### What should hold", _verdicts(study, store)]
    curves: dict[str, dict[str, list[list[float]]]] = {}
    for network, contender in study.pairs():
        losses = [outcome.step_loss for outcome in study.outcomes(network, contender, store)]
        curves.setdefault(network.name, {})[contender.name] = losses
    return [
        write(folder / "tables.md", *parts, store.told_runs(), store.told_versions()),
        plot_curves(
            curves,
            folder / "loss.png",
            title=study.title,
            targets=study.targets,
            about=store.told_runs(),
        ),
    ]


def _table(study: Comparison, network: Network, store: Store) -> str:
    head = ["", "settings", *(f"epochs to {target:g}" for target in study.targets)]
    found = [
        (contender, study.outcomes(network, contender, store))
        for other, contender in study.pairs()
        if other is network
    ]
    classes = any(math.isfinite(o.test_accuracy) for _, side in found for o in side)
    head += ["final loss", "epochs run", "seeds"]
    head += ["test accuracy" if classes else "test loss", "ms per epoch"]
    head += [f"s to {study.targets[-1]:g}", "ms on the unit per epoch"]
    rows = []
    for contender, outcomes in found:
        run = study.reported(network, contender, store)[0]
        epochs = run.config.epochs
        per_epoch = median(o.wall_seconds for o in outcomes) / epochs
        reached = [median(o.epochs_to(t) for o in outcomes) for t in study.targets]
        hardware = median(o.hardware_seconds for o in outcomes) / epochs
        simulated = contender.unit is not None
        rows.append(
            [
                contender.name,
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


def _verdicts(study: Comparison, store: Store) -> str:
    contenders = {c.name: c for c in study.contenders}
    networks = {n.name: n for n in study.networks}
    target = study.targets[-1]
    rows = []
    for claim in study.claims:
        for name in claim.networks:
            pair = [
                study.outcomes(networks[name], contenders[who], store)
                for who in (claim.contender, claim.against)
            ]
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
                    f"{claim.contender} against {claim.against}, {name}",
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
