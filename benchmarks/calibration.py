"""What calibration wins back of the accuracy that a flawed array loses; the tables of its page.

    python benchmarks/calibration.py [--devices 4] [--matrices 3]

Arrays with couplings off by 5%, gains by 2%, offsets by 1% of full scale (cells and channels),
noise powers and time constants by 5%. Matrices are random with a geometric spectrum. Errors are
relative, in the Frobenius norm, root mean squares over devices and matrices; won back is
1 - (calibrated - ideal)/(flawed - ideal). Two minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from measured import table

from thermokron.host import Calibrated, calibrate
from thermokron.host.calibration import Calibration
from thermokron.host.linalg import inv, program, solve
from thermokron.model import ArrayPhysics, NumericUnit, UnitSpec

FLAWS = ArrayPhysics(
    coupling_mismatch=0.05,
    cell_offset=0.01,
    noise_mismatch=0.05,
    tau_mismatch=0.05,
    adc_gain_error=0.02,
    adc_offset=0.01,
)
#: Flaws one at a time.
ALONE = {
    "couplings 5%": {"coupling_mismatch"},
    "gains 2%": {"adc_gain_error"},
    "cell offsets 1%": {"cell_offset"},
    "channel offsets 1%": {"adc_offset"},
    "noise 5%": {"noise_mismatch"},
    "τ 5%": {"tau_mismatch"},
    "all": {*FLAWS.__dataclass_fields__},
}


def spd(n: int, kappa: float, seed: int) -> np.ndarray:
    """A random matrix with eigenvalues from 1/κ to 1."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    return (q * np.geomspace(1.0, 1.0 / kappa, n)) @ q.T


def relative(value: Any, exact: np.ndarray) -> float:
    """The error of a value, of its norm."""
    return float(np.linalg.norm(value - exact) / np.linalg.norm(exact))


def by_means(unit: Any, M: np.ndarray, calibration: Calibration | None) -> float:
    """The error of eight solutions, 1,000 readings each, without refinement."""
    B = np.random.default_rng(len(M)).standard_normal((len(M), 8))
    found = solve(unit, M, B, samples=1000, refine=0, calibration=calibration)
    return relative(found.value, np.linalg.solve(M, B))


def by_covariance(unit: Any, M: np.ndarray, calibration: Calibration | None) -> float:
    """The error of an inverse from 100,000 samples."""
    return relative(inv(unit, M, samples=100_000, calibration=calibration).value, np.linalg.inv(M))


Measure = Callable[[Any, np.ndarray, Calibration | None], float]


def errors(
    spec: UnitSpec, flaws: ArrayPhysics, kappa: float, measure: Measure, args: argparse.Namespace
) -> tuple[float, float, float]:
    """Of the ideal array, the flawed one, and the flawed one calibrated."""
    found = []
    for device in range(args.devices):
        physics = replace(flaws, device_seed=device)
        known = calibrate(NumericUnit(spec, physics))
        for seed in range(args.matrices):
            M = spd(spec.cells, kappa, seed)
            for each, calibration in ((None, None), (physics, None), (physics, known)):
                found.append(measure(NumericUnit(spec, each, seed=seed + 7), M, calibration))
    ideal, flawed, calibrated = np.sqrt(np.mean(np.reshape(found, (-1, 3)) ** 2, axis=0))
    return float(ideal), float(flawed), float(calibrated)


def won(ideal: float, flawed: float, calibrated: float) -> str:
    """The part of what was lost that came back."""
    return f"{1.0 - (calibrated - ideal) / (flawed - ideal):.2f}"


def bits_table(args: argparse.Namespace) -> str:
    """Accuracy won back, by bits of couplings and ADC."""
    rows = []
    for name, measure in (("means", by_means), ("covariances", by_covariance)):
        for bits in (6, 8, 10, 12):
            for kappa in (5, 30):
                spec = UnitSpec(cells=16, coupling_bits=bits, adc_bits=bits)
                three = errors(spec, FLAWS, kappa, measure, args)
                numbers = [f"{each:.4f}" for each in three]
                rows.append([f"{name}, κ = {kappa}", str(bits), *numbers, won(*three)])
    return table(["", "bits", "ideal", "flawed", "calibrated", "won back"], rows)


def flaws_table(args: argparse.Namespace) -> str:
    """What each flaw costs, and what is left of it, at 12 bits."""
    spec, rows = UnitSpec(cells=16, coupling_bits=12), []
    for name, on in ALONE.items():
        off = {field: None for field in FLAWS.__dataclass_fields__ if field not in on}
        off.pop("device_seed", None)
        physics, row = replace(FLAWS, **off), [name]
        for measure in (by_means, by_covariance):
            row += [f"{each:.4f}" for each in errors(spec, physics, 10, measure, args)]
        rows.append(row)
    kinds = ("ideal", "flawed", "calibrated")
    head = [*(f"means, {kind}" for kind in kinds), *(f"covariances, {kind}" for kind in kinds)]
    return table(["flaw", *head], rows)


def board_table() -> str:
    """The board of 1% parts of the README."""
    spec, physics = UnitSpec(cells=8, coupling_bits=12), ArrayPhysics.discrete_board()
    known = calibrate(NumericUnit(spec, physics))
    M = 0.5 * np.eye(8) + 0.5
    exact, rows = np.linalg.inv(M), []
    for samples in (1_000, 30_000, 900_000):
        plain = inv(NumericUnit(spec, physics), M, samples=samples)
        found = inv(NumericUnit(spec, physics), M, samples=samples, calibration=known)
        error, bar = relative(found.value, exact), np.linalg.norm(found.standard_error)
        bar = float(bar / np.linalg.norm(exact))
        rows.append(
            [
                f"{samples:,}",
                f"{relative(plain.value, exact):.4f}",
                f"{error:.4f}",
                f"{bar:.4f}",
                f"{error / bar:.2f}",
            ]
        )
    return table(["samples", "as it is", "calibrated", "standard error", "ratio"], rows)


def noise_table() -> str:
    """What is left of noise off by 5% and τ off by 5%, by how it is corrected."""
    rows = []
    for n in (16, 64):
        for kappa in (3, 10, 30):
            spec = UnitSpec(cells=n, coupling_bits=16)
            physics = ArrayPhysics(noise_mismatch=0.05, tau_mismatch=0.05, device_seed=1)
            known = calibrate(NumericUnit(spec, physics))
            M, row = spd(n, kappa, 0), [f"{n}, κ = {kappa}"]
            exact = np.linalg.inv(M)
            ideal = inv(NumericUnit(spec, seed=3), M, samples=500_000)
            row.append(f"{relative(ideal.value, exact):.4f}")
            for kind in ("none", "scaled", "exact"):
                unit = Calibrated(NumericUnit(spec, physics, seed=3), known, noise=kind)
                row.append(f"{relative(inv(unit, M, samples=500_000).value, exact):.4f}")
            rows.append(row)
    return table(["cells", "equal noise", "none", "scaled, O(n²)", "exact, O(n³)"], rows)


def offsets_table() -> str:
    """Solutions with offsets of 1%, by what is done about them."""
    spec = UnitSpec(cells=16, coupling_bits=16)
    physics = ArrayPhysics(cell_offset=0.01, adc_offset=0.01, device_seed=3)
    known = calibrate(NumericUnit(spec, physics))
    M, B = spd(16, 10, 0), np.random.default_rng(0).standard_normal((16, 64))
    exact, rows = np.linalg.solve(M, B), []
    for samples in (1, 100):
        for name, offsets, calibration in (
            ("kept", "kept", None),
            ("blank readings", "blank", None),
            ("chopped", "chopped", None),
            ("calibrated", "kept", known),
        ):
            array = program(NumericUnit(spec, physics, seed=3), M, calibration=calibration)
            array.solve(B)  # how strongly to drive is known from here on
            found = array.solve(B, samples=samples, settle=1e-4, offsets=offsets)
            bar = float(np.linalg.norm(found.standard_error) / np.linalg.norm(exact))
            rows.append(
                [
                    f"{name}, {samples}",
                    f"{relative(found.value, exact):.4f}",
                    f"{bar:.4f}",
                    str(found.activity.vectors),
                    f"{1e6 * found.hardware_seconds:.0f}",
                ]
            )
    return table(["offsets, readings", "error", "standard error", "bias vectors", "µs"], rows)


def cost_table() -> str:
    """What a calibration costs, and how exact it is, by cells and readings."""
    rows = []
    for n in (8, 16, 64):
        for samples in (1024, 16384):
            known = calibrate(NumericUnit(UnitSpec(cells=n), FLAWS), samples=samples)
            values = known.values
            shown = (
                values.couplings_error,
                values.gains_error,
                values.cell_offsets_error,
                values.adc_offsets_error,
                values.noise_error,
                values.taus_error,
            )
            exactness = [f"{1e4 * float(np.sqrt(np.mean(each**2))):.2g}" for each in shown]
            seconds = f"{known.seconds:.2g}"
            rows.append([str(n), f"{samples:,}", str(known.runs), seconds, *exactness])
    head = ["readings", "runs", "s", "couplings", "gains", "cell offsets", "ADC offsets"]
    return table(["cells", *head, "noise", "τ"], rows)


def main() -> None:
    """Print all tables, as they are done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--matrices", type=int, default=3)
    args = parser.parse_args()
    print(cost_table(), board_table(), noise_table(), offsets_table(), sep="\n\n", flush=True)
    print(bits_table(args), flaws_table(args), sep="\n\n", flush=True)


if __name__ == "__main__":
    main()
