"""Training runs of `first_order.py`: parity, how little is enough, time on the unit, width."""

from __future__ import annotations

import math
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thermokron.host.studies.runs import Outcome
from thermokron.host.tables import markdown, median, number
from thermokron.host.train import TrainConfig, train
from thermokron.model import PHASES, UnitSpec

__all__ = ["enough", "figure", "parity", "save", "time", "width"]


@dataclass(frozen=True)
class Setting:
    """A network, how it is trained, and the loss that is aimed at."""

    name: str
    config: dict[str, Any]
    target: float
    cells: int


MLP = {"network": "mlp", "lr": 0.03, "damping": 0.003, "kl_clip": 0.01}
LARGE = {"network": "mlp", "hidden": (256, 256), "lr": 0.005, "damping": 3e-4, "epochs": 5}
#: Rates and dampings are those of the studies: exact K-FAC's choice among dampings from 3e-4 on.
NETWORKS = (
    Setting("MLP 64-32-10", MLP | {"epochs": 8}, 0.01, 65),
    Setting("MLP 64-256-256-10", LARGE, 0.01, 257),
    Setting("MLP 64-256-256-10, in blocks", LARGE, 0.01, 65),
    Setting(
        "the same, damping 0.01",
        LARGE | {"lr": 0.02, "damping": 0.01, "epochs": 6},
        0.01,
        65,
    ),
    Setting("CNN", {"network": "cnn", "lr": 0.005, "damping": 3e-4, "epochs": 8}, 0.01, 73),
    Setting("vision transformer", {"network": "vit", "epochs": 12}, 0.03, 65),
    Setting("graph network", {"network": "graph", "epochs": 24}, 0.02, 65),
)


@dataclass(frozen=True)
class Job:
    """One run, and where its outcome belongs."""

    key: tuple[Any, ...]
    config: dict[str, Any]
    spec: dict[str, Any] | None


@dataclass(frozen=True)
class Done:
    """What is kept of a run: losses, and the unit's milliseconds a step by phase."""

    losses: list[float]
    phases: dict[str, float]
    steps: int

    @property
    def milliseconds(self) -> float:
        """On the unit, a step."""
        return sum(self.phases.values())

    def epochs_to(self, target: float) -> float:
        """As studies count them, interpolated between the ends of epochs."""
        outcome = Outcome(
            train_loss=self.losses,
            step_loss=[],
            test_accuracy=math.nan,
            wall_seconds=0.0,
            hardware_seconds=0.0,
            inversions=0,
        )
        return outcome.epochs_to(target)


def execute(job: Job) -> tuple[tuple[Any, ...], Done]:
    """Train once; a run that diverges, or that the unit refuses, ends with an infinite loss."""
    steps = []
    spec = None if job.spec is None else UnitSpec(**job.spec)
    engine = "exact" if spec is None else "numeric"
    try:
        result = train(TrainConfig(engine=engine, **job.config), spec=spec, progress=steps.append)
    except (FloatingPointError, ValueError) as error:
        print(job.key, error, file=sys.stderr)
        return job.key, Done([math.inf], dict.fromkeys(PHASES, 0.0), 1)
    losses = [result.initial_loss, *result.train_loss]
    phases = {name: 1e3 * t / len(steps) for name, t in result.phase_seconds.items()}
    return job.key, Done(losses, phases, len(steps))


def run(jobs: Iterable[Job], processes: int) -> dict[tuple[Any, ...], Done]:
    """All outcomes by key, in as many processes; the longest should come first."""
    jobs = list(jobs)
    done = {}
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes) as pool:
        for number_, (key, outcome) in enumerate(pool.imap_unordered(execute, jobs), 1):
            done[key] = outcome
            print(f"\r{number_}/{len(jobs)} {key}".ljust(90)[:90], end="", file=sys.stderr)
    print(file=sys.stderr)
    return done


def spread(values: Sequence[float]) -> str:
    """The median, and the least and the most."""
    return f"{number(median(values))} ({number(min(values))} to {number(max(values))})"


# ---- parity --------------------------------------------------------------------------------------

BITS = {"exact": None, "8 bits": 8, "5 bits": 5}


def parity(output: Path, *, seeds: int, jobs: int) -> list[str]:
    """Epochs to the target, one reading settled to a tenth, against exact K-FAC's."""
    todo = [
        Job(
            (setting.name, label, seed),
            setting.config | {"seed": seed},
            None
            if bits is None
            else {"cells": setting.cells, "coupling_bits": bits, "adc_bits": 8, "rhs_depth": 256},
        )
        for setting in sorted(NETWORKS, key=lambda s: -s.cells)
        for label, bits in BITS.items()
        for seed in range(seeds)
    ]
    done = run(todo, jobs)
    rows = []
    for setting in NETWORKS:
        epochs = {
            label: [done[setting.name, label, s].epochs_to(setting.target) for s in range(seeds)]
            for label in BITS
        }
        ratios = [median(epochs[bits]) / median(epochs["exact"]) for bits in ("8 bits", "5 bits")]
        marks = [
            f"{number(ratio)}{'' if ratio <= most else ' **no**'}"
            for ratio, most in zip(ratios, (1.1, 1.25), strict=True)
        ]
        ends = [
            median(done[setting.name, label, s].losses[-1] for s in range(seeds)) for label in BITS
        ]
        name = f"{setting.name}, {setting.cells} cells"
        rows.append([name, number(setting.target, 1), *map(spread, epochs.values()), *marks,
                     " / ".join(map(number, ends))])  # fmt: skip
    head = [
        "epochs to a loss",
        "loss",
        *BITS,
        "8 bits / exact",
        "5 bits / exact",
        "loss at the end",
    ]
    return [markdown(head, rows)]


# ---- how little is enough ------------------------------------------------------------------------

SAMPLES, SETTLES, COUPLINGS = (1, 2, 4, 10), (0.01, 0.1, 0.3, 0.6), (3, 4, 5, 6, 7, 8)


def enough(output: Path, *, seeds: int, jobs: int) -> list[str]:
    """Epochs to 0.01, and ms on the unit a step, by readings, settling and coupling bits."""
    seeds = min(seeds, 3)
    small = MLP | {"epochs": 8}
    todo = [
        Job(
            (samples, settle, bits, seed),
            small | {"samples": samples, "settle": settle, "seed": seed},
            {"cells": 65, "coupling_bits": bits, "adc_bits": 8, "rhs_depth": 65},
        )
        for samples in SAMPLES
        for settle in SETTLES
        for bits in COUPLINGS
        for seed in range(seeds)
    ]
    todo += [Job(("exact", seed), small | {"seed": seed}, None) for seed in range(seeds)]
    done = run(todo, jobs)

    def at(samples: int, settle: float, bits: int, value: Callable[[Done], float]) -> float:
        return median(value(done[samples, settle, bits, seed]) for seed in range(seeds))

    exact = median(done["exact", seed].epochs_to(0.01) for seed in range(seeds))
    rows = []
    for samples in SAMPLES:
        for settle in SETTLES:
            epochs = [at(samples, settle, bits, lambda d: d.epochs_to(0.01)) for bits in COUPLINGS]
            ms = at(samples, settle, 8, lambda d: d.milliseconds)
            rows.append([f"{samples}, {settle:.0%}", *map(number, epochs), number(ms)])
    plot_enough(at, exact, output / "first-order-enough.png")
    head = ["readings, part left unsettled", *(f"{b} bits" for b in COUPLINGS), "ms a step, 8 bits"]
    rows.append(["exact K-FAC", *[""] * (len(COUPLINGS) - 1), number(exact), ""])
    return [markdown(head, rows)]


def plot_enough(at, exact: float, path: Path) -> None:
    """Heat maps, a column per number of readings: epochs above, milliseconds below."""
    canvas, axes = figure(len(SAMPLES), 2)
    for column, samples in enumerate(SAMPLES):
        for row, (value, top, colours) in enumerate(
            (
                (lambda d: d.epochs_to(0.01), 2 * exact, "magma_r"),
                (lambda d: d.milliseconds, 4.0, "viridis_r"),
            )
        ):
            grid = np.array(
                [[at(samples, settle, bits, value) for bits in COUPLINGS] for settle in SETTLES]
            )
            low = exact * 0.8 if row == 0 else 0.5
            axes[row][column].imshow(
                np.minimum(grid, top), cmap=colours, vmin=low, vmax=top, aspect="auto"
            )
            for (i, j), each in np.ndenumerate(grid):
                dark = min(each, top) > (low + top) / 2
                axes[row][column].text(
                    j, i, number(each, 2), ha="center", va="center", fontsize=8,
                    color="white" if dark else "black",
                )  # fmt: skip
            axes[row][column].set_xticks(range(len(COUPLINGS)), [str(b) for b in COUPLINGS])
            axes[row][column].set_yticks(range(len(SETTLES)), [f"{s:.0%}" for s in SETTLES])
            axes[row][column].grid(visible=False)
        readings = "one reading" if samples == 1 else f"{samples} readings"
        axes[0][column].set_title(readings, loc="left")
        axes[1][column].set_xlabel("coupling bits")
    axes[0][0].set_ylabel("left unsettled: epochs to 0.01")
    axes[1][0].set_ylabel("left unsettled: ms a step")
    canvas.suptitle(
        f"How little is enough, MLP 64-32-10 (exact K-FAC: {number(exact)} epochs)",
        x=0.01, ha="left", fontweight="bold",
    )  # fmt: skip
    save(canvas, path)


# ---- time on the unit ----------------------------------------------------------------------------


def time(output: Path, *, seeds: int, jobs: int) -> list[str]:
    """Milliseconds on the unit a step, by phase, and the loss that they come to."""
    small = MLP | {"epochs": 6}
    inverse = {"method": "inverse", "samples": 1000}
    kinds = {
        '"inverse", 1,000 samples': (inverse, 16),
        '"inverse", 1,000 samples, renewed every 10 steps': (
            inverse | {"inverse_interval": 10},
            16,
        ),
        '"solve", 16 vectors a start': ({}, 16),
        '"solve", 65 vectors a start': ({}, 65),
        '"solve", 65 vectors a start, settled to 60%': ({"settle": 0.6}, 65),
    }
    todo = [
        Job(
            (name, seed),
            small | more | {"seed": seed},
            {"cells": 65, "adc_bits": 8, "rhs_depth": d},
        )
        for name, (more, d) in kinds.items()
        for seed in range(seeds)
    ]
    todo += [Job(("exact", seed), small | {"seed": seed}, None) for seed in range(seeds)]
    done = run(todo, jobs)
    rows = []
    first = None
    for name in kinds:
        outcomes = [done[name, seed] for seed in range(seeds)]
        phases = [median(d.phases[phase] for d in outcomes) for phase in PHASES]
        whole = median(d.milliseconds for d in outcomes)
        first = first or whole
        loss = spread([d.losses[-1] for d in outcomes])
        rows.append([name, *map(number, phases), number(whole), number(whole / first), loss])
    loss = spread([done["exact", seed].losses[-1] for seed in range(seeds)])
    rows.append(["exact", *[""] * (len(PHASES) + 2), loss])
    head = ["ms on the unit a step", *PHASES, "all", "of the first", "loss after 6 epochs"]
    return [markdown(head, rows)]


# ---- width ---------------------------------------------------------------------------------------

WIDTHS = (32, 64, 128, 256, 512)
#: Steps that are taken, 10 an epoch; settings that are tried, from little to much.
EPOCHS = 3
READINGS = (1, 2, 4, 8, 16)
INVERSES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
LEFT = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)
WITHIN = 1.1


def width(output: Path, *, seeds: int, jobs: int) -> list[str]:
    """The least that keeps the loss within a tenth of exact K-FAC's, by width."""
    seeds = min(seeds, 3)

    def config(width: int, seed: int, **more: Any) -> dict[str, Any]:
        base = {"network": "mlp", "hidden": (width, width), "lr": 0.01, "damping": 0.003}
        return base | {"epochs": EPOCHS, "seed": seed} | more

    def spec(width: int) -> dict[str, Any]:
        # fine couplings: the question is what sampling and settling take
        cells = max(width, 64) + 1
        return {"cells": cells, "coupling_bits": 12, "adc_bits": 8, "rhs_depth": 256}

    exact = run(
        [Job((w, s), config(w, s), None) for w in reversed(WIDTHS) for s in range(seeds)], jobs
    )
    goals = {w: WITHIN * median(exact[w, s].losses[-1] for s in range(seeds)) for w in WIDTHS}

    def least(kind: str, choices: Sequence[Any], option: str, **more: Any) -> dict[int, Any]:
        """By width the first of the choices whose loss is near enough."""
        found: dict[int, Any] = {}
        # a width begins where the one before it ended, or a step before
        start = 0
        for w in WIDTHS:
            found[w] = None
            for place in range(max(start - 1, 0), len(choices)):
                todo = [
                    Job((w, s), config(w, s, **{option: choices[place]}, **more), spec(w))
                    for s in range(seeds)
                ]
                done = run(todo, jobs)
                loss = median(d.losses[-1] for d in done.values())
                ms = median(d.milliseconds for d in done.values())
                print(
                    kind,
                    w,
                    choices[place],
                    number(loss / goals[w] * WITHIN),
                    number(ms),
                    flush=True,
                )
                if loss <= goals[w]:
                    found[w], start = (choices[place], ms), place
                    break
        return found

    rows = []
    results = {
        '"solve": readings, settled to a tenth': least("readings", READINGS, "samples"),
        '"solve": part left unsettled, one reading': least("settling", LEFT, "settle"),
        '"inverse": samples': least("inverse", INVERSES, "samples", method="inverse"),
    }
    for name, found in results.items():
        for what, place in (("", 0), (", ms on the unit a step", 1)):
            values = [None if found[w] is None else found[w][place] for w in WIDTHS]
            known = [(w, v) for w, v in zip(WIDTHS, values, strict=True) if v is not None]
            slope = "–"
            if len(known) > 1:
                logs = np.log(np.array(known))
                slope = f"{np.polyfit(logs[:, 0], logs[:, 1], 1)[0]:.2f}"
            rows.append([name + what, *("more" if v is None else number(v) for v in values), slope])
    losses = [number(goals[w] / WITHIN) for w in WIDTHS]
    rows.append(["loss of exact K-FAC", *losses, ""])
    return [markdown(["the least that is enough", *map(str, WIDTHS), "exponent"], rows)]


# ---- pictures ------------------------------------------------------------------------------------


def figure(columns: int, rows: int = 1) -> tuple[Any, Any]:
    """An empty figure, and its axes: (columns,), or (rows, columns)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(max(4.2 * columns, 9) * 0.9, 3.2 * rows + 1), layout="constrained")
    FigureCanvasAgg(made)
    axes = made.subplots(rows, columns)
    for each in np.ravel(axes):
        each.grid(axis="y", color="#e6e6e6")
        each.spines[["top", "right", "left"]].set_visible(False)
    return made, axes


def save(made: Any, path: Path) -> None:
    """Write a figure."""
    made.savefig(path, dpi=100)
