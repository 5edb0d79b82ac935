"""What helps where couplings have few bits; the tables of its page.

    python benchmarks/fewbits.py errors [--matrices 8]     # a minute and a half on one core
    python benchmarks/fewbits.py training [--seeds 5]      # six minutes

`errors`: inverses and solutions of random 32 x 32 matrices of condition number 10 with a geometric
spectrum, on an ideal array with an 8-bit ADC, from so many samples that rounding is what is left.
Relative errors in the Frobenius norm, root mean squares over the matrices. The last rows are
digital: what an infinite ensemble of unguarded roundings would come to, and a single one.

`training`: the MLP 64-32-10 on handwritten digits as of `thermokron study quantisation`, by
solutions (Method 2, one reading a column), 65 cells, an 8-bit ADC, factors renewed at every step,
learning rate 0.03 and damping 0.003. Rows of other hardware are emulated: factors are rounded to
the levels that it would have, shrunk by the least of 50 parts that leaves half the bound on λ_min,
and programmed on a unit of 13 bits.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from measured import table

from thermokron.host.kfac import KFAC, Thermodynamic, exact
from thermokron.host.linalg import Eliminated, Programmed, inv, solve
from thermokron.host.studies.runs import Outcome
from thermokron.host.train import TrainConfig
from thermokron.host.train.evaluation import evaluate
from thermokron.host.train.named import make_task
from thermokron.host.train.tasks import batch_of
from thermokron.model import NumericUnit, UnitSpec

BITS = (3, 4, 5, 6, 8)
#: Of the matrices; samples of an inverse, of all members together; readings of a column and member.
N, KAPPA, SAMPLES, READINGS = 32, 10.0, 160_000, 100
INVERSES: dict[str, dict[str, Any]] = {
    "nearest codes": {},
    "dither 1": {"dither": 1},
    "dither 4": {"dither": 4},
    "dither 16": {"dither": 16},
    "dither 64": {"dither": 64},
    "correct = 'rounding'": {"correct": "rounding"},
    "dither 16, correct = 'rounding'": {"dither": 16, "correct": "rounding"},
}
SOLUTIONS: dict[str, dict[str, Any]] = {
    "nearest codes": {"refine": 0},
    "dither 1": {"refine": 0, "dither": 1},
    "dither 4": {"refine": 0, "dither": 4},
    "dither 16": {"refine": 0, "dither": 16},
    "dither 64": {"refine": 0, "dither": 64},
    "refine 1": {"refine": 1},
    "refine 2": {"refine": 2},
    "refine 3": {"refine": 3},
    "dither 4, refine 1": {"refine": 1, "dither": 4},
    "dither 16, refine 1": {"refine": 1, "dither": 16},
}


# ---- errors --------------------------------------------------------------------------------------


def spd(seed: int) -> np.ndarray:
    """A random matrix with eigenvalues from 1/κ to 1."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((N, N)))
    return (q * np.geomspace(1.0, 1.0 / KAPPA, N)) @ q.T


def relative(value: Any, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(value - wanted) / np.linalg.norm(wanted))


def inverse_error(bits: int, seed: int, **options: Any) -> float:
    M = spd(seed)
    unit = NumericUnit(UnitSpec(cells=N, coupling_bits=bits), seed=seed)
    samples = SAMPLES // options.get("dither", 1)
    return relative(inv(unit, M, samples=samples, seed=seed, **options).value, np.linalg.inv(M))


def solution_error(bits: int, seed: int, **options: Any) -> float:
    M, B = spd(seed), np.random.default_rng(seed + 1000).standard_normal((N, 8))
    unit = NumericUnit(UnitSpec(cells=N, coupling_bits=bits), seed=seed)
    found = solve(unit, M, B, samples=READINGS, seed=seed, **options)
    return relative(found.value, np.linalg.solve(M, B))


def ensemble_error(bits: int, seed: int, members: int) -> float:
    """Digitally, of the mean of inverses of random roundings; NaN if any is indefinite."""
    M, top, rng = spd(seed), 2 ** (bits - 1) - 1, np.random.default_rng(seed)
    scale = np.sqrt(M.diagonal())
    A, inverses = M / (scale[:, None] * scale), []
    for _ in range(members):
        codes = np.triu(np.floor(A * top + rng.random(A.shape)), 1)
        rounded = (codes + codes.T) / top + np.eye(N)
        if np.linalg.eigvalsh(rounded)[0] <= 0.0:
            return math.nan
        inverses.append(np.linalg.inv(rounded))
    found = np.mean(inverses, axis=0) / (scale[:, None] * scale)
    return relative(found, np.linalg.inv(M))


def errors(matrices: int) -> None:
    def row(name: str, error: Callable[[int, int], float]) -> list[str]:
        cells = []
        for bits in BITS:
            found = [error(bits, seed) for seed in range(matrices)]
            size = math.sqrt(np.mean(np.square(found)))
            cells.append(f"{size:.2g}" if math.isfinite(size) else "indefinite")
        return [name, *cells]

    head = ["bits", *map(str, BITS)]
    rows = [
        row(name, lambda bits, seed, options=options: inverse_error(bits, seed, **options))
        for name, options in INVERSES.items()
    ]
    for members in (1, 2000):
        name = f"theory, {members:,} unguarded"
        rows.append(
            row(name, lambda bits, seed, members=members: ensemble_error(bits, seed, members))
        )
    print("Inverses\n\n" + table(head, rows) + "\n")
    rows = [
        row(name, lambda bits, seed, options=options: solution_error(bits, seed, **options))
        for name, options in SOLUTIONS.items()
    ]
    print("Solutions\n\n" + table(head, rows), flush=True)


# ---- training ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Levels(Thermodynamic):
    """A unit whose off-diagonal couplings have 2 `levels` + 1 values.

    Attributes
    ----------
    levels : int
        2^(b-1) - 1 of b bits.
    full : str
        What the outermost stands for: "one"; "power", the next power of two from the largest of
        the matrix; "largest", that itself.
    """

    levels: int = 7
    full: str = "one"

    def program(
        self, matrix: torch.Tensor, lambda_min: float, like: Any = None
    ) -> Programmed | Eliminated:
        M = matrix.double().numpy()
        scale = np.sqrt(M.diagonal())
        A, bound = M / (scale[:, None] * scale), lambda_min / M.diagonal().max()
        for part in np.linspace(0.0, 0.98, 50):
            rounded = self.rounded(A * (1.0 - part))
            if np.linalg.eigvalsh(rounded)[0] >= 0.5 * bound:
                break
        # more damping, not longer steps, as `Thermodynamic` has it of what it shrinks
        found = torch.from_numpy(rounded * (scale[:, None] * scale) / (1.0 - part))
        return super().program(found.to(matrix.dtype), 0.5 * lambda_min, like)

    def rounded(self, shrunk: np.ndarray) -> np.ndarray:
        off = shrunk - np.diag(shrunk.diagonal())
        largest = float(np.abs(off).max())
        full = {"one": 1.0, "power": 2.0 ** math.ceil(math.log2(largest)), "largest": largest}
        step = full[self.full] / self.levels
        return np.eye(len(off)) + np.rint(off / step) * step


def trained(seed: int, make: Callable[[int], Any], method: str) -> tuple[list[float], float, float]:
    """Losses before and after epochs, host operations and seconds of the unit a step."""
    config = TrainConfig(epochs=6, lr=0.03, damping=0.003, method=method, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    flops = seconds = steps = 0.0
    with make_task(config, generator) as task:
        optimizer = torch.optim.SGD(task.model.parameters(), lr=config.lr, momentum=config.momentum)
        kfac = KFAC(
            task.model,
            lr=optimizer,
            damping=config.damping,
            criterion=task.loss,
            seed=seed,
            inverse=make(seed),
            **config.kfac_options,
        )
        losses = [evaluate(task, task.train).loss]
        for _ in range(config.epochs):
            order = torch.randperm(len(task.train), generator=generator)
            for chosen in torch.split(order, config.batch_size):
                inputs, targets = batch_of(task.train, chosen)
                optimizer.zero_grad()
                task.loss(task.model(*inputs), targets).backward()
                metrics = kfac.step()
                optimizer.step()
                flops += metrics.digital_flops
                seconds += metrics.hardware_seconds
                steps += 1
            losses.append(evaluate(task, task.train).loss)
    return losses, flops / steps, seconds / steps


def on_unit(bits: int, **options: Any) -> Callable[[int], Thermodynamic]:
    spec = UnitSpec(cells=65, coupling_bits=bits, adc_bits=8)
    return lambda seed: Thermodynamic(NumericUnit(spec, seed=seed), **options)


def with_levels(levels: int, full: str) -> Callable[[int], Thermodynamic]:
    spec = UnitSpec(cells=65, coupling_bits=13, adc_bits=8)
    return lambda seed: Levels(NumericUnit(spec, seed=seed), refine=0, levels=levels, full=full)


def ways() -> Iterator[tuple[str, Callable[[int], Any], str]]:
    yield "exact, solved", lambda _: exact, "solve"
    for bits in (8, 5, 4, 3):
        yield f"{bits} bits", on_unit(bits), "solve"
        if bits == 8:
            continue
        for refine in (0, 1, 2):
            yield f"{bits} bits, refine {refine}", on_unit(bits, refine=refine), "solve"
        yield f"{bits} bits, refine 0, dither", on_unit(bits, refine=0, dither=True), "solve"
        yield f"{bits} bits, dither", on_unit(bits, dither=True), "solve"
        yield f"{bits} bits, inverses", on_unit(bits), "inverse"
    for bits, fine in ((4, 98), (3, 18)):
        levels = 2 ** (bits - 1) - 1
        for full, name in (
            ("one", "as it is"),
            ("power", "off-diagonal full scale a power of two"),
            ("largest", "off-diagonal full scale the largest"),
        ):
            yield f"{bits} bits emulated, {name}", with_levels(levels, full), "solve"
        yield f"{bits} bits coarse and {bits} fine emulated", with_levels(fine, "one"), "solve"


def training(seeds: int) -> None:
    head = ["", "epochs to 0.01", "of exact", "each seed", "final loss", "host Mflop", "unit ms"]
    rows, least = [], None
    for name, make, method in ways():
        found = [trained(seed, make, method) for seed in range(seeds)]
        epochs = [epochs_to(losses) for losses, _, _ in found]
        middle = statistics.median(epochs)
        least = middle if least is None else least
        cells = [
            _shown(middle),
            _shown(middle / least),
            ", ".join(map(_shown, epochs)),
            f"{statistics.median(losses[-1] for losses, _, _ in found):.2g}",
            # what emulation itself costs is nobody's
            ""
            if "emulated" in name
            else f"{statistics.median(flops for _, flops, _ in found) / 1e6:.3g}",
            f"{1e3 * statistics.median(seconds for _, _, seconds in found):.3g}",
        ]
        rows.append([name, *cells])
        print(f"  {name}: {cells[0]}", flush=True)
    print("\n" + table(head, rows))


def epochs_to(losses: list[float]) -> float:
    nan = math.nan
    outcome = Outcome(
        train_loss=losses,
        step_loss=[],
        test_accuracy=nan,
        wall_seconds=nan,
        hardware_seconds=nan,
        inversions=0,
    )
    return outcome.epochs_to(0.01)


def _shown(number: float) -> str:
    return f"{number:.2f}" if math.isfinite(number) else "never"


PARTS: Mapping[str, Callable[[argparse.Namespace], None]] = {
    "errors": lambda args: errors(args.matrices),
    "training": lambda args: training(args.seeds),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--matrices", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    PARTS[args.part](args)


if __name__ == "__main__":
    main()
