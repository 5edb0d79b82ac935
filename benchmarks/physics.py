"""What each effect of `ArrayPhysics` does to a covariance, and what it costs to sample.

    python benchmarks/physics.py [--cells 32] [--top 14] [--condition 30 100] [--devices 8]

The matrix has eigenvalues spread geometrically up to `--top` in units in which its diagonal is 1 in
the mean. Of each effect alone: the covariance of what the converters see, settled, by Lyapunov's
equation, beside the inverse of the matrix, as a relative error (Frobenius, median over devices and
matrices); the variance that it leaves to the stiffest mode, as a multiple; and the time of a sample
of one long run. No sampling noise is in the errors, nor rounding, nor what a converter adds. 1/f
noise is stated by the frequency at which it meets the white source's, at full temperature.

Prints one Markdown table for each condition number, and one of what a clamp leaves of the variance
of a single cell, by Boltzmann's distribution, with the time of a short step.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
import warnings
from dataclasses import replace

import numpy as np
import scipy.linalg

from thermokron.host.tables import markdown
from thermokron.model import ArrayPhysics, Job, NoiseArray, NumericUnit, UnitSpec, sample_blocks
from thermokron.model.linear import instants, linear_system, step_through
from thermokron.model.saturation import SaturatedLaw

TAU_S = 1e-6
SAMPLES = 20_000


def bandwidth(lag: float) -> float:
    """Of a pole at so many τ."""
    return 1.0 / (2.0 * np.pi * lag * TAU_S)


def flicker(corner: float) -> float:
    """Amplitude at 1 Hz of 1/f noise as dense at a corner as the white noise, 4 T τ."""
    return float(np.sqrt(4.0 * UnitSpec(cells=2).temperature_full_scale * TAU_S * corner))


EFFECTS = {
    "none": ArrayPhysics(),
    "couplings 1%": ArrayPhysics(coupling_mismatch=0.01),
    "couplings drift, ν 0.002, a day": ArrayPhysics(coupling_drift=0.002, coupling_age_s=86_400.0),
    "tempco 50 ppm/K, 40 K": ArrayPhysics(coupling_tempco_per_k=50e-6, temperature_rise_k=40.0),
    "one-way couplings 0.8%": ArrayPhysics(coupling_asymmetry=0.008),
    "τ 20%": ArrayPhysics(tau_mismatch=0.2),
    "noise bandwidth, 0.05 τ": ArrayPhysics(noise_bandwidth_hz=bandwidth(0.05)),
    "coupling amplifiers, 0.1 τ": ArrayPhysics(coupling_bandwidth_hz=bandwidth(0.1)),
    "ADC input filter, 0.05 τ": ArrayPhysics(adc_bandwidth_hz=bandwidth(0.05)),
    "all of the above": ArrayPhysics(
        coupling_mismatch=0.01,
        coupling_drift=0.002,
        coupling_age_s=86_400.0,
        coupling_tempco_per_k=50e-6,
        temperature_rise_k=40.0,
        coupling_asymmetry=0.008,
        tau_mismatch=0.2,
        noise_bandwidth_hz=bandwidth(0.05),
        coupling_bandwidth_hz=bandwidth(0.1),
        adc_bandwidth_hz=bandwidth(0.05),
    ),
    "1/f noise, corner 100 Hz": ArrayPhysics(cell_flicker=flicker(100.0)),
    "jitter, 0.001 τ": ArrayPhysics(adc_jitter_s=1e-3 * TAU_S),
    "skew, 0.01 τ": ArrayPhysics(adc_skew_s=1e-2 * TAU_S),
}


def programmed(args: argparse.Namespace, condition: float, seed: int) -> tuple[np.ndarray, float]:
    """Coupling codes, and by what the matrix was divided to fit them."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.standard_normal((args.cells, args.cells)))
    matrix = (q * np.geomspace(1.0 / condition, 1.0, args.cells)) @ q.T
    matrix *= args.top
    scale = float(np.abs(matrix).max())
    return spec(args).coupling_codes((matrix + matrix.T) / (2.0 * scale)), scale


def spec(args: argparse.Namespace, scale: float = 1.0) -> UnitSpec:
    """Cells that are as much slower as couplings are less than they should be: the same times."""
    return UnitSpec(cells=args.cells, coupling_bits=16, adc_bits=16, tau_s=TAU_S / scale)


def settled(
    args: argparse.Namespace, physics: ArrayPhysics, condition: float, seed: int
) -> tuple[float, float]:
    """Relative error, and the variance of the stiffest mode over what it should be."""
    codes, scale = programmed(args, condition, seed)
    unit = spec(args, scale)
    array = NoiseArray(unit, replace(physics, device_seed=seed), codes, unit.temperature_max)
    found = seen_covariance(array) / unit.temperature_full_scale
    matrix = unit.coupling_values(codes)
    exact, stiff = np.linalg.inv(matrix), np.linalg.eigh(matrix)[1][:, -1]
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    return float(error), float(stiff @ found @ stiff / (stiff @ exact @ stiff))


def seen_covariance(array: NoiseArray) -> np.ndarray:
    """Stationary, of what the converters convert, in the mean over the instants of jitter."""
    system, delays = linear_system(array), instants(array)
    whole = scipy.linalg.solve_continuous_lyapunov(system.drift, -system.diffusion)
    if delays is None:
        return whole[system.seen, system.seen]
    n, found = array.spec.cells, np.zeros((array.spec.cells,) * 2)
    chances = [1 / 6, 2 / 3, 1 / 6] if len(delays) == 3 else [1.0]
    law = step_through(system._replace(start=whole), 0.0, delays)
    joint = law.covariance + law.transition @ whole @ law.transition.T
    joint = joint[len(whole) :, len(whole) :].reshape(len(delays), n, len(delays), n)
    for (k, first), (q, second) in itertools.product(enumerate(chances), repeat=2):
        found += first * second * joint[k, :, q]
    np.fill_diagonal(found, np.diag(whole[system.seen, system.seen]))
    return found


def clamped_variance(ratio: float) -> float:
    """Of a cell with a clamp at so many standard deviations, over that without."""
    x = np.linspace(-8.0, 8.0, 20_001)
    weight = np.exp(-(x**2 / 2.0 + x**2 * (x / ratio) ** 8 / 10.0))
    return float(weight @ x**2 / weight.sum())


def sample_time(args: argparse.Namespace, physics: ArrayPhysics, condition: float) -> float:
    """Microseconds a sample."""
    codes, scale = programmed(args, condition, 0)
    unit = spec(args, scale)
    job = Job(
        couplings=codes,
        biases=np.zeros((1, args.cells), int),
        temperature=9,
        settle_cycles=10_000,
        interval_cycles=max(100, unit.shortest_interval()),
        samples=SAMPLES,
    )
    opened = NumericUnit(unit, physics)
    opened.run(job)
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        opened.run(job)
        times.append(time.perf_counter() - begun)
    return statistics.median(times) / SAMPLES * 1e6


def step_time(args: argparse.Namespace, condition: float) -> float:
    """Microseconds a short step of an array with clamps."""
    codes, scale = programmed(args, condition, 0)
    array = NoiseArray(spec(args, scale), ArrayPhysics(cell_saturation=1.0), codes, 9)
    program = {"settle_cycles": 100, "interval_cycles": 100, "seed": 0, "stream": 0}
    blocks = sample_blocks(array, np.zeros((1, args.cells), int), **program)
    next(blocks)  # the first sample, and the law
    steps = SaturatedLaw(array, 100, 100).steps[1]
    begun = time.perf_counter()
    next(blocks)  # fifteen
    return (time.perf_counter() - begun) / (15 * steps) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=32)
    parser.add_argument("--top", type=float, default=14.0)
    parser.add_argument("--condition", type=float, nargs="+", default=[30.0, 100.0])
    parser.add_argument("--devices", type=int, default=8)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="cells of tau_s")
    for condition in args.condition:
        rows = []
        for name, physics in EFFECTS.items():
            each = [settled(args, physics, condition, seed) for seed in range(args.devices)]
            error, stiff = (statistics.median(column) for column in zip(*each, strict=True))
            micros = sample_time(args, physics, condition)
            rows.append([name, f"{error:.3f}", f"{stiff:.2f}", f"{micros:.1f}"])
        head = ["effect", "error of the covariance", "stiffest mode", "µs a sample"]
        print(f"κ = {condition:g}, {args.cells} cells, λ up to {args.top:g}\n")
        print(markdown(head, rows) + "\n")
    clamps = [(ratio, clamped_variance(ratio)) for ratio in (1.0, 1.5, 2.0, 3.0, 4.0)]
    rows = [[f"{ratio:g}", f"{left:.3f}"] for ratio, left in clamps]
    print(markdown(["clamp, standard deviations", "variance left"], rows) + "\n")
    micros = step_time(args, args.condition[0])
    print(f"with clamps, {args.cells} cells: {micros:.1f} µs a short step")


if __name__ == "__main__":
    main()
