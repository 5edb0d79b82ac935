"""What a step of K-FAC costs on the statistical engine, beside exact K-FAC's, by width.

    python benchmarks/statistical.py [--widths 256 512 1024] [--rounds 5]

Network: Linear(w, w), tanh, Linear(w, w), tanh, Linear(w, 10), mean cross entropy, a batch of 128,
float32, one thread; factors and inverses renewed at every tenth step. An array of w + 1 cells, so
that every factor fits, with 256 bias vectors a start. Both take turns in one process, ten steps a
round. Prints a Markdown table of milliseconds a step: medians over the rounds, with least and most.
The goal: at most 3 times exact K-FAC's at width 1,024.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from measured import in_turn, spread, table

from thermokron.host import open_unit
from thermokron.host.kfac import KFAC, Thermodynamic
from thermokron.model import UnitSpec

RENEWED = 10


def ten_steps(width: int, *, on_unit: bool) -> Callable[[], float]:
    """What takes ten steps, and returns the milliseconds of one."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(width, width),
        torch.nn.Tanh(),
        torch.nn.Linear(width, width),
        torch.nn.Tanh(),
        torch.nn.Linear(width, 10),
    )
    settings = {}
    if on_unit:
        unit = open_unit("statistical", UnitSpec(cells=width + 1, rhs_depth=256))
        settings["inverse"] = Thermodynamic(unit)
    kfac = KFAC(
        model,
        lr=0.05,
        damping=0.03,
        factor_interval=RENEWED,
        inverse_interval=RENEWED,
        kl_clip=None,
        **settings,
    )
    inputs, targets = torch.randn(128, width), torch.randint(0, 10, (128,))
    loss = torch.nn.CrossEntropyLoss()

    def run() -> float:
        begin = time.perf_counter()
        for _ in range(RENEWED):
            model.zero_grad()
            loss(model(inputs), targets).backward()
            kfac.step()
        return 1e3 * (time.perf_counter() - begin) / RENEWED

    return run


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for width in args.widths:
        what = {"exact": ten_steps(width, on_unit=False), "unit": ten_steps(width, on_unit=True)}
        in_turn(what, 1)
        found = in_turn(what, args.rounds)
        ratios = [a / b for a, b in zip(found["unit"], found["exact"], strict=True)]
        rows.append(
            [f"width {width}", spread(found["exact"]), spread(found["unit"]), spread(ratios)]
        )
    print(table(["ms a step", "exact", "statistical", "/ exact"], rows))


if __name__ == "__main__":
    main()
