"""Whether plans keep what they promise, and what planning costs; the tables of their page.

    python benchmarks/planner.py [--matrices 5] [--tries 12]

Matrices are random with a geometric spectrum, on ideal arrays of as many cells unless told. Errors
are relative, in the Frobenius norm; of tries of one plan the rms, of matrices the median. Three
minutes on one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from measured import table

from thermokron.host.linalg import Plan, Unreachable, functions, plan
from thermokron.model import NumericUnit, UnitSpec

#: Right-hand sides of a solution.
COLUMNS = 8
QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
WAYS = ("covariance", "means", "solve")
TOLERANCES = {"covariance": (0.2, 0.1), "means": (0.2, 0.05, 0.01), "solve": (0.2, 0.05, 0.01)}


def spd(n: int, kappa: float, seed: int) -> np.ndarray:
    """A random matrix with eigenvalues from 1/κ to 1."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    return (q * np.geomspace(1.0, 1.0 / kappa, n)) @ q.T


def relative(value: Any, exact: np.ndarray) -> float:
    """The error of a value, of its norm."""
    return float(np.linalg.norm(value - exact) / np.linalg.norm(exact))


def made(
    what: str, spec: UnitSpec, n: int, kappa: float, tolerance: float, seed: int
) -> tuple[Plan, np.ndarray]:
    """A plan, and what it should come to."""
    M, unit = spd(n, kappa, seed), NumericUnit(spec, seed=seed)
    if what == "solve":
        B = np.random.default_rng(1000 + seed).standard_normal((n, COLUMNS))
        return plan(unit, M, B, tolerance=tolerance), np.linalg.solve(M, B)
    method: Any = what
    return plan(unit, M, tolerance=tolerance, method=method), np.linalg.inv(M)


class Point:
    """Plans for several matrices, carried out."""

    def __init__(
        self,
        what: str,
        spec: UnitSpec,
        size: tuple[int, float],
        tolerance: float,
        seeds: Iterable[int],
        tries: int,
    ) -> None:
        self.tolerance = tolerance
        self.predicted: list[float] = []
        self.measured: list[float] = []
        self.within: list[float] = []
        self.said: list[float] = []
        self.took: list[float] = []
        self.refused = 0
        for seed in seeds:
            try:
                found, exact = made(what, spec, *size, tolerance, seed)
            except Unreachable:
                self.refused += 1
                continue
            results = [found.run() for _ in range(tries)]
            errors = [relative(result.value, exact) for result in results]
            self.predicted.append(found.error)
            self.measured.append(float(np.sqrt(np.mean(np.square(errors)))))
            self.within.append(float(np.median(errors)) / tolerance)
            self.said.append(found.hardware_seconds)
            self.took.append(float(np.mean([result.hardware_seconds for result in results])))

    @property
    def ratio(self) -> float:
        """Predicted over measured error, the median."""
        return float(np.median(np.array(self.predicted) / self.measured))

    def __str__(self) -> str:
        if not self.predicted:
            return "out of reach"
        most = f", {self.refused} out of reach" * bool(self.refused)
        errors = f"{np.median(self.predicted):.2g} / {np.median(self.measured):.2g}"
        return f"{errors} ({self.ratio:.2f}){most}"


def grid_tables(args: argparse.Namespace) -> str:
    """Predicted and measured errors on the grid, and how both compare in all."""
    tables, points = [], []
    for what in WAYS:
        rows = []
        for n in (8, 16, 32, 64):
            for kappa in (10, 100):
                for bits in (6, 8, 12):
                    spec = UnitSpec(cells=n, coupling_bits=bits)
                    row = [
                        Point(what, spec, (n, kappa), tolerance, range(args.matrices), args.tries)
                        for tolerance in TOLERANCES[what]
                    ]
                    points += row
                    rows.append([f"{n}, {kappa}, {bits}", *map(str, row)])
        head = [f"within {tolerance:g}" for tolerance in TOLERANCES[what]]
        tables.append(table([f"{what}: n, κ, bits", *head], rows))
    good = [point for point in points if point.predicted]
    ratios = [point.ratio for point in good]
    within = [float(np.median(point.within)) for point in good]
    times = [float(np.mean(point.said) / np.mean(point.took)) for point in good]
    summary = [
        [
            name,
            str(len(values)),
            *(f"{np.quantile(values, q):.2f}" for q in (0, 0.05, 0.5, 0.95, 1)),
        ]
        for name, values in (
            ("predicted over measured error", ratios),
            ("median error over tolerance", within),
            ("predicted over measured hardware time", times),
        )
    ]
    tables.append(table(["", "points", "least", "5%", "median", "95%", "most"], summary))
    return "\n\n".join(tables)


def sizes_table(args: argparse.Namespace) -> str:
    """Blocks, and arrays larger than the grid's."""
    rows = []
    for n, cells, kappa, bits in (
        (40, 16, 10, 8),
        (40, 16, 100, 8),
        (64, 16, 30, 8),
        (256, 256, 30, 8),
        (256, 256, 100, 12),
    ):
        spec = UnitSpec(cells=cells, coupling_bits=bits)
        row = [f"{n} on {cells}, {kappa}, {bits}"]
        for what, tolerance in (("means", 0.1), ("solve", 0.1), ("solve", 0.01)):
            row.append(str(Point(what, spec, (n, kappa), tolerance, range(3), 4)))
        rows.append(row)
    head = ["n on cells, κ, bits", "means, within 0.1", "solve, within 0.1", "solve, within 0.01"]
    return table(head, rows)


def methods_table() -> str:
    """What an inverse costs by covariance and by means."""
    rows = []
    for n in (16, 64):
        for tolerance in (0.2, 0.1, 0.05, 0.02):
            spec, row = UnitSpec(cells=n, coupling_bits=12), [f"{n}, {tolerance:g}"]
            for what in ("covariance", "means"):
                found, _ = made(what, spec, n, 30, tolerance, 0)
                way = found.choice
                row += [
                    f"{way.samples:,}" + f" x {n} x {way.refine + 1}" * (what == "means"),
                    f"{1e6 * found.hardware_seconds:,.0f}",
                    f"{1e6 * found.port_seconds:,.0f}",
                    f"{found.digital_flops:.1e}",
                ]
            rows.append(row)
    head = [f"{what}: {each}" for what in ("covariance", "means") for each in COSTS]
    return table(["n, tolerance", *head], rows)


COSTS = ("readings", "µs", "µs on ports", "host flops")


def planning_table() -> str:
    """What planning costs, by whether a matrix is diagonalised for it."""
    rows, usual = [], functions.EXACT
    for n, exact in ((16, True), (64, True), (256, True), (256, False), (640, False)):
        functions.EXACT = usual if exact else 192
        spec = UnitSpec(cells=n)
        row = [f"{n}, {'modes' if exact else 'Krylov'}"]
        for what, tolerance in (("covariance", 0.2), ("means", 0.05), ("solve", 0.01)):
            start = time.perf_counter()
            found, _ = made(what, spec, n, 30, tolerance, 0)
            row += [f"{found.flops:.1e}", f"{time.perf_counter() - start:.2g}"]
        rows.append([*row, f"{2 * n**3:.1e}"])
    functions.EXACT = usual
    head = [f"{what}{each}" for what in WAYS for each in (": flops", ": s")]
    return table(["n", *head, "an inverse, digitally"], rows)


def main() -> None:
    """Print all tables, as they are done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--matrices", type=int, default=5)
    parser.add_argument("--tries", type=int, default=12)
    args = parser.parse_args()
    print(methods_table(), planning_table(), sep="\n\n", flush=True)
    print(grid_tables(args), sizes_table(args), sep="\n\n", flush=True)


if __name__ == "__main__":
    main()
