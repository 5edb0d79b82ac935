"""Speed of the numeric engine: whole jobs beside thermox, BLAS, and their own random numbers.

    python benchmarks/numeric.py [--cells 8 64 128 512] [--samples 100000] [--rounds 5]
    pip install "thermokron[thermox]"  # for the comparison, which is left out otherwise

A job is `NumericUnit.run` with second moments: drawing, conversion to codes and Σxxᵀ. thermox
draws as many samples of the same matrix at the same interval, by `sample` under jit with what
`preprocess` returned, by the faster of its two scans; compiling it is not timed.
Both have as many threads, and all take turns in one process. The GEMM rate is NumPy's, float64, of
matrices of 2,048 rows. Useful work of a sample is 2n² operations of rotation and n(n+1) of
accumulation. A small job's random numbers are those of a Philox generator of NumPy, float64, and
beside them those that the engine makes itself.

Prints one Markdown table: medians over the rounds, with least and most. The goals: at least 5
times thermox's samples per second at 64, 128 and 512 cells, 1.5 times at 8; half of the GEMM rate
at 512; a job of 16 cells and 1,000 samples in 1.5 times its random numbers; 10⁷ samples of 64
cells within 500 MB.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np

from thermokron.model import ArrayPhysics, Job, NoiseArray, NumericUnit, UnitSpec
from thermokron.model.normals import Normals

#: Time between samples, in units of τ/λ_min: watching continuously would tell 8 % more.
INTERVAL = 0.5
ROWS = 2048
SMALL = 16, 1000
LARGE = 64, 10**7


def job(cells: int, samples: int) -> tuple[UnitSpec, NoiseArray, Job]:
    """A well-conditioned job with second moments, and its array."""
    rng = np.random.default_rng(cells)
    factors = rng.standard_normal((cells, 2 * cells))
    matrix = factors @ factors.T / (2 * cells)
    scale = 1.01 * np.sqrt(np.diag(matrix))
    spec = UnitSpec(cells=cells, tau_s=1e-8 * cells)
    couplings = spec.coupling_codes(matrix / scale[:, None] / scale)
    array = NoiseArray(spec, ArrayPhysics.ideal(), couplings, spec.temperature_max // 4)
    slowest = array.eigenvalues[0] * array.elapsed(1)
    return (
        spec,
        array,
        Job(
            couplings=couplings,
            biases=np.zeros((1, cells), np.int64),
            temperature=spec.temperature_max // 4,
            settle_cycles=round(10 / slowest),
            interval_cycles=max(round(INTERVAL / slowest), spec.shortest_interval()),
            samples=samples,
        ),
    )


def thermox_of(array: NoiseArray, work: Job) -> list[Callable[[], object]]:
    """The faster of thermox's two ways to draw what a job draws, compiled; none without it."""
    if any(importlib.util.find_spec(name) is None for name in ("jax", "thermox")):
        return []
    import jax
    import thermox

    jax.config.update("jax_enable_x64", True)
    n = work.couplings.shape[0]
    matrix = jax.numpy.asarray(array.matrix)
    diffusion = 2.0 * jax.numpy.diag(jax.numpy.asarray(array.temperatures))
    drift, noise = thermox.preprocess(matrix, diffusion)
    times = array.elapsed(work.interval_cycles) * jax.numpy.arange(work.samples + 1.0)
    zero = jax.numpy.zeros(n)

    def draw(associative: bool) -> Callable[[], object]:
        compiled = jax.jit(
            lambda key, *rest: thermox.sample(key, *rest, associative_scan=associative)
        )
        keys = iter(jax.random.split(jax.random.PRNGKey(0), 1000))
        return lambda: compiled(next(keys), times, zero, drift, zero, noise).block_until_ready()

    both = draw(True), draw(False)
    for compile_it in both:
        compile_it()
    return [min(both, key=timed)]


def timed(act: Callable[[], object], repeats: int = 1) -> float:
    """Seconds that it takes, on average over repeats at once."""
    begin = time.perf_counter()
    for _ in range(repeats):
        act()
    return (time.perf_counter() - begin) / repeats


def rounds_of(count: int, acts: list[Callable[[], object]], repeats: int = 1) -> list[list[float]]:
    """Seconds of each, by rounds in which they take turns; one goes first that does not count."""
    for act in acts:
        act()
    found: list[list[float]] = [[] for _ in acts]
    for _ in range(count):
        for act, times in zip(acts, found, strict=True):
            times.append(timed(act, repeats))
    return found


def spread(values: list[float], form: str = ".3g") -> str:
    """Median, and least to most."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def threads() -> int:
    """How many BLAS has, as the engine."""
    from threadpoolctl import threadpool_info

    return int(next(each["num_threads"] for each in threadpool_info()))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, nargs="+", default=[8, 64, 128, 512])
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rows: list[tuple[str, str]] = []

    def say(name: str, value: str) -> None:
        rows.append((name, value))
        print(f"{name}: {value}", flush=True)

    # memory first: what is to come takes its own
    spec, _, work = job(LARGE[0], 10**6)
    unit = NumericUnit(spec)
    seconds = timed(lambda: [unit.run(work) for _ in range(LARGE[1] // work.samples)])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    say(f"{LARGE[1]:,} samples of {LARGE[0]} cells", f"{seconds:.1f} s, {peak:.0f} MB at most")

    n, samples = SMALL
    spec, _, work = job(n, samples)
    unit, out = NumericUnit(spec), np.empty((1, n * samples))
    generator, own = np.random.Generator(np.random.Philox(1)), Normals()
    small = rounds_of(
        args.rounds,
        [
            lambda: unit.run(work),
            lambda: generator.standard_normal(out=out),
            lambda: own.draw(1, 0, range(1), 0, out),
        ],
        200,
    )
    say(f"{n} cells, {samples:,} samples: µs", spread([1e6 * t for t in small[0]]))
    for name, numbers in (("NumPy's", small[1]), ("its own", small[2])):
        ratios = [a / b for a, b in zip(small[0], numbers, strict=True)]
        say(f"{n} cells, {samples:,} samples: times {name} normals", spread(ratios))

    a, b = np.random.default_rng(0).standard_normal((2, ROWS, ROWS))
    for n in args.cells:
        spec, array, work = job(n, args.samples)
        unit = NumericUnit(spec)
        acts = [lambda: unit.run(work), lambda: a @ b, *thermox_of(array, work)]  # noqa: B023
        ours, gemm, *theirs = rounds_of(args.rounds, acts)
        say(f"{n} cells: samples per second", spread([args.samples / t for t in ours]))
        useful = (2 * n**2 + n * (n + 1)) * args.samples
        rates = [useful / t / (2 * ROWS**3 / g) for t, g in zip(ours, gemm, strict=True)]
        say(f"{n} cells: useful work in parts of the GEMM rate", spread(rates))
        if theirs:
            ratios = [b / o for b, o in zip(theirs[0], ours, strict=True)]
            say(f"{n} cells: times thermox's samples per second", spread(ratios))
    say("GEMM rate, GFlop/s", spread([2e-9 * ROWS**3 / t for t in gemm]))
    print(f"\nThreads: {threads()}; rounds: {args.rounds}; median (least to most).\n")
    print("| | |\n|---|---|")
    print("\n".join(f"| {name} | {value} |" for name, value in rows))


if __name__ == "__main__":
    main()
