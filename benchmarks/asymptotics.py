"""Exponents of what a step asks for, measured beside those of `host/predict/asymptotics.py`.

    python benchmarks/asymptotics.py                         # 2 to 4 minutes
    python benchmarks/asymptotics.py --into docs/asymptotics.md

Writes its tables and a picture into runs/asymptotics; `--into` replaces the tables in that page.

    symbols   the table as it is evaluated, by optimiser and resource
    width     counters of steps of `KFAC` on one square layer, `StepMetrics`; sizes of saved states
    others    batch, condition, samples: torch's `FlopCounterMode`, cycles of runs, memories of the
              generated Verilog
    readings  errors of sampled inverses, and of means over time: where n²κ² comes out
    bits      the host's operations where couplings are coarse for the width

Nothing is timed. Layer: Linear(n, n) without bias, 2n vectors, `Relative(1/49)`, which leaves
1/λ_min about 8 whatever the width; the same batch at every step, so that no column runs again.
Unit: the `statistical` engine, n cells or 64, couplings of 10 bits, 256 bias vectors a start;
inverses of 32n samples, in blocks of 1,000. Operations of a step that renews are means over 16, as
the guard looks closely at one matrix in 16; with r steps between renewals they are of one such step
and r - 1 that do not renew. "apart" is by how much values differ from the symbol's, at most.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import asymptotics_counted as counted
import first_order_training as training
import numpy as np
import torch
from asymptotics_counted import CELLS, Counted, setting_of
from asymptotics_exponents import FITTED, HEAD
from asymptotics_readings import READ_KAPPAS, readings
from step_cost import insert

from thermokron.host.predict.asymptotics import METHODS, TABLE, value
from thermokron.host.predict.readings import READINGS
from thermokron.host.tables import markdown, write

PHASES = ("load", "settle", "sample")


def symbols() -> list[str]:
    """The table itself."""
    columns = {
        "host: passes": ("passes",),
        "host: the rest": ("step",),
        "link: bytes": ("bytes",),
        "unit: cycles": PHASES,
        "unit: products": ("products",),
        "host: bytes kept": ("host memory",),
        "unit: bits": ("unit memory",),
    }
    rows = []
    for method, name in METHODS.items():
        cells = []
        for resources in columns.values():
            texts = [TABLE[method][r].leading for r in resources]
            cells.append(" + ".join(text for text in texts if text != "0") or "–")
        rows.append([name, *cells])
    return [markdown(["a step, per layer", *columns], rows)]


def plot(widths, found, times, path: Path) -> None:
    """Operations and cycles by width, samples and time by κ; lines are the expressions."""
    figure, axes = training.figure(3)
    host = {"exact": "#8a8a8a", "inverse": "#edae49", "solve in blocks": "#00798c",
            "solve": "#d1495b"}  # fmt: skip

    def line(place: int, method: str, resource: str, colour: str, label: str, dash="-") -> None:
        settings = [setting_of(w, method, found) for w in widths]
        values = [value(method, resource, s) for s in settings]
        taken = [found[method, w].every(1, resource) for w in widths]
        axes[place].plot(widths, values, dash, color=colour, linewidth=1.5)
        axes[place].plot(widths, taken, "o", color=colour, markersize=5)
        slope = np.polyfit(np.log(widths[-FITTED:]), np.log(taken[-FITTED:]), 1)[0]
        axes[place].plot([], [], f"o{dash}", color=colour, label=f"{label}, n^{slope:.2f}")

    for method, colour in host.items():
        line(0, method, "step", colour, METHODS[method].removeprefix("K-FAC, "))
    for resource, dash in zip(PHASES, ("-", "--", ":"), strict=True):
        line(1, "solve", resource, "#d1495b", f"unit solves: {resource}", dash)
    line(1, "inverse", "sample", "#edae49", "unit inverts: sample, N = 32n")
    colours = ("#8a8a8a", "#edae49", "#00798c", "#d1495b")
    names = ("inverse, relative", "inverse, ‖XM − 1‖", "inverse, absolute", "n columns, averaged")
    for reading, colour, name in zip(READINGS[:4], colours, names, strict=True):
        values = times[reading.name]
        slope = np.polyfit(np.log(READ_KAPPAS), np.log(values), 1)[0]
        label = f"{name}, κ^{slope:.2f}"
        axes[2].plot(READ_KAPPAS, values, "o-", color=colour, label=label, linewidth=1.5)
    titles = ("Host, beside the passes", "Unit", "Time for an error of 0.1, n = 256")
    for each, title, label in zip(axes, titles, ("operations a step", "cycles a step", "τ"),
                                  strict=True):  # fmt: skip
        each.set_xscale("log", base=2)
        each.set_yscale("log")
        each.set_title(title, loc="left", fontweight="bold", fontsize=10)
        each.set_ylabel(label)
        each.legend(frameon=False, fontsize=7, loc="upper left")
        low, high = each.get_ylim()
        each.set_ylim(low, high * (high / low) ** 0.35)
    for each in axes[:2]:
        each.set_xticks(widths, [str(w) for w in widths])
        each.set_xlabel("width n")
    axes[2].set_xticks(READ_KAPPAS, [str(k) for k in READ_KAPPAS])
    axes[2].set_xlabel("κ = 1/λ_min")
    training.save(figure, path)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", type=int, nargs="+", default=list(counted.WIDTHS))
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/asymptotics"))
    parser.add_argument(
        "--into", type=Path, nargs="+", default=[], help="pages whose tables are to be replaced"
    )
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    begin = time.monotonic()
    found: Counted = {}
    for method in list(METHODS)[2:]:
        for width in args.widths:
            if not method.endswith("blocks") or width > CELLS:
                found[method, width] = counted.measured(width, method)
                print(f"{time.monotonic() - begin:.0f} s", method, width, flush=True)
    read_as, times = readings()
    texts = [
        *symbols(),
        markdown(
            ["exponents of width", *HEAD[1:]],
            [row.line() for row in counted.by_width(args.widths, found)],
        ),
        markdown(["exponents of others", *HEAD[1:]], [row.line() for row in counted.others()]),
        *read_as,
        markdown(
            ["operations of the host a step, over n²", *map(str, args.widths)],
            counted.guarded(args.widths),
        ),
    ]
    wide = [w for w in args.widths if w > CELLS]
    plot(wide, found, times, args.output / "asymptotics.png")
    write(args.output / "asymptotics.md", *texts)
    insert(args.into, texts)
    print("\n".join(texts), f"{time.monotonic() - begin:.0f} s", sep="\n")


if __name__ == "__main__":
    main()
