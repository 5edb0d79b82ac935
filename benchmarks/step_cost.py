"""What a step of exact K-FAC costs, by part and by width, beside public implementations.

    pip install --no-deps asdfghjkl==0.1a5 approxngd==0.1.1 nngeometry==0.4 singd==0.0.5
    pip install --no-deps git+https://github.com/gpauloski/kfac-pytorch
    pip install curvlinops-for-pytorch==3.0.1 kfac-jax==0.0.8 "jax<0.9"
    python benchmarks/step_cost.py [--widths 64 128 ...] [--into docs/experiments.md docs/kfac.md]

What is not installed is left out, with a note; ASDL is imported as `asdl`. kfac-jax 0.0.8 needs a
jax below 0.9, which some other package of an environment may not want: an environment of its own
serves.

Network: Linear(w, w), tanh, Linear(w, w), tanh, Linear(w, 10), mean cross entropy, a batch of 128,
float32, one thread on one core; factors of all layers renewed and inverted at every step, no KL
clip. All take turns in one process; kfac-jax, which has threads of its own, runs on one core in a
process of its own. Of the processor time of all rounds the least counts, which is what other work
on the machine disturbs least. A part's time is the difference of steps that leave parts out:

    forward/backward    no K-FAC present
    factors             second moments of inputs and of output gradients, and their averages
    inversion           of both factors of every layer
    apply               G⁻¹ V A⁻¹ of every layer, and for ours bookkeeping

Writes step_cost.md and step_cost.png; `--into` replaces the tables in pages that hold them.
"""

from __future__ import annotations

import argparse
import re
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from public_kfac import ALONE, PUBLIC, Step, apart, load

from thermokron.host.kfac import KFAC
from thermokron.host.tables import markdown, number, write

PARTS = ("forward/backward", "factors", "inversion", "apply")
NEVER = 10**9
#: Steps between renewals in the second setting.
REUSED = 10
MOST = 200

#: Least milliseconds by name of a step.
Times = dict[str, float]


class Bench:
    """One width: the network, its data, and our steps."""

    def __init__(self, width: int, batch: int) -> None:
        self.width = width
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(batch, width, generator=generator)
        self.targets = torch.randint(0, 10, (batch,), generator=generator)

    def network(self) -> torch.nn.Sequential:
        torch.manual_seed(0)
        width = self.width
        return torch.nn.Sequential(
            torch.nn.Linear(width, width),
            torch.nn.Tanh(),
            torch.nn.Linear(width, width),
            torch.nn.Tanh(),
            torch.nn.Linear(width, 10),
        )

    def plain(self) -> Step:
        model, loss = self.network(), torch.nn.CrossEntropyLoss()

        def step() -> None:
            model.zero_grad()
            loss(model(self.inputs), self.targets).backward()

        return step

    def ours(self, factor_interval: int, inverse_interval: int, method: str = "inverse") -> Step:
        model, loss = self.network(), torch.nn.CrossEntropyLoss()
        kfac = KFAC(
            model,
            lr=0.05,
            damping=0.03,
            factor_interval=factor_interval,
            inverse_interval=inverse_interval,
            method=method,
            kl_clip=None,
        )

        def step() -> None:
            model.zero_grad()
            loss(model(self.inputs), self.targets).backward()
            kfac.step()

        return step


def measure(width: int, batch: int, seconds: float, others: Sequence[str]) -> Times:
    """The least times of what takes turns."""
    warnings.simplefilter("ignore")  # of hooks that others place in old ways
    bench = Bench(width, batch)
    steps: dict[str, Step] = {
        "plain": bench.plain(),
        "all": bench.ours(1, 1),
        "reused inverses": bench.ours(1, NEVER),
        "reused factors": bench.ours(NEVER, NEVER),
        "solve": bench.ours(1, 1, "solve"),
        "solve, reused": bench.ours(1, NEVER, "solve"),
    }
    for name in others:
        if name == ALONE:
            continue
        found = load(name, bench.network, bench.inputs, bench.targets)
        steps |= {f"{name}: {part}": step for part, step in (found or {}).items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    started = time.perf_counter()
    while len(times["plain"]) < 4 or (
        time.perf_counter() - started < seconds and len(times["plain"]) < MOST
    ):
        for name, step in steps.items():
            begin = time.thread_time()  # other work on the machine does not count
            step()
            times[name].append(1e3 * (time.thread_time() - begin))
    # the first round allocates, and makes what the others reuse
    found = {name: min(values[1:]) for name, values in times.items()}
    if (
        ALONE in others
        and (alone := apart(ALONE, bench.network, bench.inputs, bench.targets, seconds / 4))
        is not None
    ):
        found[f"{ALONE}: step"] = alone
    return found


def parts_of(t: Times) -> dict[str, list[float]]:
    """Milliseconds of `PARTS` by implementation."""
    whole, inverses, factors = t["all"], t["reused inverses"], t["reused factors"]
    parts = {
        "ours": [t["plain"], inverses - factors, whole - inverses, factors - t["plain"]],
    }
    if "ASDL: curvature" in t:
        parts["ASDL"] = [
            t["plain"],
            t["ASDL: curvature"] - t["plain"],
            t["ASDL: invert"],
            t["ASDL: precondition"],
        ]
    return parts


def wholes_of(t: Times) -> Times:
    """Milliseconds of a whole step by implementation."""
    whole = {'ours, `method="inverse"`': t["all"], 'ours, `method="solve"`': t["solve"]}
    for name in PUBLIC:
        steps = [ms for key, ms in t.items() if key.partition(": ")[0] == name]
        if steps:
            whole[name] = sum(steps)
    return whole


def slope(widths: Sequence[int], milliseconds: Sequence[float]) -> str:
    """Exponent of the width, by least squares in the logarithms, from width 256 on."""
    pairs = [(w, t) for w, t in zip(widths, milliseconds, strict=True) if w >= 256 and t > 0]
    if len(pairs) < 2:
        return "–"
    logs = np.log(np.array(pairs))
    return f"{np.polyfit(logs[:, 0], logs[:, 1], 1)[0]:.2f}"


def tables(widths: Sequence[int], found: Sequence[Times]) -> list[str]:
    """Whole steps, parts, and shares of the parts where inverses are reused."""
    head = list(map(str, widths))

    def row(name: str, times: Sequence[float]) -> list[str]:
        return [name, *map(number, times), slope(widths, times)]

    by_name = [wholes_of(t) for t in found]
    wholes = [row(name, [each[name] for each in by_name]) for name in by_name[0]]
    by_part = [parts_of(t) for t in found]
    parts = [row(PARTS[0], [each["ours"][0] for each in by_part])]
    for who in by_part[0]:
        parts += [
            row(f"{part}, {who}", [each[who][i] for each in by_part])
            for i, part in enumerate(PARTS)
            if i > 0
        ]
    shares: list[list[str]] = []
    reused = [
        [plain, factors, inversion / REUSED, apply]
        for plain, factors, inversion, apply in (each["ours"] for each in by_part)
    ]
    for i, part in enumerate(PARTS):
        shares.append([part, *(f"{100 * each[i] / sum(each):.0f}%" for each in reused)])
    shares.append(["ms per step", *(number(sum(each)) for each in reused)])
    solve = [t["solve, reused"] + (t["solve"] - t["solve, reused"]) / REUSED for t in found]
    shares.append(['ms per step, `method="solve"`', *map(number, solve)])
    return [
        markdown(["ms per step", *head, "exponent from 256"], wholes),
        markdown(["ms by part", *head, "exponent from 256"], parts),
        markdown([f"renewed every {REUSED} steps", *head], shares),
    ]


def insert(pages: Sequence[Path], texts: Sequence[str]) -> None:
    """Put tables in the places of those that begin with the same cell, in whichever page."""
    for text in texts:
        key = text.split("|")[1]
        place = re.compile(rf"^\|{re.escape(key)}\|.*\n(\|.*\n)*", re.MULTILINE)
        holding = [page for page in pages if place.search(page.read_text(encoding="utf-8"))]
        if not holding:
            print(f"no page holds a table that begins with {key.strip()!r}")
        for page in holding:
            replaced = place.sub(lambda _, new=text: new, page.read_text(encoding="utf-8"))
            page.write_text(replaced, encoding="utf-8")


def plot(widths: Sequence[int], found: Sequence[Times], path: Path) -> None:
    """Milliseconds by width, a line per part; ASDL dashed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    by_part = [parts_of(t) for t in found]
    for who, dash in (("ours", "-"), ("ASDL", "--")):
        for i, colour in enumerate(("#8a8a8a", "#00798c", "#d1495b", "#edae49")):
            if who in by_part[0] and not (who == "ASDL" and i == 0):
                label = PARTS[i] if i == 0 else f"{PARTS[i]}, {who}"
                times = [each[who][i] for each in by_part]
                axes.plot(widths, times, dash, color=colour, label=label, linewidth=2)
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
    parser.add_argument("--seconds", type=float, default=20.0, help="per width, at least 4 rounds")
    parser.add_argument("--others", nargs="*", default=list(PUBLIC), choices=list(PUBLIC))
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/step_cost"))
    parser.add_argument(
        "--into", type=Path, nargs="+", default=[], help="pages whose tables are to be replaced"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for width in args.widths:
        found.append(measure(width, args.batch, args.seconds, args.others))
        print(width, {name: round(ms, 3) for name, ms in found[-1].items()}, flush=True)
    texts = tables(args.widths, found)
    write(args.output / "step_cost.md", *texts)
    plot(args.widths, found, args.output / "step_cost.png")
    print("\n".join(texts))
    insert(args.into, texts)


if __name__ == "__main__":
    main()
