"""What a step costs a thermodynamic unit, and the host beside it, with each method of K-FAC.

    python benchmarks/method_cost.py [--widths 15 31 63 127] [--into docs/kfac.md]

Network: Linear(w, w), tanh, Linear(w, w), tanh, Linear(w, 10) on random data, a batch of 128,
damping 0.03; numeric engine, an ideal array of w + 1 cells, so that every factor fits, with a lane
per cell, at 25 MHz. Cycles of one step, and the relative error of the preconditioned gradient
against the host's; the host's operations hold what the unit's results need, and for inverses the
products G⁻¹ V A⁻¹ as well. Writes method_cost.md; `--into` replaces the table in a page.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from step_cost import Bench, insert

from thermokron.host.kfac import KFAC
from thermokron.host.studies.tables import markdown, number, write
from thermokron.model import NumericUnit, UnitSpec

#: Method, samples, and steps that its inverses serve.
SETTINGS = (("inverse", 1000, 1), ("inverse", 1000, 10), ("solve", 1000, 1), ("solve", 10, 1))


def stepped(bench: Bench, unit: NumericUnit | None, method: str, samples: int):
    """The preconditioned gradient of a first step, K-FAC's metrics, and the products' flops."""
    model, loss = bench.network(), torch.nn.CrossEntropyLoss()
    kfac = KFAC(model, unit, lr=0.05, damping=0.03, method=method, samples=samples, kl_clip=None)
    loss(model(bench.inputs), bench.targets).backward()
    metrics = kfac.step()
    gradients = [layer.gradient() for layer in kfac.layers]
    flops = sum(2 * g.numel() * sum(g.shape) for g in gradients)
    return torch.cat([g.reshape(-1) for g in gradients]).double(), metrics, flops


def main() -> None:
    """Count, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[15, 31, 63, 127])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/method_cost"))
    parser.add_argument(
        "--into", type=Path, nargs="+", default=[], help="pages whose table is to be replaced"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    cells: dict[str, list[list[str]]] = {}
    for width in args.widths:
        bench = Bench(width, args.batch)
        reference, _, _ = stepped(bench, None, "inverse", 1000)
        done = {}
        for method, samples, interval in SETTINGS:
            if (method, samples) not in done:
                unit = NumericUnit(UnitSpec(cells=width + 1), seed=1)
                done[method, samples] = stepped(bench, unit, method, samples)
            found, metrics, products = done[method, samples]
            error = (found - reference).norm() / reference.norm()
            host = metrics.digital_flops / interval + (products if method == "inverse" else 0)
            label = f'"{method}", {samples:,} samples'
            label += f", renewed every {interval} steps" if interval > 1 else ""
            row = (1e3 * metrics.hardware_seconds / interval, host / 1e6, error.item())
            cells.setdefault(label, []).append([number(value) for value in row])
            print(width, label, *cells[label][-1], flush=True)
    head = ["unit ms / host Mflop / error of a step", *(f"{w} wide" for w in args.widths)]
    text = markdown(head, [[label, *map(" / ".join, rows)] for label, rows in cells.items()])
    write(args.output / "method_cost.md", text)
    print(text)
    insert(args.into, [text])


if __name__ == "__main__":
    main()
