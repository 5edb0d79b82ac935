"""What a step of exact K-FAC costs, by part and by width, beside ASDL's K-FAC.

    pip install --no-deps asdfghjkl==0.1a5     # ASDL, imported as `asdl`; left out where missing
    python benchmarks/step_cost.py [--widths 64 128 ...] [--batch 128] [-o runs/step_cost]

Network: Linear(w, w), tanh, Linear(w, w), tanh, Linear(w, 10), mean cross entropy, one thread,
float32; the empirical Fisher, inverses of all factors by Cholesky at every step. Both
implementations take turns in one process, so that a busy machine slows both. A part's time is
the difference of medians of steps that leave parts out:

    forward/backward    neither implementation present
    factors             second moments of inputs and of output gradients, and their averages
    inversion           of both factors of every layer
    apply               G⁻¹ V A⁻¹ of every layer, and for ours KL clip and bookkeeping

Ours inverts in float64, ASDL in float32. Writes step_cost.md and step_cost.png.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from thermokron.host.kfac import KFAC
from thermokron.host.studies.tables import markdown, number, write

PARTS = ("forward/backward", "factors", "inversion", "apply")
NEVER = 10**9


class Bench:
    """One width: the network, its data, and a timed step of every variant."""

    def __init__(self, width: int, batch: int) -> None:
        self.width = width
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(batch, width, generator=generator)
        self.targets = torch.randint(0, 10, (batch,), generator=generator)

    def network(self) -> torch.nn.Sequential:
        width = self.width
        return torch.nn.Sequential(
            torch.nn.Linear(width, width),
            torch.nn.Tanh(),
            torch.nn.Linear(width, width),
            torch.nn.Tanh(),
            torch.nn.Linear(width, 10),
        )

    def plain(self) -> Callable[[], None]:
        model, loss = self.network(), torch.nn.CrossEntropyLoss()

        def step() -> None:
            model.zero_grad()
            loss(model(self.inputs), self.targets).backward()

        return step

    def ours(self, factor_interval: int, inverse_interval: int) -> Callable[[], None]:
        model, loss = self.network(), torch.nn.CrossEntropyLoss()
        kfac = KFAC(
            model,
            lr=0.05,
            damping=0.03,
            factor_interval=factor_interval,
            inverse_interval=inverse_interval,
        )

        def step() -> None:
            model.zero_grad()
            loss(model(self.inputs), self.targets).backward()
            kfac.step()

        return step

    def asdl(self) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
        """ASDL's curvature with forward and backward pass, its inversion, its apply."""
        from asdl import FISHER_EMP, KfacGradientMaker, PreconditioningConfig

        # it marks ranges for a GPU profiler, which builds of torch without CUDA refuse
        torch.cuda.nvtx.range = lambda *_: nullcontext()
        model, loss = self.network(), torch.nn.CrossEntropyLoss()
        config = PreconditioningConfig(damping=0.03, ema_decay=0.05, data_size=len(self.inputs))
        maker = KfacGradientMaker(model, config, fisher_type=FISHER_EMP)

        def curvature() -> None:
            model.zero_grad()
            output = maker.setup_model_call(model, self.inputs)
            maker.setup_loss_call(loss, output, self.targets)
            maker.update_curvature()

        return curvature, maker.update_preconditioner, maker.precondition


def measure(width: int, batch: int, seconds: float) -> dict[str, dict[str, float]]:
    """Milliseconds by implementation and part."""
    bench = Bench(width, batch)
    steps: dict[str, Callable[[], None]] = {
        "plain": bench.plain(),
        "all": bench.ours(1, 1),
        "reused inverses": bench.ours(1, NEVER),
        "reused factors": bench.ours(NEVER, NEVER),
    }
    try:
        steps |= dict(zip(("curvature", "invert", "precondition"), bench.asdl(), strict=True))
    except ModuleNotFoundError:
        print("asdl is not installed; ours alone")
    times: dict[str, list[float]] = {name: [] for name in steps}
    started = time.perf_counter()
    while len(times["plain"]) < 4 or (
        time.perf_counter() - started < seconds and len(times["plain"]) < 200
    ):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            times[name].append(1e3 * (time.perf_counter() - begin))
    # the first round allocates, and makes what the others reuse
    t = {name: statistics.median(values[1:]) for name, values in times.items()}
    parts = {
        "ours": dict(
            zip(
                PARTS,
                (
                    t["plain"],
                    t["reused inverses"] - t["reused factors"],
                    t["all"] - t["reused inverses"],
                    t["reused factors"] - t["plain"],
                ),
                strict=True,
            )
        )
    }
    if "curvature" in t:
        found = (t["plain"], t["curvature"] - t["plain"], t["invert"], t["precondition"])
        parts["ASDL"] = dict(zip(PARTS, found, strict=True))
    return parts


def slope(widths: list[int], milliseconds: list[float]) -> float:
    """Exponent of the width, by least squares in the logarithms, from width 256 on."""
    pairs = [(w, t) for w, t in zip(widths, milliseconds, strict=True) if w >= 256 and t > 0]
    if len(pairs) < 2:
        return float("nan")
    logs = np.log(np.array(pairs))
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


def plot(widths: list[int], table: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Milliseconds by width, a line per part; ASDL dashed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for who, dash in (("ours", "-"), ("ASDL", "--")):
        for part, colour in zip(PARTS, ("#8a8a8a", "#00798c", "#d1495b", "#edae49"), strict=True):
            if who in table and not (who == "ASDL" and part == PARTS[0]):
                label = part if part == PARTS[0] else f"{part}, {who}"
                axes.plot(widths, table[who][part], dash, color=colour, label=label, linewidth=2)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(widths, [str(w) for w in widths])
    axes.set_xlabel("width")
    axes.set_ylabel("milliseconds per step")
    axes.set_title("A step of exact K-FAC, one thread", loc="left", fontweight="bold")
    axes.grid(axis="y", color="#e6e6e6")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512, 1024, 2048])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=10.0, help="per width, at least 4 rounds")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/step_cost"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    table: dict[str, dict[str, list[float]]] = {}
    for width in args.widths:
        for who, parts in measure(width, args.batch, args.seconds).items():
            for part, milliseconds in parts.items():
                table.setdefault(who, {}).setdefault(part, []).append(milliseconds)
            print(width, who, {part: round(ms, 3) for part, ms in parts.items()}, flush=True)
    rows = []
    for who, parts in table.items():
        for part, times in parts.items():
            if who == "ours" or part != PARTS[0]:
                name = part if part == PARTS[0] else f"{part}, {who}"
                rows.append([name, *map(number, times), f"{slope(args.widths, times):.2f}"])
        whole = [sum(column) for column in zip(*parts.values(), strict=True)]
        rows.append(
            [f"**whole step, {who}**", *map(number, whole), f"{slope(args.widths, whole):.2f}"]
        )
    text = markdown(["ms, one thread", *map(str, args.widths), "exponent from 256"], rows)
    write(args.output / "step_cost.md", text)
    plot(args.widths, table, args.output / "step_cost.png")
    print(text)


if __name__ == "__main__":
    main()
