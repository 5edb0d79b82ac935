"""What a K-FAC step costs the host when a thermodynamic unit solves, and whether it trains as well.

    python benchmarks/first_order.py cost                    # 3 minutes
    python benchmarks/first_order.py parity enough time      # 25 minutes on two cores
    python benchmarks/first_order.py width                   # 25 minutes on two cores

Each part writes its tables, and a picture where there is one, into runs/first_order; `--into
docs/first-order.md` replaces the tables in that page.

    cost    the host's operations and time per step by width, beyond forward and backward pass and
            the factors' moments: exact K-FAC with both methods, and both on a unit
    parity  epochs to a loss against exact K-FAC on five networks, with 8 and with 5 bits
    enough  epochs to 0.01 and time on the unit by readings, settling and coupling bits
    time    time on the unit by phase, against sampled inverses
    width   the fewest samples and the shortest settling that keep within a tenth of exact K-FAC

The unit of `cost` is a stand-in that answers at once, so that no array is simulated; its own time
is taken off. Operations are those that `StepMetrics.digital_flops` counts, means over `BLOCK`
steps, as the guard of the couplings looks closely at every sixteenth matrix only. Of several such
blocks the one that took least processor time counts, on one thread; all settings take turns in one
process. Network: Linear(w, w), tanh, Linear(w, w), tanh, Linear(w, 10), a batch of 128, damping
0.03, factors and inverses renewed at every step, couplings and ADC of 8 bits, an array of w + 1
cells, 256 bias vectors a start.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import first_order_training as training
import numpy as np
import torch
from step_cost import Bench, insert

from thermokron.host.kfac import KFAC, preconditioner
from thermokron.host.tables import markdown, number, write
from thermokron.model import BaseUnit, Job, Readout, UnitSpec

PARTS = ("cost", "parity", "enough", "time", "width")
WIDTHS = (64, 128, 256, 512, 1024)
#: Steps that are timed together, and how many such blocks there are.
BLOCK, BLOCKS = 16, 4

Costs = dict[str, tuple[float, float]]


class StandIn(BaseUnit):
    """A unit that answers at once: with its biases, and with an identity as covariance.

    Attributes
    ----------
    seconds : float
        Processor time that it has spent.
    """

    seconds = 0.0

    def _execute(self, job: Job, stream: int) -> Readout:
        begin = time.thread_time()
        vectors, n = job.biases.shape
        sums, products = np.zeros((vectors, n), np.int64), None
        if job.second_moments:
            products = np.diag(np.full(n, 1000 * job.samples))
        else:
            sums += np.clip(job.biases, -100, 100)
        readout = Readout(
            sums=sums,
            products=products,
            clipped=np.zeros((vectors, n), np.int64),
            cycles=self.spec.phase_cycles(job),
        )
        self.seconds += time.thread_time() - begin
        return readout


class Step:
    """Steps of one setting on one network, timed without what is not K-FAC's own."""

    def __init__(self, bench: Bench, unit: StandIn | None, method: str) -> None:
        self.bench, self.unit = bench, unit
        self.model, self.loss = bench.network(), torch.nn.CrossEntropyLoss()
        self.kfac = KFAC(self.model, unit, lr=0.05, damping=0.03, method=method, kl_clip=None)

    def take(self) -> np.ndarray:
        """Operations, milliseconds, and milliseconds for the factors' averages, of a step."""
        self.model.zero_grad()
        self.loss(self.model(self.bench.inputs), self.bench.targets).backward()
        before = 0.0 if self.unit is None else self.unit.seconds
        factors = _Watch.seconds
        begin = time.thread_time()
        metrics = self.kfac.step()
        spent = time.thread_time() - begin
        if self.unit is not None:
            spent -= self.unit.seconds - before
        factors = _Watch.seconds - factors
        return np.array([metrics.digital_flops, 1e3 * spent, 1e3 * factors])


class _Watch:
    """Times the part of a step that moves the factors' averages."""

    seconds = 0.0

    @classmethod
    def install(cls) -> None:
        original = preconditioner.update_factors

        def timed(*args, **options):
            begin = time.thread_time()
            try:
                return original(*args, **options)
            finally:
                cls.seconds += time.thread_time() - begin

        preconditioner.update_factors = timed


SETTINGS = {
    'exact, "inverse"': (False, "inverse"),
    'exact, "solve"': (False, "solve"),
    'on a unit, "inverse", 1,000 samples': (True, "inverse"),
    'on a unit, "solve", one reading': (True, "solve"),
}


def measured(width: int) -> dict[str, np.ndarray]:
    """Operations, ms and ms of factors a step, by setting."""
    bench = Bench(width, 128)
    spec = UnitSpec(cells=width + 1, adc_bits=8, rhs_depth=256)
    steps = {
        name: Step(bench, StandIn(spec, 0) if on_unit else None, method)
        for name, (on_unit, method) in SETTINGS.items()
    }
    blocks: dict[str, list[np.ndarray]] = {name: [] for name in steps}
    for step in steps.values():  # the first allocates, and finds how strongly to drive
        step.take()
    for _ in range(BLOCKS):
        sums = dict.fromkeys(steps, 0.0)
        for _ in range(BLOCK):
            for name, step in steps.items():
                sums[name] = sums[name] + step.take()
        for name, total in sums.items():
            blocks[name].append(total / BLOCK)
    return {name: min(each, key=lambda block: block[1]) for name, each in blocks.items()}


def exponent(widths, values) -> str:
    """Of the width, by least squares in the logarithms."""
    return f"{np.polyfit(np.log(widths), np.log(values), 1)[0]:.2f}"


def cost(output: Path, widths: list[int]) -> list[str]:
    """Tables of operations and time by width, and a picture of both."""
    torch.set_num_threads(1)
    _Watch.install()
    found = []
    for width in widths:
        found.append(measured(width))
        print(width, {name: values.round(3) for name, values in found[-1].items()}, flush=True)
    flops = {name: [each[name][0] / 1e6 for each in found] for name in SETTINGS}
    own = {name: [each[name][1] - each[name][2] for each in found] for name in SETTINGS}
    exact, unit = list(SETTINGS)[:2], list(SETTINGS)[3]
    head = list(map(str, widths))

    def table(title: str, rows: dict[str, list[float]], last: str) -> str:
        cheapest = [min(rows[name][i] for name in exact) for i in range(len(widths))]
        lines = [[n, *map(number, values), exponent(widths, values)] for n, values in rows.items()]
        ratio = [rows[unit][i] / cheapest[i] for i in range(len(widths))]
        return markdown([title, *head, "exponent"], [*lines, [last, *map(number, ratio), ""]])

    whole = [each[exact[0]][1] for each in found]
    beside = [number(own[unit][i] / whole[i]) for i in range(len(widths))]
    times = table("ms of the host a step", own, "the last over the cheaper exact one")
    times += (
        f"| the same, over an exact step with its factors' averages | {' | '.join(beside)} |  |\n"
    )
    plot_cost(widths, flops, own, output / "first-order-cost.png")
    return [table("Mflop of the host a step", flops, "the last over the cheaper exact one"), times]


def plot_cost(widths, flops, own, path: Path) -> None:
    """Operations and milliseconds by width, a line per setting."""
    figure, (left, right) = training.figure(2)
    colours = ("#8a8a8a", "#bdbdbd", "#edae49", "#d1495b")
    for axes, rows, label in ((left, flops, "Mflop a step"), (right, own, "ms a step")):
        for (name, values), colour in zip(rows.items(), colours, strict=True):
            axes.plot(widths, values, "o-", color=colour, label=name, linewidth=2)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(widths, [str(w) for w in widths])
        axes.set_xlabel("width")
        axes.set_ylabel(label)
    left.legend(frameon=False, loc="upper left")
    left.set_title("The host's part of a K-FAC step", loc="left", fontweight="bold")
    right.set_title("one thread, the array left out", loc="left")
    training.save(figure, path)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS), help="of cost")
    parser.add_argument("--seeds", type=int, default=5, help="of parity; others take three [5]")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each [2]")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/first_order"))
    parser.add_argument(
        "--into", type=Path, nargs="+", default=[], help="pages whose tables are to be replaced"
    )
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    for part in args.parts:
        begin = time.monotonic()
        if part == "cost":
            texts = cost(args.output, args.widths)
        else:
            texts = getattr(training, part)(args.output, seeds=args.seeds, jobs=args.jobs)
        write(args.output / f"{part}.md", *texts)
        insert(args.into, texts)
        print("\n".join(texts), f"{part}: {time.monotonic() - begin:.0f} s\n", sep="\n", flush=True)


if __name__ == "__main__":
    main()
