"""How exact `inv` and `solve` are, beside theory, and how right their error bars: the tables and
the picture of docs/linalg.md.

    python benchmarks/accuracy.py errors [-o docs/linalg.png]
    python benchmarks/accuracy.py bars [--problems 1000]
    python benchmarks/accuracy.py parts

Errors are relative, in the Frobenius norm, of the matrix as the array has it, scaled to unit
diagonal; medians over seeds. Theory is the mean square error of sampling an Ornstein-Uhlenbeck
process with the eigenvalues λ of that matrix, N times, Δ apart, s = T/λ:

    E‖x̄ - A⁻¹b‖² = (1/N) Σ_k s_k coth(λ_k Δ/2τ)
    E‖Σ̂ - Σ‖²    = (1/N) Σ_kl s_k s_l (1 + δ_kl) coth((λ_k + λ_l) Δ/2τ)
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.linalg
from accuracy_matrices import MATRICES, spd
from measured import table

from thermokron.host import calibrate
from thermokron.host.linalg import Account, Clipping, Programmed, inv, program, solve
from thermokron.model import ArrayPhysics, NumericUnit, UnitSpec

#: Of everything but couplings, so that one thing is the limit at a time.
FINE = {"bias_bits": 16, "adc_bits": 16}
INTERVAL = 2.0


def on_array(cells: int, bits: int, M: np.ndarray, seed: int) -> Programmed:
    """M on an ideal array of so many cells."""
    unit = NumericUnit(UnitSpec(cells=cells, coupling_bits=bits, **FINE), seed=seed)
    made = program(unit, M)
    assert isinstance(made, Programmed)
    return made


def coth(x: np.ndarray) -> np.ndarray:
    """1/tanh."""
    return 1.0 / np.tanh(x)


@dataclass(frozen=True)
class Errors:
    """A measured relative error, what sampling makes of it by theory, and rounding's own."""

    measured: float
    sampling: float
    rounding: float

    @property
    def theory(self) -> float:
        """Both together."""
        return float(np.hypot(self.sampling, self.rounding))

    def row(self) -> list[str]:
        """As a table has it."""
        numbers = (self.measured, self.sampling, self.rounding, self.theory)
        return [f"{each:.2g}" for each in numbers] + [f"{self.measured / self.theory:.2f}"]


HEAD = ["measured", "sampling, theory", "rounding, known", "both", "ratio"]


def of_inverse(M: np.ndarray, bits: int, samples: int, seed: int) -> Errors:
    """Of one inverse."""
    made = on_array(len(M), bits, M, seed)
    A, spec = made.matrix, made.unit.spec
    exact = np.linalg.inv(A)
    result = made.inv(samples=samples, interval=INTERVAL)
    value = result.value * made.scale[:, None] * made.scale
    effective = made.equation.effective
    rates = np.linalg.eigvalsh(effective)
    shortest = spec.shortest_interval(True) * spec.clock_s / spec.tau_s
    apart = max(INTERVAL / made.plan.rate, shortest)
    sums = coth(0.5 * apart * (rates[:, None] + rates)) / (rates[:, None] * rates)
    square = (sums.sum() + np.trace(sums)) / samples
    size = np.linalg.norm(exact)
    return Errors(
        float(np.linalg.norm(value - exact) / size),
        float(np.sqrt(square) / size),
        float(np.linalg.norm(np.linalg.inv(effective) - exact) / size),
    )


def of_solution(M: np.ndarray, bits: int, samples: int, seed: int) -> Errors:
    """Of the solutions for eight right-hand sides, settled to 1e-4, not refined."""
    made = on_array(len(M), bits, M, seed)
    A = made.matrix
    B = np.random.default_rng([seed, 1]).standard_normal((8, len(M)))
    asked = {"samples": samples, "settle": 1e-4, "interval": INTERVAL, "offsets": "kept"}
    reading = made.read(B.copy(), Account(samples=samples), unit=1.0, **asked)
    exact, effective = np.linalg.solve(A, B.T).T, made.equation.effective
    rates = np.linalg.eigvalsh(effective)
    apart = reading.settling.interval if samples > 1 else np.inf
    each = reading.temperature / rates * coth(0.5 * rates * apart) / samples
    square = (reading.amplitude**2).sum() * each.sum() * reading.averaging
    size = np.linalg.norm(exact)
    rounded = np.linalg.solve(effective, B.T).T
    return Errors(
        float(np.linalg.norm(reading.value - exact) / size),
        float(np.sqrt(square) / size),
        float(np.linalg.norm(rounded - exact) / size),
    )


def median(
    measure: Callable[..., Errors], make: Callable[[int], np.ndarray], seeds: int, **how: Any
) -> Errors:
    """The medians over matrices and noise."""
    found = [measure(make(seed), seed=seed, **how) for seed in range(seeds)]
    numbers = [(e.measured, e.sampling, e.rounding) for e in found]
    return Errors(*(float(x) for x in np.median(numbers, axis=0)))


def sweeps() -> Iterator[tuple[str, list[tuple[str, int, float, int, int]]]]:
    """(name, n, κ, bits, samples) of every point, one thing changed at a time."""
    counts = (10, 100, 1000, 10_000, 100_000)
    yield "samples", [(f"N = {N:,}", 32, 30.0, 16, N) for N in counts]
    yield "n", [(f"n = {n}", n, 30.0, 16, 1000) for n in (8, 16, 32, 64, 128, 256)]
    yield "κ", [(f"κ = {k:g}", 32, k, 16, 1000) for k in (3.0, 10.0, 30.0, 100.0, 300.0)]
    yield "bits", [(f"{b} bits", 32, 30.0, b, 10_000) for b in (3, 4, 6, 8, 10, 12, 16)]


def errors(args: argparse.Namespace) -> None:
    """Tables of errors beside theory, and their picture."""
    panels = []
    for function, measure in (("inv", of_inverse), ("solve", of_solution)):
        rows = []
        for name, points in sweeps():
            found = []
            for label, n, kappa, bits, samples in points:
                seeds = args.seeds if n <= 64 else 3
                each = median(
                    measure,
                    lambda seed, n=n, kappa=kappa: spd(n, kappa, seed),
                    seeds,
                    bits=bits,
                    samples=samples,
                )
                rows.append([label, str(n), f"{kappa:g}", str(bits), f"{samples:,}", *each.row()])
                found.append((label, each))
            panels.append((function, name, found))
        print(f"\n`{function}`, random matrices\n")
        print(table(["", "n", "κ", "bits", "N", *HEAD], rows))
    rows = []
    for name, make in MATRICES.items():
        M = make()
        scale = 1.0 / np.sqrt(M.diagonal())
        kappa = np.linalg.cond(scale[:, None] * M * scale)
        for function, measure in (("inv", of_inverse), ("solve", of_solution)):
            each = median(measure, lambda _, M=M: M, args.seeds, bits=12, samples=1000)
            rows.append([f"{name}, `{function}`", str(len(M)), f"{kappa:.3g}", *each.row()])
    print("\nOther matrices, 12 bits, 1,000 samples\n")
    print(table(["", "n", "κ, scaled", *HEAD], rows))
    if args.output:
        picture(panels, args.output)


def picture(panels: list[Any], path: str) -> None:
    """Measured errors as points, theory as lines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(12, 5.2), sharey="row", layout="constrained")
    for axis, (function, name, found) in zip(axes.flat, panels, strict=True):
        at = range(len(found))
        axis.plot(at, [e.theory for _, e in found], color="#888888", label="theory")
        sampling = [e.sampling for _, e in found]
        axis.plot(at, sampling, color="#888888", ls=":", label="of which sampling")
        axis.plot(at, [e.measured for _, e in found], "o", color="#b03a2e", label="measured")
        axis.set_xticks(list(at), [label.split("= ")[-1].split(" ")[0] for label, _ in found])
        axis.set_yscale("log")
        axis.set_xlabel({"bits": "coupling bits", "samples": "samples N"}.get(name, name))
        axis.grid(alpha=0.3)
        if name == "samples":
            axis.set_ylabel(f"relative error, {function}")
    axes.flat[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


# ---- error bars ---------------------------------------------------------------------------------

FLAWED = ArrayPhysics(
    coupling_mismatch=0.05,
    cell_offset=0.01,
    noise_mismatch=0.05,
    tau_mismatch=0.05,
    adc_gain_error=0.02,
    adc_offset=0.01,
)


@dataclass(frozen=True)
class Point:
    """Where error bars are looked at."""

    n: int = 8
    kappa: float = 10.0
    bits: int = 8
    samples: int = 1000
    interval: float = 2.0
    flaws: str = "none"
    refine: int = 1
    tau_s: float = UnitSpec.tau_s

    def problem(self, function: str, seed: int) -> np.ndarray:
        """Errors over error bars of one problem."""
        M = spd(self.n, self.kappa, seed)
        spec = UnitSpec(cells=self.n, coupling_bits=self.bits, tau_s=self.tau_s)
        physics = None if self.flaws == "none" else replace(FLAWED, device_seed=seed)
        known = calibrate(NumericUnit(spec, physics)) if self.flaws == "calibrated" else None
        unit = NumericUnit(spec, physics, seed=seed)
        how = {"samples": self.samples, "interval": self.interval, "calibration": known}
        if function == "inv":
            result = inv(unit, M, **how)
            upper = np.triu_indices(self.n)
            wrong = (result.value - np.linalg.inv(M))[upper]
            return wrong / result.standard_error[upper]
        B = np.random.default_rng([seed, 2]).standard_normal((self.n, 4))
        result = solve(unit, M, B, refine=self.refine, **how)
        return ((result.value - np.linalg.solve(M, B)) / result.standard_error).ravel()


def points(function: str) -> Iterator[tuple[str, Point]]:
    """One thing changed at a time, then some together."""
    base = Point()
    yield "n = 8, κ = 10, 8 bits, 1,000 samples", base
    for n in (4, 16, 32):
        yield f"n = {n}", replace(base, n=n)
    for kappa in (3.0, 30.0, 100.0):
        yield f"κ = {kappa:g}", replace(base, kappa=kappa)
    for bits in (4, 6, 12):
        yield f"{bits} bits", replace(base, bits=bits)
    for samples in (2, 5, 20, 100, 10_000):
        yield f"{samples:,} samples", replace(base, samples=samples)
    for interval in (0.25, 0.5, 1.0):
        yield f"interval {interval:g}", replace(base, interval=interval, tau_s=1e-6)
    for flaws in ("uncalibrated", "calibrated"):
        for n, kappa in ((8, 10.0), (8, 5.0), (16, 5.0)):
            yield f"{flaws}, n = {n}, κ = {kappa:g}", replace(base, flaws=flaws, n=n, kappa=kappa)
    yield (
        "n = 16, κ = 30, 6 bits, 100 samples",
        replace(base, n=16, kappa=30.0, bits=6, samples=100),
    )
    if function == "solve":
        for refine in (0, 3):
            yield f"{refine} refinements", replace(base, refine=refine)
            yield (
                f"uncalibrated, {refine} refinements",
                replace(base, flaws="uncalibrated", refine=refine),
            )


def bars(args: argparse.Namespace) -> None:
    """How often errors are within one and two error bars."""
    for function in ("inv", "solve"):
        rows = []
        for name, point in points(function):
            scores = []
            for seed in range(args.problems):
                with contextlib.suppress(Clipping):  # off by more than the matrix bears
                    scores.append(point.problem(function, seed))
            size = np.abs(np.concatenate(scores))
            row = [(size < 1).mean(), (size < 2).mean(), np.sqrt((size**2).mean())]
            refused = str(args.problems - len(scores) or "")
            rows.append([name, *(f"{each:.3f}" for each in row), refused])
            print("|", " | ".join(rows[-1]), "|", flush=True)
        print(f"\n`{function}`\n\n{table(['', 'within 1', 'within 2', 'rms', 'refused'], rows)}\n")


# ---- what each part brings --------------------------------------------------------------------


def parts(args: argparse.Namespace) -> None:
    """What equilibration, corrections, calibration and refinement bring, by bits."""
    every = (3, 4, 6, 8)
    rows = []
    for name, function, flawed, how in PARTS:
        row = [name]
        for bits in every:
            found = []
            for seed in range(args.seeds):
                M = spread_out(16, 10.0, seed)
                spec = UnitSpec(cells=16, coupling_bits=bits)
                physics = replace(FLAWED, device_seed=seed) if flawed else None
                given = dict(how)
                if given.pop("calibrated", False):
                    given["calibration"] = calibrate(NumericUnit(spec, physics))
                unit = NumericUnit(spec, physics, seed=seed)
                found.append(FUNCTIONS[function](unit, M, seed, given))
            row.append(f"{np.median(found):.2g}")
        rows.append(row)
    print(table(["", *(f"{bits} bits" for bits in every)], rows))


def spread_out(n: int, kappa: float, seed: int) -> np.ndarray:
    """A random matrix whose rows are of different size, as those of curvature are."""
    size = np.exp(np.random.default_rng([seed, 3]).uniform(-1.0, 1.0, n))
    return spd(n, kappa, seed) * size[:, None] * size


def relative(M: np.ndarray, value: np.ndarray, exact: np.ndarray, both: bool) -> float:
    """The error of a value in the array's units, of its norm."""
    scale = np.sqrt(M.diagonal())[:, None]
    unit = scale * scale.T if both else scale
    return float(np.linalg.norm((value - exact) * unit) / np.linalg.norm(exact * unit))


def _inv(unit: Any, M: np.ndarray, seed: int, how: dict[str, Any]) -> float:
    try:
        return relative(M, inv(unit, M, samples=30_000, **how).value, np.linalg.inv(M), True)
    except ValueError:
        return np.inf


def _solve(unit: Any, M: np.ndarray, seed: int, how: dict[str, Any]) -> float:
    how = dict(how)
    B = np.random.default_rng([seed, 1]).standard_normal((len(M), 8)) * M.diagonal()[:, None] ** 0.5
    options = {
        name: how.pop(name) for name in ("equilibrate", "calibration", "dither") if name in how
    }
    try:
        made = program(unit, M, **options)
        value = made.solve(B, samples=30, settle=1e-4, **how).value
    except ValueError:
        return np.inf
    return relative(M, value, scipy.linalg.solve(M, B), False)


FUNCTIONS = {"inv": _inv, "solve": _solve}
#: (name, function, whether the array is flawed, options).
PARTS: list[tuple[str, str, bool, dict[str, Any]]] = [
    ("`inv`, divided by its largest entry", "inv", False, {"equilibrate": False}),
    ("`inv`, equilibrated", "inv", False, {}),
    ('and `correct="rounding"`', "inv", False, {"correct": "rounding"}),
    ("`inv`, dither 16", "inv", False, {"dither": 16}),
    ("`inv` on a flawed array", "inv", True, {}),
    ("and calibrated", "inv", True, {"calibrated": True}),
    ("and corrected", "inv", True, {"calibrated": True, "correct": "rounding"}),
    ("`solve`, divided by its largest entry", "solve", False, {"equilibrate": False}),
    ("`solve`, equilibrated", "solve", False, {}),
    ("and refined once", "solve", False, {"refine": 1}),
    ("three times", "solve", False, {"refine": 3}),
    ("`rtol=1e-10`", "solve", False, {"rtol": 1e-10}),
    ("`solve`, dither 16", "solve", False, {"dither": 16}),
    ("and refined once", "solve", False, {"dither": 16, "refine": 1}),
    ("`solve` on a flawed array", "solve", True, {}),
    ("and chopped", "solve", True, {"offsets": "chopped"}),
    ("and calibrated", "solve", True, {"calibrated": True}),
    ("and calibrated, chopped", "solve", True, {"calibrated": True, "offsets": "chopped"}),
    ("and calibrated, refined once", "solve", True, {"calibrated": True, "refine": 1}),
    ("not calibrated, refined once", "solve", True, {"refine": 1}),
    ("not calibrated, `rtol=1e-10`", "solve", True, {"rtol": 1e-10}),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("errors", "bars", "parts"))
    parser.add_argument("--seeds", type=int, default=9, help="matrices a point (default: 9)")
    parser.add_argument(
        "--problems", type=int, default=1000, help="problems a point of `bars` (default: 1000)"
    )
    parser.add_argument("-o", "--output", help="the picture of `errors`")
    args = parser.parse_args()
    {"errors": errors, "bars": bars, "parts": parts}[args.what](args)


if __name__ == "__main__":
    main()
